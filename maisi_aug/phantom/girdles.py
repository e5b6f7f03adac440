"""Shoulder and pelvic girdles: scapulae, claviculae, hip bones and the upper femurs (arms are up, out of view)."""

from __future__ import annotations

from typing import Final

import numpy as np

from maisi_aug.phantom.ids import (
    BODY,
    LEFT_CLAVICULA,
    LEFT_FEMUR,
    LEFT_HIP,
    LEFT_SCAPULA,
    RIGHT_CLAVICULA,
    RIGHT_FEMUR,
    RIGHT_HIP,
    RIGHT_SCAPULA,
)
from maisi_aug.phantom.shapes import Canvas, Field, Knots, ellipsoid, mirrored, sheet, tube

SIDES: Final = (1, -1)  # +1 right, -1 left
FEMORAL_HEAD_MM: Final = (89.0, 0.0, 64.0)
FEMORAL_HEAD_RADIUS_MM: Final = 23.0

# Knots (x, y, z, radius) of the right side in canonical millimetres.
_SCAPULA_MEDIAL: Final[Knots] = ((92, -94, 583, 3.0), (97, -100, 545, 2.6), (112, -96, 505, 2.6), (122, -86, 476, 3.2))
_SCAPULA_LATERAL: Final[Knots] = (
    (133, -60, 594, 5.0),
    (141, -58, 560, 5.0),
    (136, -68, 515, 4.0),
    (126, -84, 476, 3.4),
)
_SCAPULA_SPINE: Final[Knots] = ((97, -102, 560, 3.0), (120, -101, 574, 4.0), (146, -82, 594, 5.0), (160, -56, 606, 6.0))
_CORACOID: Final[Knots] = ((138, -48, 590, 5.5), (136, -22, 600, 5.0))
_GLENOID: Final = ((143.0, -50.0, 582.0), (8.0, 12.0, 17.0))
_CLAVICULA: Final[Knots] = (
    (18, 46, 577, 9.0), (48, 38, 588, 6.5), (85, 12, 600, 5.5), (122, -24, 608, 5.8), (150, -46, 612, 6.5),
)  # fmt: skip

_CREST: Final[Knots] = (
    (44, -96, 156, 6.5), (62, -84, 188, 6.5), (94, -58, 205, 6.0), (124, -20, 208, 6.0), (138, 16, 194, 6.5),
    (130, 44, 166, 6.5), (112, 42, 128, 6.0),
)  # fmt: skip
_BRIM: Final[Knots] = (
    (50, -84, 128, 8.0), (58, -70, 116, 8.5), (66, -52, 110, 8.0), (74, -32, 104, 8.0), (80, -12, 100, 9.0),
    (88, 10, 96, 9.0), (98, 26, 96, 8.0),
)  # fmt: skip
_WING_BULGE: Final = (5.0, -4.0, 0.0)
_UPPER_RAMUS: Final[Knots] = ((72, 18, 76, 9.5), (46, 44, 77, 7.0), (22, 58, 69, 7.5), (11, 61, 60, 8.5))
_PUBIC_BODY: Final[Knots] = ((11, 60, 64, 8.0), (11, 56, 46, 8.0))
_LOWER_RAMUS: Final[Knots] = ((12, 54, 44, 6.0), (30, 26, 22, 5.5), (54, -22, 6, 7.5))
_ISCHIUM: Final[Knots] = ((80, -24, 72, 14.0), (76, -42, 44, 11.5), (66, -46, 20, 13.0), (58, -38, 4, 10.0))
_NECK: Final[Knots] = ((89, 0, 64, 16.0), (112, -6, 57, 14.0), (131, -13, 46, 16.0))
_SHAFT: Final[Knots] = ((136, -14, 46, 16.0), (134, -8, 10, 15.5), (128, -2, -50, 14.5), (122, 0, -120, 13.5))
_TROCHANTER: Final = ((141.0, -18.0, 52.0), (14.0, 18.0, 22.0))


def one_side(knots: Knots, side: int) -> Knots:
    """Return the knots of a structure on the right side, or their mirror image for the left side (-1).

    Args:
        knots: Points and radii of the structure on the right side.
        side: 1 for right, -1 for left.
    """
    return knots if side > 0 else mirrored(knots)


