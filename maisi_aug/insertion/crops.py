"""Crops around a lesion: cut from the image, and put back without touching any voxel outside of a zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.volumes.components import Mask
from maisi_aug.volumes.grid import Shape, Spacing

ZONE_MM, ZONE_VOXELS = 3.0, 2.6
"""How far around a lesion the image is drawn anew, at least: coarse voxels blur a lesion over its neighbours."""
FEATHER_MM = 1.5
"""Width in mm of the outer part of the zone, over which the drawn image fades into the real one."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A box cut out of a CT, which may reach beyond the CT's border.

    Attributes:
        image_hu: ``(I, J, K)`` float32; beyond the image its edge is repeated.
        is_inside: ``(I, J, K)`` mask of the voxels inside the image.
        start: First voxel along I, J, K; negative if the box begins before the image.
        spacing_mm: Voxel sides along I, J, K in mm.
    """

    image_hu: NDArray[np.float32]
    is_inside: Mask
    start: Shape
    spacing_mm: Spacing

    @property
    def shape(self) -> Shape:
        """Number of voxels of the box along I, J, K."""
        i, j, k = self.image_hu.shape
        return i, j, k

    @property
    def stop(self) -> Shape:
        """First voxel after the box along I, J, K."""
        i, j, k = (first + side for first, side in zip(self.start, self.shape, strict=True))
        return i, j, k

    def box_in(self, image_shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part of the box inside the image: as slices of the image, and as slices of the crop."""
        low = [max(0, first) for first in self.start]
        high = [min(side, last) for side, last in zip(image_shape, self.stop, strict=True)]
        in_image = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        in_crop = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True))
        return in_image, in_crop


def cut_crop(image_hu: NDArray[Any], start: Sequence[int], shape: Sequence[int], spacing_mm: Spacing) -> Crop:
    """Cut a box out of an image; beyond the image, its edge is repeated.

    Args:
        image_hu: ``(I, J, K)`` HU.
        start: First voxel of the box along I, J, K; may lie outside.
        shape: Voxels of the box; some must lie inside.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    places = [np.arange(first, first + side) for first, side in zip(start, shape, strict=True)]
    held = [np.clip(place, 0, side - 1) for place, side in zip(places, image_hu.shape, strict=True)]
    i, j, k = (place == kept for place, kept in zip(places, held, strict=True))
    inside = i[:, None, None] & j[None, :, None] & k[None, None, :]
    first_i, first_j, first_k = (int(first) for first in start)
    return Crop(image_hu[np.ix_(*held)].astype(np.float32), inside, (first_i, first_j, first_k), spacing_mm)


def choose_box(
    centre: Shape, reach_mm: float, spacing_mm: Spacing, *, factor: int, least_shape: Shape
) -> tuple[Shape, Shape]:
    """Return first voxel and shape, along I, J, K, of a box around a voxel.

    Args:
        centre: A voxel of the image.
        reach_mm: Smallest distance in mm from the voxel to each side of the box.
        spacing_mm: Voxel sides along I, J, K in mm.
        factor: Number of which every side is a multiple.
        least_shape: Smallest length of each side.
    """
    sides = []
    for step, least in zip(spacing_mm, least_shape, strict=True):
        wanted = max(least, 2 * int(np.ceil(reach_mm / step)) + 1)
        sides.append(-(-wanted // factor) * factor)
    (ci, cj, ck), (si, sj, sk) = centre, sides
    return (ci - si // 2, cj - sj // 2, ck - sk // 2), (si, sj, sk)


def weigh_zone(lesion: Mask, spacing_mm: Spacing) -> NDArray[np.float32]:
    """Return the weight with which a drawn image is blended in: 1 in and near the lesion, 0 at the end of the zone.

    Args:
        lesion: ``(I, J, K)`` mask of the lesion.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` float32 weights in [0, 1].
    """
    zone_mm = max(ZONE_MM, ZONE_VOXELS * max(spacing_mm[:2]))
    distance_mm = ndimage.distance_transform_edt(~lesion, sampling=spacing_mm)
    weight: NDArray[np.float32] = np.clip((zone_mm - distance_mm) / FEATHER_MM, 0.0, 1.0).astype(np.float32)
    return weight


def blend(image: NDArray[Any], drawn_hu: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[Any]:
    """Blend a drawn image into an image; voxels with weight 0 are unchanged.

    Args:
        image: ``(I, J, K)`` image, not modified; the result has its type, rounded and clipped for integers.
        drawn_hu: ``(I, J, K)`` drawn image in HU.
        weight: ``(I, J, K)`` weight of the drawn image in [0, 1].
    """
    mixed = image * (1.0 - weight) + drawn_hu * weight
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        mixed = np.clip(np.rint(mixed), limits.min, limits.max)
    blended: NDArray[Any] = np.where(weight > 0, mixed.astype(image.dtype), image)
    return blended
