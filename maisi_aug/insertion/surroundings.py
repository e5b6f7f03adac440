"""Surroundings of a lesion in the lung, found from HU alone: aerated lung with its vessels, and body."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.components import Mask, connected_parts
from maisi_aug.volumes.grid import Spacing

LUNG_ID = 28
"""Id used for the whole lung, because a crop does not reveal which lobe it shows."""
AERATED_HU = -500.0
"""Halfway between aerated lung (below) and soft tissue, such as its vessels (above)."""
SMOOTHING_MM = 0.7
VESSEL_RADIUS_MM = 4.0
"""Dense tissue in the lung thinner than twice this is taken for vessels, and they are part of the lung."""
SURROUNDINGS_MM = 10.0
"""Margin in mm around lesions in which lung and body are told apart; thick parts are found twice 4 mm deep."""


def label_surroundings(image_hu: NDArray[Any], spacing_mm: Spacing, *, lesion: Mask | None = None) -> NDArray[np.uint8]:
    """Find lung and body in a crop of a chest CT.

    Args:
        image_hu: ``(I, J, K)`` HU.
        spacing_mm: Voxel sides along I, J, K in mm.
        lesion: ``(I, J, K)`` mask of lesions in the lung, which are dense but count as lung; None for none.

    Returns:
        ``(I, J, K)`` label map of ``LUNG_ID``, body (200) and 0.
    """
    dense = smooth_mm(image_hu, spacing_mm, SMOOTHING_MM) > AERATED_HU
    if lesion is not None:
        dense &= ~lesion
    label_map: NDArray[np.uint8] = np.where(keep_thick_parts(dense, spacing_mm), BODY_ID, LUNG_ID).astype(np.uint8)
    return label_map


def add_surroundings(
    image_hu: NDArray[Any], label_map: NDArray[np.uint8], spacing_mm: Spacing, *, lesion: Mask
) -> NDArray[np.uint8]:
    """Label lung and body around lesions in the lung, where a map has no label.

    Args:
        image_hu: ``(I, J, K)`` HU of a chest CT.
        label_map: ``(I, J, K)`` label ids; not modified.
        spacing_mm: Voxel sides along I, J, K in mm.
        lesion: ``(I, J, K)`` mask of the lesions.

    Returns:
        A new ``(I, J, K)`` label map with ``LUNG_ID`` and body (200) within ``SURROUNDINGS_MM`` of every lesion.
    """
    labelled = label_map.copy()
    margin = ceil(SURROUNDINGS_MM / min(spacing_mm))
    for part, _ in connected_parts(lesion):
        near = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in part)
        around = label_surroundings(image_hu[near], spacing_mm, lesion=lesion[near])
        labelled[near] = np.where(label_map[near] == 0, around, label_map[near])
    return labelled


def smooth_mm(image_hu: NDArray[Any], spacing_mm: Spacing, sigma_mm: float) -> NDArray[np.float32]:
    """Smooth an ``(I, J, K)`` image with a Gaussian of the same width in mm along all axes.

    Args:
        image_hu: ``(I, J, K)`` image in HU; not modified.
        spacing_mm: Voxel sides along I, J, K in mm.
        sigma_mm: Standard deviation of the Gaussian in mm.

    Returns:
        ``(I, J, K)`` float32 HU.
    """
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(
        image_hu.astype(np.float32), [sigma_mm / step for step in spacing_mm], mode="nearest"
    )
    return smooth


def keep_thick_parts(dense: Mask, spacing_mm: Spacing, radius_mm: float = VESSEL_RADIUS_MM) -> Mask:
    """Return the morphological opening of a mask with a ball, which removes parts thinner than two radii.

    Args:
        dense: ``(I, J, K)`` mask.
        spacing_mm: Voxel sides along I, J, K in mm.
        radius_mm: Radius of the ball in mm.

    Returns:
        ``(I, J, K)`` mask, a part of the given one; empty if no part is thick enough.
    """
    deep = _distance(dense, spacing_mm) >= radius_mm
    if not deep.any():
        return np.zeros_like(dense)
    thick: Mask = dense & (_distance(~deep, spacing_mm) <= radius_mm)
    return thick


def _distance(mask: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """Distance in mm of every voxel of a mask to the nearest voxel outside; endless where there is none."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    return distance
