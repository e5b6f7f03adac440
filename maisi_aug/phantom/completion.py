"""Completes a label map: what a user left unlabelled becomes the anatomy of a procedural body that is fitted to it.

The canonical body is fitted to the labels and to the outline of the user's map (``fitting``). Its layers and organs are
then painted on the user's grid around the user's labels, which stay as they are. What lies outside the canonical
body's range, such as the head and the arms, is fat and muscle by the depth below the skin.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError, MaisiAugWarning
from maisi_aug.phantom import ids
from maisi_aug.phantom.anatomy import paint_organs
from maisi_aug.phantom.envelope import Envelope, build_envelope, fat_share, paint_envelope
from maisi_aug.phantom.fitting import Fit, FittedFrame, fit_ends, fit_surfaces
from maisi_aug.phantom.frame import Frame
from maisi_aug.phantom.habitus import Habitus
from maisi_aug.phantom.landmarks import (
    COARSE_GROUPS,
    F64,
    Surface,
    find_surfaces,
    merge_coarse_bones,
    neutral_habitus,
    outline_ends,
    reference_body,
)
from maisi_aug.phantom.noise import F32
from maisi_aug.phantom.shapes import Canvas, lookup
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.orientation import axis_codes, turn_volume

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
WALL_MM: Final = 6.0  # of muscle between the cavity and the fascia, at least
MIN_FAT_MM: Final = 2.5
OUTLINE_SHARE: Final = 0.3  # of the labels' surface that may lie in air where a map has an outline
_COARSE_MM: Final = 4.5
_THIN_MM: Final = 3.0  # the fit reads voxels up to this far apart
_AT_SKIN_MM: Final = np.float32(0.1)  # least distance to the skin of a voxel that is inside, or outside
_FAR_MM: Final = 200.0
_Z_RANGE_MM: Final = (-75.0, 640.0)
_BEYOND_SHARE: Final = 0.25  # of the unlabelled body that may lie outside of this range
_DEFAULT_Z_MM: Final = (240.0, 400.0)
_ABDOMINAL: Final = (
    ids.LIVER, ids.SPLEEN, ids.PANCREAS, *ids.KIDNEYS, ids.RIGHT_ADRENAL, ids.LEFT_ADRENAL, ids.GALLBLADDER,
    ids.STOMACH, ids.DUODENUM, ids.BLADDER, ids.PORTAL_AND_SPLENIC_VEIN, ids.SMALL_BOWEL, ids.HEPATIC_VESSEL, ids.COLON,
    ids.LEFT_KIDNEY_CYST, ids.RIGHT_KIDNEY_CYST, ids.HEPATIC_TUMOR, ids.PANCREATIC_TUMOR, ids.COLON_TUMOR,
    ids.KIDNEY_TUMOR,
)  # fmt: skip
_THORACIC: Final = (
    *ids.LUNG_LOBES, ids.HEART, ids.LUNG_TUMOR, ids.LEFT_ATRIAL_APPENDAGE, ids.PULMONARY_VEIN, ids.AIRWAY,
)  # fmt: skip
_VISCERAL: Final = (*_ABDOMINAL, *_THORACIC)
_WALL: Final = (
    *ids.RIBS, ids.STERNUM, ids.COSTAL_CARTILAGE, *ids.MUSCLES, *ids.VERTEBRAE, ids.SACRUM, ids.LEFT_HIP,
    ids.RIGHT_HIP, ids.LEFT_SCAPULA, ids.RIGHT_SCAPULA, ids.LEFT_FEMUR, ids.RIGHT_FEMUR,
)  # fmt: skip
# Labels that lie right below the fascia, and by how much in mm; hip bones count where no gluteus is labelled.
_BELOW_FASCIA_MM: Final = (
    (ids.RIBS, 7.0), ((ids.STERNUM, ids.COSTAL_CARTILAGE), 5.0), ((ids.LEFT_AUTOCHTHON, ids.RIGHT_AUTOCHTHON), 4.0),
    (tuple(range(ids.LEFT_GLUTEUS_MAXIMUS, ids.RIGHT_GLUTEUS_MEDIUS + 1)), 2.0),
)  # fmt: skip
_HIP_DEPTH_MM: Final = 26.0
_ORGAN_DEPTH_MM: Final = 20.0  # of the liver, the spleen and the lungs, where they touch the wall
_FAT_LIMITS_MM: Final = (3.0, 65.0)
_NEIGHBOUR_MM: Final = 14.0  # within which the outermost label lies below the fascia, and others do not
_FAT_REACH_MM: Final = 20.0  # over which a thickness of fat that is measured at one place holds


def complete_anatomy(label_map: Labels, *, seed: int, grid: Grid) -> tuple[Labels, NDArray[np.uint8]]:
    """Fill what is unlabelled in a map with the anatomy of a procedural body that is fitted to its labels.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids, of any subset of labels; not modified. 200 is body without a label.
        seed: Seed of everything that the labels leave open; the same gives the same anatomy.
        grid: Shape and affine of the label map; its axes may run in any direction.

    Returns:
        The completed ``(I, J, K)`` map, in which every label other than 0 and 200 is as it was, and the
        ``(I, J, K)`` tissue ids under label 200.

    Raises:
        GridError: The map does not have the grid's shape, or nothing is labelled in it.
    """
    if label_map.shape != grid.shape:
        raise GridError(
            f"Label map: expected the grid's shape {grid.shape}, found {label_map.shape}. Pass its own grid."
        )
    if not label_map.any():
        raise GridError(
            "Label map: expected a label or an outline of the body (200), found only 0. Nothing to complete."
        )
    codes = axis_codes(grid.affine)
    turned, ras_grid = turn_volume(np.asarray(label_map, dtype=np.uint8), grid, "RAS")
    labels, tissue = _complete(
        np.ascontiguousarray(turned), Grid.from_spacing(ras_grid.shape, ras_grid.spacing_mm), seed
    )
    back = [np.ascontiguousarray(turn_volume(volume, ras_grid, codes)[0]) for volume in (labels, tissue)]
    return back[0], back[1]


def _complete(labels: Labels, grid: Grid, seed: int) -> tuple[Labels, NDArray[np.uint8]]:
    patient, frame, layers, habitus = _fit_body(labels, grid, seed)
    canvas = Canvas(frame)
    layers = _fit_layers(layers, frame, patient, labels)
    fixed = _is_organ(labels)
    paint_envelope(canvas, layers, habitus, seed)
    _paint_limbs(canvas, layers, patient)
    canvas.labels[fixed] = labels[fixed]
    canvas.fixed, canvas.taken = fixed, find_taken(labels, patient.surfaces)
    paint_organs(canvas, layers, habitus, seed)
    canvas.labels[(layers.skin >= 0) & ~fixed] = ids.BACKGROUND
    canvas.tissue[(canvas.tissue == ids.TISSUE_FASCIA) & (frame.z > _Z_RANGE_MM[1])] = ids.TISSUE_MUSCLE
    _warn_of_parts_beyond(canvas)
    return canvas.labels, canvas.tissue


def _warn_of_parts_beyond(canvas: Canvas) -> None:
    """Warn where much of what is completed lies above or below the canonical body."""
    height = canvas.frame.z[canvas.labels == ids.BODY]
    beyond = (height < _Z_RANGE_MM[0]) | (height > _Z_RANGE_MM[1])
    if len(height) and np.mean(beyond) > _BEYOND_SHARE:
        warnings.warn(
            "Label map: much of its body lies above the neck or below the hips, where the procedural anatomy has "
            "neither bones nor organs; what is unlabelled there is drawn as muscle and fat. Label it, or choose a "
            "bundle that was trained on such images.",
            MaisiAugWarning,
            stacklevel=2,
        )


def _fit_body(labels: Labels, grid: Grid, seed: int) -> tuple[PatientShape, Frame, Envelope, Habitus]:
    """The patient, and the canonical body fitted to it; of fine maps every second, third, ... voxel is read."""
    thin, first, steps = _thin_out(labels, grid.spacing_mm)
    i, j, k = (step * number for step, number in zip(grid.spacing_mm, steps, strict=True))
    coarse = Grid.from_spacing((thin.shape[0], thin.shape[1], thin.shape[2]), (i, j, k))
    patient = measure_patient(thin, coarse, seed)
    fit = fit_patient(patient, coarse, seed)
    habitus = replace(neutral_habitus(seed), subcutaneous_mm=patient.fat_mm)
    frame: Frame = FittedFrame(coarse, fit)
    layers = build_envelope(frame, habitus, seed, with_fat=patient.skin_mm is None)
    if max(steps) == 1:
        return patient, frame, layers, habitus

    def fine(field: F32) -> F32:
        return _refined(field, steps, labels.shape, first=first)

    patient = patient.refined(labels, fine)
    skin = fine(layers.skin) if patient.skin_mm is None else patient.skin_mm
    layers = Envelope(skin, *(fine(field) for field in (layers.fascia, layers.cavity, layers.diaphragm_z)))
    middle = np.array(first) + 0.5 * (np.array(thin.shape) - 1) * steps - 0.5 * (np.array(labels.shape) - 1)
    return patient, FittedFrame(grid, fit.moved(middle * grid.spacing_mm)), layers, habitus


def _thin_out(
    labels: Labels, spacing_mm: tuple[float, float, float]
) -> tuple[Labels, tuple[int, int, int], tuple[int, int, int]]:
    """Every nth voxel along I, J, K, up to ``_THIN_MM`` apart, the first one's index, and n."""
    i, j, k = (max(1, int(_THIN_MM / step + 1e-3)) for step in spacing_mm)
    first = [min((step - 1) // 2, side - 1) for step, side in zip((i, j, k), labels.shape, strict=True)]
    thin = labels[first[0] :: i, first[1] :: j, first[2] :: k]
    if not _is_organ(thin).any() and _is_organ(labels).any():  # a lesion alone may lie between them
        return labels, (0, 0, 0), (1, 1, 1)
    return np.ascontiguousarray(thin), (first[0], first[1], first[2]), (i, j, k)


def _is_organ(labels: Labels) -> Mask:
    organs: Mask = (labels != ids.BACKGROUND) & (labels != ids.BODY)
    return organs


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
    certain = certainty > 0.8
    if not certain.any():
        return PatientShape(skin_mm, surfaces, guessed)
    return PatientShape(skin_mm, surfaces, float(np.median(near[certain])) / 0.85, near, certainty)


def has_outline(labels: Labels) -> bool:
    """Whether a map has an outline of the body, rather than organs in air only."""
    organs = _is_organ(labels)
    if not organs.any():
        return True
    if not (labels == ids.BODY).any():
        return False
    shell = ndimage.binary_dilation(organs) & ~organs
    return float(np.mean(labels[shell] == ids.BACKGROUND)) < OUTLINE_SHARE


def _axes(grid: Grid) -> tuple[NDArray[np.float32], ...]:
    return tuple(
        ((np.arange(side) - 0.5 * (side - 1)) * step).astype(np.float32)
        for side, step in zip(grid.shape, grid.spacing_mm, strict=True)
    )


def signed_distance(mask: Mask, spacing_mm: tuple[float, ...]) -> F32:
    """Return the distance in mm to the surface of a mask, negative inside.

    Args:
        mask: ``(I, J, K)`` mask; what lies outside the grid counts as nothing.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    if mask.all() or not mask.any():
        return np.full(mask.shape, -_FAR_MM if mask.all() else _FAR_MM, dtype=np.float32)
    half = 0.5 * min(spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm).astype(np.float32)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm).astype(np.float32)
    result: F32 = np.where(mask, half - inside, outside - half).astype(np.float32)
    return result


def _refined(
    coarse: F32, factors: tuple[int, ...], shape: tuple[int, ...], *, first: tuple[int, ...] | None = None
) -> F32:
    """Linear interpolation of a field at the voxels of a grid that is finer by whole factors.

    ``first`` is where on the fine grid the field's first voxel lies; None if the field's voxels are blocks of the
    grid's.
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
    steps = _coarse_steps(grid.spacing_mm)
    thickness = np.where(np.isnan(own_mm[labels]), np.float32(_FAR_MM), -skin_mm - own_mm[labels])
    coarse = _blocks(thickness, steps, np.float32(_FAR_MM)).min(axis=(1, 3, 5))
    coarse_mm = [step * factor for step, factor in zip(grid.spacing_mm, steps, strict=True)]
    size = [2 * max(1, round(_NEIGHBOUR_MM / step)) + 1 for step in coarse_mm]
    outermost = ndimage.minimum_filter(coarse, size=size, mode="nearest")
    known = (coarse < _FAR_MM) & (coarse <= outermost + 8.0)
    sigma = [_FAT_REACH_MM / step for step in coarse_mm]
    weight = ndimage.gaussian_filter(known.astype(np.float32), sigma, truncate=2.5)
    total = ndimage.gaussian_filter(np.where(known, coarse, 0).astype(np.float32), sigma, truncate=2.5)
    fat = np.clip(total / np.maximum(weight, np.float32(1e-6)), *_FAT_LIMITS_MM)
    certain = weight / (weight + np.float32(0.003))
    return _refined(fat, steps, labels.shape), _refined(certain, steps, labels.shape)


def _coarse_steps(spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    i, j, k = (max(1, round(_COARSE_MM / step)) for step in spacing_mm)
    return i, j, k


def _blocks(volume: NDArray[Any], steps: tuple[int, int, int], fill: Any) -> NDArray[Any]:
    """View of a volume as blocks ``(A, i, B, j, C, k)``, padded to whole ones."""
    width = [(0, -side % step) for side, step in zip(volume.shape, steps, strict=True)]
    padded = np.pad(volume, width, constant_values=fill) if any(more for _, more in width) else volume
    return padded.reshape([n for side, step in zip(padded.shape, steps, strict=True) for n in (side // step, step)])


def _guess_fat(labels: Labels, skin_mm: F32 | None, axes: tuple[NDArray[np.float32], ...], seed: int) -> float:
    """Thickness of fat in mm where no label lies below the fascia: from organs at the wall, or by the width."""
    drawn = float(numpy_generator(seed, "subcutaneous fat").uniform(8.0, 24.0))
    if skin_mm is None:
        return drawn
    depth = -skin_mm[lookup((ids.LIVER, ids.SPLEEN, *ids.LUNG_LOBES))[labels]]
    if len(depth) > 40:
        # The liver's wall lies where fat is 0.75 of the patient's own.
        return float(np.clip((np.percentile(depth, 2) - _ORGAN_DEPTH_MM) / 0.75, 4.0, 60.0))
    ends = outline_ends(labels > 0, axes)
    widths = (ends[:, 2] - ends[:, 1])[np.isfinite(ends[:, 1:3]).all(axis=1)] if len(ends) else np.empty(0)
    if not len(widths):
        return drawn
    # Between patients, the half-width of the muscles varies by 7 mm about 137 mm and fat by 9 mm.
    return float(np.clip(drawn + 0.62 * (0.5 * float(np.median(widths)) - 137.0 - drawn), 4.0, 60.0))


def fit_patient(patient: PatientShape, grid: Grid, seed: int) -> Fit:
    """Fit the canonical body to a patient.

    Args:
        patient: Shape of the patient.
        grid: Grid of the map, with axes R, A, S.
        seed: Seed of the height in the body where no label shows it.
    """
    axes = _axes(grid)
    outline = np.empty((0, 5)) if patient.skin_mm is None else outline_ends(patient.skin_mm < 0, axes)
    default_z = float(numpy_generator(seed, "height in the body").uniform(*_DEFAULT_Z_MM))
    reference = reference_body()
    first = fit_ends(patient.surfaces, outline, reference, fat_mm=0.9 * patient.fat_mm, default_z_mm=default_z)
    skin = None if patient.skin_mm is None else _muscle_surface(patient, axes, first)
    return fit_surfaces(patient.surfaces, skin, reference, first)


def _muscle_surface(patient: PatientShape, axes: tuple[NDArray[np.float32], ...], first: Fit) -> Surface | None:
    """Points below the skin by the thickness of fat, in the range of the trunk; they leave out the grid's border."""
    assert patient.skin_mm is not None
    spacing = [float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes]
    near = np.abs(patient.skin_mm + np.float32(max(spacing))) < 0.6 * max(spacing)
    near[[0, -1]] = near[:, [0, -1]] = False
    index = np.argwhere(near)
    if len(index) < 20:
        return None
    index = index[np.linspace(0, len(index) - 1, min(len(index), 900)).astype(int)]
    points = np.stack([axes[a][index[:, a]] for a in range(3)], axis=1).astype(np.float64)
    canonical = first.to_canonical(points)
    where = tuple(index.T)
    depth = patient.fat_at(canonical.T, where) + patient.skin_mm[where]
    points -= depth[:, None] * _outward(patient.skin_mm, index, spacing)
    canonical = first.to_canonical(points)
    # The arms and what lies above the shoulders are not part of the canonical outline.
    points = points[(canonical[:, 2] > -40) & (canonical[:, 2] < 570) & (np.abs(canonical[:, 0]) < 185)]
    if len(points) < 20:
        return None
    return Surface(points, points.min(axis=0), points.max(axis=0))


def _outward(skin_mm: F32, index: NDArray[np.int64], spacing_mm: list[float]) -> F64:
    """Unit vectors ``(N, 3)`` that point out of the body at voxels inside of the grid's border."""
    smooth = ndimage.gaussian_filter(skin_mm, [6.0 / step for step in spacing_mm], truncate=2.0)
    slope = np.zeros((len(index), 3))
    for a in range(3):
        step = np.eye(3, dtype=int)[a]
        ahead = np.minimum(index + step, np.array(skin_mm.shape) - 1)
        back = np.maximum(index - step, 0)
        slope[:, a] = (smooth[tuple(ahead.T)] - smooth[tuple(back.T)]) / spacing_mm[a]
    result: F64 = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-6)
    return result


def find_taken(labels: Labels, surfaces: dict[int, Surface]) -> frozenset[int]:
    """Return the labels that are not painted: those of the map, and all bones of which the map has one label for many.

    Args:
        labels: ``(I, J, K)`` vocabulary ids.
        surfaces: Surfaces of the labels, with the keys of groups.
    """
    taken = {int(label) for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256))}
    for group, key, _ in COARSE_GROUPS:
        if key in surfaces:
            taken.update(group)
    return frozenset(taken - {ids.BACKGROUND, ids.BODY})


def _fit_layers(layers: Envelope, frame: Frame, patient: PatientShape, labels: Labels) -> Envelope:
    """The layers of the canonical body, so that they agree with the user's outline and enclose the user's labels."""
    spacing = frame.spacing_mm
    organs = _hull(lookup(_VISCERAL)[labels], spacing, close_mm=14.0)
    wall = _hull(lookup(_WALL)[labels], spacing, close_mm=6.0)
    skin = patient.skin_mm
    if skin is None:
        enclosed = np.minimum(np.minimum(organs - 18.0, wall - 6.0) - patient.fat_mm, layers.skin)
        enclosed = np.minimum(enclosed, _hull(labels > 0, spacing, close_mm=0.0) - MIN_FAT_MM - 1.0)
        skin = enclosed.astype(np.float32)
    cavity: F32 = np.minimum(layers.cavity, organs - np.float32(1.0))
    fascia = layers.fascia
    if patient.near_fat_mm is not None and patient.certainty is not None:
        fascia = fascia + patient.certainty * (skin + patient.near_fat_mm - fascia)
    fascia = np.minimum(np.minimum(fascia, cavity - np.float32(WALL_MM)), wall - np.float32(3.0))
    fascia = np.maximum(fascia, skin + np.float32(MIN_FAT_MM))
    cavity = np.maximum(cavity, fascia + np.float32(WALL_MM - 2.0))
    bones = _hull(lookup((*ids.RIBS, ids.STERNUM, ids.COSTAL_CARTILAGE))[labels], spacing, close_mm=0.0)
    cavity = np.maximum(cavity, np.float32(3.0) - bones)
    return Envelope(skin, fascia, cavity, _diaphragm(layers.diaphragm_z, frame, labels))


def _hull(mask: Mask, spacing_mm: tuple[float, float, float], *, close_mm: float) -> F32 | np.float32:
    """Distance in mm to a mask whose gaps up to twice ``close_mm`` are closed; the one number ``_FAR_MM`` if empty."""
    if not mask.any():
        return np.float32(_FAR_MM)
    steps = _coarse_steps(spacing_mm)
    fraction = _blocks(mask, steps, False).mean(axis=(1, 3, 5))
    coarse_mm = tuple(s * f for s, f in zip(spacing_mm, steps, strict=True))
    far = _distance_to(fraction >= 0.34, coarse_mm)
    if close_mm > 0:
        # Closing: what cannot be reached from outside by a ball is inside.
        far = signed_distance(far <= close_mm, coarse_mm) + np.float32(close_mm)
    else:
        far = signed_distance(far <= 0, coarse_mm)
    return _refined(far, steps, mask.shape)


def _distance_to(mask: Mask, spacing_mm: tuple[float, ...]) -> F32:
    if not mask.any():
        return np.full(mask.shape, np.float32(_FAR_MM))
    result: F32 = ndimage.distance_transform_edt(~mask, sampling=spacing_mm).astype(np.float32)
    return result


def _diaphragm(height_mm: F32, frame: Frame, labels: Labels) -> F32:
    """Height of the diaphragm: above the abdominal labels of the map and below the thoracic ones."""
    below = np.maximum.accumulate(lookup(_ABDOMINAL)[labels][:, :, ::-1], axis=2)[:, :, ::-1]
    above = np.maximum.accumulate(lookup(_THORACIC)[labels], axis=2)
    raised: F32 = np.where(below & ~above, np.maximum(height_mm, frame.z + np.float32(4.0)), height_mm)
    result: F32 = np.where(above & ~below, np.minimum(raised, frame.z - np.float32(4.0)), raised)
    return result


def _paint_limbs(canvas: Canvas, layers: Envelope, patient: PatientShape) -> None:
    """Muscle below the fat where the body reaches beyond the trunk: arms, head and thighs."""
    beyond = np.float32(18.0)
    z = canvas.frame.z
    above_or_below = (z < _Z_RANGE_MM[0]) | (z > _Z_RANGE_MM[1])
    deep = (-layers.skin > min(patient.fat_mm, 14.0)) & (above_or_below | (layers.fascia > beyond))
    where = np.nonzero(deep)
    fat = patient.fat_at(np.stack([axis[where] for axis in (canvas.frame.x, canvas.frame.y, z)]), where)
    deep[where] = above_or_below[where] | (layers.fascia[where] > fat + beyond)
    canvas.tissue[deep] = ids.TISSUE_MUSCLE
