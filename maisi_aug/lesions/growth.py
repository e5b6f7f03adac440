"""Growing one lesion: an irregular, connected set of voxels of exact size inside a host.

A lesion is the set of the first N voxels of a flood that starts at a centre inside the host and always takes the
reachable voxel of lowest score. The score is a distance in millimetres from the centre, measured in a randomly turned
ellipsoid and multiplied by smooth noise: irregular, lobulated, independent of the voxel shape, and always connected.
Arrays have axes ``I J K``; touching means sharing a face, an edge or a corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.lesions.deformation import spline_basis, spline_field
from maisi_aug.volumes.components import Box, Mask, _within, bounding_box, flood, label_parts
from maisi_aug.volumes.grid import voxel_volume_ml

MAX_GROWTHS = 4
ROUND_ENOUGH = 1.35
"""Spread of a lesion about its centre, relative to a ball of its volume, above which another centre is tried."""
TOO_STRETCHED = 1.5
"""Spread above which a lesion leaves its host, where it may, rather than follow it; about twice as long as a ball."""
RELUCTANCES = (1.5, 3.0, 10.0)
"""How many times further a voxel outside the host seems than one inside, until enough of the lesion stays inside."""
ROOMY = 0.6
"""Share of a host part that a lesion may fill before parts with more room are preferred."""
MAX_SEARCH_VOXELS = 60_000
IRREGULARITY = 0.35
"""Strength of the lobulation; 0 would give a ball cut by the host."""


def draw_part(
    host: Mask, room: Mask, num_voxels: int, spacing_mm: Sequence[float], rng: np.random.Generator
) -> tuple[Box, Mask, Mask] | None:
    """A box, the part of the host in it to start from, and the connected room to grow in; None if nothing fits."""
    if np.count_nonzero(room) < num_voxels or not host.any():
        return None
    radius_mm = radius_mm_of(num_voxels * voxel_volume_ml(spacing_mm))
    margin = 0 if room is host else int(np.ceil(2.0 * radius_mm / min(spacing_mm)))
    box = bounding_box(host, margin=margin)
    labelled, _ = label_parts(room[box])
    num_room = np.bincount(labelled.ravel())
    num_start = np.bincount(labelled[host[box]], minlength=num_room.size)
    num_room[0] = 0
    fits = np.flatnonzero((num_room >= num_voxels) & (num_start > 0))
    if fits.size == 0:
        return None
    roomy = fits[num_room[fits] * ROOMY >= num_voxels]
    if roomy.size:
        weights = num_start[roomy] / num_start[roomy].sum()
        chosen = int(rng.choice(roomy, p=weights))
    else:
        chosen = int(fits[np.argmax(num_room[fits])])
    part = labelled == chosen
    inner = bounding_box(part)
    outer = tuple(_within(a, b) for a, b in zip(box, inner, strict=True))
    return outer, part[inner] & host[outer], part[inner]


def grow_roundest(
    start_room: Mask,
    room: Mask,
    num_voxels: int,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    reluctance: float = 1.0,
    centres: Iterable[NDArray[np.int64]] | None = None,
) -> tuple[Mask, float]:
    """Grow from up to ``MAX_GROWTHS`` centres and keep the first round enough, else the roundest.

    Args:
        start_room: ``(I, J, K)`` where a centre may lie: the host.
        room: ``(I, J, K)`` connected voxels that the lesion may take.
        num_voxels: How many it takes.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        reluctance: How many times further voxels outside ``start_room`` seem than they are.
        centres: Voxels to grow from; drawn when not given, the deeper in the host the likelier.

    Returns:
        The lesion, and its spread about its centre relative to a ball.
    """
    if centres is None:
        centres = draw_centres(start_room, num_voxels, spacing_mm, rng)
    farther = None if reluctance == 1.0 else np.where(start_room, 1.0, reluctance)
    best: tuple[Mask, float] | None = None
    for centre in centres:
        lesion = _grow_from(centre, room, num_voxels, spacing_mm, rng, farther)
        spread = spread_of(lesion, spacing_mm)
        if best is None or spread < best[1]:
            best = (lesion, spread)
        if spread <= ROUND_ENOUGH:
            break
    assert best is not None
    return best


def draw_centres(
    start_room: Mask, num_voxels: int, spacing_mm: Sequence[float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Centres ``(N, 3)``, likelier the deeper in the host, up to the depth that the lesion needs."""
    stride = max(1, int(np.ceil((start_room.size / MAX_SEARCH_VOXELS) ** (1 / 3))))
    thinned = start_room[::stride, ::stride, ::stride]
    if not thinned.any():
        stride, thinned = 1, start_room
    depth_mm = ndimage.distance_transform_edt(np.pad(thinned, 1), sampling=np.asarray(spacing_mm) * stride)
    candidates = np.argwhere(thinned)
    depths = depth_mm[tuple((candidates + 1).T)]
    needed_mm = 0.9 * radius_mm_of(num_voxels * voxel_volume_ml(spacing_mm))
    weights = np.minimum(depths, max(needed_mm, min(spacing_mm))) ** 4
    drawn = rng.choice(len(candidates), size=MAX_GROWTHS, p=weights / weights.sum())
    centres: NDArray[np.int64] = candidates[drawn] * stride
    return centres


