"""Lesions on label maps: grow them to an exact volume, plant them in host organs, measure and deform.

A lesion is the set of the first N voxels of a flood that starts at a centre inside the host and always takes the
reachable voxel of lowest score. The score is a distance in millimetres from the centre, measured in a randomly turned
ellipsoid and multiplied by smooth noise: irregular, lobulated, independent of the voxel shape, and always connected.
Everything here is NumPy and SciPy on arrays with axes ``I J K``; touching means sharing a face, an edge or a corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError

Box = tuple[slice, ...]
Mask = NDArray[np.bool_]

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""26-neighbourhood: the one connectivity used for hosts, lesions and gaps."""

MAX_GROWTHS = 4
MAX_PARTS = 3
MAX_ARRANGEMENTS = 6
ROUND_ENOUGH = 1.35
"""Spread of a lesion about its centre, relative to a ball of its volume, above which another centre is tried."""
ROOMY = 0.6
"""Share of a host part that a lesion may fill before parts with more room are preferred."""
MAX_SEARCH_VOXELS = 60_000
KNOT_SPACING_MM = 40.0
KNOT_DEVIATION_MM = 12.0
MAX_ZOOM = 0.01


@dataclass(frozen=True, slots=True)
class LesionWish:
    """A lesion to plant.

    Attributes:
        label_id: Id that the lesion's voxels get.
        hosts: Ids that the lesion may replace.
        volume_ml: Wanted volume in millilitres.
        label_name: Name for messages; the id is used where it is empty.
    """

    label_id: int
    hosts: tuple[int, ...]
    volume_ml: float
    label_name: str = ""


@dataclass(frozen=True, slots=True)
class PlantedLesion:
    """A lesion that was planted.

    Attributes:
        label_id: Id of its voxels in the label map.
        mask_bbox: Smallest box around it, slices along I, J, K.
        num_voxels: Number of voxels.
        volume_ml: Realised volume in millilitres.
        centre_ijk: The voxel of the lesion nearest to its centre of mass.
        host_id: The host that it replaced most voxels of.
    """

    label_id: int
    mask_bbox: Box
    num_voxels: int
    volume_ml: float
    centre_ijk: tuple[int, int, int]
    host_id: int


def grow_lesion(
    host: Mask,
    *,
    volume_ml: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    irregularity: float = 0.35,
    allow_outside: bool = False,
) -> Mask:
    """Grow one irregular, connected lesion of an exact volume.

    Args:
        host: ``(I, J, K)`` mask in which the lesion starts; not modified.
        volume_ml: Wanted volume in millilitres, at least half a voxel.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        irregularity: Strength of the lobulation; 0 gives a ball cut by the host.
        allow_outside: Whether the lesion may leave the host; its centre never does.

    Returns:
        ``(I, J, K)`` mask of ``round(volume / voxel volume)`` voxels, touching each other.

    Raises:
        LesionError: If the volume is below half a voxel, or exceeds the largest connected part of the host.
    """
    num_voxels = _require_num_voxels(volume_ml, spacing_mm)
    part = _draw_part(host, np.ones_like(host) if allow_outside else host, num_voxels, spacing_mm, rng)
    if part is None:
        voxel_ml = _voxel_ml(spacing_mm)
        largest_ml = max(_part_sizes(host), default=0) * voxel_ml
        raise LesionError(
            f"Lesion of {_in_words(volume_ml)}: expected a host with that volume in one connected part, found "
            f"{int(host.sum()) * voxel_ml:.2f} mL with a largest part of {largest_ml:.2f} mL. "
            "Ask for a smaller lesion or a larger host."
        )
    box, start_room, room = part
    lesion = np.zeros(host.shape, dtype=bool)
    lesion[box] = _grow_roundest(start_room, room, num_voxels, spacing_mm, rng, irregularity)[0]
    return lesion


