"""Colon with haustra along its frame, and small-bowel loops that fill what is left of the peritoneal cavity."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom.envelope import Envelope
from maisi_aug.phantom.habitus import Habitus
from maisi_aug.phantom.ids import (
    BLADDER,
    BODY,
    COLON,
    DUODENUM,
    LEFT_ILIOPSOAS,
    LIVER,
    PANCREAS,
    PORTAL_AND_SPLENIC_VEIN,
    RIGHT_ILIOPSOAS,
    SMALL_BOWEL,
    SPLEEN,
    STOMACH,
)
from maisi_aug.phantom.shapes import Canvas, Field, patient_capsules, smooth_path, tube
from maisi_aug.phantom.skeleton import SPINE_Y_MM
from maisi_aug.system.seeds import numpy_generator

# Knots x, y, z, radius and how freely (mm) each may wander from case to case.
_COLON: Final = np.array(
    [
        (72, 30, 152, 20, 6), (80, 24, 172, 27, 6), (92, 2, 206, 25, 5), (98, -10, 238, 24, 5), (94, 6, 268, 24, 6),
        (78, 44, 284, 22, 7), (48, 66, 272, 21, 8), (14, 72, 256, 20, 12), (-24, 72, 256, 20, 12),
        (-54, 68, 292, 20, 9), (-84, 46, 328, 20, 8), (-103, 6, 346, 20, 5), (-106, -26, 308, 18, 4),
        (-104, -28, 270, 16, 4), (-102, -18, 232, 16, 4), (-98, 0, 198, 16, 5), (-82, 26, 166, 16, 6),
        (-56, 34, 140, 16, 8), (-26, 22, 126, 16, 10), (-4, -4, 132, 16, 10), (6, -34, 132, 16, 7),
        (2, -60, 112, 17, 3), (0, -67, 86, 19, 2), (0, -60, 58, 17, 2), (0, -50, 32, 12, 1), (0, -52, 10, 9, 1),
    ],
    dtype=np.float64,
)  # fmt: skip
_YIELDING: Final = (
    BODY, SPLEEN, LIVER, DUODENUM, PANCREAS, PORTAL_AND_SPLENIC_VEIN, BLADDER, LEFT_ILIOPSOAS, RIGHT_ILIOPSOAS,
)  # fmt: skip
HAUSTRA_MM: Final = 27.0
LOOP_RADIUS_MM: Final = 12.0
_SMALL_BOWEL_BOX: Final = ((-112.0, -45.0, 92.0), (112.0, 112.0, 385.0))


def paint_colon(canvas: Canvas, envelope: Envelope, seed: int) -> None:
    """Paint one haustrated tube of varying filling from caecum to anus, inside the cavity.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        seed: Seed of the patient.
    """
    rng = numpy_generator(seed, "colon")
    knots = _COLON[:, :4].copy()
    knots[:, :3] += np.clip(rng.normal(0, 0.6, (len(knots), 3)), -1.2, 1.2) * _COLON[:, 4:]
    knots[6:9, 2] -= max(0.0, float(rng.normal(5, 18)))  # a sagging transverse colon
    filling = np.exp(rng.normal(0, 0.10) + 0.13 * rng.standard_normal(len(knots)))
    knots[:, 3] *= np.clip(filling, 0.68, 1.32)
    path = smooth_path([(r[0], r[1], r[2], r[3]) for r in knots], step_mm=6.5)
    arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1))])
    folds = np.abs(np.sin(np.pi * arc / HAUSTRA_MM + rng.uniform(0, np.pi))) ** 0.6
    haustrated = np.clip((path[:, 2] - 105) / 30, 0, 1) * 0.24
    path[:, 3] *= 1.06 - haustrated * (1 - folds)
    field = tube(canvas.frame, [(r[0], r[1], r[2], r[3]) for r in path], smooth=False, margin_mm=4.0)
    mm = field.mm
    if mm.size:
        mm = mm + np.float32(1.1) * canvas.frame.smooth_noise(rng, 26.0, field.slices)
        above = canvas.frame.z[field.slices] > 90
        mm = np.maximum(mm, np.where(above, envelope.cavity[field.slices] + 2, np.float32(-100)))
    colon = Field(field.slices, mm.astype(np.float32))
    canvas.paint(colon, COLON, over=(BODY, LIVER, STOMACH))
    # At the flexures a core of the tube goes through whatever is in its way, so that the colon stays in one piece.
    canvas.paint(colon.grown(-8.0), COLON, over=_YIELDING)


def paint_small_bowel(canvas: Canvas, envelope: Envelope, habitus: Habitus, seed: int) -> None:
    """Paint a tube that winds through the free peritoneal space; visceral fat spaces the loops apart.

    Args:
        canvas: Canvas of the patient, painted in place.
        envelope: Layers of the patient's trunk.
        habitus: Build of the patient.
        seed: Seed of the patient.
    """
    frame = canvas.frame
    rng = numpy_generator(seed, "small bowel")
    box = frame.box(*_SMALL_BOWEL_BOX)
    room = _free_room(canvas, envelope, box)
    spacing = 21.0 + 9.0 * habitus.visceral_fat
    places = _spread_places(canvas, room, box, spacing, rng)
    if len(places) < 4:
        return
    route = _winding_order(places)
    starts, ends = _loops(places[route], rng, longest_mm=2.4 * spacing)
    if not len(starts):
        return
    field = patient_capsules(frame, starts, ends, margin_mm=3.0)
    local = envelope.cavity[field.slices]
    mm = np.maximum(field.mm + np.float32(0.9) * frame.smooth_noise(rng, 24.0, field.slices), local + 3)
    canvas.paint(Field(field.slices, mm.astype(np.float32)), SMALL_BOWEL)


def _free_room(canvas: Canvas, envelope: Envelope, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
    """Return the space for centre lines: unlabelled peritoneal space in front of the retroperitoneum."""
    frame = canvas.frame
    x, y, z = frame.x[box], frame.y[box], frame.z[box]
    spine_front = np.interp(z, SPINE_Y_MM[:, 0], SPINE_Y_MM[:, 1] + 17.0).astype(np.float32)
    behind = spine_front + np.float32(30) - np.float32(0.30) * np.abs(x) * (z > 190)
    low = np.float32(96) + np.float32(0.1) * np.abs(x)
    room: NDArray[np.bool_] = (
        (canvas.labels[box] == BODY)
        & (envelope.cavity[box] < -10)
        & (envelope.diaphragm_z[box] - z > 14)
        & (z > low)
        & ((z < 322) | ((z < 376) & (x < -5) & (y > 15)))
    )
    room &= np.where(z > 170, y > behind, y > spine_front + 34)
    (start, stop) = _SMALL_BOWEL_BOX
    room &= (np.abs(x) < stop[0]) & (y > start[1])
    return room


def _spread_places(
    canvas: Canvas, room: NDArray[np.bool_], box: tuple[slice, slice, slice], spacing: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points of the room at least ``spacing`` mm apart, by throwing darts; ``(N, 3)`` patient millimetres."""
    found = np.argwhere(room)
    if not len(found):
        return np.empty((0, 3))
    picked = found[rng.permutation(len(found))[:2500]]
    darts = np.stack([canvas.frame.axes[a][box[a]][picked[:, a]] for a in range(3)], axis=1).astype(np.float64)
    kept = [darts[0]]
    alive = np.ones(len(darts), dtype=bool)
    while True:
        alive &= ((darts - kept[-1]) ** 2).sum(axis=1) > spacing**2
        following = int(np.argmax(alive))
        if not alive[following]:
            return np.array(kept)
        kept.append(darts[following])


