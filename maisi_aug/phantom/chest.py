"""Heart, lungs with their lobes, thyroid."""

from __future__ import annotations

from typing import Final

import numpy as np

from maisi_aug.phantom.envelope import Envelope
from maisi_aug.phantom.frame import Slices
from maisi_aug.phantom.habitus import jitter
from maisi_aug.phantom.ids import (
    BODY,
    HEART,
    LEFT_ATRIAL_APPENDAGE,
    LEFT_LOWER_LOBE,
    LEFT_UPPER_LOBE,
    PULMONARY_VEIN,
    RIGHT_LOWER_LOBE,
    RIGHT_MIDDLE_LOBE,
    RIGHT_UPPER_LOBE,
    THYROID,
)
from maisi_aug.phantom.noise import F32
from maisi_aug.phantom.shapes import Canvas, Field, ellipsoid, tube
from maisi_aug.phantom.skeleton import SPINE_Y_MM, spine_y
from maisi_aug.phantom.vessels import mediastinal_tubes
from maisi_aug.system.seeds import numpy_generator

HEART_CENTRE_MM: Final = (-20.0, 24.0, 438.0)
HEART_RADII_MM: Final = (62.0, 46.5, 46.5)  # along the long axis (to the left apex), across, up
HEART_TURN_DEG: Final = (8.0, -22.0, -28.0)
LUNG_BOTTOM_MM: Final = 325.0
LUNG_TOP_MM: Final = 622.0
PLEURA_MM: Final = 2.5  # chest wall between the cavity's outline and the lung


def heart_field(canvas: Canvas, envelope: Envelope, seed: int) -> Field:
    """Return the field of the heart: an egg that points to the left, front and down, resting on the diaphragm.

    Args:
        canvas: Canvas with the frame of the patient.
        envelope: Layers of the patient's trunk.
        seed: Seed of the patient.
    """
    shift, factor = jitter(seed, "heart", shift_mm=3.0, spread=0.08)
    centre = np.asarray(HEART_CENTRE_MM) + shift
    field = ellipsoid(
        canvas.frame, centre, np.asarray(HEART_RADII_MM) * factor**0.5, turn_deg=HEART_TURN_DEG, margin_mm=16.0
    )
    box = field.slices
    base = ellipsoid(canvas.frame, centre + np.array([14.0, -14.0, 14.0]), (38.0, 34.0, 38.0), margin_mm=16.0)
    mm = np.minimum(field.mm, base.over(box))
    mm = np.maximum(mm, envelope.cavity[box] + 5)
    return Field(box, np.maximum(mm, envelope.diaphragm_z[box] - canvas.frame.z[box] - 3))


def paint_heart(canvas: Canvas, envelope: Envelope, seed: int) -> Field:
    """Paint heart and left atrial appendage, and return the heart's distances, from which the lungs keep clear.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        seed: Seed of the patient.
    """
    field = heart_field(canvas, envelope, seed)
    canvas.paint(field, HEART, over=(BODY, PULMONARY_VEIN))
    shift, _ = jitter(seed, "heart", shift_mm=3.0, spread=0.08)
    knots = [
        (x + shift[0], y + shift[1], z + shift[2], r)
        for x, y, z, r in ((-34, 2, 476, 6.0), (-46, 16, 480, 7.0), (-50, 30, 476, 5.0))
    ]
    canvas.paint(tube(canvas.frame, knots), LEFT_ATRIAL_APPENDAGE, over=(BODY, HEART))
    return field


