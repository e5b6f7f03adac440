"""Decoding within the available memory: estimates, and decoding in smaller parts instead of an error."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import (
    NUM_SPLITS,
    WINDOW_MULTIPLE,
    DecodeSettings,
    DecodingConfig,
    LatentShape,
    kept_in,
    latent_factor,
)
from maisi_aug.errors import MemoryShortageError
from maisi_aug.networks.decoding import cut_window, decode_latent
from maisi_aug.networks.devices import release_memory
from maisi_aug.networks.streaming import MIN_THICKNESS
from maisi_aug.system.memory import is_out_of_memory

_LOG = logging.getLogger(__name__)
_GB = 1e9

ComputeKind = tuple[str, str]
FLOAT_BYTES = 4
USABLE_SHARE = 0.9
"""Usable share of the free memory; the rest cannot be used by an allocator."""

# Float32 copies of the widest activation that are held at once. On a CPU measured with rflow-ct's autoencoder at a
# quarter of its width, 64^3 to 128^3 voxels, medians (tests/networks/test_decoding_memory.py); kept features of parts
# at 64^3, and at half the width at 128^3, once each. On a CUDA device, whose norms are in float32 also under autocast,
# not measured: the whole is a little above the slope of NVIDIA's
# published peaks over the size of the window (2.4; NV-Generate-CTMR, docs/inference.md: 15.0 GB for 64x64x32, 45.3 GB
# for 80x80x80 latent voxels); parts are counted by the tensors that are held.
WHOLE_COPIES = {("cpu", "float32"): 3.0, ("cpu", "half"): 1.85, ("cuda", "float32"): 4.0, ("cuda", "half"): 2.75}
HELD_COPIES = {"all": 1.12, "most": 0.95, "least": 0.6, "host": 0.2}
"""Memory of kept features in float32 relative to the whole, by what is kept between passes; half precision: half."""
PART_COPIES = {("cpu", "float32"): 3.2, ("cpu", "half"): 3.3, ("cuda", "float32"): 4.45, ("cuda", "half"): 3.3}
"""Memory of the part that is computed, relative to the whole."""
HALO = 4
"""Number of voxels along I by which a part is longer than its output."""
SCRATCH_BYTES = {"whole": 45_000_000, "parts": 15_000_000}
"""Scratch memory in bytes of convolutions on a CPU, whatever the size of the image."""


@dataclass(frozen=True)
class Decoder:
    """Decoder of latents to images on a device; it remembers which settings exceeded the memory.

    Attributes:
        autoencoder: MAISI's VAE.
        definition: Definition of the autoencoder.
        scale_factor: Factor by which latents are divided before decoding.
        default_window: Latent voxels along i, j, k that are decoded at once by default; None for the whole image.
        default_splits: Number of parts in which an image is computed by default.
        may_split: Whether an image can be computed in more and more parts with the same result; otherwise short memory
            leads to windows.
        clips: Whether intensities are clipped to [0, 1].
    """

    autoencoder: nn.Module
    definition: Mapping[str, Any]
    scale_factor: float
    default_window: LatentShape | None = None
    default_splits: int = 1
    may_split: bool = True
    clips: bool = True
    _too_much: dict[LatentShape, set[DecodeSettings]] = field(default_factory=dict, repr=False)

    def decode(self, latent: Tensor, config: DecodingConfig | None = None) -> tuple[Tensor, DecodeSettings]:
        """Decode a latent; if memory is short, in smaller windows or more parts than requested.

        Args:
            latent: ``(B, C, i, j, k)``, still multiplied by the scale factor.
            config: Requested settings; None for the defaults.

        Returns:
            ``(B, 1, I, J, K)`` float32 image in the networks' units, [0, 1] for CT, and the settings that were used.

        Raises:
            MemoryShortageError: Even the smallest windows take more memory than there is.
        """
        config = config or DecodingConfig()
        sides = cast(LatentShape, tuple(latent.shape[2:]))
        too_much = self._too_much.setdefault(sides, set())
        device = str(latent.device)
        options = [option for option in self._options(config, sides, device) if option not in too_much]
        fitting = options[self._first_that_fits(options, sides, device, config.memory_gb) :]
        subject = f"Decoding {_spell(sides)} latent voxels on {device}"
        found = compute_in_memory(partial(self._decode, latent), fitting, latent.device, too_much, subject=subject)
        if found is None:
            raise MemoryShortageError(
                f"{subject}: out of memory even for windows of 16x16x16. Free some memory, choose a smaller --shape, "
                "or another --device."
            )
        return found

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
        device_type = device.partition(":")[0]
        kind = (device_type, "half" if torch.is_autocast_enabled(device_type) else "float32")
        needed = [estimate_decode_bytes(self.definition, option, sides, kind=kind) for option in options]
        chosen, shortage = choose_fitting(needed, device, memory_gb)
        if shortage is not None:
            _LOG.warning(
                "Decoding %s latent voxels on %s: about %.1f GB are needed for %s, %.1f GB are free; decoding %s "
                "instead.",
                *(_spell(sides), device, needed[0] / _GB, options[0], shortage / _GB, options[chosen]),
            )
        return chosen

    def _decode(self, latent: Tensor, settings: DecodeSettings) -> Tensor:
        return decode_latent(
            self.autoencoder, latent, scale_factor=self.scale_factor, settings=settings, clips=self.clips
        )


def choose_fitting(needed: Sequence[int], device: str, memory_gb: float | None) -> tuple[int, int | None]:
    """Return the index of the first settings that the memory should allow; that of the last where none does.

    Args:
        needed: Memory in bytes that settings are estimated to need, from those that are preferred on.
        device: Device whose free memory counts.
        memory_gb: Memory that may be used; None for what is free.

    Returns:
        The index, and the bytes that are free where fewer than requested are.
    """
    known = find_free_bytes(device)
    bounds = [int(USABLE_SHARE * known)] if known is not None else []
    bounds += [int(memory_gb * _GB)] if memory_gb is not None else []
    if not bounds or not needed:
        return 0, None
    fitting = [index for index, number in enumerate(needed) if number <= min(bounds)]
    chosen = fitting[0] if fitting else len(needed) - 1
    is_wanted = memory_gb is not None and bool(fitting) and min(bounds) == bounds[-1]
    return chosen, min(bounds) if chosen and not is_wanted else None


def compute_in_memory(
    compute: Callable[[DecodeSettings], Tensor],
    options: Sequence[DecodeSettings],
    device: torch.device,
    too_much: set[DecodeSettings],
    *,
    subject: str,
) -> tuple[Tensor, DecodeSettings] | None:
    """Compute something by the first settings for which the memory suffices.

    Args:
        compute: Function of settings; errors other than a lack of memory are passed on.
        options: Settings to try, from those that are preferred on.
        device: Device whose memory is released after a failure.
        too_much: Takes the settings that failed.
        subject: What warnings call the computation.

    Returns:
        The result and its settings; None if the memory did not suffice for any.
    """
    for settings in options:
        result = _try_in_memory(partial(compute, settings), device)
        if result is not None:
            return result, settings
        too_much.add(settings)
        _LOG.warning("%s: out of memory for %s; trying smaller parts.", subject, settings)
    return None


def _try_in_memory(compute: Callable[[], Tensor], device: torch.device) -> Tensor | None:
    """The result; None if the memory did not suffice, and nothing of the attempt is held any more then."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Not before here: the error holds the frames, and those hold the tensors.
    gc.collect()
    release_memory(device)
    return None


