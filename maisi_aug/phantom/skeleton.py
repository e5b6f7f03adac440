"""Axial skeleton: vertebrae with arches and processes, sacrum, cord, ribs, costal cartilage and sternum.

Sizes follow adult averages (vertebral pitch 18 mm at T1 to 35 mm at L4; bodies 28 to 52 mm wide).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from maisi_aug.phantom.envelope import BELLY_Z_MM, CAVITY_TABLE, OUTLINE_EXPONENT, WIDEST_Y_TABLE, bump
from maisi_aug.phantom.frame import Frame
from maisi_aug.phantom.habitus import Habitus
from maisi_aug.phantom.ids import (
    BODY,
    COSTAL_CARTILAGE,
    LEFT_RIB_1,
    RIGHT_RIB_1,
    SACRUM,
    SPINAL_CORD,
    STERNUM,
    TISSUE_DISC,
    TISSUE_FAT,
    VERTEBRA_S1,
    VERTEBRAE,
    vertebra_name_to_id,
)
from maisi_aug.phantom.shapes import Canvas, Field, Knots, capsules, smooth_max, smooth_path, tube

# Height z of the middle of each vertebral body in mm, caudal to cranial.
VERTEBRA_Z_MM: Final[dict[str, float]] = {
    "L5": 179.0, "L4": 212.0, "L3": 247.0, "L2": 282.0, "L1": 315.0, "T12": 346.0, "T11": 375.0, "T10": 402.0,
    "T9": 428.0, "T8": 453.0, "T7": 477.0, "T6": 500.0, "T5": 522.0, "T4": 543.0, "T3": 563.0, "T2": 582.0,
    "T1": 600.0, "C7": 617.0, "C6": 633.0,
}  # fmt: skip
# y of the vertebral bodies' middle against z: sacral, lumbar, thoracic and cervical curves.
SPINE_Y_MM: Final = np.array(
    [
        (-40, -60), (0, -68), (30, -86), (60, -94), (95, -92), (120, -80), (145, -60), (165, -43), (179, -32),
        (212, -23), (247, -19), (282, -21), (315, -27), (346, -35), (375, -42), (402, -48), (428, -53), (453, -57),
        (477, -59), (500, -60), (522, -59), (543, -56), (563, -51), (582, -45), (600, -38), (618, -30), (660, -16),
        (720, -10),
    ],
    dtype=np.float64,
)  # fmt: skip
# Costal arches: descent from the spine to the front end in mm, and the angle (0 back, 180 front) where bone ends.
_RIB_DROP_MM: Final = (28.0, 52.0, 64.0, 75.0, 85.0, 91.0, 92.0, 88.0, 81.0, 73.0, 56.0, 32.0)
_RIB_END_DEG: Final = (146.0, 146.0, 148.0, 149.0, 148.0, 145.0, 141.0, 133.0, 122.0, 108.0, 74.0, 50.0)
# Heights at which the cartilages of ribs 1 to 7 meet the sternum.
_STERNAL_Z_MM: Final = (561.0, 530.0, 507.0, 485.0, 464.0, 447.0, 434.0)


def spine_y(z_mm: float) -> float:
    """Return the canonical y, in mm, of the middle of the vertebral bodies at a height z."""
    return float(np.interp(z_mm, SPINE_Y_MM[:, 0], SPINE_Y_MM[:, 1]))


def paint_spine(canvas: Canvas) -> None:
    """Paint vertebrae C6 to L5, discs, sacrum with S1, and the cord in its canal."""
    heights = list(VERTEBRA_Z_MM.items())
    for number, (name, z) in enumerate(heights):
        above = heights[number + 1][1] - z if number + 1 < len(heights) else 16.0
        below = z - heights[number - 1][1] if number else 30.0
        _paint_vertebra(canvas, name, z, 0.5 * (above + below))
    _paint_sacrum(canvas)
    cord = [(0.0, spine_y(z) - _canal_offset(z), z, 7.0 + 1.0 * (z < 320)) for z in np.arange(150.0, 700.0, 12.0)]
    canvas.paint(tube(canvas.frame, cord, step_mm=8.0), SPINAL_CORD, over=(BODY, *VERTEBRAE, SACRUM))


def _body_size(z: float) -> tuple[float, float]:
    """Half-width and half-depth of a vertebral body in mm."""
    half_width = float(np.interp(z, (179, 282, 346, 453, 543, 600, 633), (26.5, 23.5, 21, 16.5, 14.5, 15, 13)))
    half_depth = float(np.interp(z, (179, 282, 346, 453, 543, 600, 633), (17.5, 17, 16, 15, 12.5, 10, 9)))
    return half_width, half_depth


def _canal_offset(z: float) -> float:
    return _body_size(z)[1] + 8.5


def _paint_vertebra(canvas: Canvas, name: str, z: float, pitch: float) -> None:
    frame = canvas.frame
    y = spine_y(z)
    slope = (spine_y(z + 8) - spine_y(z - 8)) / 16.0
    box = frame.box((-48, y - 72, z - 32), (48, y + 30, z + 24))
    if min(s.stop - s.start for s in box) <= 0:
        return
    norm = float(np.hypot(1.0, slope))
    u = frame.x[box]
    dy, dz = frame.y[box] - np.float32(y), frame.z[box] - np.float32(z)
    w, v = (dy - slope * dz) / norm, (dz + slope * dy) / norm  # along the body's depth and height
    half_width, half_depth = _body_size(z)
    disc = 4.0 + 4.5 * float(np.clip((330 - z) / 100, 0, 1))
    half_height = 0.5 * (pitch - disc)
    waist = 0.90 + 0.10 * np.minimum((v / np.float32(half_height)) ** 2, 1)
    oval = (np.sqrt((u / (half_width * waist)) ** 2 + (w / (half_depth * waist)) ** 2) - 1) * np.float32(half_depth)
    body = smooth_max(oval.astype(np.float32), (np.abs(v) - half_height).astype(np.float32), 4.0)
    gap = np.maximum(oval + 1, np.abs(v) - 0.5 * pitch - 1)
    canvas.paint_tissue(Field(box, gap.astype(np.float32)), TISSUE_DISC)
    arch = _arch(u, w, v, z, half_width, half_depth, pitch)
    canvas.paint(Field(box, np.minimum(body, arch)), vertebra_name_to_id(name))
    canal = np.hypot(u / np.float32(1.15), w + np.float32(half_depth + 8.5)) - np.float32(9.0)
    canvas.paint(Field(box, canal.astype(np.float32)), BODY, over=VERTEBRAE)
    canvas.paint_tissue(Field(box, canal.astype(np.float32)), TISSUE_FAT)


def _arch(
    u: np.ndarray, w: np.ndarray, v: np.ndarray, z: float, half_width: float, half_depth: float, pitch: float
) -> np.ndarray:
    """Pedicles, laminae, articular, transverse and spinous processes around the canal."""
    lumbar = float(np.clip((345 - z) / 40, 0, 1))
    behind = w + np.float32(half_depth + 8.5)  # 0 in the middle of the canal, negative behind it
    side = np.abs(u)
    ring = np.abs(np.hypot(u / np.float32(1.15), behind) - np.float32(12.0)) - np.float32(3.2)
    band = np.abs(v + np.float32(0.06 * pitch)) - np.float32(0.40 * pitch)
    lamina = np.maximum(ring, band)
    joints = np.maximum(
        np.hypot(side - 15 - 3 * lumbar, behind + 6) - np.float32(6.0 + lumbar), np.abs(v) - np.float32(0.5 * pitch)
    )
    drop = np.float32(0.75 - 0.55 * lumbar) * np.maximum(-behind - 10, 0)  # thoracic processes slant downwards
    spine_length = 27.0 + 5.0 * lumbar
    tall = 6.0 + 5.0 * lumbar
    spinous = np.maximum(np.maximum(side - 3.4, -behind - (12 + spine_length)), np.abs(v + drop) - np.float32(tall))
    spinous = np.maximum(spinous, behind + 9)
    reach = half_width + 15.0 + 3.0 * lumbar
    level = behind + np.float32(2.0) + np.float32(0.45 - 0.35 * lumbar) * (side - 12)
    transverse = np.hypot(level, v - np.float32(0.1 * pitch)) - np.float32(4.4)
    transverse = np.maximum(np.maximum(transverse, side - reach), 10 - side)
    pedicle = np.maximum(np.hypot(side - 0.62 * half_width - 2, v - 0.15 * pitch) - 5.0, np.abs(w + half_depth + 3) - 9)
    result: np.ndarray = np.minimum.reduce([lamina, joints, spinous, transverse, pedicle]).astype(np.float32)
    return result


def _paint_sacrum(canvas: Canvas) -> None:
    frame = canvas.frame
    box = frame.box((-64, -122, 18), (64, -18, 178))
    x, y, z = frame.x[box], frame.y[box], frame.z[box]
    if not x.size:
        return
    middle = np.interp(z, SPINE_Y_MM[:, 0], SPINE_Y_MM[:, 1]).astype(np.float32)
    half_width = np.interp(z, (18, 32, 60, 95, 125, 160, 178), (6, 9, 22, 34, 45, 53, 50)).astype(np.float32)
    half_depth = np.interp(z, (18, 40, 80, 120, 160, 178), (4, 7, 12, 18, 22, 20)).astype(np.float32)
    bow = 0.0045 * x * x  # the alae lie further back than the promontory
    plate = np.sqrt((x / half_width) ** 2 + ((y - middle + bow + 3) / half_depth) ** 2) - 1
    caps = np.maximum(z - 163 + 0.55 * (y - middle) + 0.1 * np.abs(x), 20 - z)
    wedge = np.maximum(plate * half_depth, caps).astype(np.float32)
    crest = np.maximum(np.maximum(np.abs(x) - 4, np.abs(y - middle + 26) - 9), np.abs(z - 115) - 40)
    canvas.paint(Field(box, np.minimum(wedge, crest).astype(np.float32)), SACRUM)
    first = np.maximum(wedge, np.maximum(np.abs(x) - 27 - 0.2 * (z - 150), 137 - z - 0.5 * (y - middle)))
    canvas.paint(Field(box, first.astype(np.float32)), VERTEBRA_S1, over=(SACRUM,))


def rib_path(number: int, side: int, habitus: Habitus) -> Knots:
    """Return the knots of rib ``number`` (1 to 12) on ``side`` (+1 right, -1 left), from spine to cartilage.

    Args:
        number: Number of the rib, 1 to 12.
        side: 1 for right, -1 for left.
        habitus: Build of the patient.

    Returns:
        Points and radii in canonical mm.
    """
    z_start = VERTEBRA_Z_MM[f"T{number}"] + 5.0
    drop, end = _RIB_DROP_MM[number - 1], np.deg2rad(_RIB_END_DEG[number - 1])
    half_width = _body_size(z_start)[0]
    knots = [(side * (half_width + 1.0), spine_y(z_start) - 12.0, z_start, 4.6)]
    first = np.deg2rad(33.0 if number > 1 else 45.0)
    num_knots = max(3, int(np.ceil((end - first) / np.deg2rad(14.0))))
    for angle in np.linspace(first, end, num_knots):
        share = (angle - first) / (np.pi * 0.8)
        z = z_start - drop * float(np.clip(share * np.pi * 0.8 / (end - first), 0, 1)) ** 1.15
        x, y = cavity_point(float(angle), z, habitus, outwards_mm=7.0)
        knots.append((side * x, y, z, 5.4 if 2 < number < 11 else 4.6))
    return knots


def cavity_point(angle_rad: float, z: float, habitus: Habitus, *, outwards_mm: float) -> tuple[float, float]:
    """Return canonical x and y of a point on the outline of the trunk's cavity.

    Args:
        angle_rad: Angle from the back (0) over the side to the front (pi).
        z: Canonical height in mm.
        habitus: Build of the patient.
        outwards_mm: Distance of the point outside the outline.
    """
    belly = habitus.belly_mm * float(bump(np.array([z]), *BELLY_Z_MM)[0])
    half_width, front, back = (float(np.interp(z, CAVITY_TABLE[:, 0], CAVITY_TABLE[:, c])) for c in (1, 2, 3))
    widest = float(np.interp(z, *WIDEST_Y_TABLE.T))
    half_width, front = half_width + 0.25 * belly + outwards_mm, front + belly + outwards_mm - widest
    sin, cos = float(np.sin(angle_rad)), -float(np.cos(angle_rad))
    depth = front if cos > 0 else widest - back + outwards_mm
    reach = ((abs(sin) / half_width) ** OUTLINE_EXPONENT + (abs(cos) / depth) ** OUTLINE_EXPONENT) ** (
        -1 / OUTLINE_EXPONENT
    )
    return reach * sin, widest + reach * cos


def paint_ribs(canvas: Canvas, habitus: Habitus) -> None:
    """Paint twelve pairs of ribs, their cartilages and the sternum.

    Args:
        canvas: Canvas of the patient, painted in place.
        habitus: Build of the patient.
    """
    _paint_sternum(canvas, habitus)
    for side, first_id in ((1, RIGHT_RIB_1), (-1, LEFT_RIB_1)):
        ends = []
        for number in range(1, 13):
            path = rib_path(number, side, habitus)
            canvas.paint(_rib(canvas.frame, path), first_id + number - 1)
            ends.append(smooth_path(path, step_mm=8.0)[-1])
        for number in range(1, 11):
            canvas.paint(tube(canvas.frame, _cartilage(number, side, ends, habitus), step_mm=11.0), COSTAL_CARTILAGE)


def _rib(frame: Frame, path: Knots) -> Field:
    """Distances to a rib: twice as high as it is thick."""
    line = smooth_path(path, step_mm=13.0)
    thin = line * np.array([1.0, 1.0, 1.0, 0.68])
    rise = np.zeros_like(line)
    rise[:, 2] = 0.42 * line[:, 3]
    starts = np.concatenate([thin[:-1] - rise[:-1], thin[:-1] + rise[:-1]])
    ends = np.concatenate([thin[1:] - rise[1:], thin[1:] + rise[1:]])
    return capsules(frame, starts, ends)


def _cartilage(number: int, side: int, ends: list[np.ndarray], habitus: Habitus) -> Knots:
    start = ends[number - 1]
    x, y, z = (float(value) for value in start[:3])
    radius = 4.8
    if number <= 7:
        z_end = _STERNAL_Z_MM[number - 1]
        x_end, y_end = side * 17.0, sternum_y(z_end, habitus)
    else:  # the false ribs join the cartilage above them
        x_end, y_end, z_end = (float(value) for value in ends[number - 2][:3])
        x_end, z_end = x_end * 0.9, z_end - 6.0
        y_end += 2.0
    middle_z = 0.6 * min(z, z_end) + 0.4 * max(z, z_end)
    angle = np.pi - float(np.arctan2(abs(0.5 * (x + x_end)), 0.5 * (y + y_end) + 14.0))
    x_mid, y_mid = cavity_point(angle, middle_z, habitus, outwards_mm=7.0)
    return [(x, y, z, radius), (side * x_mid, y_mid, middle_z, radius), (x_end, y_end, z_end, radius)]


def sternum_y(z: float, habitus: Habitus) -> float:
    """Return the canonical y, in mm, of the middle of the sternum at a height z.

    Args:
        z: Canonical height in mm.
        habitus: Build of the patient.
    """
    return cavity_point(np.pi, z, habitus, outwards_mm=8.0)[1]


def _paint_sternum(canvas: Canvas, habitus: Habitus) -> None:
    rows = []
    for z, half_width in (
        (574, 24),
        (562, 24),
        (548, 17),
        (530, 13),
        (505, 14),
        (480, 15),
        (455, 15),
        (432, 11),
        (410, 4),
    ):
        rows.append((float(z), float(half_width), sternum_y(z, habitus)))
    starts, ends = [], []
    for offset in np.linspace(-1, 1, 7):
        line = smooth_path([(offset * max(w - 5.5, 0.0), y, z, 5.5) for z, w, y in rows], step_mm=9.0)
        starts.append(line[:-1])
        ends.append(line[1:])
    canvas.paint(capsules(canvas.frame, np.concatenate(starts), np.concatenate(ends)), STERNUM)


def is_in_view(frame: Frame, z_low: float, z_high: float) -> bool:
    """Whether any voxel of the grid lies between two canonical heights in mm.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        z_low: Lower height in mm.
        z_high: Upper height in mm.
    """
    return bool(frame.z.min() < z_high and frame.z.max() > z_low)
