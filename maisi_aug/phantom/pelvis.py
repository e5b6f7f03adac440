"""Pelvic organs: bladder, prostate, uterus (unlabelled soft tissue)."""

from __future__ import annotations

from typing import Final

import numpy as np

from maisi_aug.phantom.habitus import Habitus, jitter
from maisi_aug.phantom.ids import BLADDER, BODY, PROSTATE, TISSUE_SOFT
from maisi_aug.phantom.shapes import Canvas, Field, ellipsoid, smooth_max
from maisi_aug.system.seeds import numpy_generator

BLADDER_FLOOR_MM: Final = (0.0, 14.0, 66.0)
BLADDER_ML: Final = (125.0, 430.0)


def paint_pelvic_organs(canvas: Canvas, habitus: Habitus, seed: int) -> None:
    """Paint bladder, and prostate or uterus: behind the pubis, below the bladder, and behind it.

    Args:
        canvas: Canvas of the patient, painted in place.
        habitus: Build of the patient.
        seed: Seed of the patient.
    """
    frame = canvas.frame
    rng = numpy_generator(seed, "bladder fill")
    volume_ml = float(np.exp(rng.uniform(np.log(BLADDER_ML[0]), np.log(BLADDER_ML[1]))))
    base = (volume_ml * 1000 / (4 / 3 * np.pi * 1.12)) ** (1 / 3)
    shift, factor = jitter(seed, "pelvis", shift_mm=3.0, spread=0.08)
    floor = np.asarray(BLADDER_FLOOR_MM) + shift + (0.0, 2.0, 6.0 if not habitus.is_female else -4.0)
    centre = floor + np.array([0.0, 0.10 * base, 0.86 * base])
    bladder = ellipsoid(
        frame, centre, (1.18 * base, 0.95 * base, 1.0 * base), turn_deg=(-8.0, 0.0, float(rng.normal(0, 6)))
    )
    if bladder.mm.size:
        flat = centre[2] - 0.86 * base - frame.z[bladder.slices]
        bladder = Field(bladder.slices, smooth_max(bladder.mm, flat.astype(np.float32), 8.0))
    canvas.paint(bladder, BLADDER)
    if habitus.is_female:
        lean = float(rng.normal(0, 8))
        place = (lean, -22.0 + 0.02 * volume_ml, 104.0)
        uterus = ellipsoid(
            frame, np.asarray(place) + shift, np.array((24.0, 17.0, 32.0)) * factor, turn_deg=(-35.0, 0.0, lean)
        )
        canvas.paint_tissue(uterus, TISSUE_SOFT, also=canvas.labels[uterus.slices] == BODY)
        vagina = ellipsoid(frame, np.asarray((0.0, -24.0, 60.0)) + shift, (15.0, 8.0, 28.0))
        canvas.paint_tissue(vagina, TISSUE_SOFT, also=canvas.labels[vagina.slices] == BODY)
    else:
        size = np.array((23.0, 17.0, 19.0)) * float(np.clip(rng.normal(1.05, 0.12), 0.85, 1.4))
        canvas.paint(ellipsoid(frame, floor + np.array([0.0, -6.0, -14.0]), size), PROSTATE)
