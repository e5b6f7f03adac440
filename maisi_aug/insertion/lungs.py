"""The lungs of a chest CT by their HU, on coarse voxels: where a nodule may be put.

The method is the usual one of thresholds and parts (Hu et al., "Automatic lung segmentation for accurate quantitation
of volumetric X-ray CT images", IEEE TMI 2001), after the body envelope has taken the air around the patient away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import downscale_local_mean

from maisi_aug.errors import UnfitCtError, VolumeError
from maisi_aug.insertion.surroundings import AERATED_HU
from maisi_aug.volumes.body import find_body
from maisi_aug.volumes.components import Mask, bounding_box
from maisi_aug.volumes.grid import Shape, Spacing, voxel_volume_ml

COARSE_MM = 2.0
"""Side of the blocks on which lungs are found."""
LUNG_HU = (-940.0, -550.0)
"""Range of the median HU inside a lung; bowel gas and airways are outside of it."""
LEAST_LUNG_ML = 30.0
"""Smallest volume of a lung in mL; a slab of a few slices shows no more."""
VESSEL_MM = 4.0
"""Radius of the ball that closes the gaps of vessels."""
SLAB_VOXELS = 8_000_000
"""Voxels that are averaged at a time."""


@dataclass(frozen=True, eq=False)
class CoarseMask:
    """A mask of an image at the coarser resolution of blocks of voxels.

    Attributes:
        mask: ``(I', J', K')`` mask of the blocks; the last ones are padded if the sides are not divisible.
        factors: Voxels of the image per block along I, J, K.
        spacing_mm: Sides of a block along I, J, K in mm.
    """

    mask: Mask
    factors: Shape
    spacing_mm: Spacing

    @cached_property
    def depth_mm(self) -> NDArray[np.float32]:
        """``(I', J', K')`` depth in mm of blocks below the mask's surface; the image's border is not a surface."""
        box = bounding_box(self.mask, margin=1)
        padded = np.pad(self.mask[box], 1, mode="edge")
        inner = ndimage.distance_transform_edt(padded, sampling=self.spacing_mm)[1:-1, 1:-1, 1:-1]
        depth = np.zeros(self.mask.shape, dtype=np.float32)
        depth[box] = inner
        return depth

    def cut(self, start: Shape, stop: Shape) -> Mask:
        """Return the mask at voxel resolution in a box of the image; False beyond the image.

        Args:
            start: First voxel of the box along I, J, K.
            stop: First voxel after the box along I, J, K.
        """
        places = [np.arange(low, high) // factor for low, high, factor in zip(start, stop, self.factors, strict=True)]
        inside = [(place >= 0) & (place < side) for place, side in zip(places, self.mask.shape, strict=True)]
        held = [np.clip(place, 0, side - 1) for place, side in zip(places, self.mask.shape, strict=True)]
        found: Mask = self.mask[np.ix_(*held)]
        i, j, k = inside
        within: Mask = found & i[:, None, None] & j[None, :, None] & k[None, None, :]
        return within


def coarse_factors(spacing_mm: Spacing) -> Shape:
    """Return the numbers of voxels along I, J, K that make blocks of about 2 mm."""
    i, j, k = (max(1, round(COARSE_MM / step)) for step in spacing_mm)
    return i, j, k


def to_coarse(array: NDArray[Any], factors: Shape, *, fill: float) -> NDArray[np.float32]:
    """Average an array over blocks of voxels, in slabs along I to limit memory.

    Args:
        array: ``(I, J, K)`` array of any numeric type.
        factors: Voxels per block along I, J, K.
        fill: Value with which the last blocks are padded.
    """
    step = factors[0] * max(1, SLAB_VOXELS // (factors[0] * array[0].size))
    slabs = [
        downscale_local_mean(np.asarray(array[start : start + step], dtype=np.float32), factors, cval=fill)
        for start in range(0, array.shape[0], step)
    ]
    return np.concatenate(slabs).astype(np.float32)


def blocks_with(mask: Mask, factors: Shape) -> Mask:
    """Return the blocks that hold a voxel of a mask, of which few are set: lesions.

    Args:
        mask: ``(I, J, K)``.
        factors: Voxels per block along I, J, K.
    """
    found = np.zeros([-(-side // factor) for side, factor in zip(mask.shape, factors, strict=True)], dtype=bool)
    places = np.unravel_index(np.flatnonzero(mask), mask.shape)
    found[tuple(place // factor for place, factor in zip(places, factors, strict=True))] = True
    return found


def find_lungs(image_hu: NDArray[Any], spacing_mm: Spacing) -> CoarseMask:
    """Find the lungs of a CT with their vessels, but without wide airways.

    Args:
        image_hu: ``(I, J, K)`` HU in RAS+.
        spacing_mm: Voxel sides along I, J, K in mm.

    Raises:
        UnfitCtError: The image shows no lung.
    """
    factors = coarse_factors(spacing_mm)
    i, j, k = (factor * step for factor, step in zip(factors, spacing_mm, strict=True))
    coarse, coarse_mm = to_coarse(image_hu, factors, fill=-1000.0), (i, j, k)
    try:
        body = find_body(coarse, coarse_mm)
    except VolumeError as error:
        raise UnfitCtError(f"Lungs: no patient was found in the CT. {error}") from error
    parts, num_parts = ndimage.label((coarse < AERATED_HU) & body)
    lungs = np.zeros(coarse.shape, dtype=bool)
    if num_parts:
        numbers = np.arange(1, num_parts + 1)
        volumes_ml = np.bincount(parts.ravel(), minlength=num_parts + 1)[1:] * voxel_volume_ml(coarse_mm)
        for number in numbers[volumes_ml >= LEAST_LUNG_ML]:
            part = parts == number
            # Inside: the rim of bowel gas, mixed with the wall, is as dense as lung.
            inner = ndimage.binary_erosion(part)
            if inner.any() and LUNG_HU[0] <= np.median(coarse[inner]) <= LUNG_HU[1]:
                lungs |= part
    if not lungs.any():
        raise UnfitCtError(
            f"Lungs: the CT has no region of at least {LEAST_LUNG_ML:g} mL between {LUNG_HU[0]:g} and {LUNG_HU[1]:g} "
            "HU. Is it a CT of the chest, in HU?"
        )
    return CoarseMask(_close(lungs, coarse_mm) & body, factors, coarse_mm)


def _close(mask: Mask, spacing_mm: Spacing) -> Mask:
    """A closing with a ball of ``VESSEL_MM``: vessels inside of the mask become part of it."""
    near = np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= VESSEL_MM)
    closed: Mask = mask | (ndimage.distance_transform_edt(near, sampling=spacing_mm) > VESSEL_MM)
    return closed