def _spell(sides: LatentShape) -> str:
    return "x".join(map(str, sides))


def estimate_decode_bytes(
    definition: Mapping[str, Any],
    settings: DecodeSettings,
    sides: LatentShape,
    *,
    kind: ComputeKind = ("cpu", "float32"),
) -> int:
    """Estimate the peak memory of decoding in bytes, in addition to weights and latent.

    ``bytes = 4 V C n + 4 G + S`` with V the image voxels of the window, C the channels of the widest activation per
    image voxel (full resolution is reached before the number of channels is reduced), n the copies of it that are held,
    G the voxels of the image that is gathered on the device, and S what convolutions take on a CPU.

    Args:
        definition: Definition of the autoencoder; ``num_channels`` from the finest level to the coarsest.
        settings: Settings for decoding.
        sides: Latent voxels along i, j, k.
        kind: Type of the device, and floating-point type of the computation.
    """
    channels = [int(number) for number in definition["num_channels"]]
    factor = latent_factor(definition)
    window = cut_window(settings.window, sides) or sides
    coarser = [*channels[1:], channels[-1]]
    widest = max(max(pair) / 8**level for level, pair in enumerate(zip(channels, coarser, strict=True)))
    copies = _count_copies(settings, factor * window[0], kind)
    activations = math.prod(window) * factor**3 * widest * copies
    # Windows that are gathered in the host's memory leave a slab as thick as one of them on the device.
    thickness = window[0] if settings.on_host else sides[0]
    gathered = thickness * sides[1] * sides[2] * factor**3
    scratch = SCRATCH_BYTES["whole" if settings.num_splits == 1 else "parts"] if kind == ("cpu", "float32") else 0
    return int(FLOAT_BYTES * (activations + gathered)) + scratch


