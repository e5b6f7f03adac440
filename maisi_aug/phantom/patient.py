"""What a label map says of its patient: outline, surfaces of labels and thickness of fat; and the fit to them.

Fat is measured where a label lies right below the fascia, such as a rib. Elsewhere it is guessed from organs at the
wall, from the width of the body, or drawn. ``fitting`` fits the canonical body (``landmarks``) to all that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.phantom import ids
from maisi_aug.phantom.distances import FAR_MM, coarse_steps, refined, signed_distance, to_blocks
from maisi_aug.phantom.envelope import fat_share
from maisi_aug.phantom.fitting import Fit, fit_ends, fit_surfaces
from maisi_aug.phantom.landmarks import (
    F64,
    Surface,
    find_outline,
    find_surfaces,
    merge_coarse_bones,
    reference_body,
)
from maisi_aug.phantom.noise import F32
from maisi_aug.phantom.shapes import lookup
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.components import Mask
from maisi_aug.volumes.grid import Grid

Labels = NDArray[np.uint8]
OUTLINE_SHARE: Final = 0.3  # of the labels' surface that may lie in air where a map has an outline
_AT_SKIN_MM: Final = np.float32(0.1)  # least distance to the skin of a voxel that is inside, or outside
_DEFAULT_Z_MM: Final = (240.0, 400.0)  # canonical height of a map that shows nothing of it

# Fat that is measured: above labels that lie right below the fascia, and by how much in mm. Hip bones count where no
# gluteus is labelled.
_BELOW_FASCIA_MM: Final = (
    (ids.RIBS, 7.0), ((ids.STERNUM, ids.COSTAL_CARTILAGE), 5.0), ((ids.LEFT_AUTOCHTHON, ids.RIGHT_AUTOCHTHON), 4.0),
    (tuple(range(ids.LEFT_GLUTEUS_MAXIMUS, ids.RIGHT_GLUTEUS_MEDIUS + 1)), 2.0),
)  # fmt: skip
_HIP_DEPTH_MM: Final = 26.0
_FAT_LIMITS_MM: Final = (3.0, 65.0)
_NEIGHBOUR_MM: Final = 14.0  # within which the outermost label lies below the fascia, and others do not,
_UNEVEN_MM: Final = 8.0  # unless they are deeper by no more than this
_FAT_REACH_MM: Final = 20.0  # over which a thickness of fat that is measured at one place holds
_HALF_CERTAIN: Final = 0.003  # share of such labels nearby with which a thickness is half certain
_CERTAIN: Final = 0.8  # certainty from which a thickness tells the patient's own
_MEASURED_SHARE: Final = 0.85  # mean of ``fat_share`` where fat is measured

# Fat that is guessed.
_ORGAN_DEPTH_MM: Final = 20.0  # of the liver, the spleen and the lungs below the fat, where they touch the wall
_ORGAN_SHARE: Final = 0.75  # ``fat_share`` at the liver's wall
_LEAST_VOXELS: Final = 40  # of these organs
_DRAWN_FAT_MM: Final = (8.0, 24.0)
_GUESS_LIMITS_MM: Final = (4.0, 60.0)
# Between patients, the half-width of the muscles varies by 7 mm about 137 mm and fat by 9 mm: of what a body is wider
# or narrower than expected, fat explains 9^2 / (7^2 + 9^2).
_MUSCLE_HALF_WIDTH_MM: Final = 137.0
_WIDTH_WEIGHT: Final = 0.62
_MEAN_SHARE: Final = 0.9  # mean of ``fat_share`` over the outline

# Points below the skin to which the muscle surface is fitted.
_LEAST_POINTS: Final = 20
_MOST_POINTS: Final = 900
_SMOOTHING_MM: Final = 6.0  # of the skin, for its direction
# The arms and what lies above the shoulders are not part of the canonical outline.
_TRUNK_Z_MM: Final = (-40.0, 570.0)
_TRUNK_X_MM: Final = 185.0


@dataclass(frozen=True, eq=False)
class PatientShape:
    """What a user's map says of its patient.

    Attributes:
        skin_mm: ``(I, J, K)`` signed distance to the outline, negative inside; None where the map has no outline.
        surfaces: Surfaces of the labels, see ``landmarks``.
        fat_mm: Thickness of the patient's fat, to which ``fat_share`` refers.
        near_fat_mm: ``(I, J, K)`` thickness as measured above labels below the fascia; None where there are none.
        certainty: ``(I, J, K)`` how certain it is, 0 to 1.
    """

    skin_mm: F32 | None
    surfaces: dict[int, Surface]
    fat_mm: float
    near_fat_mm: F32 | None = None
    certainty: F32 | None = None

    def refined(self, labels: Labels, fine: Callable[[F32], F32]) -> PatientShape:
        """Return the same patient on a finer grid.

        Args:
            labels: ``(I, J, K)`` vocabulary ids on the finer grid, whose outline is kept to the voxel.
            fine: Interpolates a field on the finer grid.
        """
        if self.skin_mm is None:
            return self
        skin = fine(self.skin_mm)
        skin = np.where(labels > 0, np.minimum(skin, -_AT_SKIN_MM), np.maximum(skin, _AT_SKIN_MM))
        near, certainty = (None if field is None else fine(field) for field in (self.near_fat_mm, self.certainty))
        return replace(self, skin_mm=skin, near_fat_mm=near, certainty=certainty)

    def fat_at(self, canonical: F64 | F32, where: Any = ...) -> F32:
        """Return the thickness of fat in mm.

        Args:
            canonical: ``(3, ...)`` canonical mm of the places.
            where: Index of the same places in the grid; all voxels by default.
        """
        x, y, z = (np.asarray(part, dtype=np.float32) for part in canonical)
        guessed: F32 = np.float32(self.fat_mm) * fat_share(x, y, z)
        if self.near_fat_mm is None or self.certainty is None:
            return guessed
        fat: F32 = guessed + self.certainty[where] * (self.near_fat_mm[where] - guessed)
        return fat


def is_organ(labels: Labels) -> Mask:
    """Whether a voxel of ``(I, J, K)`` vocabulary ids has a label other than background and body."""
    organs: Mask = (labels != ids.BACKGROUND) & (labels != ids.BODY)
    return organs


def measure_patient(labels: Labels, grid: Grid, seed: int) -> PatientShape:
    """Return what a map says of its patient: the outline, the surfaces of labels, and the thickness of fat.

    Args:
        labels: ``(I, J, K)`` vocabulary ids with axes R, A, S.
        grid: Grid of the labels.
        seed: Seed of the thickness of the fat where no label shows it.
    """
    axes = _axes(grid)
    surfaces = merge_coarse_bones(find_surfaces(labels, axes))
    skin_mm = signed_distance(labels > 0, grid.spacing_mm) if has_outline(labels) else None
    guessed = _guess_fat(labels, skin_mm, axes, seed)
    if skin_mm is None:
        return PatientShape(None, surfaces, guessed)
    near, certainty = measure_fat(labels, skin_mm, grid)
    certain = certainty > _CERTAIN
    if not certain.any():
        return PatientShape(skin_mm, surfaces, guessed)
    return PatientShape(skin_mm, surfaces, float(np.median(near[certain])) / _MEASURED_SHARE, near, certainty)


def has_outline(labels: Labels) -> bool:
    """Whether a map has an outline of the body, rather than organs in air only."""
    organs = is_organ(labels)
    if not organs.any():
        return True
    if not (labels == ids.BODY).any():
        return False
    shell = ndimage.binary_dilation(organs) & ~organs
    return float(np.mean(labels[shell] == ids.BACKGROUND)) < OUTLINE_SHARE


def _axes(grid: Grid) -> tuple[NDArray[np.float32], ...]:
    """Where the voxel centres lie along I, J, K, in mm from the middle of the grid."""
    return tuple(
        ((np.arange(side) - 0.5 * (side - 1)) * step).astype(np.float32)
        for side, step in zip(grid.shape, grid.spacing_mm, strict=True)
    )


def measure_fat(labels: Labels, skin_mm: F32, grid: Grid) -> tuple[F32, F32]:
    """Return how thick the fat is above labels that lie right below the fascia.

    Args:
        labels: ``(I, J, K)`` vocabulary ids.
        skin_mm: Signed distance to the outline in mm.
        grid: Grid of the labels.

    Returns:
        ``(I, J, K)`` thickness in mm, and how certain it is: 0 far from such labels, to 1.
    """
    own_mm = np.full(256, np.nan, dtype=np.float32)
    for group, mm in _BELOW_FASCIA_MM:
        own_mm[list(group)] = mm
    glutei = lookup(_BELOW_FASCIA_MM[-1][0])
    if not glutei[labels].any():
        own_mm[[ids.LEFT_HIP, ids.RIGHT_HIP]] = _HIP_DEPTH_MM
    steps = coarse_steps(grid.spacing_mm)
    thickness = np.where(np.isnan(own_mm[labels]), np.float32(FAR_MM), -skin_mm - own_mm[labels])
    coarse = to_blocks(thickness, steps, fill=np.float32(FAR_MM)).min(axis=(1, 3, 5))
    coarse_mm = [step * factor for step, factor in zip(grid.spacing_mm, steps, strict=True)]
    size = [2 * max(1, round(_NEIGHBOUR_MM / step)) + 1 for step in coarse_mm]
    outermost = ndimage.minimum_filter(coarse, size=size, mode="nearest")
    known = (coarse < FAR_MM) & (coarse <= outermost + _UNEVEN_MM)
    sigma = [_FAT_REACH_MM / step for step in coarse_mm]
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma, truncate=2.5)
    total = ndimage.gaussian_filter(np.where(known, coarse, 0).astype(np.float32), sigma, truncate=2.5)
    fat = np.clip(total / np.maximum(weight, np.float32(1e-6)), *_FAT_LIMITS_MM)
    certain = weight / (weight + np.float32(_HALF_CERTAIN))
    return refined(fat, steps, labels.shape), refined(certain, steps, labels.shape)


def _guess_fat(labels: Labels, skin_mm: F32 | None, axes: tuple[NDArray[np.float32], ...], seed: int) -> float:
    """Thickness of fat in mm where no label lies below the fascia: from organs at the wall, or by the width."""
    drawn = float(numpy_generator(seed, "subcutaneous fat").uniform(*_DRAWN_FAT_MM))
    if skin_mm is None:
        return drawn
    depth = -skin_mm[lookup((ids.LIVER, ids.SPLEEN, *ids.LUNG_LOBES))[labels]]
    if len(depth) > _LEAST_VOXELS:
        return float(np.clip((np.percentile(depth, 2) - _ORGAN_DEPTH_MM) / _ORGAN_SHARE, *_GUESS_LIMITS_MM))
    width_mm = find_outline(labels > 0, axes).width_mm
    if not np.isfinite(width_mm).any():
        return drawn
    beyond_muscles_mm = 0.5 * float(np.nanmedian(width_mm)) - _MUSCLE_HALF_WIDTH_MM
    return float(np.clip(drawn + _WIDTH_WEIGHT * (beyond_muscles_mm - drawn), *_GUESS_LIMITS_MM))


def fit_patient(patient: PatientShape, grid: Grid, seed: int) -> Fit:
    """Fit the canonical body to a patient.

    Args:
        patient: Shape of the patient.
        grid: Grid of the map, with axes R, A, S.
        seed: Seed of the height in the body where no label shows it.
    """
    axes = _axes(grid)
    inside = np.zeros(grid.shape, dtype=bool) if patient.skin_mm is None else patient.skin_mm < 0
    default_z = float(numpy_generator(seed, "height in the body").uniform(*_DEFAULT_Z_MM))
    reference = reference_body()
    first = fit_ends(
        patient.surfaces,
        find_outline(inside, axes),
        reference,
        fat_mm=_MEAN_SHARE * patient.fat_mm,
        default_z_mm=default_z,
    )
    skin = None if patient.skin_mm is None else _muscle_surface(patient, axes, first)
    return fit_surfaces(patient.surfaces, skin, reference, first)


def _muscle_surface(patient: PatientShape, axes: tuple[NDArray[np.float32], ...], first: Fit) -> Surface | None:
    """Points below the skin by the thickness of fat, in the range of the trunk; they leave out the grid's border."""
    assert patient.skin_mm is not None
    spacing = [float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes]
    near = np.abs(patient.skin_mm + np.float32(max(spacing))) < 0.6 * max(spacing)
    near[[0, -1]] = near[:, [0, -1]] = False
    index = np.argwhere(near)
    if len(index) < _LEAST_POINTS:
        return None
    index = index[np.linspace(0, len(index) - 1, min(len(index), _MOST_POINTS)).astype(int)]
    points = np.stack([axes[a][index[:, a]] for a in range(3)], axis=1).astype(np.float64)
    canonical = first.to_canonical(points)
    where = tuple(index.T)
    depth = patient.fat_at(canonical.T, where) + patient.skin_mm[where]
    points -= depth[:, None] * _outward(patient.skin_mm, index, spacing)
    canonical = first.to_canonical(points)
    low_z, high_z = _TRUNK_Z_MM
    points = points[(canonical[:, 2] > low_z) & (canonical[:, 2] < high_z) & (np.abs(canonical[:, 0]) < _TRUNK_X_MM)]
    if len(points) < _LEAST_POINTS:
        return None
    return Surface(points, points.min(axis=0), points.max(axis=0))


def _outward(skin_mm: F32, index: NDArray[np.int64], spacing_mm: list[float]) -> F64:
    """Unit vectors ``(N, 3)`` that point out of the body at voxels inside of the grid's border."""
    smooth = ndimage.gaussian_filter(skin_mm, [_SMOOTHING_MM / step for step in spacing_mm], truncate=2.0)
    slope = np.zeros((len(index), 3))
    for a in range(3):
        step = np.eye(3, dtype=int)[a]
        ahead = np.minimum(index + step, np.array(skin_mm.shape) - 1)
        back = np.maximum(index - step, 0)
        slope[:, a] = (smooth[tuple(ahead.T)] - smooth[tuple(back.T)]) / spacing_mm[a]
    result: F64 = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-6)
    return result
