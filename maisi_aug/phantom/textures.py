"""Inner structure of organs on the image: lung vessels, cortical bone, renal cortex, blood pools, fat strands."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.phantom.intensity import Appearance
from maisi_aug.phantom.lumen import bounding_box, eroded
from maisi_aug.phantom.noise import F32, smooth_noise
from maisi_aug.phantom.shapes import lookup
from maisi_aug.phantom.trees import grow_tree, tree_fraction

Labels = NDArray[np.uint8]
Spacing = tuple[float, float, float]
_LEFT_LUNG: Final = (ids.LEFT_UPPER_LOBE, ids.LEFT_LOWER_LOBE)
_RIGHT_LUNG: Final = (ids.RIGHT_UPPER_LOBE, ids.RIGHT_MIDDLE_LOBE, ids.RIGHT_LOWER_LOBE)
LUNG_TWIGS: Final = 420
_MIN_TWIG_MM: Final = 0.55


def paint_lungs(
    image: F32, labels: Labels, appearance: Appearance, spacing_mm: Spacing, rng: np.random.Generator
) -> None:
    """Paint the inside of the lungs: the gradient by gravity, branching vessels and bronchial walls.

    Args:
        image: ``(I, J, K)`` HU, painted in place.
        labels: ``(I, J, K)`` vocabulary ids.
        appearance: HU of organs, kernel and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    for lobes in (_LEFT_LUNG, _RIGHT_LUNG):
        lung = np.isin(labels, lobes)
        box = bounding_box(lung)
        if box is None:
            continue
        mask, view = lung[box], image[box]
        height = np.linspace(0.5, -0.5, mask.shape[1], dtype=np.float32).reshape(1, -1, 1)
        view += np.where(mask, np.float32(38) * height, 0)
        vessels = _lung_vessels(mask, labels[box], spacing_mm, rng)
        blood = np.float32(appearance.blood_hu[1])
        view += np.where(mask, vessels * (blood - view), 0)
        airway = labels[box] == ids.AIRWAY
        if airway.any():
            walls = mask & _touches(airway)
            view[walls] = np.maximum(view[walls], np.float32(-620))


