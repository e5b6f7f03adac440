"""Contents of the gut: gas that rises to the front of a supine patient, fluid, food and stool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.phantom.noise import F32, smooth_noise

Mask = NDArray[np.bool_]
GAS_HU: Final = -960.0
_LEVEL_SCALE_MM: Final = 13.0  # neighbourhood over which the local height inside a loop is measured


@dataclass(frozen=True)
class Filling:
    """Content of one organ of the bowel: gas, fluid or stool.

    Attributes:
        gas_level: Local height, in standard deviations, above which there is gas; larger means less gas.
        gas_spread: Variation of the level from place to place.
        content_hu: Mean HU of the fluid or stool.
        mottle_hu: Standard deviation of the solid content's texture.
        bubbles: Share of the content's voxels that are small gas bubbles.
    """

    gas_level: float
    gas_spread: float
    content_hu: float
    mottle_hu: float
    bubbles: float


def bounding_box(mask: Mask, *, pad: int = 1) -> tuple[slice, slice, slice] | None:
    """Return the smallest box around the true voxels of a mask, with a margin in voxels; None if there are none.

    Args:
        mask: ``(I, J, K)`` mask.
        pad: Margin in voxels, as far as the array reaches.
    """
    box = []
    for axis in range(3):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if along.size == 0:
            return None
        box.append(slice(max(0, int(along[0]) - pad), min(mask.shape[axis], int(along[-1]) + 1 + pad)))
    return box[0], box[1], box[2]


def eroded(mask: Mask) -> Mask:
    """Return the voxels whose six neighbours all belong to a mask; the grid's border does not count as outside."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    inner[:, :, 1:] &= mask[:, :, :-1]
    inner[:, :, :-1] &= mask[:, :, 1:]
    return inner


def local_height(mask: Mask, spacing_mm: tuple[float, float, float]) -> F32:
    """Return how far to the front (A) a voxel lies in its loop, in standard deviations of the loop's depth.

    Args:
        mask: ``(I, J, K)`` mask of the bowel.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` float32 heights; larger towards the front.
    """
    sigma = [_LEVEL_SCALE_MM / step for step in spacing_mm]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=2.0)
    depth = (np.arange(mask.shape[1], dtype=np.float32) * np.float32(spacing_mm[1])).reshape(1, -1, 1)
    depth = depth - depth.mean()
    mean = ndimage.gaussian_filter(mask * depth, sigma, truncate=2.0) / np.maximum(weight, np.float32(1e-4))
    result: F32 = (depth - mean) / np.float32(0.55 * _LEVEL_SCALE_MM)
    return result


def fill_lumen(
    image: F32,
    gut: Mask,
    filling: Filling,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    """Write content into the lumen of a gut organ; its outermost voxels keep the wall's HU.

    Args:
        image: ``(I, J, K)`` HU, changed in place inside the lumen.
        gut: The organ, wall included.
        filling: Content of the lumen.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of the texture.
    """
    box = bounding_box(gut, pad=2)
    if box is None:
        return
    mask = gut[box]
    lumen = _without_wall(mask, spacing_mm)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    height = local_height(mask, spacing_mm)
    level = np.float32(filling.gas_level) + np.float32(filling.gas_spread) * smooth_noise(shape, spacing_mm, rng, 110.0)
    gas = height > level
    mottle = smooth_noise(shape, spacing_mm, rng, 13.0)
    grain = rng.standard_normal(shape, dtype=np.float32)
    content = np.float32(filling.content_hu) + np.float32(filling.mottle_hu) * (0.8 * mottle + 0.35 * grain)
    if filling.bubbles > 0:
        rough = 0.6 * grain + 0.8 * mottle
        content = np.where(rough > np.quantile(rough, 1 - filling.bubbles), content - np.float32(330), content)
    content = np.where(gas, np.float32(GAS_HU), content)
    view = image[box]
    view[lumen] = content[lumen]


def _without_wall(mask: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """The lumen: the wall takes 2.5 mm, at least one voxel where voxels are not much coarser than that."""
    if min(spacing_mm) > 5.0:
        return mask
    inner = mask
    for _ in range(max(1, round(2.5 / max(spacing_mm)))):
        inner = eroded(inner)
    return inner
