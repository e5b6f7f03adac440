"""Completes a label map: what a user left unlabelled becomes the anatomy of a procedural body that is fitted to it.

The canonical body is fitted to the labels and to the outline of the user's map (``fitting``). Its layers and organs are
then painted on the user's grid around the user's labels, which stay as they are. What lies outside the canonical
body's range, such as the head and the arms, is fat and muscle by the depth below the skin.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import GridError, MaisiAugWarning
from maisi_aug.phantom import ids
from maisi_aug.phantom.anatomy import paint_organs
from maisi_aug.phantom.distances import distance_to_hull, refined
from maisi_aug.phantom.envelope import Envelope, build_envelope, paint_envelope
from maisi_aug.phantom.fitting import FittedFrame
from maisi_aug.phantom.frame import Frame
from maisi_aug.phantom.habitus import Habitus
from maisi_aug.phantom.landmarks import COARSE_GROUPS, Surface, neutral_habitus
from maisi_aug.phantom.noise import F32
from maisi_aug.phantom.patient import PatientShape, fit_patient, is_organ, measure_patient
from maisi_aug.phantom.shapes import Canvas, lookup
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.orientation import axis_codes, turn_volume

Labels = NDArray[np.uint8]
TRUNK_Z_MM: Final = (-75.0, 640.0)  # canonical heights of which the canonical body has layers and organs
_THIN_MM: Final = 3.0  # the fit reads voxels up to this far apart

# How the layers of the trunk enclose the labels of a map.
WALL_MM: Final = 6.0  # of muscle between the cavity and the fascia, at least,
_PRESSED_WALL_MM: Final = 4.0  # or where the skin leaves no room for more
MIN_FAT_MM: Final = 2.5
_OVER_ORGANS_MM: Final = 18.0  # from organs to the outer surface of the muscles where a map has no outline,
_OVER_WALL_MM: Final = 6.0  # and from bones and muscles
_CLOSED_ORGANS_MM: Final = 14.0  # half the widest gap that is closed between organs,
_CLOSED_WALL_MM: Final = 6.0  # and between bones and muscles
_COVER_MM: Final = 3.0  # from bones and muscles to the fascia, at least
_CAGE_MM: Final = 3.0  # between the cavity and ribs, sternum and cartilage
_DIAPHRAGM_MM: Final = np.float32(4.0)  # between the diaphragm and labels below or above it
# Beyond the trunk.
_BEYOND_TRUNK_MM: Final = np.float32(18.0)  # outside of the canonical fascia, from where on it is an arm
_LIMB_FAT_MM: Final = 14.0  # of fat on head, arms and thighs, at most
_BEYOND_SHARE: Final = 0.25  # of the unlabelled body that may lie above or below the trunk without a warning

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
    grid.require_shape_of(label_map, subject="Label map")
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
    fixed = is_organ(labels)
    paint_envelope(canvas, layers, habitus, seed)
    _paint_limbs(canvas, layers, patient)
    canvas.labels[fixed] = labels[fixed]
    canvas.fixed, canvas.taken = fixed, find_taken(labels, patient.surfaces)
    paint_organs(canvas, layers, habitus, seed)
    canvas.labels[(layers.skin >= 0) & ~fixed] = ids.BACKGROUND
    canvas.tissue[(canvas.tissue == ids.TISSUE_FASCIA) & (frame.z > TRUNK_Z_MM[1])] = ids.TISSUE_MUSCLE
    _warn_of_parts_beyond(canvas)
    return canvas.labels, canvas.tissue


def _warn_of_parts_beyond(canvas: Canvas) -> None:
    """Warn where much of what is completed lies above or below the canonical body."""
    height = canvas.frame.z[canvas.labels == ids.BODY]
    beyond = (height < TRUNK_Z_MM[0]) | (height > TRUNK_Z_MM[1])
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
        return refined(field, steps, labels.shape, first=first)

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
    if not is_organ(thin).any() and is_organ(labels).any():  # a lesion alone may lie between them
        return labels, (0, 0, 0), (1, 1, 1)
    return np.ascontiguousarray(thin), (first[0], first[1], first[2]), (i, j, k)


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
    organs = distance_to_hull(lookup(_VISCERAL)[labels], spacing, close_mm=_CLOSED_ORGANS_MM)
    wall = distance_to_hull(lookup(_WALL)[labels], spacing, close_mm=_CLOSED_WALL_MM)
    skin = patient.skin_mm
    if skin is None:  # the canonical one, and beyond it what encloses the labels
        muscles = np.minimum(organs - _OVER_ORGANS_MM, wall - _OVER_WALL_MM)
        enclosed = np.minimum(muscles - patient.fat_mm, layers.skin)
        enclosed = np.minimum(enclosed, distance_to_hull(labels > 0, spacing, close_mm=0.0) - MIN_FAT_MM - 1.0)
        skin = enclosed.astype(np.float32)
    # All viscera are in the cavity, bones and muscles below the fascia, and muscle and fat between the layers.
    cavity: F32 = np.minimum(layers.cavity, organs - np.float32(1.0))
    fascia = layers.fascia
    if patient.near_fat_mm is not None and patient.certainty is not None:
        fascia = fascia + patient.certainty * (skin + patient.near_fat_mm - fascia)
    fascia = np.minimum(np.minimum(fascia, cavity - np.float32(WALL_MM)), wall - np.float32(_COVER_MM))
    fascia = np.maximum(fascia, skin + np.float32(MIN_FAT_MM))
    cavity = np.maximum(cavity, fascia + np.float32(_PRESSED_WALL_MM))
    cage = distance_to_hull(lookup((*ids.RIBS, ids.STERNUM, ids.COSTAL_CARTILAGE))[labels], spacing, close_mm=0.0)
    cavity = np.maximum(cavity, np.float32(_CAGE_MM) - cage)
    return Envelope(skin, fascia, cavity, _diaphragm(layers.diaphragm_z, frame, labels))


def _diaphragm(height_mm: F32, frame: Frame, labels: Labels) -> F32:
    """Height of the diaphragm: above the abdominal labels of the map and below the thoracic ones."""
    below = np.maximum.accumulate(lookup(_ABDOMINAL)[labels][:, :, ::-1], axis=2)[:, :, ::-1]
    above = np.maximum.accumulate(lookup(_THORACIC)[labels], axis=2)
    raised: F32 = np.where(below & ~above, np.maximum(height_mm, frame.z + _DIAPHRAGM_MM), height_mm)
    result: F32 = np.where(above & ~below, np.minimum(raised, frame.z - _DIAPHRAGM_MM), raised)
    return result


def _paint_limbs(canvas: Canvas, layers: Envelope, patient: PatientShape) -> None:
    """Muscle below the fat where the body reaches beyond the trunk: arms, head and thighs."""
    z = canvas.frame.z
    above_or_below = (z < TRUNK_Z_MM[0]) | (z > TRUNK_Z_MM[1])
    deep = (-layers.skin > min(patient.fat_mm, _LIMB_FAT_MM)) & (above_or_below | (layers.fascia > _BEYOND_TRUNK_MM))
    where = np.nonzero(deep)
    fat = patient.fat_at(np.stack([axis[where] for axis in (canvas.frame.x, canvas.frame.y, z)]), where)
    deep[where] = above_or_below[where] | (layers.fascia[where] > fat + _BEYOND_TRUNK_MM)
    canvas.tissue[deep] = ids.TISSUE_MUSCLE
