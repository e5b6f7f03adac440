"""Great vessels of chest, abdomen and pelvis, the airway tree and the oesophagus, as tubes of tapering radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from maisi_aug.phantom.habitus import jitter
from maisi_aug.phantom.ids import (
    AIRWAY,
    AORTA,
    BODY,
    BRACHIOCEPHALIC_TRUNK,
    ESOPHAGUS,
    HEART,
    INFERIOR_VENA_CAVA,
    LEFT_BRACHIOCEPHALIC_VEIN,
    LEFT_COMMON_CAROTID,
    LEFT_ILIAC_ARTERY,
    LEFT_ILIAC_VEIN,
    LEFT_SUBCLAVIAN_ARTERY,
    PORTAL_AND_SPLENIC_VEIN,
    PULMONARY_VEIN,
    RIGHT_BRACHIOCEPHALIC_VEIN,
    RIGHT_COMMON_CAROTID,
    RIGHT_ILIAC_ARTERY,
    RIGHT_ILIAC_VEIN,
    RIGHT_SUBCLAVIAN_ARTERY,
    SUPERIOR_VENA_CAVA,
    TISSUE_VESSEL,
    TRACHEA,
)
from maisi_aug.phantom.shapes import Canvas, Field, Knots, tube


@dataclass(frozen=True)
class Vessel:
    """One tube: its label, knots (x, y, z, radius in canonical mm) and the stream of its random shift."""

    label: int
    knots: Knots
    group: str


_ARTERIES: Final = (
    Vessel(
        AORTA,
        (
            (-6, 18, 462, 14.5), (6, 26, 482, 16.5), (12, 25, 508, 16.5), (8, 14, 536, 15.5), (-6, -8, 549, 14.5),
            (-21, -30, 541, 13.5), (-27, -43, 520, 12.8), (-28, -46, 490, 12.4), (-26, -43, 440, 12.0),
            (-18, -28, 390, 11.5), (-12, -10, 350, 11.0), (-9, 2, 310, 10.4), (-9, 7, 270, 9.4), (-7, 5, 240, 9.0),
            (-5, 2, 213, 9.0),
        ),
        "aorta",
    ),
    Vessel(BRACHIOCEPHALIC_TRUNK, ((4, 8, 548, 6.5), (13, 4, 566, 6.3), (23, -6, 588, 6.0)), "aorta"),
    Vessel(RIGHT_COMMON_CAROTID, ((22, -5, 586, 4.0), (24, -9, 610, 3.8), (27, -10, 660, 3.8)), "aorta"),
    Vessel(RIGHT_SUBCLAVIAN_ARTERY, ((24, -7, 589, 4.8), (40, -14, 604, 4.6), (72, -12, 602, 4.4),
        (110, -18, 596, 4.0)), "aorta"),
    Vessel(LEFT_COMMON_CAROTID, ((-8, -4, 552, 4.2), (-17, -8, 580, 4.0), (-24, -10, 612, 3.8),
        (-27, -10, 660, 3.8)), "aorta"),
    Vessel(LEFT_SUBCLAVIAN_ARTERY, ((-18, -22, 549, 5.2), (-28, -26, 580, 5.0), (-44, -18, 602, 4.6),
        (-76, -12, 602, 4.4), (-112, -18, 596, 4.0)), "aorta"),
    Vessel(LEFT_ILIAC_ARTERY, ((-6, 2, 214, 6.0), (-24, 2, 184, 5.4), (-48, 0, 152, 5.0), (-66, 22, 116, 4.6),
        (-76, 48, 84, 4.6), (-80, 58, 62, 4.5)), "aorta"),
    Vessel(RIGHT_ILIAC_ARTERY, ((-4, 2, 214, 6.0), (20, 4, 184, 5.4), (46, 2, 152, 5.0), (65, 22, 116, 4.6),
        (76, 48, 84, 4.6), (80, 58, 62, 4.5)), "aorta"),
)  # fmt: skip
_VEINS: Final = (
    Vessel(
        INFERIOR_VENA_CAVA,
        ((12, 0, 206, 9.5), (17, 6, 240, 10.0), (20, 8, 280, 10.5), (23, 6, 320, 11.5), (26, 4, 355, 12.0),
            (27, 6, 390, 12.5), (25, 10, 418, 12.5), (23, 12, 436, 12.0)),
        "veins",
    ),
    Vessel(RIGHT_ILIAC_VEIN, ((14, 0, 208, 7.5), (28, -6, 180, 6.8), (48, -10, 150, 6.2), (60, 8, 116, 5.8),
        (68, 40, 82, 5.6), (70, 52, 62, 5.5)), "veins"),
    Vessel(LEFT_ILIAC_VEIN, ((10, 0, 206, 7.5), (-12, -8, 186, 6.8), (-46, -12, 150, 6.2), (-60, 8, 116, 5.8),
        (-68, 40, 82, 5.6), (-70, 52, 62, 5.5)), "veins"),
    Vessel(SUPERIOR_VENA_CAVA, ((27, 14, 552, 9.0), (28, 13, 525, 9.8), (28, 12, 495, 10.2),
        (27, 12, 468, 10.5)), "veins"),
    Vessel(RIGHT_BRACHIOCEPHALIC_VEIN, ((27, 14, 553, 7.5), (33, 16, 572, 7.2), (44, 10, 592, 6.6)), "veins"),
    Vessel(LEFT_BRACHIOCEPHALIC_VEIN, ((25, 16, 554, 7.2), (4, 28, 560, 6.8), (-22, 26, 570, 6.6),
        (-42, 12, 588, 6.4)), "veins"),
)  # fmt: skip
_PORTAL: Final = (
    Vessel(PORTAL_AND_SPLENIC_VEIN, ((8, 26, 252, 4.2), (12, 27, 280, 5.2), (14, 26, 305, 6.4), (26, 24, 325, 6.8),
        (42, 22, 345, 6.6), (52, 22, 354, 6.0)), "portal"),
    Vessel(PORTAL_AND_SPLENIC_VEIN, ((14, 26, 306, 5.0), (-10, 19, 314, 4.6), (-38, 4, 322, 4.4),
        (-64, -16, 331, 4.2), (-84, -30, 340, 3.8)), "portal"),
)  # fmt: skip
_AIRWAY: Final[tuple[Knots, ...]] = (
    ((2, -26, 522, 6.8), (22, -30, 504, 6.2), (38, -33, 487, 5.4), (44, -36, 465, 4.4), (50, -46, 438, 3.2),
        (56, -56, 410, 2.4)),
    ((30, -31, 497, 4.4), (48, -28, 508, 3.4), (62, -26, 524, 2.6), (70, -26, 540, 2.1)),
    ((44, -35, 468, 3.0), (58, -12, 458, 2.5), (72, 14, 450, 2.0)),
    ((2, -26, 522, 6.4), (-18, -33, 506, 5.8), (-38, -37, 490, 5.2), (-46, -46, 468, 4.0), (-54, -56, 440, 3.0),
        (-60, -62, 412, 2.3)),
    ((-40, -36, 489, 4.2), (-54, -24, 498, 3.3), (-64, -16, 516, 2.5), (-68, -14, 534, 2.0)),
    ((-50, -28, 494, 3.0), (-66, -6, 480, 2.4), (-76, 14, 466, 1.9)),
)  # fmt: skip
_PULMONARY_TRUNK: Final[tuple[Knots, ...]] = (
    ((-20, 42, 476, 13.5), (-19, 32, 496, 13.5), (-20, 12, 510, 12.0), (-34, -10, 512, 10.5), (-50, -26, 506, 8.5)),
    ((-18, 14, 508, 10.5), (4, 2, 506, 10.5), (28, -6, 500, 10.0), (48, -14, 494, 8.0)),
)  # fmt: skip
_PULMONARY_VEINS: Final[tuple[Knots, ...]] = (
    ((8, -14, 462, 6.5), (34, -16, 466, 6.0), (52, -16, 472, 4.8)),
    ((8, -18, 452, 6.5), (32, -28, 448, 5.8), (50, -38, 442, 4.6)),
    ((-22, -14, 466, 6.5), (-42, -12, 474, 5.8), (-58, -8, 482, 4.6)),
    ((-22, -18, 456, 6.5), (-42, -30, 450, 5.6), (-56, -42, 444, 4.4)),
)  # fmt: skip
_TRACHEA: Final[Knots] = (
    (0, -2, 720, 8.5),
    (0, -6, 640, 8.8),
    (1, -11, 600, 9.0),
    (2, -19, 560, 9.0),
    (2, -26, 522, 9.2),
)
_ESOPHAGUS: Final[Knots] = (
    (-1, -18, 720, 7), (-3, -24, 640, 7), (-5, -29, 600, 7), (-6, -35, 560, 7), (-3, -40, 520, 7), (-6, -36, 480, 7.5),
    (-9, -32, 445, 8), (-14, -20, 410, 8), (-24, -10, 388, 8),
)  # fmt: skip
_UNLABELLED: Final[tuple[Knots, ...]] = (  # celiac trunk, superior mesenteric artery, renal vessels, groin
    ((-9, 8, 332, 3.4), (-6, 24, 336, 3.2), (10, 26, 344, 2.8), (34, 26, 348, 2.4)),
    ((-6, 24, 336, 3.0), (-30, 12, 340, 2.6), (-60, -6, 342, 2.4)),
    ((-9, 10, 318, 3.6), (-4, 22, 305, 3.6), (0, 26, 270, 3.2), (4, 28, 225, 2.4)),
    ((20, 8, 292, 4.2), (38, -8, 290, 4.2), (52, -22, 287, 3.6)),
    ((18, 10, 300, 3.8), (-10, 16, 304, 3.8), (-40, -6, 303, 4.2), (-54, -22, 302, 3.6)),
    ((-9, 0, 300, 3.0), (24, -12, 294, 2.8), (52, -24, 290, 2.4)),
    ((-9, 0, 303, 3.0), (-30, -16, 304, 2.8), (-54, -24, 304, 2.4)),
    ((80, 58, 66, 4.8), (84, 60, 20, 4.8), (84, 52, -60, 4.6)),
    ((70, 52, 66, 5.6), (74, 52, 20, 5.6), (76, 44, -60, 5.4)),
    ((-80, 58, 66, 4.8), (-84, 60, 20, 4.8), (-84, 52, -60, 4.6)),
    ((-70, 52, 66, 5.6), (-74, 52, 20, 5.6), (-76, 44, -60, 5.4)),
)  # fmt: skip


def shifted(seed: int, group: str, knots: Knots, *, shift_mm: float = 3.0, spread: float = 0.08) -> Knots:
    """Return knots moved and scaled by a random draw that all vessels of a group share.

    Args:
        seed: Seed of the patient.
        group: Name of the group of vessels.
        knots: Points and radii in canonical mm; not modified.
        shift_mm: Largest shift along every axis, in mm.
        spread: Spread of the factor on the radii.
    """
    shift, factor = jitter(seed, group, shift_mm=shift_mm, spread=spread)
    return [(x + shift[0], y + shift[1], z + shift[2], radius * factor) for x, y, z, radius in knots]


def paint_great_vessels(canvas: Canvas, seed: int) -> None:
    """Paint arteries and systemic veins over body tissue; a group moves together, so that branches keep their roots.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    for vessel in (*_ARTERIES, *_VEINS):
        knots = shifted(seed, vessel.group, vessel.knots)
        canvas.paint(tube(canvas.frame, knots, step_mm=7.0), vessel.label)