def plant_lesions(
    label_map: NDArray[np.uint8],
    wanted: Sequence[LesionWish],
    *,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    other_lesion_ids: Iterable[int] = (),
    allow_outside: bool = False,
) -> tuple[NDArray[np.uint8], tuple[PlantedLesion, ...]]:
    """Plant lesions of exact volumes in their hosts, at least one voxel apart from each other.

    A lesion stays in one connected part of a single host where one has room, else in one connected part of the union
    of its hosts. The largest lesions are placed first; if one then finds no room, the whole arrangement is drawn anew,
    at most ``MAX_ARRANGEMENTS`` times.

    Args:
        label_map: ``(I, J, K)`` label ids; not modified.
        wanted: The lesions; ids already present under a wanted label count as lesions to keep apart from.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        other_lesion_ids: Further ids in the label map to keep apart from.
        allow_outside: Whether lesions may spread from their host into other non-zero, lesion-free voxels.

    Returns:
        A new label map and the planted lesions in the order wanted.

    Raises:
        LesionError: Naming the label, the volume, the hosts and the room that they have.
    """
    lesion_ids = {wish.label_id for wish in wanted} | set(other_lesion_ids)
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index].volume_ml)
    failure: LesionError | None = None
    for _ in range(MAX_ARRANGEMENTS):
        planted_map = label_map.copy()
        blocked = _surroundings(is_any_of(label_map, lesion_ids))
        planted: dict[int, PlantedLesion] = {}
        try:
            for index in order:
                planted[index] = _plant(planted_map, blocked, wanted[index], spacing_mm, rng, allow_outside)
        except LesionError as error:
            failure = error
            if not planted:  # an empty host has no more room in another arrangement
                break
            continue
        return planted_map, tuple(planted[index] for index in range(len(wanted)))
    assert failure is not None
    raise failure


def measure_lesions(label_map: NDArray[Any], label_id: int, voxel_ml: float) -> list[float]:
    """Volumes in millilitres of the connected lesions with a label, largest first.

    Args:
        label_map: ``(I, J, K)`` label ids.
        label_id: Id of the lesions.
        voxel_ml: Volume of a voxel in millilitres.
    """
    sizes = _part_sizes(label_map == label_id)
    return [float(size * voxel_ml) for size in sorted(sizes, reverse=True)]


def deform_label_map(
    label_map: NDArray[np.uint8], *, spacing_mm: Sequence[float], rng: np.random.Generator, strength: float = 1.0
) -> NDArray[np.uint8]:
    """Vary an anatomy by a smooth elastic displacement and a zoom of at most 1%.

    The displacement is a cubic B-spline with knots every 40 mm whose standard deviation is about ``4 mm x strength``;
    its knots are cut at 0.4 of their spacing, so that it cannot fold (Choi & Lee, "Injectivity conditions of 2D and 3D uniform
    cubic B-spline functions", 2000). Voxels from beyond the border repeat the border, so that a body cut by the field
    of view stays cut. A draw that loses a label is repeated at half the strength, four times at most; then the input
    is returned, as a copy.

    Args:
        label_map: ``(I, J, K)`` label ids; not modified.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        strength: 0 for none, 1 for the variation named above.
    """
    present = np.bincount(label_map.ravel(), minlength=256) > 0
    for attempt in range(4):
        deformed = _deform(label_map, spacing_mm, rng, strength * 0.5**attempt)
        if ((np.bincount(deformed.ravel(), minlength=256) > 0) | ~present).all():
            return deformed
    return label_map.copy()


def is_any_of(label_map: NDArray[Any], label_ids: Iterable[int]) -> Mask:
    """Mask of the voxels that carry one of the ids; quick for uint8, where a table of 256 entries is looked up."""
    ids = sorted(set(label_ids))
    if label_map.dtype != np.uint8:
        return np.isin(label_map, ids)
    table = np.zeros(256, dtype=bool)
    table[[label_id for label_id in ids if 0 <= label_id < 256]] = True
    mask: Mask = table[label_map]
    return mask


