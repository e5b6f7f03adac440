"""Masks and their parts: boxes around them, connected parts, floods that take the lowest voxels first, and Dice.

Dice of a label that the reference lacks is None, never 0 or 1: whether a case counts for a label is decided by its
reference alone. It is 2 |A and B| / (|A| + |B|), in voxels (Dice, "Measures of the Amount of Ecologic Association
Between Species", Ecology 1945).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[slice, ...]
Mask = NDArray[np.bool_]
TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""26-neighbourhood: the one connectivity used for hosts, lesions and gaps."""


def bounding_box(mask: Mask, *, margin: int = 0) -> Box:
    """Return the smallest box around a mask, such that ``mask[box]`` holds all of it.

    Args:
        mask: Mask of any number of axes.
        margin: Voxels to add on every side, as far as the array reaches.

    Returns:
        One slice per axis; slices of no width for an empty mask.
    """
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if hit.size == 0:
            return tuple(slice(0, 0) for _ in mask.shape)
        box.append(slice(max(0, int(hit[0]) - margin), min(mask.shape[axis], int(hit[-1]) + 1 + margin)))
    return tuple(box)


def flood(score: NDArray[np.float64], room: Mask, start: NDArray[np.int64], num_voxels: int) -> Mask | None:
    """Flood a region from start voxels in the order of a score, lowest first, until a number of voxels is reached.

    Args:
        score: ``(I, J, K)`` score of every voxel.
        room: ``(I, J, K)`` mask of voxels that may be reached.
        start: ``(N, 3)`` start voxels.
        num_voxels: Number of voxels to reach.

    Returns:
        ``(I, J, K)`` mask of the reached voxels; None if the connected room has fewer.
    """
    rank = np.full(room.shape, np.iinfo(np.int64).max)
    order = np.argsort(score[room], kind="stable")
    places = np.empty(order.size, dtype=np.int64)
    places[order] = np.arange(order.size)
    rank[room] = places

    def reached(level: int) -> Mask:
        labelled, _ = label_parts(rank < level)
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


def label_parts(mask: Mask) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """Number the connected components of an ``(I, J, K)`` mask from 1 in scan order; outside is 0.

    Neighbours touch at faces, edges or corners. The numbers equal those of ``scipy.ndimage.label``, several times
    faster.
    """
    if not mask.size:  # cc3d 3 returns one axis
        return np.zeros(mask.shape, dtype=np.uint8), 0
    # As bytes: of a mask one voxel wide, cc3d 4.1 underestimates the number of parts and raises.
    labelled, num_parts = cc3d.connected_components(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=26, return_N=True
    )
    return labelled, int(num_parts)


def connected_parts(mask: Mask) -> Iterator[tuple[Box, Mask]]:
    """Yield the connected components of a mask in scan order.

    Yields:
        Smallest box of the component (a slice per axis of ``mask``), and its mask inside this box.
    """
    outer = bounding_box(mask)
    parts, num_parts = label_parts(mask[outer])
    for number, inner in enumerate(ndimage.find_objects(parts) if num_parts else (), start=1):
        yield tuple(_within(a, b) for a, b in zip(outer, inner, strict=True)), parts[inner] == number


def _within(outer: slice, inner: slice) -> slice:
    return slice(outer.start + inner.start, outer.start + inner.stop)


def part_sizes(mask: Mask) -> list[int]:
    """Return the numbers of voxels of the connected components of a mask, in scan order."""
    labelled, _ = label_parts(mask[bounding_box(mask)])
    return [int(size) for size in np.bincount(labelled.ravel())[1:]]


def is_any_of(label_map: NDArray[Any], label_ids: Iterable[int]) -> Mask:
    """Return the mask of voxels that have one of the given ids.

    Args:
        label_map: Integer label ids, of any shape.
        label_ids: Ids to look for; those that the map's dtype cannot hold are found nowhere.

    Returns:
        Boolean mask of the label map's shape.
    """
    ids = sorted(set(label_ids))
    if label_map.dtype != np.uint8:
        return np.isin(label_map, ids)
    table = np.zeros(256, dtype=bool)
    table[[label_id for label_id in ids if 0 <= label_id < 256]] = True
    mask: Mask = table[label_map]
    return mask


def measure_dice(expected: Mask, found: Mask) -> float | None:
    """Return the Dice coefficient of two masks.

    Args:
        expected: Reference mask.
        found: Mask of the same shape that is compared with it.

    Returns:
        Value in [0, 1]; None if the expected mask is empty.
    """
    in_both, in_expected, in_found = (int(np.count_nonzero(mask)) for mask in (expected & found, expected, found))
    return _to_dice(in_both, in_expected, in_found)


def measure_dice_by_class(expected: NDArray[Any], found: NDArray[Any], num_classes: int) -> list[float | None]:
    """Return the Dice coefficient of every class of two maps of one shape.

    Args:
        expected: ``(I, J, K)`` true classes, below ``num_classes``.
        found: ``(I, J, K)`` classes to compare, below ``num_classes``.
        num_classes: Number of classes, including the background.

    Returns:
        One value per class in [0, 1]; None for a class that the expected map lacks.
    """
    maps = (expected[expected == found], expected, found)
    counts = (np.bincount(one.ravel(), minlength=num_classes).tolist() for one in maps)
    return [_to_dice(*row) for row in zip(*counts, strict=True)]


def _to_dice(in_both: int, in_expected: int, in_found: int) -> float | None:
    return 2 * in_both / (in_expected + in_found) if in_expected else None
