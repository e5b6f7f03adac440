"""Upper abdominal organs: stomach, spleen, liver, gallbladder, kidneys, adrenals, pancreas, duodenum.

Volumes aim at adult ranges: liver 1100-2000 mL, spleen 120-350, kidney 120-220, pancreas 60-120, stomach 200-600.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from maisi_aug.phantom.envelope import Envelope
from maisi_aug.phantom.habitus import jitter
from maisi_aug.phantom.ids import (
    BODY,
    DUODENUM,
    GALLBLADDER,
    HEPATIC_VESSEL,
    LEFT_ADRENAL,
    LEFT_KIDNEY,
    LIVER,
    PANCREAS,
    RIGHT_ADRENAL,
    RIGHT_KIDNEY,
    SPLEEN,
    STOMACH,
    TISSUE_FAT,
)
from maisi_aug.phantom.shapes import Canvas, Field, Knots, ellipsoid, patient_capsules, smooth_max, tube
from maisi_aug.phantom.trees import grow_tree, tree_capsules
from maisi_aug.phantom.vessels import shifted
from maisi_aug.system.seeds import numpy_generator

_STOMACH: Final[Knots] = (
    (-26, -10, 386, 14), (-44, -12, 390, 32), (-60, 4, 377, 41), (-66, 32, 351, 38), (-60, 46, 322, 32),
    (-36, 54, 302, 26), (-8, 56, 298, 21), (14, 50, 302, 16), (26, 40, 306, 11),
)  # fmt: skip
_DUODENUM: Final[Knots] = (
    (27, 38, 307, 12), (40, 30, 308, 13), (49, 16, 298, 12.5), (51, 10, 272, 12), (42, 12, 248, 12),
    (18, 25, 238, 11.5), (-12, 26, 242, 11.5), (-30, 22, 262, 11), (-36, 28, 280, 10.5),
)  # fmt: skip
_PANCREAS: Final[Knots] = (
    (22, 22, 266, 10), (30, 24, 282, 16), (28, 31, 300, 15), (12, 39, 308, 11), (-12, 35, 316, 12),
    (-38, 20, 324, 12.5), (-60, 0, 332, 12.5), (-78, -16, 340, 10),
)  # fmt: skip
_KIDNEYS: Final = {RIGHT_KIDNEY: (68.0, -31.0, 284.0), LEFT_KIDNEY: (-66.0, -33.0, 296.0)}
KIDNEY_RADII_MM: Final = (29.5, 27.5, 53.0)
_SPLEEN_CENTRE_MM: Final = (-100.0, -38.0, 340.0)
_SPLEEN_RADII_MM: Final = (34.0, 56.0, 60.0)
_ADRENALS: Final = {
    RIGHT_ADRENAL: (((33, -10, 352, 4.4), (36, -21, 336, 5.2)), ((36, -20, 342, 4.4), (24, -36, 343, 3.6)),
        ((36, -20, 342, 4.4), (46, -37, 341, 3.6))),
    LEFT_ADRENAL: (((-38, -13, 356, 4.4), (-40, -17, 344, 5.2)), ((-40, -16, 350, 4.4), (-27, -32, 350, 3.6)),
        ((-40, -16, 350, 4.4), (-53, -31, 350, 3.6))),
}  # fmt: skip
_GALLBLADDER_CENTRE_MM: Final = (52.0, 46.0, 306.0)


def paint_kidneys(canvas: Canvas, envelope: Envelope, seed: int, *, visceral_fat: float) -> dict[int, Field]:
    """Paint both kidneys, with the fatty hilum cut into their medial side, and return their distances.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        seed: Seed of the patient.
        visceral_fat: Amount of visceral fat, which surrounds the kidneys.

    Returns:
        Label id of the kidney -> distances to it.
    """
    fields = {}
    for label, centre in _KIDNEYS.items():
        side = 1.0 if label == RIGHT_KIDNEY else -1.0
        shift, factor = jitter(seed, f"kidney {label}", shift_mm=6.0, spread=0.055)
        middle = np.asarray(centre) + shift + np.array([side * 3.0 * visceral_fat, 5.0 * visceral_fat, 0.0])
        turn = (-8.0, -side * 11.0, side * 28.0)
        radii = (
            np.asarray(KIDNEY_RADII_MM) * factor / canvas.frame.radius_scale**0.7
        )  # nearly the same in tall and short
        field = ellipsoid(canvas.frame, middle, radii, turn_deg=turn, margin_mm=12.0)
        hilum = middle + np.array([-side * 25.0, 9.0, 0.0])
        sinus = ellipsoid(canvas.frame, hilum, (20.0, 13.0, 21.0), turn_deg=turn, margin_mm=20.0)
        mm = smooth_max(field.mm, -sinus.over(field.slices), 6.0)
        mm = np.maximum(mm, envelope.cavity[field.slices] + 4)
        fields[label] = Field(field.slices, mm)
        canvas.paint(fields[label], label)
        canvas.paint_tissue(sinus, TISSUE_FAT)
    return fields


def paint_adrenals(canvas: Canvas, seed: int) -> None:
    """Paint the adrenal glands: an inverted Y above each kidney.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    for label, limbs in _ADRENALS.items():
        for knots in limbs:
            canvas.paint(tube(canvas.frame, shifted(seed, f"adrenal {label}", knots), smooth=False), label)


