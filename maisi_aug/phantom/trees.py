"""Branching vessels: tips are joined one by one to the nearest branch, radii follow Murray's law (r^3 adds up)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PATH_WEIGHT: Final = 0.45  # how much a detour over the tree counts: 0 a minimal spanning tree, 1 a star from the root


@dataclass(frozen=True)
class Tree:
    """A tree of vessels in patient space, as nodes with parents and radii.

    Attributes:
        points: ``(N, 3)`` nodes in mm; node 0 is the root.
        parents: ``(N,)`` index of each node's parent, -1 for the root; parents come before their children.
        radii: ``(N,)`` radius in mm of the branch that ends at the node.
    """

    points: NDArray[np.float64]
    parents: NDArray[np.int64]
    radii: NDArray[np.float64]


def grow_tree(
    root: NDArray[np.float64], tips: NDArray[np.float64], *, root_radius_mm: float, min_radius_mm: float
) -> Tree:
    """Connect ``(N, 3)`` tips to a root, the nearest first, so that trunks form and twigs branch off.

    Args:
        root: ``(3,)`` point in patient mm.
        tips: ``(N, 3)`` points in patient mm.
        root_radius_mm: Radius at the root in mm.
        min_radius_mm: Smallest radius of a branch in mm.
    """
    order = np.argsort(np.linalg.norm(tips - root, axis=1))
    points = np.concatenate([root[None], tips[order]])
    count = len(points)
    parents = np.full(count, -1, dtype=np.int64)
    path = np.zeros(count)
    for node in range(1, count):
        reach = np.linalg.norm(points[:node] - points[node], axis=1)
        parents[node] = int(np.argmin(reach + PATH_WEIGHT * path[:node]))
        path[node] = path[parents[node]] + reach[parents[node]]
    points, parents = _bent(points, parents)
    count = len(points)
    tips_behind = np.ones(count)
    for node in range(count - 1, 0, -1):
        tips_behind[parents[node]] += tips_behind[node]
    radii = np.maximum(root_radius_mm * np.cbrt(tips_behind / count), min_radius_mm)
    return Tree(points, parents, radii)


def _bent(points: NDArray[np.float64], parents: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Put a node into the middle of every branch, drawn towards its parent's direction, so that branches curve."""
    count = len(points)
    node = np.arange(1, count)
    parent = parents[1:]
    grand = np.where(parents[parent] >= 0, parents[parent], parent)
    incoming = points[parent] - points[grand]
    length = np.linalg.norm(points[node] - points[parent], axis=1, keepdims=True)
    incoming /= np.maximum(np.linalg.norm(incoming, axis=1, keepdims=True), 1e-6)
    middle = 0.5 * (points[parent] + points[node]) + 0.16 * length * incoming
    bent = np.empty((2 * count - 1, 3))
    bent[0], bent[1::2], bent[2::2] = points[0], middle, points[1:]
    joined = np.empty(2 * count - 1, dtype=np.int64)
    joined[0], joined[1::2], joined[2::2] = -1, 2 * parent, 2 * node - 1
    return bent, joined


def tree_capsules(tree: Tree, *, min_radius_mm: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the branches of at least a radius as ``(N, 4)`` start and end points (patient mm, radius).

    Args:
        tree: Tree in patient space.
        min_radius_mm: Smallest radius of the branches to return, in mm.
    """
    nodes = np.flatnonzero((tree.parents >= 0) & (tree.radii >= min_radius_mm))
    parents = tree.parents[nodes]
    start_radius = np.minimum(tree.radii[parents], 1.15 * tree.radii[nodes])
    starts = np.column_stack([tree.points[parents], start_radius])
    ends = np.column_stack([tree.points[nodes], tree.radii[nodes]])
    return starts, ends


def tree_fraction(
    tree: Tree,
    shape: tuple[int, ...],
    origin_mm: NDArray[np.float64],
    spacing_mm: NDArray[np.float64],
    *,
    step_mm: float,
) -> NDArray[np.float32]:
    """Return the fraction of every voxel that a tree's branches fill, so that thin vessels are faint as in real scans.

    Branches are sampled every ``step_mm``; each piece deposits its volume on the eight voxels around it.

    Args:
        tree: Tree in patient space.
        shape: Number of voxels along I, J, K.
        origin_mm: ``(3,)`` position of the first voxel in patient mm.
        spacing_mm: ``(3,)`` voxel sides in mm.
        step_mm: Distance of the samples along a branch in mm.

    Returns:
        ``(I, J, K)`` float32 fractions.
    """
    nodes = np.flatnonzero(tree.parents >= 0)
    starts, ends = tree.points[tree.parents[nodes]], tree.points[nodes]
    lengths = np.linalg.norm(ends - starts, axis=1)
    pieces = np.maximum(1, np.ceil(lengths / step_mm)).astype(int)
    owner = np.repeat(np.arange(len(nodes)), pieces)
    number = np.arange(owner.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    t = ((number + 0.5) / pieces[owner])[:, None]
    places = (starts[owner] * (1 - t) + ends[owner] * t - origin_mm) / spacing_mm
    volume = np.pi * tree.radii[nodes][owner] ** 2 * (lengths / pieces)[owner] / float(np.prod(spacing_mm))
    fraction = np.zeros(int(np.prod(shape)), dtype=np.float64)
    first = np.floor(places).astype(int)
    rest = places - first
    for corner in np.ndindex(2, 2, 2):
        index = first + corner
        weight = np.prod(np.where(np.array(corner, dtype=bool), rest, 1 - rest), axis=1) * volume
        valid = np.all((index >= 0) & (index < np.array(shape)), axis=1)
        flat = np.ravel_multi_index(tuple(index[valid].T), shape)
        fraction += np.bincount(flat, weights=weight[valid], minlength=fraction.size)
    result: NDArray[np.float32] = np.minimum(fraction, 1.0).astype(np.float32).reshape(shape)
    return result
