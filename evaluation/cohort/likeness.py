"""Likeness of two CTs up to a flip, a small turn, a cut field of view and a shift of HU.

A CT is a picture of its body's box, as for the plain comparison. Of every training case 280 variants are made: all
eight flips, turns of 10 degrees about each axis, and cuts of a quarter along feet-head or of a fifth all around. The
best variants of the twelve training cases that come nearest so begin a search for the affine move that lays the
pictures on each other, in three rounds at finer and finer resolution; after each, fewer are left. The last one aligns
and compares their detail: the outline of a body is much the same in many patients, and its inside is not. Real cases
are searched likewise, so that a threshold taken from them knows what the search finds where there is no copy. A shift
of HU, and another contrast, do not change a correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from maisi_aug.system.progress import Report
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume
from maisi_aug.volumes.resampling import resample_image

SIDE: Final = 32
COARSE_SIDE: Final = 16
DETAIL_WINDOW: Final = 7
TURN_DEGREES: Final = 10.0
LEAST_KEPT: Final = 0.8
MAX_SHIFT_HU: Final = 50.0
AIR_HU: Final = -1000.0
PLANTED_SIDE: Final = 64
CUTS: Final = (
    ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    ((1.0, 1.0, 0.75), (0.0, 0.0, -0.25)),
    ((1.0, 1.0, 0.75), (0.0, 0.0, 0.25)),
    ((1.0, 1.0, 0.75), (0.0, 0.0, 0.0)),
    ((0.8, 0.8, 0.8), (0.0, 0.0, 0.0)),
)
"""Share of the box along each axis, and where its centre lies, from -1 to 1."""


class _Round(NamedTuple):
    """A round of the search.

    Attributes:
        num_candidates: Training cases that take part.
        side: Voxels of a side of the pictures.
        num_steps: Steps of the optimiser.
        step: The first one's length, in half sides of the picture.
        on_detail: Whether the pictures' detail is aligned, or all of them.
    """

    num_candidates: int
    side: int
    num_steps: int
    step: float
    on_detail: bool


ROUNDS: Final = (
    _Round(12, COARSE_SIDE, 15, 0.04, on_detail=False),
    _Round(3, 20, 40, 0.03, on_detail=False),
    _Round(2, SIDE, 20, 0.01, on_detail=True),
)


@dataclass(frozen=True, eq=False)
class Portrait:
    """A CT reduced to a small picture for comparison with others.

    Attributes:
        picture: ``(32, 32, 32)`` HU above air inside the body's box, clipped to 0 to 2000; 0 outside.
        size_mm: Sides of the box along I, J, K in mm.
    """

    picture: NDArray[np.float32]
    size_mm: tuple[float, float, float]


def measure_likeness(cases: Sequence[Portrait], others: Sequence[Portrait], notify: Report) -> NDArray[np.float64]:
    """Return 1 - correlation of the detail of pairs under the best flip, rotation, crop and shift found.

    Args:
        cases: Possible copies.
        others: Possible originals; these are the ones that are transformed.
        notify: Called with cases done and cases in all.

    Returns:
        ``(cases, others)``; NaN for all but the two candidates of a case that are left in the end.
    """
    moves = _list_moves()
    coarse = _normalise(torch.stack([_shrink(case, COARSE_SIDE) for case in cases]))
    apart = np.empty((len(cases), len(others)))
    best = np.zeros((len(cases), len(others)), dtype=np.int64)
    for column, other in enumerate(others):
        picture = torch.from_numpy(other.picture)[None, None].expand(len(moves), -1, -1, -1, -1)
        variants = _normalise(_move(picture, _to_matrices(moves, other.size_mm), COARSE_SIDE))
        nearest = (coarse @ variants.T).max(dim=1)
        apart[:, column], best[:, column] = 1 - nearest.values.double().numpy(), nearest.indices.numpy()
    distances = np.full(apart.shape, np.nan)
    for row, case in enumerate(cases):
        notify(row, len(cases))
        columns = np.argsort(apart[row])[: ROUNDS[0].num_candidates]
        starts = [_to_matrices(moves[best[row, column], np.newaxis], others[column].size_mm) for column in columns]
        left, found = _search(case, [others[column] for column in columns], torch.cat(starts))
        distances[row, columns[left]] = found
    notify(len(cases), len(cases))
    clipped: NDArray[np.float64] = np.clip(distances, 0.0, 2.0)
    return clipped


def plant_copy(image: Volume, rng: np.random.Generator) -> Volume:
    """Make a disguised copy of a CT, flipped, rotated, cropped and shifted in HU, to test the detection of copies.

    Each axis is flipped with probability one half; the rotation is up to 10 degrees about one axis; 80 to 100% of each
    axis is kept; the shift is up to 50 HU. The result has a coarse grid.

    Args:
        image: CT in HU; not modified.
        rng: Source of all randomness.

    Returns:
        The copy, with at most ``PLANTED_SIDE`` voxels along every axis.
    """
    i, j, k = (min(side, PLANTED_SIDE) for side in image.grid.shape)
    coarse = image.grid.divided_into((i, j, k))
    hu = resample_image(image.array.astype(np.float32), image.grid, coarse)
    hu = np.flip(hu, tuple(axis for axis in range(3) if rng.random() < 0.5))
    planes = ((0, 1), (0, 2), (1, 2))
    angle = rng.uniform(-TURN_DEGREES, TURN_DEGREES)
    hu = ndimage.rotate(hu, angle, axes=planes[rng.integers(3)], reshape=False, order=1, cval=AIR_HU)
    cut = []
    for side in hu.shape:
        kept = max(1, round(side * rng.uniform(LEAST_KEPT, 1.0)))
        start = int(rng.integers(0, side - kept + 1))
        cut.append(slice(start, start + kept))
    hu = hu[tuple(cut)] + rng.uniform(-MAX_SHIFT_HU, MAX_SHIFT_HU)
    i, j, k = hu.shape
    return Volume(hu.astype(np.float32), Grid.from_spacing((i, j, k), coarse.spacing_mm))


def _list_moves() -> NDArray[np.float64]:
    """``(280, 12)``: flips, turns in degrees, shares and centres along the three axes."""
    turns = [(0.0, 0.0, 0.0)]
    for axis, sign in product(range(3), (-1, 1)):
        turns.append((*(sign * TURN_DEGREES if a == axis else 0.0 for a in range(3)),))  # type: ignore[arg-type]
    flips = list(product((1.0, -1.0), repeat=3))
    return np.array([(*f, *t, *share, *centre) for f, t, (share, centre) in product(flips, turns, CUTS)])


def _to_matrices(moves: NDArray[np.float64], size_mm: Sequence[float]) -> Tensor:
    """``(M, 3, 4)``: from places in a copy's box to places in that of what was copied, both from -1 to 1."""
    matrices = []
    size = np.asarray(size_mm)
    for move in moves:
        turn = _turn(np.deg2rad(move[3:6]))
        linear = np.diag(1 / size) @ turn @ np.diag(size) @ np.diag(move[6:9] * move[:3])
        matrices.append(np.column_stack([linear, move[9:12]]))
    return torch.from_numpy(np.array(matrices)).float()


