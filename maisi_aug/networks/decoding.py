"""Decode a latent to an image with the VAE's decoder, whole or in overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby, product
from typing import cast

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiConvolution
from monai.data.utils import compute_importance_map
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import DEFAULT_OVERLAP, DecodeSettings, LatentShape, kept_in
from maisi_aug.networks.streaming import is_streamable, stream

Decode = Callable[[Tensor], Tensor]


@torch.inference_mode()
def decode_latent(
    autoencoder: nn.Module,
    latent: Tensor,
    *,
    scale_factor: float,
    settings: DecodeSettings | None = None,
    clips: bool = True,
) -> Tensor:
    """Decode a latent to an image, in the networks' intensities.

    Args:
        autoencoder: MAISI's VAE.
        latent: ``(B, C, i, j, k)``, still multiplied by ``scale_factor``.
        scale_factor: Factor by which the latent is divided.
        settings: Windows and parts; None decodes the whole image in the parts that the autoencoder is set to. A window
            is limited to the sides of the latent; a latent that fits into it is decoded as a whole.
        clips: Whether intensities are clipped to [0, 1], as those of CT.

    Returns:
        ``(B, 1, I, J, K)`` float32; in the host's memory if windows were assembled there.
    """
    # Windows are blended in the latent's type, and neighbouring bfloat16 values are up to 8 HU apart.
    unscaled = latent.float() / scale_factor
    window = None if settings is None else cut_window(settings.window, latent.shape[2:])
    num_splits = None if settings is None else settings.num_splits
    keeps_on_host = settings is not None and settings.on_host and window is None

    def decode(part: Tensor) -> Tensor:
        return decode_in_parts(autoencoder, part, num_splits, on_host=keeps_on_host)

    if settings is None or window is None:
        image = decode(unscaled)
    else:
        image = decode_windows(unscaled, window, decode, overlap=settings.overlap, on_host=settings.on_host)
    return image.clamp_(0.0, 1.0) if clips else image


def decode_in_parts(autoencoder: nn.Module, latent: Tensor, num_splits: int | None, *, on_host: bool = False) -> Tensor:
    """Decode a whole latent: with plain layers slab after slab, with MAISI's layers by splitting every convolution.

    Args:
        autoencoder: MAISI's VAE.
        latent: ``(B, C, i, j, k)``, not scaled.
        num_splits: Number of parts; None for the number that MAISI's layers are set to.
        on_host: Keep features between passes over the slabs in the host's memory.

    Returns:
        ``(B, 1, I, J, K)`` float32.
    """
    decoder = cast(nn.Module, autoencoder.decoder)
    if num_splits is not None and num_splits > 1 and is_streamable(decoder):
        features = cast(nn.Module, autoencoder.post_quant_conv)(latent)
        blocks = tuple(cast(nn.ModuleList, decoder.blocks))
        keep = "all" if on_host else kept_in(num_splits)
        return stream(blocks, features, num_parts=num_splits, keep=keep, on_host=on_host).float()
    for layer in decoder.modules():
        if num_splits is not None and isinstance(layer, MaisiConvolution):
            layer.num_splits = num_splits
    return cast(Tensor, autoencoder.decode(latent)).float()  # type: ignore[operator]


def cut_window(window: LatentShape | None, sides: torch.Size | LatentShape) -> LatentShape | None:
    """Limit a decoding window to the sides of a latent.

    Shorter sides are not padded with zeros, which would change what the decoder's norms see.

    Args:
        window: Sides of the window in latent voxels; None for the whole latent.
        sides: Sides of the latent along i, j, k.

    Returns:
        Sides of the window, none longer than the latent's; None if it covers the whole latent.
    """
    cut = None if window is None else cast(LatentShape, tuple(map(min, window, sides)))
    return None if cut == tuple(sides) else cut


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """Return where windows start along one axis, as in MONAI's ``sliding_window_inference``.

    Args:
        side: Number of voxels along the axis.
        window: Number of voxels of a window, at most ``side``.
        overlap: Share in [0, 1) of a window that overlaps the next one.

    Returns:
        Ascending indices of first voxels, from 0; the last window ends where the axis ends.
    """
    step = max(int(window * (1 - overlap)), 1)
    num_windows = 1 if window >= side else 1 + math.ceil((side - window) / step)
    return [min(number * step, side - window) for number in range(num_windows)]


def decode_windows(
    latent: Tensor, window: LatentShape, decode: Decode, *, overlap: float = DEFAULT_OVERLAP, on_host: bool = False
) -> Tensor:
    """Decode a latent in windows and blend them with Gaussian weights.

    The result equals that of MONAI's ``sliding_window_inference`` up to rounding. Since the weights are constant within
    a latent voxel, they are held at the size of the latent, which takes 1/64 of the memory. With ``on_host`` the device
    holds only the part of the image to which windows still contribute; finished slabs are copied to pinned memory.

    Args:
        latent: ``(B, C, i, j, k)``, ready for the decoder.
        window: Latent voxels along i, j, k, no longer than the latent.
        decode: Function from ``(B, C, *window)`` to ``(B, 1, *(f * window))`` with an integer f; may overwrite its
            output.
        overlap: Fraction of a window that overlaps with the next one.
        on_host: Assemble the image in the host's memory.

    Returns:
        ``(B, 1, I, J, K)`` on the latent's device, or in the host's memory.
    """
    sides = cast(LatentShape, tuple(latent.shape[2:]))
    starts = [window_starts(side, length, overlap) for side, length in zip(sides, window, strict=True)]
    weights = compute_importance_map(window, mode="gaussian", device=latent.device, dtype=torch.float32)  # (window)
    totals = torch.zeros(sides, device=latent.device)  # (i, j, k) sum of the weights of all windows
    for place in _places(starts, window):
        totals[place] += weights
    gathered: _Gathered | None = None
    for first, places in groupby(_places(starts, window), key=lambda place: place[0].start):
        if gathered is not None:
            gathered.finish_before(first)
        for place in places:
            part = decode(latent[:, :, *place])  # (B, 1, f * window)
            if gathered is None:
                gathered = _Gathered(part, totals, window, on_host=on_host)
            gathered.add(part, weights, place)
    assert gathered is not None
    return gathered.finish()


Place = tuple[slice, slice, slice]


def _places(starts: list[list[int]], window: LatentShape) -> Iterator[Place]:
    for corner in product(*starts):
        i, j, k = (slice(start, start + length) for start, length in zip(corner, window, strict=True))
        yield i, j, k


class _Gathered:
    """The image while its windows come in, one row of them along I after the other.

    ``buffer`` holds the sums from slab ``first`` on, in latent voxels; with ``on_host`` it is as thick as a window and
    moves along, else it is the image.
    """

    def __init__(self, part: Tensor, totals: Tensor, window: LatentShape, *, on_host: bool) -> None:
        self.factor = part.shape[2] // window[0]
        self.totals = totals
        self.first = 0
        i, j, k = (self.factor * side for side in totals.shape)
        self.thickness = window[0] if on_host else totals.shape[0]
        # (B, 1, f * thickness, J, K)
        self.buffer = part.new_zeros((*part.shape[:2], self.factor * self.thickness, j, k))
        self.image = self.buffer
        if on_host:
            self.image = torch.empty((*part.shape[:2], i, j, k), dtype=part.dtype, pin_memory=part.is_cuda)

    def add(self, part: Tensor, weights: Tensor, place: Place) -> None:
        """Add a decoded window, weighted in place."""
        _by_latent_voxel(part, self.factor).mul_(_spread(weights))  # weights are constant within a latent voxel
        i, j, k = (slice(self.factor * axis.start, self.factor * axis.stop) for axis in place)
        moved = self.factor * (self.first if self.image is not self.buffer else 0)
        self.buffer[:, :, i.start - moved : i.stop - moved, j, k] += part

    def finish_before(self, stop: int) -> None:
        """Divide the slabs before a latent voxel, which no further window changes, by their weights."""
        slabs = slice(self.factor * self.first, self.factor * stop)
        done, on_host = slabs.stop - slabs.start, self.image is not self.buffer
        finished = self.buffer[:, :, :done] if on_host else self.buffer[:, :, slabs]
        for channel in finished.flatten(0, 1):
            _by_latent_voxel(channel, self.factor).div_(_spread(self.totals[self.first : stop]))
        if on_host:
            # On a CUDA device the copy and what follows it are in one stream, so that nothing overtakes it.
            self.image[:, :, slabs].copy_(finished, non_blocking=True)
            rest = self.buffer[:, :, done:].clone()
            self.buffer[:, :, : rest.shape[2]] = rest
            self.buffer[:, :, rest.shape[2] :] = 0
        self.first = stop

    def finish(self) -> Tensor:
        """Return the image, when the last window is in."""
        self.finish_before(self.totals.shape[0])
        if self.buffer.is_cuda:
            torch.cuda.synchronize(self.buffer.device)
        return self.image


def _by_latent_voxel(image: Tensor, factor: int) -> Tensor:
    """A view ``(..., i, f, j, f, k, f)`` of ``(..., I, J, K)``."""
    shape = [size for side in image.shape[-3:] for size in (side // factor, factor)]
    return image.view(*image.shape[:-3], *shape)


def _spread(weights: Tensor) -> Tensor:
    """``(i, j, k)`` as ``(i, 1, j, 1, k, 1)``."""
    return weights[:, None, :, None, :, None]
