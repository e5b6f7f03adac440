"""The layers of the trunk: skin, fascia (outer muscle surface), cavity (pleura and peritoneum) and diaphragm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom.frame import Frame
from maisi_aug.phantom.habitus import Habitus
from maisi_aug.phantom.ids import (
    BODY,
    TISSUE_FASCIA,
    TISSUE_FAT,
    TISSUE_MUSCLE,
    TISSUE_SOFT,
    TISSUE_SUBCUTANEOUS,
)
from maisi_aug.phantom.noise import F32
from maisi_aug.phantom.shapes import Canvas
from maisi_aug.system.seeds import numpy_generator

# Half-width, anterior and posterior extent in mm against z in mm.
CAVITY_TABLE: Final = np.array(
    [
        (-80, 15, -5, -25),
        (0, 22, 4, -58),
        (40, 42, 46, -86),
        (80, 60, 64, -94),
        (120, 85, 73, -94),
        (160, 108, 80, -86),
        (200, 119, 84, -80),
        (240, 122, 88, -80),
        (280, 124, 90, -84),
        (320, 127, 91, -89),
        (360, 130, 91, -92),
        (400, 133, 90, -94),
        (440, 132, 84, -95),
        (480, 128, 75, -95),
        (520, 118, 62, -92),
        (550, 104, 47, -85),
        (575, 84, 34, -77),
        (595, 60, 20, -68),
        (610, 36, 8, -58),
        (625, 10, -5, -48),
        (720, 4, -15, -35),
    ],
    dtype=np.float64,
)
_FASCIA: Final = np.array(
    [
        (-80, 150, 72, -88),
        (0, 157, 74, -104),
        (40, 159, 80, -110),
        (80, 157, 82, -112),
        (120, 152, 88, -110),
        (160, 145, 94, -106),
        (200, 138, 98, -102),
        (240, 136, 101, -102),
        (280, 137, 103, -105),
        (320, 139, 105, -109),
        (360, 143, 106, -112),
        (400, 146, 105, -114),
        (440, 149, 101, -116),
        (480, 153, 96, -117),
        (520, 158, 86, -117),
        (550, 161, 73, -115),
        (575, 160, 62, -112),
        (595, 151, 50, -106),
        (610, 136, 40, -100),
        (625, 112, 32, -94),
        (650, 84, 30, -84),
        (720, 62, 32, -72),
    ],
    dtype=np.float64,
)
WIDEST_Y_TABLE: Final = np.array(
    [(-80, -10), (80, -18), (200, -8), (320, -8), (440, -14), (560, -28), (720, -22)], dtype=np.float64
)
_TABLE_START_MM: Final = -100.0
_TABLE_STEP_MM: Final = 0.5
_TABLE_Z: Final = np.arange(_TABLE_START_MM, 740.0, _TABLE_STEP_MM)
OUTLINE_EXPONENT: Final = 2.25  # 2 is an ellipse, larger is boxier
BREAST_CENTRE_MM: Final = (74.0, 92.0, 462.0)
BELLY_Z_MM: Final = (130.0, 255.0, 400.0)  # where the belly's bulge begins, peaks and ends


@dataclass(frozen=True)
class Envelope:
    """Layers of the trunk as signed distances in canonical mm over the whole grid, negative inside.

    Attributes:
        skin: Outline of the body.
        fascia: Outer surface of the muscles.
        cavity: Pleural and peritoneal cavity.
        diaphragm_z: Height of the diaphragm above every voxel's place; the voxel is abdominal where ``z`` is below it.
    """

    skin: F32
    fascia: F32
    cavity: F32
    diaphragm_z: F32


def build_envelope(frame: Frame, habitus: Habitus, seed: int, *, with_fat: bool = True) -> Envelope:
    """Return the layers of the trunk for one patient.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        habitus: Build of the patient.
        seed: Seed of the patient.
        with_fat: Whether to lay fat between muscles and skin; otherwise the skin is the muscles' surface.
    """
    index = np.clip((frame.z - _TABLE_START_MM) / _TABLE_STEP_MM, 0, len(_TABLE_Z) - 1).astype(np.int32)
    belly = habitus.belly_mm * bump(_TABLE_Z, *BELLY_Z_MM)
    widest = np.interp(_TABLE_Z, *WIDEST_Y_TABLE.T)
    cavity = _outline(frame, index, CAVITY_TABLE, widest, belly, 0.25 * belly)
    fascia = _outline(frame, index, _FASCIA, widest, belly, 0.25 * belly)
    fascia -= _axilla(frame)
    skin = fascia - _fat_thickness(frame, habitus, seed) if with_fat else fascia
    fascia = fascia + _relief(frame, habitus)
    return Envelope(skin, fascia, cavity, diaphragm_height(frame.x, frame.y, habitus.inspiration_mm))


def bump(z: NDArray[np.float64], start: float, peak: float, stop: float) -> NDArray[np.float64]:
    """Return a smooth hump along z: 0 at ``start`` and ``stop``, 1 at ``peak``.

    Args:
        z: Heights of any shape.
        start: Height below which the hump is 0.
        peak: Height at which it is 1, above ``start``.
        stop: Height above which it is 0, above ``peak``.

    Returns:
        Values in [0, 1] of the shape of ``z``.
    """
    rise = np.clip((z - start) / (peak - start), 0, 1)
    fall = np.clip((stop - z) / (stop - peak), 0, 1)
    hump: NDArray[np.float64] = np.sin(0.5 * np.pi * np.minimum(rise, fall)) ** 2
    return hump


def _outline(
    frame: Frame,
    index: NDArray[np.int32],
    table: NDArray[np.float64],
    widest: NDArray[np.float64],
    forward: NDArray[np.float64],
    sideways: NDArray[np.float64],
) -> F32:
    """Distance to a superelliptic outline with different anterior and posterior half-depths."""
    half_width = (np.interp(_TABLE_Z, table[:, 0], table[:, 1]) + sideways).astype(np.float32)
    front = (np.interp(_TABLE_Z, table[:, 0], table[:, 2]) + forward - widest).astype(np.float32)
    back = (widest - np.interp(_TABLE_Z, table[:, 0], table[:, 3])).astype(np.float32)
    a = half_width[index]
    from_widest = frame.y - widest.astype(np.float32)[index]
    b = np.maximum(np.where(from_widest > 0, front[index], back[index]), np.float32(2))
    u, v = np.abs(frame.x) / a, np.abs(from_widest) / b
    u_steep, v_steep = u ** np.float32(OUTLINE_EXPONENT - 1), v ** np.float32(OUTLINE_EXPONENT - 1)
    total = u * u_steep + v * v_steep
    rho = np.maximum(total, np.float32(1e-6)) ** np.float32(1 / OUTLINE_EXPONENT)
    gradient = np.hypot(u_steep / a, v_steep / b) / rho ** np.float32(OUTLINE_EXPONENT - 1)
    result: F32 = np.maximum((rho - 1) / np.maximum(gradient, np.float32(1e-3)), -np.minimum(a, b))
    return result


def _axilla(frame: Frame) -> F32:
    """How far in mm the muscles of the shoulder blade and the armpit stand out behind the side of the chest."""
    x, y, z = np.abs(frame.x), frame.y, frame.z
    height = np.clip((z - 430) / np.float32(90), 0, 1) * np.clip((640 - z) / np.float32(50), 0, 1)
    place = ((x - 126) / np.float32(42)) ** 2 + ((y + 48) / np.float32(46)) ** 2
    result: F32 = np.float32(19) * height * np.exp(-place)
    return result


def _relief(frame: Frame, habitus: Habitus) -> F32:
    """How far in mm the muscles' surface lies below its outline: furrows of the back and of the belly."""
    x, y, z = np.abs(frame.x), frame.y, frame.z
    trunk = np.clip((z - 170) / np.float32(40), 0, 1) * np.clip((560 - z) / np.float32(60), 0, 1)
    belly = np.clip((z - 110) / np.float32(50), 0, 1) * np.clip((395 - z) / np.float32(40), 0, 1)
    behind = np.clip((-y - 30) / np.float32(30), 0, 1)
    lumbar = np.clip((z - 180) / np.float32(40), 0, 1) * np.clip((360 - z) / np.float32(60), 0, 1)
    back = np.float32(9) * np.exp(-((x / np.float32(9)) ** 2))  # between the erectors of the spine
    back += (np.float32(2) + np.float32(9) * lumbar) * np.exp(-(((x - 84) / np.float32(21)) ** 2))  # and beside them
    front = np.clip((y - 20) / np.float32(30), 0, 1)
    rectus = np.float32(3.0) * np.exp(-((x / np.float32(52)) ** 6))
    line = np.float32(4.0) * np.exp(-(((x - 64) / np.float32(7)) ** 2))  # between rectus and the oblique muscles
    line += np.float32(3.5) * np.exp(-((x / np.float32(6)) ** 2))
    lean = np.float32(1.25 - 0.5 * (habitus.muscle - 0.75))
    result: F32 = (trunk * behind * back + belly * front * (rectus + line)) * lean
    return result