def bounding_box(mask: Mask, *, margin: int = 0) -> Box:
    """Smallest box around a mask, widened by a margin of voxels within the array; empty slices for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if hit.size == 0:
            return tuple(slice(0, 0) for _ in mask.shape)
        box.append(slice(max(0, int(hit[0]) - margin), min(mask.shape[axis], int(hit[-1]) + 1 + margin)))
    return tuple(box)


# Planting: which host, which connected part of it.


def _plant(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    wish: LesionWish,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    allow_outside: bool,
) -> PlantedLesion:
    """Write one lesion into ``label_map`` and its surroundings into ``blocked``, both in place."""
    num_voxels = _require_num_voxels(wish.volume_ml, spacing_mm)
    best: tuple[Mask, float, Box] | None = None
    for hosts in _host_choices(label_map, blocked, wish, num_voxels, rng):
        free = is_any_of(label_map, hosts) & ~blocked
        room = (label_map != 0) & ~blocked if allow_outside else free
        part = _draw_part(free, room, num_voxels, spacing_mm, rng)
        if part is None:
            continue
        lesion, spread = _grow_roundest(part[1], part[2], num_voxels, spacing_mm, rng)
        if best is None or spread < best[1]:
            best = (lesion, spread, part[0])
        if spread <= ROUND_ENOUGH:
            break
    if best is None:
        raise _no_room(label_map, blocked, wish, spacing_mm)
    return _write(label_map, blocked, wish.label_id, best[0], best[2], spacing_mm)


def _host_choices(
    label_map: NDArray[np.uint8], blocked: Mask, wish: LesionWish, num_voxels: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Sets of hosts to try in order: single hosts with ample room, single hosts with room, the union."""
    num_free = np.bincount(label_map[~blocked], minlength=256)
    choices: list[tuple[int, ...]] = []
    for share in (ROOMY, 1.0):
        fitting = [host for host in wish.hosts if num_free[host] * share >= num_voxels and (host,) not in choices]
        if fitting:
            # Square root: between one chance per host and one per voxel, so that ribs are not forgotten beside hips.
            weights = np.sqrt(num_free[fitting].astype(np.float64))
            num_drawn = min(MAX_PARTS, len(fitting))
            drawn = rng.choice(len(fitting), size=num_drawn, replace=False, p=weights / weights.sum())
            choices += [(fitting[index],) for index in drawn]
    return [*choices, tuple(wish.hosts)]


def _draw_part(
    host: Mask, room: Mask, num_voxels: int, spacing_mm: Sequence[float], rng: np.random.Generator
) -> tuple[Box, Mask, Mask] | None:
    """A box, the part of the host in it to start from, and the connected room to grow in; None if nothing fits."""
    radius_mm = _radius_mm(num_voxels * _voxel_ml(spacing_mm))
    margin = 0 if room is host else int(np.ceil(2.0 * radius_mm / min(spacing_mm)))
    box = bounding_box(host, margin=margin)
    labelled, _ = ndimage.label(room[box], TOUCHING)
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
    outer = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(box, inner, strict=True))
    return outer, part[inner] & host[outer], part[inner]


def _write(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    label_id: int,
    lesion: Mask,
    box: Box,
    spacing_mm: Sequence[float],
) -> PlantedLesion:
    inside = np.argwhere(lesion)
    offset = np.array([part.start for part in box])
    low, high = inside.min(axis=0) + offset, inside.max(axis=0) + offset + 1
    steps_mm = (inside - inside.mean(axis=0)) * np.asarray(spacing_mm)
    centre = inside[int(np.argmin((steps_mm**2).sum(axis=1)))] + offset
    host_id = int(np.argmax(np.bincount(label_map[box][lesion])))
    label_map[box][lesion] = label_id
    wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    blocked[wide] |= _surroundings(_placed(lesion, box, wide, label_map.shape))
    return PlantedLesion(
        label_id=label_id,
        mask_bbox=tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)),
        num_voxels=len(inside),
        volume_ml=len(inside) * _voxel_ml(spacing_mm),
        centre_ijk=(int(centre[0]), int(centre[1]), int(centre[2])),
        host_id=host_id,
    )


def _placed(lesion: Mask, box: Box, wide: Box, shape: tuple[int, ...]) -> Mask:
    """The lesion of ``box`` in the frame of the surrounding box ``wide``."""
    frame = np.zeros([len(range(*part.indices(side))) for part, side in zip(wide, shape, strict=True)], dtype=bool)
    frame[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wide, strict=True))] = lesion
    return frame


def _no_room(label_map: NDArray[np.uint8], blocked: Mask, wish: LesionWish, spacing_mm: Sequence[float]) -> LesionError:
    free = is_any_of(label_map, wish.hosts) & ~blocked
    free_ml = int(free.sum()) * _voxel_ml(spacing_mm)
    largest_ml = max(_part_sizes(free), default=0) * _voxel_ml(spacing_mm)
    hosts = ", ".join(map(str, wish.hosts[:8])) + (", ..." if len(wish.hosts) > 8 else "")
    return LesionError(
        f"{wish.label_name or f'Label {wish.label_id}'}: expected room for {_in_words(wish.volume_ml)} in one "
        f"connected part of its host organs (ids {hosts}), found {free_ml:.2f} mL free, "
        f"at most {largest_ml:.2f} mL of it in one part. Ask for a smaller lesion, fewer lesions or another label map."
    )


# Growing: the centre, the score, the flood.


