"""Encoding within the available memory: the whole image, in parts where memory is short, to the same latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiDownsample
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import NUM_SPLITS, DecodeSettings, kept_in
from maisi_aug.errors import MemoryShortageError
from maisi_aug.networks.decoder import (
    FLOAT_BYTES,
    HALO,
    ComputeKind,
    choose_fitting,
    compute_in_memory,
    settings_by_memory,
)
from maisi_aug.networks.streaming import MIN_THICKNESS, is_streamable, stream

# Float32 copies of the widest features that are held at once. On a CPU measured with rflow-ct's autoencoder at a
# quarter of its width (tests/networks/test_encoder.py); taken to be the same on other devices.
WHOLE_COPIES = 4.0
HELD_COPIES = {"all": 2.1, "most": 1.6, "least": 1.2, "host": 0.2}
"""Memory of kept features in float32 relative to the widest, by what is kept between passes; half precision: half."""
PART_COPIES = 4.9
"""Memory of the part that is computed, relative to the whole."""


@dataclass(frozen=True)
class Encoder:
    """The encoder of an autoencoder on its device; it remembers in how few parts an image exceeded the memory.

    Attributes:
        autoencoder: MAISI's VAE. One with plain layers goes through an image in parts, others split every convolution.
        memory_gb: Memory that encoding may take, in addition to weights and image; None for what is free.
    """

    autoencoder: nn.Module
    memory_gb: float | None = None
    _too_much: dict[tuple[int, ...], set[DecodeSettings]] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Return the posterior mean of an image.

        Args:
            image: ``(B, 1, I, J, K)`` intensities, those of CT in [0, 1].

        Returns:
            ``(B, C, i, j, k)``, not scaled; the same in any number of parts, up to rounding.

        Raises:
            MemoryShortageError: When even the largest number of parts takes more memory than there is.
        """
        device = str(image.device)
        too_much = self._too_much.setdefault(tuple(image.shape), set())
        options = [option for option in self._options(image) if option not in too_much]
        kind = (image.device.type, "half" if torch.is_autocast_enabled(image.device.type) else "float32")
        needed = [estimate_encode_bytes(self.autoencoder, option, image.shape, kind=kind) for option in options]
        fitting = options[choose_fitting(needed, device, self.memory_gb)[0] :]
        subject = f"Encoding {'x'.join(map(str, image.shape[2:]))} voxels on {device}"
        found = compute_in_memory(partial(self._encode, image), fitting, image.device, too_much, subject=subject)
        if found is None:
            raise MemoryShortageError(
                f"{subject}: out of memory even in {NUM_SPLITS[-1]} parts. Free some memory, or choose another "
                "--device."
            )
        return found[0]

    def _options(self, image: Tensor) -> list[DecodeSettings]:
        """The whole, then more and more parts."""
        if not is_streamable(cast(nn.Module, self.autoencoder.encoder)):
            return [DecodeSettings(None)]
        sides = image.shape[2], image.shape[3], image.shape[4]
        options = settings_by_memory(DecodeSettings(None), sides, device_type=image.device.type, may_split=True)
        return [option for option in options if option.window is None]

    def _encode(self, image: Tensor, settings: DecodeSettings) -> Tensor:
        if settings.num_splits == 1:
            return cast(Tensor, self.autoencoder.encode(image)[0])  # type: ignore[operator]
        blocks = _blocks_of(self.autoencoder)
        keep = "all" if settings.on_host else kept_in(settings.num_splits)
        features = stream(blocks, image, num_parts=settings.num_splits, keep=keep, on_host=settings.on_host)
        return cast(Tensor, cast(nn.Module, self.autoencoder.quant_conv_mu)(features))


def estimate_encode_bytes(
    autoencoder: nn.Module, settings: DecodeSettings, shape: Sequence[int], *, kind: ComputeKind = ("cpu", "float32")
) -> int:
    """Return the peak memory of encoding in bytes, in addition to weights and image.

    ``bytes = 4 B V C n`` with B images, V their voxels, C the channels of the widest features per image voxel, and n
    the copies of them that are held.

    Args:
        autoencoder: MAISI's VAE.
        settings: In how many parts, and where features wait.
        shape: ``(B, 1, I, J, K)`` of the image.
        kind: Type of the device, and what it computes in.
    """
    share = 0.5 if kind[1] == "half" else 1.0
    side = shape[2]
    if settings.num_splits == 1:
        copies = WHOLE_COPIES * share
    else:
        held = HELD_COPIES["host" if settings.on_host else kept_in(settings.num_splits)]
        num_parts = max(min(settings.num_splits, side // MIN_THICKNESS), 1)
        copies = held * share + PART_COPIES * (1 / num_parts + HALO / side)
    return int(FLOAT_BYTES * shape[0] * math.prod(shape[2:]) * _widest_channels(autoencoder) * copies)


def _widest_channels(autoencoder: nn.Module) -> float:
    """Channels per image voxel of the widest features."""
    widest, level = 0.0, 0
    for block in _blocks_of(autoencoder):
        for layer in block.modules():
            if isinstance(layer, nn.Conv3d):
                widest = max(widest, max(layer.in_channels, layer.out_channels) / 8**level)
        level += isinstance(block, MaisiDownsample)
    return widest


def _blocks_of(autoencoder: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(cast(nn.ModuleList, cast(nn.Module, autoencoder.encoder).blocks))