def paint_thyroid(canvas: Canvas, seed: int) -> None:
    """Paint the thyroid: two lobes beside the trachea at the base of the neck, and the isthmus.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    shift, factor = jitter(seed, "airway", shift_mm=3.0, spread=0.10)
    size = np.asarray((8.5, 9.5, 24.0)) * factor
    for side in (1, -1):
        canvas.paint(ellipsoid(canvas.frame, np.asarray((side * 16.0, -2.0, 624.0)) + shift, size), THYROID)
    canvas.paint(ellipsoid(canvas.frame, np.asarray((0.0, 8.0, 616.0)) + shift, (14.0, 4.5, 8.0)), THYROID)


def paint_lungs(canvas: Canvas, envelope: Envelope, heart: Field, seed: int) -> None:
    """Paint the lungs: the chest cavity above the diaphragm without the mediastinum, divided by curved fissures.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        heart: Distances to the heart.
        seed: Seed of the patient.
    """
    frame = canvas.frame
    box = frame.box((-150, -125, LUNG_BOTTOM_MM), (150, 110, LUNG_TOP_MM))
    x, y, z = frame.x[box], frame.y[box], frame.z[box]
    if not x.size:
        return
    mm = np.maximum(envelope.cavity[box] + PLEURA_MM, envelope.diaphragm_z[box] + 1 - z)
    mm = np.maximum(mm, z - np.float32(LUNG_TOP_MM - 14))
    mm = np.maximum(mm, -_mediastinum(canvas, envelope, heart, seed, box))
    lung = Field(box, mm.astype(np.float32))
    left = x < np.float32(-4)
    fissure = _fissure_height(canvas, seed, box)
    upper = z > fissure
    rng = numpy_generator(seed, "fissures")
    horizontal = np.float32(474 + rng.normal(0, 6)) + np.float32(rng.normal(0, 0.05)) * y
    canvas.paint(lung, LEFT_UPPER_LOBE, also=left & upper)
    canvas.paint(lung, LEFT_LOWER_LOBE, also=left & ~upper)
    canvas.paint(lung, RIGHT_LOWER_LOBE, also=~left & ~upper)
    canvas.paint(lung, RIGHT_MIDDLE_LOBE, also=~left & upper & (z < horizontal))
    canvas.paint(lung, RIGHT_UPPER_LOBE, also=~left & upper & (z >= horizontal))


def _fissure_height(canvas: Canvas, seed: int, box: Slices) -> F32:
    """Height of the oblique fissures over a box of voxels: high at the back, low at the front, gently warped."""
    frame = canvas.frame
    rng = numpy_generator(seed, "oblique fissures")
    slope, height = np.float32(-0.90 + rng.normal(0, 0.05)), np.float32(462 + rng.normal(0, 6))
    waves = np.float32(5) * frame.smooth_noise(rng, 120.0)[box]
    result: F32 = height + slope * frame.y[box] + waves + np.float32(0.0006) * (np.abs(frame.x[box]) - 70) ** 2 * 5
    return result


def _mediastinum(canvas: Canvas, envelope: Envelope, heart: Field, seed: int, box: Slices) -> F32:
    """Distance over a box of voxels to what lies between the lungs: heart, spine, great vessels, septum, fat pads."""
    x, y, z = canvas.frame.x[box], canvas.frame.y[box], canvas.frame.z[box]
    middle_y = np.interp(z, SPINE_Y_MM[:, 0], SPINE_Y_MM[:, 1]).astype(np.float32)
    spine = np.hypot(x / np.float32(1.08), y - middle_y + np.float32(4)) - np.float32(19.5)
    arches = np.maximum(np.abs(x) - np.float32(36), y - middle_y + np.float32(24))
    septum_y = np.float32(spine_y(500.0) + 10.0)
    width = np.float32(8) + np.float32(10) * np.clip((z - 520) / np.float32(70), 0, 1)
    septum = np.maximum(np.abs(x - np.float32(2)) - width, septum_y - y)
    septum = np.where(y > 52, np.maximum(septum, np.abs(x - 2) - 4), septum)
    mm: F32 = np.minimum(np.minimum(spine, arches), septum)
    _add_field(mm, heart, box, margin_mm=4.5)
    # Cardiophrenic fat: a low mound in front, on the diaphragm beside the heart.
    above = np.maximum(z - envelope.diaphragm_z[box], 0) / np.float32(24)
    pads = np.sqrt(((x + 18) / np.float32(52)) ** 2 + ((y - 66) / np.float32(38)) ** 2 + above**2) - 1
    np.minimum(mm, pads * np.float32(26), out=mm)
    for field in mediastinal_tubes(canvas, seed):
        _add_field(mm, field, box, margin_mm=2.5)
    return mm


def _add_field(mm: F32, field: Field, box: Slices, *, margin_mm: float) -> None:
    """Add a solid and a margin around it to the distances over a box of voxels, in place."""
    there, here = field.overlap(box)
    view = mm[there]
    np.minimum(view, field.mm[here] - np.float32(margin_mm), out=view)