def _grow_roundest(
    start_room: Mask,
    room: Mask,
    num_voxels: int,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    irregularity: float = 0.35,
) -> tuple[Mask, float]:
    """Grow from up to ``MAX_GROWTHS`` centres and keep the first round enough, else the roundest."""
    centres = _draw_centres(start_room, num_voxels, spacing_mm, rng)
    best: tuple[Mask, float] | None = None
    for centre in centres:
        lesion = _grow_from(centre, room, num_voxels, spacing_mm, rng, irregularity)
        spread = _spread(lesion, spacing_mm)
        if best is None or spread < best[1]:
            best = (lesion, spread)
        if spread <= ROUND_ENOUGH:
            break
    assert best is not None
    return best


def _draw_centres(
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
    needed_mm = 0.9 * _radius_mm(num_voxels * _voxel_ml(spacing_mm))
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
    irregularity: float,
) -> Mask:
    """Flood from a centre, in a box around it that widens until the lesion is whole."""
    radius_mm = _radius_mm(num_voxels * _voxel_ml(spacing_mm))
    lesion = np.zeros_like(room)
    for reach in (2.0, 3.5, 7.0, np.inf):
        half = np.minimum(np.ceil(reach * radius_mm / np.asarray(spacing_mm)) + 1, room.shape).astype(int)
        low = np.maximum(centre - half, 0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, centre + half + 1, strict=True))
        start = centre - low
        score = _draw_score(room[box].shape, start, num_voxels, spacing_mm, rng, irregularity)
        taken = _flood(score, room[box], start, num_voxels)
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
    irregularity: float,
) -> NDArray[np.float64]:
    """Distance from the start in a random ellipsoid times smooth noise; -1 at the start itself."""
    radius_mm = _radius_mm(num_voxels * _voxel_ml(spacing_mm))
    # Below some hundred voxels the same noise would fray a lesion instead of lobing it.
    irregularity *= min(1.0, (num_voxels / 150) ** (1 / 3))
    stretch = np.exp(0.6 * irregularity * rng.standard_normal(3))
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    to_ball = rotation @ np.diag(stretch / np.prod(stretch) ** (1 / 3)) @ rotation.T
    axes = [(np.arange(n) - s) * step for n, s, step in zip(shape, start, spacing_mm, strict=True)]
    i, j, k = np.ix_(*axes)
    squared = sum((row[0] * i + row[1] * j + row[2] * k) ** 2 for row in to_ball)
    knots_mm = [max(0.8 * radius_mm, (axis[-1] - axis[0]) / 24, 1e-6) for axis in axes]
    bases = [spline_basis((axis - axis[0]) / knot) for axis, knot in zip(axes, knots_mm, strict=True)]
    noise = spline_field(rng.standard_normal([basis.shape[1] for basis in bases]), bases)
    score: NDArray[np.float64] = np.sqrt(squared) * np.exp(np.clip(3.0 * irregularity * noise, -0.9, 0.9))
    score[tuple(start)] = -1.0
    return score


def _flood(score: NDArray[np.float64], room: Mask, start: NDArray[np.int64], num_voxels: int) -> Mask | None:
    """The first ``num_voxels`` voxels of a lowest-score-first flood of the room; None if it holds fewer."""
    rank = np.full(room.shape, np.iinfo(np.int64).max)
    order = np.argsort(score[room], kind="stable")
    places = np.empty(order.size, dtype=np.int64)
    places[order] = np.arange(order.size)
    rank[room] = places

    def reached(level: int) -> Mask:
        labelled, _ = ndimage.label(rank < level, TOUCHING)
        connected: Mask = labelled == labelled[tuple(start)]
        return connected

    enough, level = order.size, num_voxels
    if enough < num_voxels or np.count_nonzero(reached(enough)) < num_voxels:
        return None
    too_low = num_voxels - 1
    while enough - too_low > 1:  # the first probe is num_voxels itself: in a convex room it is the answer
        if np.count_nonzero(reached(level)) >= num_voxels:
            enough = level
        else:
            too_low = level
        level = (too_low + enough) // 2
    lesion, whole = reached(enough - 1) if num_voxels > 1 else room & (rank < 1), reached(enough)
    while (missing := num_voxels - np.count_nonzero(lesion)) > 0:
        # The last level opened a pocket of several voxels: fill it from its entrance, layer by layer.
        layer = np.flatnonzero(ndimage.binary_dilation(lesion, TOUCHING, mask=whole) & ~lesion)
        nearest = layer[np.argsort(rank.ravel()[layer])[:missing]]
        lesion.ravel()[nearest] = True
    return lesion


# Smooth fields.