def _winding_order(places: NDArray[np.float64]) -> NDArray[np.int64]:
    """Walk from the upper left (the duodenojejunal flexure) always to the nearest unvisited place."""
    current = int(np.argmax(places[:, 2] - places[:, 0]))
    left = np.ones(len(places), dtype=bool)
    order = [current]
    left[current] = False
    for _ in range(len(places) - 1):
        gap = ((places - places[current]) ** 2).sum(axis=1)
        gap[~left] = np.inf
        current = int(np.argmin(gap))
        left[current] = False
        order.append(current)
    return np.array(order, dtype=np.int64)


def _loops(
    places: NDArray[np.float64], rng: np.random.Generator, *, longest_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Capsules along smooth runs through the places; a jump longer than ``longest_mm`` ends a run."""
    radii = LOOP_RADIUS_MM * np.exp(np.clip(rng.normal(0, 0.12, len(places)), -0.25, 0.25))
    knots = np.column_stack([places, radii])
    jumps = np.flatnonzero(np.linalg.norm(np.diff(places, axis=0), axis=1) > longest_mm) + 1
    starts, ends = [], []
    for run in np.split(knots, jumps):
        path = smooth_path([(r[0], r[1], r[2], r[3]) for r in run], step_mm=9.0)
        if len(path) == 1:
            along_z = np.array([0.0, 0.0, 5.0, 0.0])
            path = np.concatenate([path - along_z, path + along_z])
        starts.append(path[:-1])
        ends.append(path[1:])
    return np.concatenate(starts), np.concatenate(ends)
