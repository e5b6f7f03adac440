"""Inside of the lungs on detail maps: branching vessels, fissures and bronchial walls."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.phantom.erosion import eroded
from maisi_aug.phantom.noise import smooth_noise
from maisi_aug.phantom.shapes import lookup
from maisi_aug.phantom.trees import grow_tree, tree_fraction
from maisi_aug.volumes.components import Mask, bounding_box
from maisi_aug.volumes.grid import Spacing

Labels = NDArray[np.uint8]
_LEFT_LUNG: Final = (ids.LEFT_UPPER_LOBE, ids.LEFT_LOWER_LOBE)
_RIGHT_LUNG: Final = (ids.RIGHT_UPPER_LOBE, ids.RIGHT_MIDDLE_LOBE, ids.RIGHT_LOWER_LOBE)
LUNG_TWIGS: Final = 900  # of a lung of 2 L; others have as many per volume
_USUAL_LUNG_MM3: Final = 2.0e6
_ROOT_MM: Final = 7.5  # radius of the vessels where they enter the lung
_MIN_TWIG_MM: Final = 0.55  # radius
_VESSEL_SHARE: Final = 0.45  # share of a voxel from which it counts as a vessel
_LINE_SHARE: Final = 0.12  # and from which it counts as a line
_THICKEST_MM: Final = 4.0  # voxel side up to which fissures and walls of bronchi show
_FISSURE_SEEN: Final = 0.4  # of smooth noise; fissures are thin: in scans they show in places only


def paint_lungs(detail: Labels, labels: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Paint vessels, fissures and the walls of bronchi into the lobes of the lungs.

    Args:
        detail: ``(I, J, K)`` detail map, painted in place.
        labels: ``(I, J, K)`` vocabulary ids without tumours.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    for lobes in (_LEFT_LUNG, _RIGHT_LUNG):
        lung = lookup(lobes)[labels]
        if not lung.any():
            continue
        box = bounding_box(lung, margin=1)
        mask, local, view = lung[box], labels[box], detail[box]
        airway = local == ids.AIRWAY
        if max(spacing_mm) <= _THICKEST_MM:
            seen = smooth_noise(mask.shape, spacing_mm, rng, 70.0) > _FISSURE_SEEN
            view[mask & ((_fissures(local, mask) & seen) | _touches(airway))] = ids.LUNG_LINE
        share = _vessel_share(mask, local, spacing_mm, rng)
        view[mask & (share > _LINE_SHARE)] = ids.LUNG_LINE
        view[mask & (share > _VESSEL_SHARE)] = ids.LUNG_VESSEL


def _touches(mask: Mask) -> Mask:
    """The mask and all voxels that share a face with it."""
    return ~eroded(~mask)


def _fissures(labels: Labels, lung: Mask) -> Mask:
    """Voxels of a lobe whose next neighbour towards I, J or K belongs to another lobe: one voxel thick."""
    found = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        here = [slice(None)] * 3
        there = [slice(None)] * 3
        here[axis], there[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(here), tuple(there)
        found[a] |= (labels[a] != labels[b]) & lung[a] & lung[b]
    return found


def _vessel_share(mask: Mask, labels: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> NDArray[np.float32]:
    """Share of vessel in every voxel of a lung; the tree's root is the airway or the lung's innermost place."""
    step = np.asarray(spacing_mm, dtype=np.float64)
    inside = np.flatnonzero(mask)
    count = int(np.clip(LUNG_TWIGS * inside.size * float(np.prod(step)) / _USUAL_LUNG_MM3, 10, 1.5 * LUNG_TWIGS))
    picked = rng.choice(inside, size=min(count, inside.size), replace=False)
    tips = np.stack(np.unravel_index(picked, mask.shape), axis=1) + rng.uniform(-0.5, 0.5, (len(picked), 3))
    central = np.argwhere(np.isin(labels, (ids.AIRWAY, ids.PULMONARY_VEIN)))
    root = np.median(central, axis=0) if len(central) > 8 else np.argwhere(mask).mean(axis=0)
    tree = grow_tree(root * step, tips * step, root_radius_mm=_ROOT_MM, min_radius_mm=_MIN_TWIG_MM)
    return tree_fraction(tree, mask.shape, np.zeros(3), step, step_mm=0.7 * float(step.min()))