def _touches(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ~eroded(~mask)


def _lung_vessels(mask: NDArray[np.bool_], labels: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> F32:
    """Share of vessel in every voxel of a lung; the tree's root is the airway or the lung's innermost place."""
    step = np.asarray(spacing_mm, dtype=np.float64)
    inside = np.flatnonzero(mask)
    count = int(np.clip(LUNG_TWIGS * inside.size * float(np.prod(step)) / 2.0e6, 10, 1.5 * LUNG_TWIGS))
    picked = rng.choice(inside, size=min(count, inside.size), replace=False)
    tips = np.stack(np.unravel_index(picked, mask.shape), axis=1) + rng.uniform(-0.5, 0.5, (len(picked), 3))
    central = np.argwhere(np.isin(labels, (ids.AIRWAY, ids.PULMONARY_VEIN)))
    root = np.median(central, axis=0) if len(central) > 8 else _innermost(mask)
    tree = grow_tree(root * step, tips * step, root_radius_mm=7.5, min_radius_mm=_MIN_TWIG_MM)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    return tree_fraction(tree, shape, np.zeros(3), step, step_mm=0.7 * float(step.min()))


def _innermost(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = np.argwhere(mask).mean(axis=0)
    return middle


def paint_bones(image: F32, labels: Labels, appearance: Appearance, rng: np.random.Generator) -> None:
    """Paint a compact shell around the trabecular bone, thicker where no air is near.

    Args:
        image: ``(I, J, K)`` HU, painted in place.
        labels: ``(I, J, K)`` vocabulary ids.
        appearance: HU of organs, kernel and noise of the scan.
        rng: Source of all randomness.
    """
    bone = lookup(ids.BONES)[labels]
    shell = bone & ~eroded(bone)
    strength = np.float32(appearance.cortex_hu)
    number = int(shell.sum())
    image[shell] = strength * (1 + np.float32(0.10) * rng.standard_normal(number, dtype=np.float32))
    shaft = shell & lookup((ids.LEFT_FEMUR, ids.RIGHT_FEMUR))[labels]
    image[shaft] *= np.float32(1.25)
    thin = shell & lookup((ids.STERNUM, *ids.VERTEBRAE, ids.SACRUM))[labels]
    image[thin] *= np.float32(0.78)


def paint_kidneys(
    image: F32, labels: Labels, appearance: Appearance, spacing_mm: Spacing, rng: np.random.Generator
) -> None:
    """Paint renal cortex, pyramids and pelvis, with the contrast of the phase.

    Args:
        image: ``(I, J, K)`` HU, painted in place.
        labels: ``(I, J, K)`` vocabulary ids.
        appearance: HU of organs, kernel and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    contrast = {"non-contrast": 0.0, "arterial": 62.0, "portal": 22.0, "delayed": 5.0}[appearance.phase]
    kidney = lookup(ids.KIDNEYS)[labels]
    box = bounding_box(kidney)
    if box is None or contrast == 0.0:
        return
    mask, view = kidney[box], image[box]
    outer = mask
    for _ in range(max(1, round(6.0 / max(spacing_mm)))):
        outer = eroded(outer)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    columns = smooth_noise(shape, spacing_mm, rng, 17.0)
    pyramids = outer & (columns > -0.55)
    view += np.where(pyramids, np.float32(-0.62 * contrast), np.where(mask, np.float32(0.55 * contrast), 0))


def paint_heart(
    image: F32, labels: Labels, appearance: Appearance, spacing_mm: Spacing, rng: np.random.Generator
) -> None:
    """Paint the blood pools of the four heart chambers inside the myocardium.

    Args:
        image: ``(I, J, K)`` HU, painted in place.
        labels: ``(I, J, K)`` vocabulary ids.
        appearance: HU of organs, kernel and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    heart = labels == ids.HEART
    box = bounding_box(heart, pad=0)
    if box is None:
        return
    mask, view = heart[box], image[box]
    places = np.argwhere(mask)
    middle, size = places.mean(axis=0), np.maximum(places.std(axis=0), 0.5)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    u = [
        ((np.arange(shape[a]) - middle[a]) / size[a])
        .astype(np.float32)
        .reshape([-1 if b == a else 1 for b in range(3)])
        for a in range(3)
    ]
    wobble = np.float32(0.10) * smooth_noise(shape, spacing_mm, rng, 40.0)
    left, right = np.float32(appearance.blood_hu[0]), np.float32(appearance.blood_hu[1])
    for (cx, cy, cz), radius, blood in (
        ((-0.85, -0.25, -0.35), 0.78, left), ((0.45, -1.05, 0.35), 0.80, left),
        ((-0.05, 0.85, -0.25), 0.86, right), ((1.05, 0.25, 0.05), 0.85, right), ((0.0, 0.2, 1.9), 1.25, right),
    ):  # fmt: skip
        distance = np.sqrt((u[0] - cx) ** 2 + (u[1] - cy) ** 2 + ((u[2] - cz) / 1.1) ** 2) + wobble
        share = np.clip((radius - distance) / np.float32(0.16), 0, 1)
        view += np.where(mask, share * (blood - view), 0)


def paint_fat(
    image: F32,
    labels: Labels,
    tissue: NDArray[np.uint8],
    appearance: Appearance,
    spacing_mm: Spacing,
    rng: np.random.Generator,
) -> None:
    """Paint strands and vessels in visceral fat, septa under the skin, fatty streaks in muscle, and the skin.

    Args:
        image: ``(I, J, K)`` HU, painted in place.
        labels: ``(I, J, K)`` vocabulary ids.
        tissue: ``(I, J, K)`` tissue ids of body voxels.
        appearance: HU of organs, kernel and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    body = labels == ids.BODY
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    fine = smooth_noise(shape, spacing_mm, rng, 15.0)
    ridge = np.exp(-((fine / np.float32(0.20)) ** 2))
    other = smooth_noise(shape, spacing_mm, rng, 34.0)
    strands = ridge * np.clip(other + np.float32(0.2), 0, 1.2)
    visceral = body & (tissue == ids.TISSUE_FAT)
    gain = np.float32(55 + 0.25 * float(appearance.tissue_hu[ids.TISSUE_VESSEL]))
    image += np.where(visceral, gain * strands, 0)
    image += np.where(body & (tissue == ids.TISSUE_SUBCUTANEOUS), np.float32(20) * strands, 0)
    muscle = (body & (tissue == ids.TISSUE_MUSCLE)) | lookup(ids.MUSCLES)[labels]
    image += np.where(muscle, np.float32(-26) * np.clip(ridge * (other < 0.3), 0, 1), 0)
    skin = (labels > 0) & ~eroded(labels > 0)
    image[skin & body] = np.float32(-20)