def _turn(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (a for a in range(3) if a != axis)
        plane = np.eye(3)
        plane[first, first] = plane[second, second] = np.cos(angle)
        plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    return turn


def _move(pictures: Tensor, matrices: Tensor, side: int) -> Tensor:
    """Pictures ``(M, 1, I, J, K)``, each under its matrix, ``(M, side^3)``."""
    # grid_sample counts axes from the last one.
    turned = matrices.flip(1)
    theta = torch.cat([turned[:, :, :3].flip(2), turned[:, :, 3:]], dim=2)
    places = functional.affine_grid(theta, [len(matrices), 1, side, side, side], align_corners=False)
    moved: Tensor = functional.grid_sample(pictures, places, align_corners=False).flatten(1)
    return moved


def _shrink(portrait: Portrait, side: int) -> Tensor:
    picture = torch.from_numpy(portrait.picture)[None, None]
    return functional.interpolate(picture, (side, side, side), mode="trilinear").flatten()


def _normalise(rows: Tensor) -> Tensor:
    """Rows of mean 0 and length 1."""
    centred = rows - rows.mean(dim=-1, keepdim=True)
    scaled: Tensor = centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return scaled


def _search(
    case: Portrait, others: Sequence[Portrait], matrices: Tensor
) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Which others are left in the end, and the 1 - correlation of the detail of each after alignment."""
    left, distances = np.arange(len(others)), torch.zeros(len(others))
    for number, stage in enumerate(ROUNDS):
        if number:
            kept = distances.argsort()[: stage.num_candidates]
            left, matrices = left[kept.numpy()], matrices[kept]
        distances, matrices = _align(case, [others[int(index)] for index in left], matrices, stage)
    return left, distances.double().numpy()


def _align(case: Portrait, others: Sequence[Portrait], starts: Tensor, stage: _Round) -> tuple[Tensor, Tensor]:
    """Least 1 - correlation with each, near its start, and the affine move there."""
    target = _shrink(case, stage.side)[None]
    target = _normalise(_keep_detail(target) if stage.on_detail else target)[0]
    pictures = torch.from_numpy(np.stack([other.picture for other in others]))[:, None]
    matrices = starts.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([matrices], lr=stage.step)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, stage.num_steps)
    least, best = torch.full((len(others),), 2.0), starts
    for _ in range(stage.num_steps):
        optimiser.zero_grad()
        moved = _move(pictures, matrices, stage.side)
        losses = 1 - _normalise(_keep_detail(moved) if stage.on_detail else moved) @ target
        is_nearer = losses.detach() < least
        least = torch.where(is_nearer, losses.detach(), least)
        best = torch.where(is_nearer[:, None, None], matrices.detach(), best)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return least, best


def _keep_detail(rows: Tensor) -> Tensor:
    """Pictures without what is coarser than a fifth of their side, which is alike in all bodies."""
    pictures = rows.reshape(-1, 1, SIDE, SIDE, SIDE)
    smooth = pictures
    for axis in range(3):
        window = [DETAIL_WINDOW if other == axis else 1 for other in range(3)]
        smooth = functional.avg_pool3d(
            smooth, window, stride=1, padding=[side // 2 for side in window], count_include_pad=False
        )
    detail: Tensor = (pictures - smooth).flatten(1)
    return detail