def paint_shoulders(canvas: Canvas) -> None:
    """Paint the shoulders as with arms up: scapulae turned outwards, and raised clavicles."""
    frame = canvas.frame
    for side in SIDES:
        scapula = RIGHT_SCAPULA if side > 0 else LEFT_SCAPULA
        canvas.paint(
            sheet(frame, one_side(_SCAPULA_MEDIAL, side), one_side(_SCAPULA_LATERAL, side), bulge=(side * 3, -3, 0)),
            scapula,
        )
        for knots in (_SCAPULA_SPINE, _CORACOID):
            canvas.paint(tube(frame, one_side(knots, side)), scapula)
        canvas.paint(ellipsoid(frame, (side * _GLENOID[0][0], *_GLENOID[0][1:]), _GLENOID[1]), scapula)
        canvas.paint(tube(frame, one_side(_CLAVICULA, side)), RIGHT_CLAVICULA if side > 0 else LEFT_CLAVICULA)


def wing_sheet(
    canvas: Canvas, side: int, *, outwards_mm: float = 0.0, thickness_mm: float = 0.0, lower: float = 0.0
) -> Field:
    """Return the iliac wing, or a parallel sheet next to it for the muscles that lie on it.

    Args:
        canvas: Canvas that the sheet is drawn on.
        side: +1 right, -1 left.
        outwards_mm: Shift along the wing's outward (lateral and backward) direction.
        thickness_mm: Added to the radius.
        lower: Moves the upper edge towards the brim: 0 keeps the crest, 1 meets the brim.
    """
    step = np.array([0.80, -0.60, 0.0]) * outwards_mm
    crest, brim = np.asarray(_CREST), np.asarray(_BRIM)
    edges = []
    for rows in (crest * (1 - lower) + brim * lower, brim):
        moved = rows.copy()
        moved[:, :3] += step
        moved[:, 3] += thickness_mm
        edges.append(one_side([(float(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in moved], side))
    bulge = (side * _WING_BULGE[0], _WING_BULGE[1], _WING_BULGE[2])
    return sheet(canvas.frame, edges[0], edges[1], bulge=bulge, step_mm=6.0 if thickness_mm <= 0 else 10.0)


def paint_pelvis(canvas: Canvas) -> None:
    """Paint the hip bones with acetabulum, pubis and ischium, and the femora in their sockets."""
    frame = canvas.frame
    for side in SIDES:
        hip, femur = (RIGHT_HIP, RIGHT_FEMUR) if side > 0 else (LEFT_HIP, LEFT_FEMUR)
        head = (side * FEMORAL_HEAD_MM[0], FEMORAL_HEAD_MM[1], FEMORAL_HEAD_MM[2])
        canvas.paint(ellipsoid(frame, head, (FEMORAL_HEAD_RADIUS_MM,) * 3), femur)
        for knots in (_NECK, _SHAFT):
            canvas.paint(tube(frame, one_side(knots, side)), femur)
        canvas.paint(ellipsoid(frame, (side * _TROCHANTER[0][0], *_TROCHANTER[0][1:]), _TROCHANTER[1]), femur)
        _paint_socket(canvas, side, head, hip)
        canvas.paint(_thinned(wing_sheet(canvas, side)), hip)
        for knots in (_UPPER_RAMUS, _PUBIC_BODY, _LOWER_RAMUS, _ISCHIUM):
            canvas.paint(tube(frame, one_side(knots, side)), hip)


def _thinned(field: Field) -> Field:
    """The wing's middle is thinner than its rim; capsules are drawn with the rim's radius."""
    return field.grown(-1.2)


def _paint_socket(canvas: Canvas, side: int, head: tuple[float, float, float], hip: int) -> None:
    """Cup around the femoral head, open to the side and below, with a joint space of 2 mm."""
    frame = canvas.frame
    cup = ellipsoid(frame, head, (33.0, 33.0, 33.0))
    box = cup.slices
    lateral = np.float32(side) * (frame.x[box] - np.float32(head[0]))
    upward = frame.z[box] - np.float32(head[2])
    opening = np.float32(0.80) * lateral - np.float32(0.60) * upward - np.float32(6.0)
    inner = ellipsoid(frame, head, (25.0, 25.0, 25.0), margin_mm=11.0)
    mm = np.maximum(cup.mm, opening)
    if inner.slices == box:
        mm = np.maximum(mm, -inner.mm)
    canvas.paint(Field(box, mm), hip, over=(BODY,))