def _count_copies(settings: DecodeSettings, side: int, kind: ComputeKind) -> float:
    """Float32 copies of the widest activation of a window with so many image voxels along I."""
    if settings.num_splits == 1:
        return WHOLE_COPIES.get(kind) or max(WHOLE_COPIES.values())
    is_on_host = settings.on_host and settings.window is None
    held = HELD_COPIES["host" if is_on_host else kept_in(settings.num_splits)]
    num_parts = min(settings.num_splits, side // MIN_THICKNESS)
    per_part = PART_COPIES.get(kind) or max(PART_COPIES.values())
    return held * (0.5 if kind[1] == "half" else 1.0) + per_part * (1 / num_parts + HALO / side)


def find_free_bytes(device: str) -> int | None:
    """Return the free memory of a device in bytes; None if unknown."""
    place = torch.device(device)
    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        return free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
    if place.type == "cpu":
        known = [number for number in (_machine_bytes(), _container_bytes()) if number is not None]
        return min(known, default=None)
    return None


def _machine_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory left in a container (cgroup v2); None without a limit."""
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        return None


def settings_by_memory(
    wanted: DecodeSettings, sides: LatentShape, *, device_type: str, may_split: bool
) -> Iterator[DecodeSettings]:
    """Yield decoding settings that need less and less memory, beginning with those that change the image least.

    The device on which features are kept changes nothing; the number of parts changes the last digits; smaller windows,
    each with half the longest side of the one before, change what the decoder's norms see.

    Args:
        wanted: Requested settings, which come first.
        sides: Latent voxels along i, j, k.
        device_type: Type of the device, such as ``cuda``; on a ``cpu``, keeping features on the host saves nothing.
        may_split: Whether the number of parts may be changed.
    """
    current = replace(wanted, window=cut_window(wanted.window, sides))
    yield current
    has_host = device_type != "cpu"
    if current.window is not None and has_host and not current.on_host:
        current = replace(current, on_host=True)
        yield current
    for num_splits in NUM_SPLITS if may_split else ():
        if num_splits > current.num_splits:
            # A bus is faster than computing features a second time, which is what so many parts require.
            on_host = has_host and (current.on_host or kept_in(num_splits) != "all")
            current = replace(current, num_splits=num_splits, on_host=on_host)
            yield current
    while (window := _halve(current.window or sides)) is not None:
        current = replace(current, window=window, on_host=has_host)
        yield current


def _halve(window: LatentShape) -> LatentShape | None:
    """The window with half its longest side, a multiple of 16; None where every side has 16 or fewer."""
    longest = max(range(3), key=lambda axis: window[axis])
    if window[longest] <= WINDOW_MULTIPLE:
        return None
    half = WINDOW_MULTIPLE * math.ceil(window[longest] / 2 / WINDOW_MULTIPLE)
    half = half if half < window[longest] else WINDOW_MULTIPLE
    return cast(LatentShape, tuple(half if axis == longest else side for axis, side in enumerate(window)))
