"""The six tumours on the image, with a consistent sign per kind.

Hepatic, pancreatic and kidney tumours are darker than their hosts, lung tumours are solid in air, colon cancers are
soft tissue in a lumen of gas and stool, bone lesions are lytic. The healthy organ is rendered first and the tumour is
blended over it, so that its edge is as sharp as the rest of the image.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.phantom import ids
from maisi_aug.phantom.intensity import Appearance
from maisi_aug.phantom.noise import F32, smooth_noise
from maisi_aug.phantom.scanner import blur_voxels
from maisi_aug.volumes.components import TOUCHING, Mask
from maisi_aug.volumes.grid import Spacing

Labels = NDArray[np.uint8]
NECROSIS_DIAMETER_MM: Final = 20.0  # larger lesions may have a dark core or a bright rim
_PAD_VOXELS: Final = 3
# The edge's half-way point lies a little outside the mask: small and ragged lesions keep their HU at 3 mm.
_EDGE_GAIN: Final = 1.3
# Kinds that are darker than their hosts, and by how many HU, with contrast agent and without.
_HYPODENSE: Final[dict[int, tuple[tuple[float, float], tuple[float, float]]]] = {
    ids.HEPATIC_TUMOR: ((34.0, 60.0), (28.0, 38.0)),
    ids.PANCREATIC_TUMOR: ((34.0, 50.0), (27.0, 35.0)),
    ids.KIDNEY_TUMOR: ((55.0, 95.0), (27.0, 33.0)),
}


class Tumor(NamedTuple):
    """A connected tumour of a label map.

    Attributes:
        label: Id of its kind.
        box: Slices of the map along I, J, K that hold it, with a margin.
        mask: Its mask inside the box.
    """

    label: int
    box: tuple[slice, slice, slice]
    mask: Mask


def find_tumors(label_map: Labels) -> list[Tumor]:
    """Return the tumours of an ``(I, J, K)`` label map, kind by kind."""
    found = []
    counts = np.bincount(label_map.ravel(), minlength=256)
    for label in ids.TUMORS:
        if not counts[label]:
            continue
        components, _ = ndimage.label(label_map == label, TOUCHING)
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            i, j, k = (slice(max(0, side.start - _PAD_VOXELS), side.stop + _PAD_VOXELS) for side in box)
            found.append(Tumor(label, (i, j, k), components[i, j, k] == number))
    return found


def without_tumors(label_map: Labels, tumors: list[Tumor]) -> Labels:
    """Return a label map without tumours: each is replaced by the host organ that surrounds it most.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        tumors: Tumours of the label map, as :func:`find_tumors` returns them.
    """
    healthy = label_map.copy()
    for tumor in tumors:
        hosts = ids.TUMOR_HOSTS[tumor.label]
        around = np.bincount(label_map[tumor.box].ravel(), minlength=256)
        healthy[tumor.box][tumor.mask] = hosts[int(np.argmax(around[list(hosts)]))]
    return healthy


def blend_tumors(
    image: F32,
    tumors: list[Tumor],
    appearance: Appearance,
    spacing_mm: Spacing,
    rng: np.random.Generator,
) -> None:
    """Blend every tumour over the blurred image of the healthy patient, in place.

    Args:
        image: ``(I, J, K)`` HU, changed in place.
        tumors: Tumours of the label map, as :func:`find_tumors` returns them.
        appearance: HU of organs, kernel and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    blur = blur_voxels(appearance, spacing_mm)
    for tumor in tumors:
        share = ndimage.gaussian_filter(tumor.mask.astype(np.float32), blur, truncate=3.0)
        share = np.minimum(np.float32(_EDGE_GAIN) * share, 1)
        seen = float(np.clip(share[tumor.mask].mean(), 0.55, 1.0))
        value = _tumor_texture(tumor, seen, appearance, spacing_mm, rng)
        image[tumor.box] += share * (value - image[tumor.box])


def _tumor_texture(
    tumor: Tumor,
    seen: float,
    appearance: Appearance,
    spacing_mm: Spacing,
    rng: np.random.Generator,
) -> F32:
    """HU over the tumour's box: a drawn mean, texture, and in larger ones a dark core and a bright rim.

    Core and rim keep the mean of the tumour, so that its contrast to the host is the drawn one.
    """
    label, mask = tumor.label, tumor.mask
    mean = draw_tumor_hu(label, appearance, rng, seen=seen)
    diameter_mm = 2 * (3 * float(mask.sum()) * float(np.prod(spacing_mm)) / (4 * np.pi)) ** (1 / 3)
    grown = float(np.clip((diameter_mm - 12) / 20, 0, 1))  # large lesions are more varied inside
    texture = np.float32(3.0 + 4.0 * grown) * smooth_noise(mask.shape, spacing_mm, rng, 12.0)
    if diameter_mm > NECROSIS_DIAMETER_MM and label != ids.COLON_TUMOR:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
        ragged = depth.astype(np.float32) + np.float32(1.2) * smooth_noise(mask.shape, spacing_mm, rng, 14.0)
        if rng.random() < 0.65:
            start = rng.uniform(0.35, 0.6) * float(depth.max())
            core = np.clip((ragged - np.float32(start)) / np.float32(3.0), 0, 1)
            texture -= np.float32(rng.uniform(12, 26) * (0.5 + 0.5 * grown)) * core
        if label == ids.BONE_LESION:
            if rng.random() < 0.4:  # a sclerotic margin, no marrow beyond it is lost
                texture += np.float32(rng.uniform(25, 70)) * (depth < 3.2)
        elif appearance.phase in ("arterial", "portal") and rng.random() < 0.6:
            texture += np.float32(rng.uniform(9, 22)) * (ragged < np.float32(rng.uniform(2.6, 4.5)))
        texture -= texture[mask].mean()
    return np.float32(mean) + texture


def draw_tumor_hu(tumor: int, appearance: Appearance, rng: np.random.Generator, *, seen: float = 1.0) -> float:
    """Draw the mean HU of one tumour: the host's HU minus a random contrast, or a random absolute value.

    Args:
        tumor: Tumour id.
        appearance: HU of organs, kernel and noise of the scan.
        rng: Source of the draw.
        seen: Fraction of the tumour's contrast that is left after partial volume; contrasts are divided by it.
    """
    enhanced = appearance.phase != "non-contrast"
    if tumor in _HYPODENSE:
        host = float(appearance.hu[ids.TUMOR_HOSTS[tumor][0]])
        contrast = float(rng.uniform(*_HYPODENSE[tumor][0 if enhanced else 1]))
        return host - contrast / seen
    if tumor == ids.COLON_TUMOR:
        return float(rng.uniform(60, 90) if enhanced else rng.uniform(45, 60))
    if tumor == ids.LUNG_TUMOR:
        return float(rng.uniform(38, 64) if enhanced else rng.uniform(28, 50))
    return float(rng.uniform(22, 64))