def spline_basis(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform cubic B-spline weights ``(len(positions), num_knots)`` at positions >= 0 in knot spacings."""
    cell = np.floor(positions).astype(np.int64)
    t = positions - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    basis = np.zeros((len(positions), int(cell.max(initial=0)) + 4))
    for shift in range(4):
        basis[np.arange(len(positions)), cell + shift] = weights[shift]
    return basis


def spline_field(knots: NDArray[np.float64], bases: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Evaluate ``(A, B, C)`` knots on the product of three axes with bases ``(I, A)``, ``(J, B)``, ``(K, C)``."""
    field: NDArray[np.float64] = np.einsum("abc,kc->abk", knots, bases[2])
    field = np.einsum("abk,jb->ajk", field, bases[1])
    field = np.einsum("ajk,ia->ijk", field, bases[0])
    return field


def _deform(
    label_map: NDArray[np.uint8], spacing_mm: Sequence[float], rng: np.random.Generator, strength: float
) -> NDArray[np.uint8]:
    shape, spacing = label_map.shape, np.asarray(spacing_mm, dtype=np.float64)
    bases = [spline_basis(np.arange(n) * step / KNOT_SPACING_MM) for n, step in zip(shape, spacing, strict=True)]
    knots_mm = strength * KNOT_DEVIATION_MM * rng.standard_normal((3, *[basis.shape[1] for basis in bases]))
    knots_mm = np.clip(knots_mm, -0.4 * KNOT_SPACING_MM, 0.4 * KNOT_SPACING_MM)
    zoom = 1.0 + MAX_ZOOM * min(strength, 1.0) * rng.uniform(-1.0, 1.0)
    deformed = np.empty_like(label_map)
    rows = max(1, 2_000_000 // max(1, shape[1] * shape[2]))  # slabs bound the memory on full-size grids
    for first in range(0, shape[0], rows):
        slab = slice(first, min(first + rows, shape[0]))
        source = []
        for axis, side in enumerate(shape):
            index = np.arange(side, dtype=np.float64)
            index = (index - (side - 1) / 2) / zoom + (side - 1) / 2
            index = index[slab] if axis == 0 else index
            moved = spline_field(knots_mm[axis], [bases[0][slab], bases[1], bases[2]]) / spacing[axis]
            moved += index.reshape([-1 if other == axis else 1 for other in range(3)])
            source.append(np.clip(np.rint(moved), 0, side - 1).astype(np.int32))
        deformed[slab] = label_map[source[0], source[1], source[2]]
    return deformed


# Small measures.


def _surroundings(mask: Mask) -> Mask:
    """The mask and every voxel that touches it."""
    box = bounding_box(mask, margin=1)
    around = np.zeros_like(mask)
    around[box] = ndimage.binary_dilation(mask[box], TOUCHING)
    return around


def _part_sizes(mask: Mask) -> list[int]:
    labelled, _ = ndimage.label(mask[bounding_box(mask)], TOUCHING)
    return [int(size) for size in np.bincount(labelled.ravel())[1:]]


def _spread(lesion: Mask, spacing_mm: Sequence[float]) -> float:
    """Root mean square distance from the centre of mass, relative to a ball of the same volume."""
    points_mm = np.argwhere(lesion) * np.asarray(spacing_mm)
    variance = float(((points_mm - points_mm.mean(axis=0)) ** 2).sum(axis=1).mean())
    return float(np.sqrt(variance / 0.6)) / _radius_mm(len(points_mm) * _voxel_ml(spacing_mm))


def _require_num_voxels(volume_ml: float, spacing_mm: Sequence[float]) -> int:
    num_voxels = round(volume_ml / _voxel_ml(spacing_mm)) if np.isfinite(volume_ml) and volume_ml > 0 else 0
    if num_voxels < 1:
        raise LesionError(
            f"Lesion volume: expected at least half a voxel, {_voxel_ml(spacing_mm) / 2:.4f} mL, found "
            f"{volume_ml} mL. Ask for a larger lesion or a finer grid."
        )
    return num_voxels


def _voxel_ml(spacing_mm: Sequence[float]) -> float:
    return float(np.prod(np.asarray(spacing_mm, dtype=np.float64))) / 1000.0


def _radius_mm(volume_ml: float) -> float:
    return float((volume_ml * 1000.0 * 3.0 / (4.0 * np.pi)) ** (1.0 / 3.0))


def _in_words(volume_ml: float) -> str:
    return f"{volume_ml:.2f} mL ({2 * _radius_mm(volume_ml):.1f} mm)"