def paint_stomach(canvas: Canvas, envelope: Envelope, seed: int) -> Field:
    """Paint the stomach from the cardia to the pylorus, under the diaphragm, and return its distances.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        seed: Seed of the patient.
    """
    rng = numpy_generator(seed, "stomach fill")
    fill = float(np.clip(rng.normal(0.93, 0.10), 0.72, 1.12))
    knots = [
        (x, y, z, r * (0.96 * fill if r > 15 else 1.0))
        for x, y, z, r in shifted(seed, "stomach", _STOMACH, shift_mm=5.0)
    ]
    field = tube(canvas.frame, knots, step_mm=9.0, margin_mm=6.0)
    mm = np.maximum(field.mm, envelope.cavity[field.slices] + 4)
    below = canvas.frame.z[field.slices] - envelope.diaphragm_z[field.slices] + 2.5
    field = Field(field.slices, smooth_max(mm, below, 6.0))
    canvas.paint(field, STOMACH)
    return field


def paint_spleen(canvas: Canvas, envelope: Envelope, left_kidney: Field, seed: int) -> None:
    """Paint the spleen between the left chest wall, the diaphragm and the kidney; the stomach yields to it.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        left_kidney: Distances to the left kidney.
        seed: Seed of the patient.
    """
    shift, factor = jitter(seed, "spleen", shift_mm=5.0, spread=0.10)
    radii = np.asarray(_SPLEEN_RADII_MM) * factor
    field = ellipsoid(
        canvas.frame, np.asarray(_SPLEEN_CENTRE_MM) + shift, radii, turn_deg=(18.0, 0.0, -26.0), margin_mm=8.0
    )
    box = field.slices
    mm = smooth_max(field.mm, envelope.cavity[box] + 3, 5.0)
    mm = np.maximum(mm, canvas.frame.z[box] - envelope.diaphragm_z[box] + 2.5)
    mm = np.maximum(mm, 3 - left_kidney.over(box))
    rng = numpy_generator(seed, "spleen surface")
    if mm.size:
        mm = mm + np.float32(1.6) * canvas.frame.smooth_noise(rng, 45.0, box)
    canvas.paint(Field(box, mm.astype(np.float32)), SPLEEN)