def _fat_thickness(frame: Frame, habitus: Habitus, seed: int) -> F32:
    """Subcutaneous fat in mm, varied from place to place, with breasts."""
    rng = numpy_generator(seed, "subcutaneous fat")
    x, y, z = frame.x, frame.y, frame.z
    share = fat_share(x, y, z)
    share *= 1 + np.float32(0.10) * frame.smooth_noise(rng, 160.0)
    thickness = np.maximum(np.float32(habitus.subcutaneous_mm) * share, np.float32(2.5))
    if habitus.is_female:
        size = np.float32(rng.uniform(18, 42) * (0.6 + 0.02 * habitus.subcutaneous_mm))
        cx, _, cz = BREAST_CENTRE_MM
        mound = np.exp(-(((np.abs(x) - cx) / 40) ** 2) - ((z - cz) / 42) ** 2) * (y > 0)
        thickness += np.minimum(size, np.float32(55 - 0.9 * habitus.subcutaneous_mm)) * mound.astype(np.float32)
    result: F32 = thickness.astype(np.float32)
    return result


def fat_share(x: F32, y: F32, z: F32) -> F32:
    """Return the thickness of subcutaneous fat relative to a patient's own: thin over the spine and towards the neck.

    Args:
        x: Canonical x in mm, of any shape.
        y: Canonical y in mm, of the same shape.
        z: Canonical z in mm, of the same shape.

    Returns:
        Factors of the same shape, about 1 at the flanks and more on belly and buttocks.
    """
    low = np.clip((np.float32(430) - z) / np.float32(260), 0, 1)
    front = np.clip(y / np.float32(90), -1, 1)
    share: F32 = np.float32(0.62) + low * (np.float32(0.38) + np.float32(0.35) * front * front)
    share -= np.float32(0.35) * np.exp(-((x / np.float32(24)) ** 2)) * (front < 0)
    return share


