"""Labelled muscles: the deep back muscles, iliopsoas and the three glutei; quadratus lumborum stays unlabelled."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from maisi_aug.phantom.envelope import Envelope
from maisi_aug.phantom.girdles import SIDES, one_side, wing_sheet
from maisi_aug.phantom.habitus import Habitus
from maisi_aug.phantom.ids import (
    BODY,
    LEFT_AUTOCHTHON,
    LEFT_GLUTEUS_MAXIMUS,
    LEFT_GLUTEUS_MEDIUS,
    LEFT_GLUTEUS_MINIMUS,
    LEFT_ILIOPSOAS,
    RIGHT_AUTOCHTHON,
    RIGHT_GLUTEUS_MAXIMUS,
    RIGHT_GLUTEUS_MEDIUS,
    RIGHT_GLUTEUS_MINIMUS,
    RIGHT_ILIOPSOAS,
    TISSUE_FASCIA,
    TISSUE_FAT,
    TISSUE_MUSCLE,
    TISSUE_VESSEL,
)
from maisi_aug.phantom.shapes import Canvas, Field, Knots, ellipsoid, tube
from maisi_aug.phantom.skeleton import spine_y
from maisi_aug.system.seeds import numpy_generator

_BELLY_MM: Final = np.array([34.0, 30.0, 110.0])  # usual size of a muscle belly
_PSOAS: Final[Knots] = (
    (26, -34, 322, 7), (30, -32, 296, 12), (36, -28, 262, 18), (43, -22, 225, 22), (52, -14, 190, 23),
    (64, 2, 152, 21), (80, 24, 112, 17), (96, 26, 80, 16), (110, 6, 48, 13), (114, -8, 28, 9),
)  # fmt: skip
_QUADRATUS: Final[Knots] = ((54, -58, 326, 8), (60, -58, 290, 12), (66, -58, 245, 14), (70, -62, 208, 13))
# z, distance of the muscle's axis behind the spine, x, radius
_AUTOCHTHON: Final = np.array(
    [
        (112, 28, 18, 9), (140, 44, 24, 16), (180, 60, 33, 25), (247, 61, 35, 29), (315, 58, 34, 27), (400, 50, 29, 20),
        (470, 46, 25, 16), (550, 46, 23, 16), (600, 46, 22, 18), (660, 46, 22, 19),
    ],
    dtype=np.float64,
)  # fmt: skip


def paint_muscles(canvas: Canvas, envelope: Envelope, habitus: Habitus, seed: int) -> None:
    """Paint all labelled muscles over body tissue that has no organ label, and part the others into bellies.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        habitus: Build of the patient.
        seed: Seed of the patient.
    """
    _part_bellies(canvas, envelope, habitus, seed)
    for side in SIDES:
        _paint_autochthon(canvas, envelope, habitus, side)
        _paint_iliopsoas(canvas, habitus, side)
        _paint_glutei(canvas, envelope, habitus, side)
        knots = one_side(_QUADRATUS, side)
        quadratus = tube(canvas.frame, knots)
        unlabelled = canvas.labels[quadratus.slices] == BODY
        vessel = canvas.tissue[quadratus.slices] == TISSUE_VESSEL
        canvas.paint_tissue(quadratus, TISSUE_MUSCLE, also=unlabelled & ~vessel)


def _part_bellies(canvas: Canvas, envelope: Envelope, habitus: Habitus, seed: int) -> None:
    """Part the unlabelled muscles of shoulders and hips into bellies along the body, with thin fat between them."""
    frame = canvas.frame
    z = frame.z
    muscle = (canvas.tissue == TISSUE_MUSCLE) & (canvas.labels == BODY) & ((z < 200) | (z > 455))
    muscle &= envelope.cavity > np.float32(11)
    if not muscle.any():
        return
    rng = numpy_generator(seed, "muscle bellies")
    points = np.stack([frame.x[muscle], frame.y[muscle], z[muscle]], axis=1) / _BELLY_MM
    lattice = np.stack(np.meshgrid(*[np.arange(-n, n + 1.0) for n in (10, 8, 7)], indexing="ij"), axis=-1)
    centres = lattice.reshape(-1, 3) + rng.uniform(-0.42, 0.42, (lattice.size // 3, 3)) + np.array([0.0, 0.0, 2.5])
    near, _ = cKDTree(centres).query(points, k=2)
    half = max(0.9 + 1.6 * habitus.visceral_fat, 0.5 * float(np.cbrt(np.prod(frame.spacing_mm))))
    seams = (near[:, 1] - near[:, 0]) * _BELLY_MM[0] < 1.2 * half
    chosen = np.zeros(int(muscle.sum()), dtype=np.uint8) + np.uint8(TISSUE_MUSCLE)
    chosen[seams] = TISSUE_FASCIA
    canvas.tissue[muscle] = chosen


def _paint_autochthon(canvas: Canvas, envelope: Envelope, habitus: Habitus, side: int) -> None:
    knots = [(side * x, spine_y(z) - back, z, r * habitus.muscle) for z, back, x, r in _AUTOCHTHON]
    field = tube(canvas.frame, knots, step_mm=12.0)
    box = field.slices
    z, x, y = canvas.frame.z[box], canvas.frame.x[box], canvas.frame.y[box]
    mm = np.maximum(field.mm, envelope.fascia[box] + 0.5)
    mm = np.where(z > 345, np.maximum(mm, -envelope.cavity[box] - 3), mm)  # lung, not muscle, lies in the cavity
    mm = np.maximum(mm, 2.0 - side * x)
    # Around the two muscles and the spinous processes lies ordinary muscle and ligament.
    around = np.maximum(np.maximum(field.mm - 6, y + 30), envelope.fascia[box])
    canvas.paint_tissue(Field(box, around.astype(np.float32)), TISSUE_MUSCLE)
    canvas.paint(Field(box, mm.astype(np.float32)), RIGHT_AUTOCHTHON if side > 0 else LEFT_AUTOCHTHON)


def _paint_iliopsoas(canvas: Canvas, habitus: Habitus, side: int) -> None:
    label = RIGHT_ILIOPSOAS if side > 0 else LEFT_ILIOPSOAS
    psoas = [(x, y, z, r * habitus.muscle) for x, y, z, r in one_side(_PSOAS, side)]
    canvas.paint(tube(canvas.frame, psoas), label)
    canvas.paint(wing_sheet(canvas, side, outwards_mm=-10.0, thickness_mm=3.0 * habitus.muscle, lower=0.15), label)


def _paint_with_fat_plane(canvas: Canvas, field: Field, label: int, habitus: Habitus) -> None:
    """Paint a muscle a little thinner, wrapped in the thin fat that parts it from its neighbours."""
    if label in canvas.taken:
        return
    free = canvas.labels[field.slices] == BODY
    plane = TISSUE_FAT if habitus.visceral_fat > 0.4 else TISSUE_FASCIA
    canvas.paint_tissue(field.grown(2.2), plane, also=free & (canvas.tissue[field.slices] == TISSUE_MUSCLE))
    canvas.paint_tissue(field.grown(-0.8), TISSUE_MUSCLE, also=free)
    canvas.paint(field.grown(-0.8), label)


def _paint_glutei(canvas: Canvas, envelope: Envelope, habitus: Habitus, side: int) -> None:
    frame = canvas.frame
    minimus = wing_sheet(canvas, side, outwards_mm=9.0, thickness_mm=2.0 * habitus.muscle, lower=0.35)
    _paint_with_fat_plane(canvas, minimus, RIGHT_GLUTEUS_MINIMUS if side > 0 else LEFT_GLUTEUS_MINIMUS, habitus)
    tail = tube(frame, one_side(((112, 2, 98, 10), (134, -8, 66, 7)), side))
    _paint_with_fat_plane(canvas, tail, RIGHT_GLUTEUS_MINIMUS if side > 0 else LEFT_GLUTEUS_MINIMUS, habitus)
    medius = wing_sheet(canvas, side, outwards_mm=20.0, thickness_mm=7.0 * habitus.muscle, lower=0.10)
    clipped = Field(medius.slices, np.maximum(medius.mm, envelope.fascia[medius.slices] + 2))
    label = RIGHT_GLUTEUS_MEDIUS if side > 0 else LEFT_GLUTEUS_MEDIUS
    _paint_with_fat_plane(canvas, clipped, label, habitus)
    tail = tube(frame, one_side(((130, -8, 104, 15), (148, -14, 64, 8)), side))
    _paint_with_fat_plane(
        canvas, Field(tail.slices, np.maximum(tail.mm, envelope.fascia[tail.slices] + 2)), label, habitus
    )
    maximus = ellipsoid(
        frame, (side * 84.0, -78.0, 84.0), (80.0, 34.0, 78.0), turn_deg=(-10.0, side * 24.0, side * 22.0)
    )
    box = maximus.slices
    mm = np.maximum(maximus.mm, envelope.fascia[box] + 1)
    mm = np.maximum(mm, 9.0 - side * frame.x[box])
    mm = np.maximum(mm, -30 - frame.z[box])
    front = frame.y[box] + 46 - 0.22 * np.maximum(side * frame.x[box] - 60, 0)
    mm = np.maximum(mm, front)
    _paint_with_fat_plane(
        canvas, Field(box, mm.astype(np.float32)), RIGHT_GLUTEUS_MAXIMUS if side > 0 else LEFT_GLUTEUS_MAXIMUS, habitus
    )
