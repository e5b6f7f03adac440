"""Decoding within the memory that there is: less of it at a time instead of an error, and said so."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import DecodeSettings, DecodingConfig, LatentShape
from maisi_aug.errors import MemoryShortageError
from maisi_aug.networks.decoding import decode_latent
from maisi_aug.networks.decoding_memory import USABLE_SHARE, estimate_decode_bytes, find_free_bytes, settings_by_memory
from maisi_aug.networks.devices import release_memory
from maisi_aug.system.memory import is_out_of_memory

_LOG = logging.getLogger(__name__)
_GB = 1e9


@dataclass(frozen=True)
class Decoder:
    """The decoder of a bundle on its device; it learns which settings are too much.

    Attributes:
        autoencoder: MAISI's VAE.
        definition: Of the autoencoder.
        scale_factor: The bundle's.
        default_window: Latent voxels decoded at once when nobody asks for anything else; None for the whole.
        default_splits: The same for parts in which it is computed.
        may_split: Whether the whole can be decoded in ever more parts, to the same image; it is decoded in windows by
            default where it cannot.
    """

    autoencoder: nn.Module
    definition: Mapping[str, Any]
    scale_factor: float
    default_window: LatentShape | None = None
    default_splits: int = 1
    may_split: bool = True
    _too_much: dict[LatentShape, set[DecodeSettings]] = field(default_factory=dict, repr=False)

    def decode(self, latent: Tensor, config: DecodingConfig | None = None) -> tuple[Tensor, DecodeSettings]:
        """Decode a latent, in smaller windows or with more splits than asked for where memory is short.

        Args:
            latent: ``(B, C, i, j, k)``, still multiplied by the scale factor.
            config: What was asked for.

        Returns:
            ``(B, 1, I, J, K)`` float32 in [0, 1], and how it was decoded.

        Raises:
            MemoryShortageError: When even the smallest windows take more memory than there is.
        """
        config = config or DecodingConfig()
        sides = cast(LatentShape, tuple(latent.shape[2:]))
        too_much = self._too_much.setdefault(sides, set())
        device = str(latent.device)
        options = [option for option in self._options(config, sides, device) if option not in too_much]
        for settings in options[self._first_that_fits(options, sides, device, config.memory_gb) :]:
            image = self._try(latent, settings)
            if image is not None:
                return image, settings
            too_much.add(settings)
            _LOG.warning(
                "Decoding %s latent voxels on %s: expected room for %s, found the memory used up; trying less at once.",
                *(_spell(sides), device, settings),
            )
        raise MemoryShortageError(
            f"Decoding {_spell(sides)} latent voxels on {device}: expected memory for windows of 16x16x16 at least, "
            "found it used up. Free some, choose a smaller --shape, or another --device."
        )

    def _options(self, config: DecodingConfig, sides: LatentShape, device: str) -> list[DecodeSettings]:
        takes_windows = config.takes_windows or not (self.may_split or config.mode or config.window)
        window = config.window or self.default_window if takes_windows else None
        wanted = DecodeSettings(
            None if window == "whole" else window, config.overlap, config.num_splits or self.default_splits
        )
        may_split = self.may_split and config.num_splits is None
        return list(settings_by_memory(wanted, sides, device_type=device.partition(":")[0], may_split=may_split))

    def _first_that_fits(
        self, options: list[DecodeSettings], sides: LatentShape, device: str, memory_gb: float | None
    ) -> int:
        """The index of the first settings that the memory should allow; that of the last where none does."""
        known = find_free_bytes(device)
        bounds = [int(USABLE_SHARE * known)] if known is not None else []
        bounds += [int(memory_gb * _GB)] if memory_gb is not None else []
        if not bounds or not options:
            return 0
        device_type = device.partition(":")[0]
        kind = (device_type, "half" if torch.is_autocast_enabled(device_type) else "float32")
        needed = [estimate_decode_bytes(self.definition, option, sides, kind=kind) for option in options]
        fitting = [index for index, number in enumerate(needed) if number <= min(bounds)]
        chosen = fitting[0] if fitting else len(options) - 1
        is_wanted = memory_gb is not None and bool(fitting) and min(bounds) == bounds[-1]
        if chosen and not is_wanted:
            _LOG.warning(
                "Decoding %s latent voxels on %s: expected about %.1f GB for %s, found %.1f GB; decoding %s instead.",
                *(_spell(sides), device, needed[0] / _GB, options[0], min(bounds) / _GB, options[chosen]),
            )
        return chosen

    def _try(self, latent: Tensor, settings: DecodeSettings) -> Tensor | None:
        """The image, or None where the memory did not suffice; nothing of the attempt is held any more then."""
        try:
            return decode_latent(self.autoencoder, latent, scale_factor=self.scale_factor, settings=settings)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Not before here: the error holds the frames, and those hold the tensors.
        gc.collect()
        release_memory(latent.device)
        return None


def _spell(sides: LatentShape) -> str:
    return "x".join(map(str, sides))