def diaphragm_height(x: F32, y: F32, raised_mm: float) -> F32:
    """Return the height of the diaphragm in mm at canonical x and y: two domes, the right one higher.

    Args:
        x: Canonical x in mm, of any shape.
        y: Canonical y in mm, of the same shape.
        raised_mm: Height by which the domes are raised, in mm.

    Returns:
        Canonical z in mm, of the same shape.
    """
    rim = np.float32(338) + np.float32(48) * np.clip((y + 10) / np.float32(90), 0, 1)
    dome = np.float32(409 + raised_mm) + np.float32(9) * np.tanh(x / np.float32(35))
    dome -= np.float32(8) * np.exp(-((x / np.float32(28)) ** 2))
    share = np.maximum(1 - (x / np.float32(134)) ** 2 - ((y + 4) / np.float32(97)) ** 2, 0)
    result: F32 = rim + (dome - rim) * share ** np.float32(0.42)
    return result


def paint_envelope(canvas: Canvas, envelope: Envelope, habitus: Habitus, seed: int) -> None:
    """Fill the body with label 200, and paint the tissues below the skin: fat, muscle wall and visceral fat.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        habitus: Build of the patient.
        seed: Seed of the patient.
    """
    frame = canvas.frame
    canvas.labels[envelope.skin < 0] = BODY
    canvas.tissue[...] = TISSUE_SUBCUTANEOUS
    canvas.tissue[envelope.fascia < 0] = TISSUE_MUSCLE
    canvas.tissue[envelope.cavity < 0] = TISSUE_FAT
    rng = numpy_generator(seed, "tissue")
    seam = frame.smooth_noise(rng, 42.0) + np.float32(0.5) * frame.smooth_noise(rng, 20.0)
    _paint_wall(canvas, envelope, habitus, seam)
    canvas.tissue[(envelope.cavity < 0) & (np.abs(frame.z - envelope.diaphragm_z) < 2)] = TISSUE_MUSCLE
    if habitus.is_female:
        cx, cy, cz = BREAST_CENTRE_MM
        gland = (((np.abs(frame.x) - cx) / 34) ** 2 + ((frame.z - cz) / 32) ** 2) < 1 + 0.3 * seam
        gland &= (envelope.fascia > 4) & (envelope.skin < -7) & (frame.y > cy - 25) & (seam > -0.4)
        canvas.tissue[gland] = TISSUE_SOFT


def _paint_wall(canvas: Canvas, envelope: Envelope, habitus: Habitus, seam: F32) -> None:
    """Part the wall of belly and chest into its layers of muscle by thin fat, more of it in fat patients."""
    frame = canvas.frame
    wall = np.flatnonzero((envelope.fascia < 0) & (envelope.cavity > 0))
    fields = (frame.x, frame.y, frame.z, envelope.cavity, envelope.fascia, seam)
    x, y, z, cavity, fascia, seam = (np.take(field, wall) for field in fields)
    x = np.abs(x)
    tissue = np.take(canvas.tissue, wall)
    half = np.float32(max(0.7, 0.32 * float(np.cbrt(np.prod(frame.spacing_mm)))))
    often = np.float32(0.9 - 1.7 * habitus.visceral_fat)  # the layers show where the seam is above this
    side = (z > 190) & (z < 375) & (x > 72) & (y > -62) & (seam > often)
    for share in (0.36, 0.68):
        tissue[side & (np.abs(cavity - np.float32(share) * (cavity - fascia)) < half)] = TISSUE_FASCIA
    # Outside of ribs and intercostal muscles lie the muscles of the shoulder, on a gliding layer of fat.
    gap = np.float32(0.6 + 3.2 * habitus.visceral_fat) * np.clip(seam + np.float32(0.9), 0, 1.6)
    tissue[(z > 395) & (fascia < -3) & (np.abs(cavity - 12.5) < gap)] = TISSUE_FASCIA
    armpit = (cavity > 11) & (fascia < -9) & (z > 490) & (y > -52) & (x > 92) & (y < 45) & (seam > -0.6)
    tissue[armpit] = TISSUE_FAT
    tissue[(x < 3.0) & (y > 60) & (z < 400) & (cavity > 3)] = TISSUE_FASCIA  # the white line
    np.put(canvas.tissue, wall, tissue)
