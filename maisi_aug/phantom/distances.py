"""Signed distances to masks, some of them on coarse blocks of voxels, and their way back to the voxels."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.phantom.noise import F32
from maisi_aug.volumes.components import Mask
from maisi_aug.volumes.grid import Shape, Spacing

COARSE_MM: Final = 4.5  # side of a block
FAR_MM: Final = 200.0  # distance to what is not there
_FILLED_SHARE: Final = 0.34  # of a block, from which it belongs to a mask


def signed_distance(mask: Mask, spacing_mm: tuple[float, ...]) -> F32:
    """Return the distance in mm to the surface of a mask, negative inside.

    Args:
        mask: ``(I, J, K)`` mask; what lies outside the grid counts as nothing.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    if mask.all() or not mask.any():
        return np.full(mask.shape, -FAR_MM if mask.all() else FAR_MM, dtype=np.float32)
    half = 0.5 * min(spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm).astype(np.float32)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm).astype(np.float32)
    result: F32 = np.where(mask, half - inside, outside - half).astype(np.float32)
    return result


def distance_to_hull(mask: Mask, spacing_mm: Spacing, *, close_mm: float) -> F32 | np.float32:
    """Return the signed distance to a mask whose gaps are closed, on blocks of about ``COARSE_MM``.

    Args:
        mask: ``(I, J, K)`` mask.
        spacing_mm: Voxel sides along I, J, K in mm.
        close_mm: Radius in mm of the ball that closes gaps up to twice as wide; 0 closes none.

    Returns:
        ``(I, J, K)`` mm, negative inside; the one number ``FAR_MM`` for an empty mask.
    """
    if not mask.any():
        return np.float32(FAR_MM)
    steps = coarse_steps(spacing_mm)
    fraction = to_blocks(mask, steps, fill=False).mean(axis=(1, 3, 5))
    coarse_mm = tuple(s * f for s, f in zip(spacing_mm, steps, strict=True))
    far = _distance_to(fraction >= _FILLED_SHARE, coarse_mm)
    if close_mm > 0:
        # Closing: what cannot be reached from outside by a ball is inside.
        far = signed_distance(far <= close_mm, coarse_mm) + np.float32(close_mm)
    else:
        far = signed_distance(far <= 0, coarse_mm)
    return refined(far, steps, mask.shape)


def _distance_to(mask: Mask, spacing_mm: tuple[float, ...]) -> F32:
    if not mask.any():
        return np.full(mask.shape, np.float32(FAR_MM))
    result: F32 = ndimage.distance_transform_edt(~mask, sampling=spacing_mm).astype(np.float32)
    return result


def coarse_steps(spacing_mm: Spacing) -> Shape:
    """Return how many voxels along I, J, K make a block of about ``COARSE_MM``.

    Args:
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    i, j, k = (max(1, round(COARSE_MM / step)) for step in spacing_mm)
    return i, j, k


def to_blocks(volume: NDArray[Any], steps: Shape, *, fill: Any) -> NDArray[Any]:
    """Return a volume as blocks, to be reduced over axes 1, 3 and 5; a view where the blocks fit.

    Args:
        volume: ``(I, J, K)``.
        steps: Voxels per block along I, J, K, written i, j, k below.
        fill: Value with which the last blocks are padded.

    Returns:
        ``(A, i, B, j, C, k)`` for A x B x C blocks.
    """
    width = [(0, -side % step) for side, step in zip(volume.shape, steps, strict=True)]
    padded = np.pad(volume, width, constant_values=fill) if any(more for _, more in width) else volume
    return padded.reshape([n for side, step in zip(padded.shape, steps, strict=True) for n in (side // step, step)])


def refined(
    coarse: F32, factors: tuple[int, ...], shape: tuple[int, ...], *, first: tuple[int, ...] | None = None
) -> F32:
    """Interpolate a field linearly at the voxels of a grid that is finer by whole factors.

    Args:
        coarse: ``(A, B, C)`` field.
        factors: Voxels of the fine grid per voxel of the field along I, J, K.
        shape: Voxels of the fine grid along I, J, K.
        first: Index on the fine grid of the field's first voxel; None if the field's voxels are blocks of the grid's.

    Returns:
        ``(I, J, K)`` float32; beyond the field's outermost voxel centres its values are repeated.
    """
    out = coarse
    for a in (2, 1, 0):  # last the axis whose voxels lie farthest apart in memory, which is the fastest
        factor = factors[a]
        start = 0.5 * (factor - 1) if first is None else first[a]
        place = np.clip((np.arange(shape[a]) - start) / factor, 0, coarse.shape[a] - 1)
        before = np.minimum(place.astype(int), max(coarse.shape[a] - 2, 0))
        rest = (place - before).astype(np.float32).reshape([-1 if b == a else 1 for b in range(3)])
        after = np.minimum(before + 1, coarse.shape[a] - 1)
        low, high = np.take(out, before, axis=a), np.take(out, after, axis=a)
        high *= rest
        low *= 1 - rest
        low += high
        out = low
    return out.astype(np.float32, copy=False)
