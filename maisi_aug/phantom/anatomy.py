"""Composes a tumour-free label map: places the grid in a patient and paints the organs in their order of priority."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import GridError
from maisi_aug.phantom import abdomen, bowel, chest, girdles, muscles, pelvis, skeleton, vessels
from maisi_aug.phantom.envelope import Envelope, build_envelope, paint_envelope
from maisi_aug.phantom.frame import BODY_MIDDLE_Y_MM, Frame, draw_pose
from maisi_aug.phantom.habitus import VARIETIES, Habitus, Variety, draw_habitus
from maisi_aug.phantom.ids import BODY, LEFT_KIDNEY
from maisi_aug.phantom.shapes import Canvas
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.grid import Grid

Region = Literal["chest", "abdomen", "pelvis"]
REGIONS: Final[tuple[Region, ...]] = get_args(Region)
# Middle of the window along the body in canonical mm, and how far it may lie off.
_WINDOW_CENTRE_MM: Final[dict[Region, float]] = {"chest": 470.0, "abdomen": 312.0, "pelvis": 122.0}
_WINDOW_SPREAD_MM: Final = 22.0
_ANY_RANGE_MM: Final = (112.0, 486.0)


@dataclass(frozen=True)
class AnatomyMap:
    """A tumour-free label map with the parameters that it was built from.

    Attributes:
        label_map: ``(I, J, K)`` uint8 vocabulary ids; 200 = body without organ, 0 = outside.
        tissue: ``(I, J, K)`` uint8 tissue under label 200, a finer ground truth that only the renderer uses.
        region: Body region that the map mostly shows.
        grid: Shape and affine of the label map.
        seed: Seed from which it was built.
    """

    label_map: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    region: Region
    grid: Grid
    seed: int


def build_label_map(
    *, seed: int, grid: Grid, region: Region | Literal["any"] = "any", variety: Variety = "fitting"
) -> AnatomyMap:
    """Build a tumour-free procedural anatomy on a grid.

    Args:
        seed: Seed of everything random: patient, pose and position of the window.
        grid: Grid of any shape and spacing, whose axes are taken as R, A, S.
        region: Body region in the centre of the grid; ``any`` draws a position along the trunk.
        variety: ``fitting``: usual adults in the middle of the grid; ``any``: slight to obese patients, off the middle,
            so that a field of view of 384 x 336 mm holds 15 to 70% air and may cut the body.

    Returns:
        The map, without any tumour id in it.

    Raises:
        GridError: The region or the variety has an unknown name.
    """
    if region != "any" and region not in REGIONS:
        raise GridError(f"Region: expected one of {', '.join(REGIONS)} or any, found '{region}'. Choose one of these.")
    if variety not in VARIETIES:
        raise GridError(f"Variety: expected one of {', '.join(VARIETIES)}, found '{variety}'. Choose one of these.")
    habitus = draw_habitus(seed, variety=variety)
    centre_z, shown = _draw_window(seed, region)
    rng = numpy_generator(seed, "table position")
    off_x, off_y = (float(value) for value in np.clip(rng.normal(0, 3.5, 2), -8, 8))
    if variety == "any":
        off_x, off_y = off_x + float(rng.normal(0, 12.0)), off_y + float(rng.normal(0, 10.0))
    centre = (
        off_x,
        BODY_MIDDLE_Y_MM * habitus.scale[1] + off_y + 0.45 * habitus.belly_mm,
        centre_z * habitus.scale[2],
    )
    frame = Frame(grid, draw_pose(seed, scale=habitus.scale), centre_mm=centre)
    canvas, _ = paint_patient(frame, habitus, seed)
    return AnatomyMap(canvas.labels, canvas.tissue, shown, grid, seed)


def paint_patient(frame: Frame, habitus: Habitus, seed: int) -> tuple[Canvas, Envelope]:
    """Paint a whole patient: the layers of the trunk, then the organs in their order of priority.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        habitus: Build of the patient.
        seed: Seed of the patient.

    Returns:
        The painted canvas, and the layers of the trunk.
    """
    canvas = Canvas(frame)
    envelope = build_envelope(frame, habitus, seed)
    paint_envelope(canvas, envelope, habitus, seed)
    paint_organs(canvas, envelope, habitus, seed)
    canvas.labels[envelope.skin >= 0] = 0
    return canvas, envelope


def _draw_window(seed: int, region: str) -> tuple[float, Region]:
    rng = numpy_generator(seed, f"window {region}")
    if region == "any":
        centre = float(rng.uniform(*_ANY_RANGE_MM))
    else:
        middle = _WINDOW_CENTRE_MM[cast(Region, region)]
        return middle + float(rng.uniform(-_WINDOW_SPREAD_MM, _WINDOW_SPREAD_MM)), cast(Region, region)
    nearest = min(REGIONS, key=lambda name: abs(_WINDOW_CENTRE_MM[name] - centre))
    return centre, nearest


def paint_organs(canvas: Canvas, envelope: Envelope, habitus: Habitus, seed: int) -> None:
    """Paint all organs: rigid and tubular ones first, then from the ones that yield least to the ones that fill gaps.

    Args:
        canvas: Canvas with the body and its tissues, painted in place.
        envelope: Layers of the patient's trunk.
        habitus: Build of the patient.
        seed: Seed of the patient.
    """
    skeleton.paint_spine(canvas)
    skeleton.paint_ribs(canvas, habitus)
    girdles.paint_shoulders(canvas)
    girdles.paint_pelvis(canvas)
    vessels.paint_great_vessels(canvas, seed)
    vessels.paint_airway(canvas, seed)
    if skeleton.is_in_view(canvas.frame, 325.0, 630.0):
        vessels.paint_pulmonary_trunk(canvas, seed)
        heart = chest.paint_heart(canvas, envelope, seed)
        chest.paint_thyroid(canvas, seed)
        chest.paint_lungs(canvas, envelope, heart, seed)
    vessels.paint_unlabelled_vessels(canvas, seed)
    muscles.paint_muscles(canvas, envelope, habitus, seed)
    pelvis.paint_pelvic_organs(canvas, habitus, seed)
    if skeleton.is_in_view(canvas.frame, 200.0, 440.0):
        _paint_upper_abdomen(canvas, envelope, habitus, seed)
    bowel.paint_colon(canvas, envelope, seed)
    bowel.paint_small_bowel(canvas, envelope, habitus, seed)


def _paint_upper_abdomen(canvas: Canvas, envelope: Envelope, habitus: Habitus, seed: int) -> None:
    vessels.paint_portal_vein(canvas, seed, over=(BODY,))
    abdomen.paint_adrenals(canvas, seed)
    kidneys = abdomen.paint_kidneys(canvas, envelope, seed, visceral_fat=habitus.visceral_fat)
    abdomen.paint_gallbladder(canvas, seed)
    abdomen.paint_pancreas(canvas, seed)
    abdomen.paint_duodenum(canvas, seed)
    abdomen.paint_spleen(canvas, envelope, kidneys[LEFT_KIDNEY], seed)
    stomach = abdomen.paint_stomach(canvas, envelope, seed)
    abdomen.paint_liver(canvas, envelope, kidneys, stomach, seed)