def paint_gallbladder(canvas: Canvas, seed: int) -> None:
    """Paint the gallbladder, a pear under the right liver; in a few patients it is contracted.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    shift, _ = jitter(seed, "gallbladder", shift_mm=5.0)
    rng = numpy_generator(seed, "gallbladder fill")
    radii = np.asarray((13.5, 17.0, 29.0)) * float(np.clip(rng.normal(1.0, 0.14), 0.65, 1.25))
    field = ellipsoid(canvas.frame, np.asarray(_GALLBLADDER_CENTRE_MM) + shift, radii, turn_deg=(-28.0, 12.0, 0.0))
    canvas.paint(field, GALLBLADDER)


def liver_field(canvas: Canvas, envelope: Envelope, seed: int) -> Field:
    """Return the distances to the liver: a wedge under the right dome that thins out to the left.

    Args:
        canvas: Canvas with the frame of the patient.
        envelope: Layers of the patient's trunk.
        seed: Seed of the patient.
    """
    frame = canvas.frame
    rng = numpy_generator(seed, "liver")
    box = frame.box((-95, -105, 205), (138, 112, 440))
    x, y, z = frame.x[box], frame.y[box], frame.z[box]
    if not x.size:
        return Field(box, np.zeros_like(x))
    low, tip = np.float32(np.clip(rng.normal(-4, 9), -22, 14)), np.float32(np.clip(rng.normal(-74, 9), -92, -54))
    across = np.clip((x - 10) / np.float32(105), -1, 1)
    edge = np.float32(336) - np.float32(66) * across - np.float32(14) * np.clip(y / np.float32(60), -1, 1) + low
    edge += np.float32(34) * np.clip(-across, 0, 1) + np.float32(22) * np.clip((48 - x) / 40, 0, 1) * np.clip(
        (12 - y) / 40, 0, 1
    )
    mm = smooth_max(envelope.cavity[box] + 3, z - envelope.diaphragm_z[box] + 1, 5.0)
    mm = smooth_max(mm, (edge - z) * np.float32(0.80), 14.0)
    back = np.float32(-26) - np.float32(0.9) * np.clip(x - 26, 0, 60) + np.float32(0.30) * np.clip(26 - x, 0, 90)
    mm = smooth_max(mm, (back - y) * np.float32(0.75), 12.0)
    left = (tip - x) * np.float32(0.9) + np.float32(0.25) * np.abs(y - 45)
    mm = smooth_max(mm, left.astype(np.float32, copy=False), 16.0)
    mm += np.float32(2.2) * frame.smooth_noise(rng, 60.0, box)
    return Field(box, mm.astype(np.float32))


def paint_liver(canvas: Canvas, envelope: Envelope, others: dict[int, Field], stomach: Field, seed: int) -> None:
    """Paint the liver around its neighbours, then the hepatic vessels inside it (id 25).

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        others: Label id -> distances to the kidneys, of which the liver keeps clear of the right one.
        stomach: Distances to the stomach.
        seed: Seed of the patient.
    """
    field = liver_field(canvas, envelope, seed)
    mm = np.maximum(field.mm, 4 - others[RIGHT_KIDNEY].over(field.slices))
    mm = np.maximum(mm, 1.5 - stomach.over(field.slices))
    canvas.paint(Field(field.slices, mm), LIVER)
    _paint_hepatic_vessels(canvas, seed)


def _paint_hepatic_vessels(canvas: Canvas, seed: int) -> None:
    rng = numpy_generator(seed, "hepatic vessels")
    # Portal branches enter at the hilum; hepatic veins join the cava under the diaphragm.
    for root, radius, num_tips in (((50.0, 20.0, 353.0), 6.2, 26), ((27.0, 8.0, 404.0), 6.6, 22)):
        inside = _points_inside(canvas, LIVER, rng, num_tips)
        if len(inside) < 5:
            continue
        tree = grow_tree(canvas.frame.to_patient(root)[0], inside, root_radius_mm=radius, min_radius_mm=0.8)
        starts, ends = tree_capsules(tree, min_radius_mm=1.7)
        if len(starts):
            canvas.paint(patient_capsules(canvas.frame, starts, ends), HEPATIC_VESSEL, over=(LIVER,))


def _points_inside(canvas: Canvas, label: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """Up to ``count`` random voxel centres of an organ in patient millimetres, ``(N, 3)``."""
    found = np.flatnonzero(canvas.labels == label)
    if found.size == 0:
        return np.empty((0, 3))
    picked = np.unravel_index(rng.choice(found, size=min(count, found.size), replace=False), canvas.labels.shape)
    return np.stack([canvas.frame.axes[a][picked[a]] for a in range(3)], axis=1).astype(np.float64)


def paint_pancreas(canvas: Canvas, seed: int) -> None:
    """Paint the pancreas: head in the duodenal loop, neck over the portal vein, body and tail towards the spleen.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    rng = numpy_generator(seed, "pancreas surface")
    size = float(np.clip(rng.normal(1.0, 0.08), 0.84, 1.18))
    knots = [(x, y, z, r * size) for x, y, z, r in shifted(seed, "pancreas", _PANCREAS, shift_mm=4.0, spread=0.0)]
    field = tube(canvas.frame, knots, step_mm=7.0, margin_mm=5.0)
    mm = field.mm
    if mm.size:
        mm = mm + np.float32(1.5) * canvas.frame.smooth_noise(rng, 22.0, field.slices)
    canvas.paint(Field(field.slices, mm), PANCREAS)


def paint_duodenum(canvas: Canvas, seed: int) -> None:
    """Paint the duodenum: a C from the pylorus around the pancreatic head to the left of the aorta.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    canvas.paint(
        tube(canvas.frame, shifted(seed, "pancreas", _DUODENUM, shift_mm=4.0, spread=0.0), step_mm=7.0),
        DUODENUM,
        over=(BODY,),
    )