def paint_portal_vein(canvas: Canvas, seed: int, over: tuple[int, ...]) -> None:
    """Paint the superior mesenteric, portal and splenic vein (one label), behind the pancreas.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
        over: Label ids that may be replaced.
    """
    for vessel in _PORTAL:
        canvas.paint(
            tube(canvas.frame, shifted(seed, vessel.group, vessel.knots), step_mm=7.0), vessel.label, over=over
        )


def paint_airway(canvas: Canvas, seed: int) -> None:
    """Paint the trachea, the bronchi down to segmental ones, and the oesophagus behind the trachea.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    trachea = shifted(seed, "airway", _TRACHEA, spread=0.10)
    canvas.paint(tube(canvas.frame, trachea, step_mm=8.0), TRACHEA)
    for knots in _AIRWAY:
        canvas.paint(
            tube(canvas.frame, shifted(seed, "airway", knots, spread=0.10), step_mm=6.0),
            AIRWAY,
            over=(BODY, AORTA, ESOPHAGUS),
        )
    canvas.paint(tube(canvas.frame, shifted(seed, "airway", _ESOPHAGUS, spread=0.10), step_mm=8.0), ESOPHAGUS)


def paint_pulmonary_trunk(canvas: Canvas, seed: int) -> None:
    """Paint the pulmonary trunk, its two branches (counted to the heart) and the four pulmonary veins.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    for knots in _PULMONARY_VEINS:
        canvas.paint(tube(canvas.frame, shifted(seed, "heart", knots), step_mm=6.0), PULMONARY_VEIN)
    for knots in _PULMONARY_TRUNK:
        trunk = tube(canvas.frame, shifted(seed, "heart", knots), step_mm=6.0)
        canvas.paint(trunk, HEART)
        if HEART in canvas.taken:  # of a map whose heart ends below it
            canvas.paint_tissue(trunk, TISSUE_VESSEL, also=canvas.labels[trunk.slices] == BODY)


