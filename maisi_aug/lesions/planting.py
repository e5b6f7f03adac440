"""Lesions on label maps: grown and planted in host organs at exact volumes, apart from each other, and measured.

A lesion is the set of the first N voxels of a flood that starts at a centre inside the host and always takes the
reachable voxel of lowest score. The score is a distance in millimetres from the centre, measured in a randomly turned
ellipsoid and multiplied by smooth noise: irregular, lobulated, independent of the voxel shape, and always connected.
Everything here is NumPy and SciPy on arrays with axes ``I J K``; touching means sharing a face, an edge or a corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.lesions.deformation import find_loose, find_outside_room, make_room, spline_basis, spline_field
from maisi_aug.lesions.lesion import GrowthRule, Lesion
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.components import (
    TOUCHING,
    Box,
    Mask,
    _within,
    bounding_box,
    flood,
    is_any_of,
    label_parts,
    part_sizes,
)
from maisi_aug.volumes.grid import voxel_volume_ml

MAX_PARTS = 3
MAX_ARRANGEMENTS = 6
LARGE_SHARE = 0.08
LARGE_ML = 14.0
"""A lesion of at least this volume (30 mm) and this share of its host part pushes tissue aside, if its rule says so."""
NUM_PUSHES = 3
EXOPHYTIC = 0.5
CROSSING = 0.1
"""Share of a lobe of the lung that a lesion may fill before it crosses the fissure."""
FIT_STEP, FIT_STEPS = 0.88, 12
"""By how much, and how often, a lesion without room is made smaller in search of the largest that fits."""
MAX_GROWTHS = 4
ROUND_ENOUGH = 1.35
"""Spread of a lesion about its centre, relative to a ball of its volume, above which another centre is tried."""
TOO_STRETCHED = 1.5
"""Spread above which a lesion leaves its host, where it may, rather than follow it; about twice as long as a ball."""
RELUCTANCES = (1.5, 3.0, 10.0)
"""Factors by which voxels outside the host seem farther than those inside, tried until enough of the lesion is inside.
"""
ROOMY = 0.6
"""Share of a host part that a lesion may fill before parts with more room are preferred."""
MAX_SEARCH_VOXELS = 60_000
IRREGULARITY = 0.35
"""Strength of the lobulation; 0 would give a ball cut by the host."""


class _Grown(NamedTuple):
    """A lesion, how far it spreads about its centre (1 for a ball), and the box of the label map that it lies in.

    ``moved`` is the label map after the lesion has pushed tissue aside; None where it has not.
    """

    lesion: Mask
    spread: float
    box: Box
    moved: NDArray[np.uint8] | None = None


def plant_lesions(
    label_map: NDArray[np.uint8],
    wanted: Sequence[Lesion],
    *,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    other_lesion_ids: Iterable[int] = (),
) -> tuple[NDArray[np.uint8], tuple[Lesion, ...]]:
    """Plant lesions of exact volumes in their hosts, at least one voxel apart from each other.

    A lesion stays in one connected part of a single host where one has room, else in one connected part of the union of
    its hosts. If there is too little room, or the lesion would be stretched along a thin host, it grows beyond the host
    as its rule allows. The largest lesions are placed first; if one then finds no room, the whole arrangement is drawn
    anew, at most ``MAX_ARRANGEMENTS`` times.

    Args:
        label_map: ``(I, J, K)`` label ids; not modified.
        wanted: Lesions to plant; existing lesions with the same ids count as lesions to keep apart from.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        other_lesion_ids: Further ids in the label map to keep apart from.

    Returns:
        A new label map, and the lesions with their realised sizes and positions.

    Raises:
        LesionError: A lesion does not fit; the message names its label, volume, hosts and the room that they have.
    """
    lesion_ids = {wish.label_id for wish in wanted} | set(other_lesion_ids)
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index].requested_ml)
    failure: LesionError | None = None
    for _ in range(MAX_ARRANGEMENTS):
        planted_map = label_map.copy()
        blocked = _surroundings(is_any_of(label_map, lesion_ids))
        planted: dict[int, Lesion] = {}
        try:
            for index in order:
                planted[index] = _plant(planted_map, blocked, wanted[index], spacing_mm, rng)
        except LesionError as error:
            failure = error
            if not planted:  # an empty host has no more room in another arrangement
                break
            continue
        return planted_map, tuple(planted[index] for index in range(len(wanted)))
    assert failure is not None
    raise failure


def measure_lesions(label_map: NDArray[Any], label_id: int, voxel_ml: float) -> list[float]:
    """Measure the connected lesions with a label: their volumes in mL, largest first.

    Args:
        label_map: ``(I, J, K)`` label ids.
        label_id: Id of the lesions.
        voxel_ml: Volume of a voxel in millilitres.
    """
    sizes = part_sizes(label_map == label_id)
    return [float(size * voxel_ml) for size in sorted(sizes, reverse=True)]


def host_volumes_ml(host: Mask, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Return the volume of a host organ in mL, and that of its largest connected part.

    Args:
        host: ``(I, J, K)`` mask; may be empty, which has 0 mL.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    sizes = part_sizes(host)
    voxel_ml = voxel_volume_ml(spacing_mm)
    return sum(sizes) * voxel_ml, max(sizes, default=0) * voxel_ml


def _plant(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    wish: Lesion,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
) -> Lesion:
    """Write one lesion into ``label_map`` and its surroundings into ``blocked``, both in place."""
    rule = wish.rule
    if rule is not None and wish.requested_ml > host_limit_ml(label_map, wish, spacing_mm):
        raise _too_large(label_map, wish, spacing_mm)
    best = _push_in(label_map, blocked, wish, spacing_mm, rng) if rule is not None else None
    if best is None:
        best = _grow_inside(label_map, blocked, wish, spacing_mm, rng)
        if rule is not None and (best is None or best.spread > min(TOO_STRETCHED, rule.max_spread)):
            bulging = _grow_out(label_map, blocked, wish, rule, spacing_mm, rng)
            if bulging is not None and (best is None or bulging.spread < best.spread):
                best = bulging
    if best is None or (rule is not None and best.spread > rule.max_spread):
        raise _no_room(label_map, blocked, wish, spacing_mm)
    if best.moved is not None:
        np.copyto(label_map, best.moved)
    return _write(label_map, blocked, wish, best, spacing_mm)


def host_limit_ml(label_map: NDArray[np.uint8], wish: Lesion, spacing_mm: Sequence[float]) -> float:
    """Return the largest volume in mL that a lesion's rule allows in a label map.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        wish: Lesion with its hosts and its rule.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        A share of the largest connected part of the hosts; infinite for a lesion without a rule.
    """
    if wish.rule is None:
        return float("inf")
    return wish.rule.max_host_share * host_volumes_ml(is_any_of(label_map, wish.hosts), spacing_mm)[1]


def largest_that_fits_ml(
    label_map: NDArray[np.uint8], wish: Lesion, *, spacing_mm: Sequence[float], rng: np.random.Generator
) -> float:
    """Return the largest volume in mL, up to the requested one, that could be planted; 0 if none could.

    Volumes are tried in steps of an eighth of the requested one.

    Args:
        label_map: ``(I, J, K)`` label ids without the lesion; not modified.
        wish: Requested lesion.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
    """
    volume_ml = min(wish.requested_ml, host_limit_ml(label_map, wish, spacing_mm))
    for _ in range(FIT_STEPS):
        if volume_ml < voxel_volume_ml(spacing_mm):
            return 0.0
        try:
            plant_lesions(label_map, [replace(wish, requested_ml=volume_ml)], spacing_mm=spacing_mm, rng=rng)
        except LesionError:
            volume_ml *= FIT_STEP
            continue
        return volume_ml
    return 0.0


def _push_in(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    wish: Lesion,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
) -> _Grown | None:
    """A large lesion that pushes its host and its neighbours aside; None for a small one, or where that fails."""
    rule = wish.rule
    free = is_any_of(label_map, wish.hosts) & ~blocked  # (I, J, K) voxels of the hosts without another lesion
    num_voxels = require_num_voxels(wish.requested_ml, spacing_mm)
    is_large = rule is not None and wish.requested_ml >= max(
        LARGE_ML, LARGE_SHARE * host_volumes_ml(free, spacing_mm)[1]
    )
    if rule is None or rule.room_share <= 0 or not is_large:
        return None
    # voxels that must fit into the host, since pushing makes room for the rest
    num_needed = int(np.ceil((1.0 - rule.room_share) * (1.0 - rule.max_share_outside) * num_voxels))
    part = draw_part(free, free, num_needed, spacing_mm, rng)
    if part is None:
        return None
    radius_mm, offset = radius_mm_of(wish.requested_ml), [side.start for side in part[0]]
    loose = find_loose(label_map, spacing_mm) & ~blocked
    best: _Grown | None = None
    for centre in draw_centres(part[1], num_voxels, spacing_mm, rng)[:NUM_PUSHES] + offset:
        for room_share in (rule.room_share, rule.room_share / 2):
            moved = make_room(
                label_map, centre, radius_mm=radius_mm, room_share=room_share, loose=loose, spacing_mm=spacing_mm
            )
            if moved is None:
                continue
            grown = _grow_out(moved, blocked, wish, rule, spacing_mm, rng, centre=centre)
            if grown is not None and (best is None or grown.spread < best.spread):
                best = grown._replace(moved=moved)
            break
        if best is not None and best.spread <= ROUND_ENOUGH:
            break
    return best if best is not None and best.spread <= rule.max_spread else None


def _grow_inside(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    wish: Lesion,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
) -> _Grown | None:
    """The first lesion inside its hosts that is round enough, else the roundest; None if no host has room."""
    num_voxels = require_num_voxels(wish.requested_ml, spacing_mm)
    best: _Grown | None = None
    for hosts in _host_choices(label_map, blocked, wish, num_voxels, rng):
        free = is_any_of(label_map, hosts) & ~blocked
        part = draw_part(free, free, num_voxels, spacing_mm, rng)
        if part is None:
            continue
        lesion, spread = grow_roundest(part[1], part[2], num_voxels, spacing_mm, rng)
        if best is None or spread < best.spread:
            best = _Grown(lesion, spread, part[0])
        if spread <= ROUND_ENOUGH:
            break
    return best


def _grow_out(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    wish: Lesion,
    rule: GrowthRule,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    centre: NDArray[np.int64] | None = None,
) -> _Grown | None:
    """A lesion around one connected part of its hosts, some of it outside; None if too little of it would be inside.

    It grows from ``centre`` where that is given, a voxel of the label map inside a host.
    """
    num_voxels = require_num_voxels(wish.requested_ml, spacing_mm)
    num_inside = int(np.ceil((1.0 - rule.max_share_outside) * num_voxels))
    free = is_any_of(label_map, wish.hosts) & ~blocked
    start = _part_at(free, centre) if centre is not None else draw_part(free, free, num_inside, spacing_mm, rng)
    if start is None:
        return None
    host = np.zeros_like(free)
    host[start[0]] = start[1]
    outside = find_outside_room(label_map, host, rim_mm=rule.rim_mm, in_cavity=rule.in_cavity, spacing_mm=spacing_mm)
    room = (free | outside) & ~blocked
    part = draw_part(host, room, num_voxels, spacing_mm, rng)
    if part is None:
        return None
    box, inside, around = part
    places = None if centre is None else [centre - [side.start for side in box]]
    # What grows out of its host as a rule begins as a ball; the others keep to the host as far as they can.
    for reluctance in (1.0, *RELUCTANCES) if rule.max_share_outside >= EXOPHYTIC else RELUCTANCES:
        lesion, spread = grow_roundest(
            inside, around, num_voxels, spacing_mm, rng, reluctance=reluctance, centres=places
        )
        if np.count_nonzero(lesion & free[box]) >= num_inside:
            return _Grown(lesion, spread, box)
    return None


def _part_at(mask: Mask, voxel: NDArray[np.int64]) -> tuple[Box, Mask] | None:
    """The connected part of a mask at a voxel, and its box; None where the mask is not there."""
    labelled, _ = label_parts(mask)
    number = labelled[tuple(voxel)]
    if number == 0:
        return None
    part = labelled == number
    box = bounding_box(part)
    return box, part[box]


def _host_choices(
    label_map: NDArray[np.uint8], blocked: Mask, wish: Lesion, num_voxels: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """Sets of hosts to try in order: single hosts with ample room, single hosts with room, the union."""
    num_free = np.bincount(label_map[~blocked], minlength=256)  # (256,) free voxels by id
    choices: list[tuple[int, ...]] = []
    crosses = wish.rule is not None and wish.rule.crosses_hosts
    for share in (CROSSING,) if crosses else (ROOMY, 1.0):
        fitting = [host for host in wish.hosts if num_free[host] * share >= num_voxels and (host,) not in choices]
        if fitting:
            # Square root: between one chance per host and one per voxel, so that ribs are not forgotten beside hips.
            weights = np.sqrt(num_free[fitting].astype(np.float64))
            num_drawn = min(MAX_PARTS, len(fitting))
            drawn = rng.choice(len(fitting), size=num_drawn, replace=False, p=weights / weights.sum())
            choices += [(fitting[index],) for index in drawn]
    return [*choices, tuple(wish.hosts)]


def _write(
    label_map: NDArray[np.uint8],
    blocked: Mask,
    wish: Lesion,
    grown: _Grown,
    spacing_mm: Sequence[float],
) -> Lesion:
    lesion, box = grown.lesion, grown.box
    inside = np.argwhere(lesion)
    offset = np.array([part.start for part in box])
    steps_mm = (inside - inside.mean(axis=0)) * np.asarray(spacing_mm)
    centre = inside[int(np.argmin((steps_mm**2).sum(axis=1)))] + offset
    replaced = np.bincount(label_map[box][lesion], minlength=256)
    host_id = max(wish.hosts, key=lambda host: (int(replaced[host]), -host))
    label_map[box][lesion] = wish.label_id
    wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    blocked[wide] |= _surroundings(_placed(lesion, box, wide, label_map.shape))
    return wish.drawn(
        num_voxels=len(inside),
        spacing_mm=spacing_mm,
        centre_ijk=centre,
        host_id=host_id,
        spread=round(grown.spread, 4),
        share_outside=round(1.0 - int(replaced[list(wish.hosts)].sum()) / len(inside), 4),
    )


def _placed(lesion: Mask, box: Box, wide: Box, shape: tuple[int, ...]) -> Mask:
    """The lesion of ``box`` in the frame of the surrounding box ``wide``."""
    frame = np.zeros([len(range(*part.indices(side))) for part, side in zip(wide, shape, strict=True)], dtype=bool)
    frame[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wide, strict=True))] = lesion
    return frame


def _no_room(label_map: NDArray[np.uint8], blocked: Mask, wish: Lesion, spacing_mm: Sequence[float]) -> LesionError:
    free_ml, largest_ml = host_volumes_ml(is_any_of(label_map, wish.hosts) & ~blocked, spacing_mm)
    present = [host for host in wish.hosts if (label_map == host).any()] or list(wish.hosts)
    names = ", ".join(map(_name_of, present[:4])) + (f" and {len(present) - 4} more" if len(present) > 4 else "")
    inside = f", at least {wish.inside_ml:.2f} mL of it" if wish.rule is not None else ""
    return LesionError(
        f"{wish.label}: no room for {in_words(wish.requested_ml)}{inside} in one connected part of its host "
        f"({names}): {free_ml:.2f} mL are free, {largest_ml:.2f} mL of them in the largest part. Request a smaller "
        "lesion, fewer lesions or use another label map."
    )


def _too_large(label_map: NDArray[np.uint8], wish: Lesion, spacing_mm: Sequence[float]) -> LesionError:
    assert wish.rule is not None
    _, largest_ml = host_volumes_ml(is_any_of(label_map, wish.hosts), spacing_mm)
    return LesionError(
        f"{wish.label}: {in_words(wish.requested_ml)} requested, but it may fill at most "
        f"{wish.rule.max_host_share:.0%} of its host, {in_words(wish.rule.max_host_share * largest_ml)} in a part of "
        f"{largest_ml:.0f} mL. Request a smaller lesion or use another label map."
    )


def _name_of(label_id: int) -> str:
    return MAISI.name_of(label_id) if MAISI.contains(label_id) else f"label {label_id}"


def _surroundings(mask: Mask) -> Mask:
    """The mask and every voxel that touches it."""
    box = bounding_box(mask, margin=1)
    around = np.zeros_like(mask)
    around[box] = ndimage.binary_dilation(mask[box], TOUCHING)
    return around


def draw_part(
    host: Mask, room: Mask, num_voxels: int, spacing_mm: Sequence[float], rng: np.random.Generator
) -> tuple[Box, Mask, Mask] | None:
    """Choose one connected part of the allowed voxels in which a lesion may grow.

    Parts with ample room are drawn in proportion to their voxels in the host; without any, the largest part is taken.

    Args:
        host: ``(I, J, K)`` mask of the host organs, in which the lesion begins.
        room: ``(I, J, K)`` mask of the voxels that the lesion may occupy: ``host`` itself, or with space around it.
        num_voxels: Number of voxels of the lesion.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.

    Returns:
        A tuple of three: the box of the part (slices along I, J, K into the masks); inside this box, the mask of the
        part's voxels in the host; and the mask of all its voxels. None if no connected part has ``num_voxels`` voxels
        and touches the host.
    """
    if np.count_nonzero(room) < num_voxels or not host.any():
        return None
    radius_mm = radius_mm_of(num_voxels * voxel_volume_ml(spacing_mm))
    margin = 0 if room is host else int(np.ceil(2.0 * radius_mm / min(spacing_mm)))
    box = bounding_box(host, margin=margin)
    labelled, _ = label_parts(room[box])
    num_room = np.bincount(labelled.ravel())  # (parts + 1,) voxels of each connected part
    num_start = np.bincount(labelled[host[box]], minlength=num_room.size)  # voxels of it in the host
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
    """Grow a lesion from several random centres, and return the first that is round enough, else the roundest.

    Args:
        start_room: ``(I, J, K)`` mask of the host, in which centres lie.
        room: ``(I, J, K)`` connected mask of the voxels that the lesion may occupy.
        num_voxels: Number of voxels of the lesion.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        reluctance: Factor by which distances to voxels outside ``start_room`` are increased.
        centres: Voxels to grow from; None draws up to ``MAX_GROWTHS``, preferably deep in the host.

    Returns:
        ``(I, J, K)`` mask of the lesion, and its spread relative to a ball, see :func:`spread_of`.
    """
    if centres is None:
        centres = draw_centres(start_room, num_voxels, spacing_mm, rng)
    farther = None if reluctance == 1.0 else np.where(start_room, 1.0, reluctance)  # (I, J, K) factor of the distance
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
    """Draw voxels to grow a lesion from, preferably deep in the host, up to the depth that it needs.

    Args:
        start_room: ``(I, J, K)`` mask of the host; at least one voxel.
        num_voxels: Number of voxels of the lesion.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.

    Returns:
        ``(MAX_GROWTHS, 3)`` voxel indices I, J, K in the mask, in the order in which they are to be tried.
    """
    stride = max(1, int(np.ceil((start_room.size / MAX_SEARCH_VOXELS) ** (1 / 3))))
    thinned = start_room[::stride, ::stride, ::stride]
    if not thinned.any():
        stride, thinned = 1, start_room
    # (i + 2, j + 2, k + 2): padded, so that the border counts as outside
    depth_mm = ndimage.distance_transform_edt(np.pad(thinned, 1), sampling=np.asarray(spacing_mm) * stride)
    candidates = np.argwhere(thinned)  # (N, 3)
    depths = depth_mm[tuple((candidates + 1).T)]  # (N,)
    needed_mm = 0.9 * radius_mm_of(num_voxels * voxel_volume_ml(spacing_mm))
    weights = np.minimum(depths, max(needed_mm, min(spacing_mm))) ** 4  # (N,)
    drawn = rng.choice(len(candidates), size=MAX_GROWTHS, p=weights / weights.sum())
    centres: NDArray[np.int64] = candidates[drawn] * stride  # (MAX_GROWTHS, 3)
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
    raise AssertionError("a connected region of at least num_voxels always yields a lesion")


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
    # (3, 3) symmetric, volume-preserving: millimetres to a ball
    to_ball = rotation @ np.diag(stretch / np.prod(stretch) ** (1 / 3)) @ rotation.T
    axes = [(np.arange(n) - s) * step for n, s, step in zip(shape, start, spacing_mm, strict=True)]
    i, j, k = np.ix_(*axes)  # (I, 1, 1), (1, J, 1), (1, 1, K) in mm
    # (I, J, K) squared distance in the ellipsoid
    squared = sum((row[0] * i + row[1] * j + row[2] * k) ** 2 for row in to_ball)
    knots_mm = [max(0.8 * radius_mm, (axis[-1] - axis[0]) / 24, 1e-6) for axis in axes]
    bases = [spline_basis((axis - axis[0]) / knot) for axis, knot in zip(axes, knots_mm, strict=True)]
    # (I, J, K) smooth, about unit deviation
    noise = spline_field(rng.standard_normal([basis.shape[1] for basis in bases]), bases)
    score: NDArray[np.float64] = np.sqrt(squared) * np.exp(np.clip(2.0 * irregularity * noise, -0.6, 0.6))
    score[tuple(start)] = -1.0
    return score


def spread_of(lesion: Mask, spacing_mm: Sequence[float]) -> float:
    """Return a lesion's root mean square distance from its centre of mass, relative to a ball of the same volume.

    Args:
        lesion: ``(I, J, K)`` mask; at least one voxel.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        About 1 for a ball, more for every other shape.
    """
    points_mm = np.argwhere(lesion) * np.asarray(spacing_mm)  # (N, 3)
    variance = float(((points_mm - points_mm.mean(axis=0)) ** 2).sum(axis=1).mean())
    # a ball of radius r has variance 0.6 r^2
    return float(np.sqrt(variance / 0.6)) / radius_mm_of(len(points_mm) * voxel_volume_ml(spacing_mm))


def require_num_voxels(volume_ml: float, spacing_mm: Sequence[float]) -> int:
    """Return the number of voxels, at least one, that is nearest to a volume.

    Args:
        volume_ml: Volume in mL.
        spacing_mm: Voxel sides along I, J, K in mm.

    Raises:
        LesionError: The volume is below half a voxel, negative or not finite.
    """
    num_voxels = round(volume_ml / voxel_volume_ml(spacing_mm)) if np.isfinite(volume_ml) and volume_ml > 0 else 0
    if num_voxels < 1:
        raise LesionError(
            f"Lesion volume: expected at least half a voxel, {voxel_volume_ml(spacing_mm) / 2:.4f} mL, found "
            f"{volume_ml} mL. Request a larger lesion or use a finer grid."
        )
    return num_voxels


def radius_mm_of(volume_ml: float) -> float:
    """Return the radius in mm of a ball with a volume in mL."""
    return float((volume_ml * 1000.0 * 3.0 / (4.0 * np.pi)) ** (1.0 / 3.0))


def in_words(volume_ml: float) -> str:
    """Describe a volume in mL with its equivalent diameter, for messages."""
    return f"{volume_ml:.2f} mL ({2 * radius_mm_of(volume_ml):.1f} mm)"