def _grow_from(
    centre: NDArray[np.int64],
    room: Mask,
    num_voxels: int,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    farther: NDArray[np.float64] | None,
) -> Mask:
    """Flood from a centre, in a box around it that widens until the lesion is whole; scores are times ``farther``."""
    radius_mm = radius_mm_of(num_voxels * voxel_volume_ml(spacing_mm))
    lesion = np.zeros_like(room)
    for reach in (2.0, 3.5, 7.0, np.inf):
        half = np.minimum(np.ceil(reach * radius_mm / np.asarray(spacing_mm)) + 1, room.shape).astype(int)
        low = np.maximum(centre - half, 0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, centre + half + 1, strict=True))
        start = centre - low
        score = _draw_score(room[box].shape, start, num_voxels, spacing_mm, rng)
        if farther is not None:
            score *= farther[box]
        taken = flood(score, room[box], start, num_voxels)
        if taken is not None:
            lesion[box] = taken
            return lesion
    raise AssertionError("a connected room of at least num_voxels always yields a lesion")


def _draw_score(
    shape: tuple[int, ...],
    start: NDArray[np.int64],
    num_voxels: int,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Distance from the start in a random ellipsoid times smooth noise; -1 at the start itself."""
    radius_mm = radius_mm_of(num_voxels * voxel_volume_ml(spacing_mm))
    # Below some hundred voxels the same noise would fray a lesion instead of lobing it.
    irregularity = IRREGULARITY * min(1.0, (num_voxels / 150) ** (1 / 3))
    stretch = np.exp(0.6 * irregularity * rng.standard_normal(3))
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    to_ball = rotation @ np.diag(stretch / np.prod(stretch) ** (1 / 3)) @ rotation.T
    axes = [(np.arange(n) - s) * step for n, s, step in zip(shape, start, spacing_mm, strict=True)]
    i, j, k = np.ix_(*axes)
    squared = sum((row[0] * i + row[1] * j + row[2] * k) ** 2 for row in to_ball)
    knots_mm = [max(0.8 * radius_mm, (axis[-1] - axis[0]) / 24, 1e-6) for axis in axes]
    bases = [spline_basis((axis - axis[0]) / knot) for axis, knot in zip(axes, knots_mm, strict=True)]
    noise = spline_field(rng.standard_normal([basis.shape[1] for basis in bases]), bases)
    score: NDArray[np.float64] = np.sqrt(squared) * np.exp(np.clip(2.0 * irregularity * noise, -0.6, 0.6))
    score[tuple(start)] = -1.0
    return score


def spread_of(lesion: Mask, spacing_mm: Sequence[float]) -> float:
    """Root mean square distance from the centre of mass, relative to a ball of the same volume: 1 is the least."""
    points_mm = np.argwhere(lesion) * np.asarray(spacing_mm)
    variance = float(((points_mm - points_mm.mean(axis=0)) ** 2).sum(axis=1).mean())
    return float(np.sqrt(variance / 0.6)) / radius_mm_of(len(points_mm) * voxel_volume_ml(spacing_mm))


def require_num_voxels(volume_ml: float, spacing_mm: Sequence[float]) -> int:
    """The number of voxels of a volume; raises LesionError below half a voxel."""
    num_voxels = round(volume_ml / voxel_volume_ml(spacing_mm)) if np.isfinite(volume_ml) and volume_ml > 0 else 0
    if num_voxels < 1:
        raise LesionError(
            f"Lesion volume: expected at least half a voxel, {voxel_volume_ml(spacing_mm) / 2:.4f} mL, found "
            f"{volume_ml} mL. Ask for a larger lesion or a finer grid."
        )
    return num_voxels


def radius_mm_of(volume_ml: float) -> float:
    """Radius in mm of the ball of a volume in mL."""
    return float((volume_ml * 1000.0 * 3.0 / (4.0 * np.pi)) ** (1.0 / 3.0))


def in_words(volume_ml: float) -> str:
    """The volume with its equivalent diameter, for messages."""
    return f"{volume_ml:.2f} mL ({2 * radius_mm_of(volume_ml):.1f} mm)"