def paint_unlabelled_vessels(canvas: Canvas, seed: int) -> None:
    """Paint vessels without an id of their own: they stay body (200) with the tissue of a vessel.

    Args:
        canvas: Canvas of the patient, painted in place.
        seed: Seed of the patient.
    """
    for knots in _UNLABELLED:
        field = tube(canvas.frame, shifted(seed, "veins", knots), step_mm=7.0)
        canvas.paint_tissue(field, TISSUE_VESSEL, also=canvas.labels[field.slices] == BODY)


def mediastinal_tubes(canvas: Canvas, seed: int) -> list[Field]:
    """Return the distances to the tubes in the mediastinum, from which the lungs keep clear.

    Args:
        canvas: Canvas with the frame of the patient.
        seed: Seed of the patient.
    """
    frame = canvas.frame
    fields = []
    for vessel in (*_ARTERIES[:3], _ARTERIES[4], _ARTERIES[5], *_VEINS[3:]):
        near = [row for row in shifted(seed, vessel.group, vessel.knots) if row[2] > 330 and abs(row[0]) < 60]
        if len(near) > 1:
            fields.append(tube(frame, near, step_mm=10.0, margin_mm=10.0))
    for knots in (_TRACHEA[1:], _ESOPHAGUS[1:], *[branch[:3] for branch in _AIRWAY[::3]]):
        fields.append(tube(frame, shifted(seed, "airway", knots, spread=0.10), step_mm=10.0, margin_mm=10.0))
    for knots in _PULMONARY_TRUNK:
        fields.append(tube(frame, shifted(seed, "heart", knots[:-1]), step_mm=8.0, margin_mm=10.0))
    return fields
