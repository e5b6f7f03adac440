"""HU of the six tumours relative to their host organs, with a consistent sign per kind.

Hepatic, pancreatic and kidney tumours are darker than their hosts, lung tumours are solid in air, colon cancers are soft
tissue in a lumen of gas and stool, bone lesions are lytic.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.phantom import ids
from maisi_aug.phantom.intensity import Appearance
from maisi_aug.phantom.lumen import bounding_box
from maisi_aug.phantom.noise import F32, smooth_noise

_CONNECTED: Final = np.ones((3, 3, 3), dtype=bool)
NECROSIS_DIAMETER_MM: Final = 20.0  # larger lesions may have a dark core or a bright rim


def paint_tumors(
    image: F32,
    label_map: NDArray[np.uint8],
    appearance: Appearance,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    """Write the HU of every tumour component into the image, in place."""
    present = np.bincount(label_map.ravel(), minlength=256)
    for tumor in ids.TUMORS:
        if not present[tumor]:
            continue
        components, count = ndimage.label(label_map == tumor, _CONNECTED)
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            if box is not None:
                _paint_one(image[box], components[box] == number, tumor, appearance, spacing_mm, rng)
        assert count > 0


def _paint_one(
    view: F32,
    mask: NDArray[np.bool_],
    tumor: int,
    appearance: Appearance,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    value = draw_tumor_hu(tumor, appearance, rng)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    texture = value + np.float32(5.0) * smooth_noise(shape, spacing_mm, rng, 12.0)
    diameter_mm = 2 * (3 * float(mask.sum()) * float(np.prod(spacing_mm)) / (4 * np.pi)) ** (1 / 3)
    if diameter_mm > NECROSIS_DIAMETER_MM and tumor != ids.COLON_TUMOR:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
        share = depth / max(float(depth.max()), 1e-6)
        if rng.random() < 0.6:
            texture = texture - np.float32(rng.uniform(8, 18)) * np.clip((share - 0.45) / 0.25, 0, 1)
        if appearance.phase in ("arterial", "portal") and rng.random() < 0.5:
            texture = texture + np.float32(rng.uniform(6, 14)) * (share < 0.22)
    view[mask] = texture.astype(np.float32)[mask]


def draw_tumor_hu(tumor: int, appearance: Appearance, rng: np.random.Generator) -> float:
    """Mean HU of one tumour: hosts' HU minus a drawn contrast, or a drawn absolute value."""
    enhanced = appearance.phase != "non-contrast"
    hu = appearance.organ_hu
    if tumor == ids.HEPATIC_TUMOR:
        return float(hu[ids.LIVER]) - float(rng.uniform(34, 60) if enhanced else rng.uniform(27, 38))
    if tumor == ids.PANCREATIC_TUMOR:
        return float(hu[ids.PANCREAS]) - float(rng.uniform(33, 50) if enhanced else rng.uniform(26, 34))
    if tumor == ids.KIDNEY_TUMOR:
        return float(hu[ids.RIGHT_KIDNEY]) - float(rng.uniform(52, 95) if enhanced else rng.uniform(26, 32))
    if tumor == ids.COLON_TUMOR:
        return float(rng.uniform(58, 88) if enhanced else rng.uniform(42, 58))
    if tumor == ids.LUNG_TUMOR:
        return float(rng.uniform(38, 64) if enhanced else rng.uniform(28, 50))
    return float(rng.uniform(20, 68))


def tumor_box(label_map: NDArray[np.uint8]) -> tuple[slice, slice, slice] | None:
    """Box around all tumour voxels of a map, or None in a tumour-free one."""
    return bounding_box(np.isin(label_map, ids.TUMORS), pad=0)
