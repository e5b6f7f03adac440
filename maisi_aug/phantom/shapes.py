"""Signed-distance fields of simple solids, and the canvas they are painted on.

A field holds, over a box of the grid, the approximate distance in millimetres to a surface: negative inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline

from maisi_aug.phantom.frame import Frame, Slices
from maisi_aug.phantom.ids import BODY
from maisi_aug.phantom.noise import F32

FAR_MM: Final = np.float32(1000.0)
Knots = Sequence[tuple[float, float, float, float]]  # x, y, z, radius in canonical millimetres


@dataclass(frozen=True)
class Field:
    """Signed distances in mm to a solid, over a box of the grid (``slices``); negative inside."""

    slices: Slices
    mm: F32

    def grown(self, by_mm: float) -> Field:
        """Return the solid with its surface moved outwards by a distance in mm."""
        return Field(self.slices, self.mm - np.float32(by_mm))

    def overlap(self, box: Slices) -> tuple[Slices, Slices]:
        """Return what the field shares with a box of the grid, as slices of that box and of ``mm``; may be empty."""
        shared = []
        for own, other in zip(self.slices, box, strict=True):
            start = max(own.start, other.start)
            shared.append(slice(start, max(start, min(own.stop, other.stop))))
        return _relative(shared, box), _relative(shared, self.slices)

    def over(self, box: Slices) -> F32:
        """Return the distances in mm over another box of the grid; ``FAR_MM`` where they are not known."""
        out = np.full(tuple(side.stop - side.start for side in box), FAR_MM, dtype=np.float32)
        there, here = self.overlap(box)
        out[there] = self.mm[here]
        return out


class Canvas:
    """Label map that is being painted and, below label 200, the tissue map.

    Attributes:
        frame: The placed grid.
        labels: ``(I, J, K)`` uint8 ids.
        tissue: ``(I, J, K)`` uint8, one of the ``TISSUE_`` ids; only meaningful where ``labels`` is 200.
        fixed: ``(I, J, K)`` mask of voxels that ``paint`` leaves alone; None for none.
        taken: Labels that ``paint`` does not write, because the user's map has them already.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.fixed: NDArray[np.bool_] | None = None
        self.taken: frozenset[int] = frozenset()
        self.labels: NDArray[np.uint8] = np.zeros(frame.shape, dtype=np.uint8)
        self.tissue: NDArray[np.uint8] = np.zeros(frame.shape, dtype=np.uint8)

    def paint(
        self, field: Field, label: int, *, over: Iterable[int] = (BODY,), also: NDArray[np.bool_] | None = None
    ) -> None:
        """Write a label inside a solid, where one of the labels ``over`` is and the mask ``also`` is true.

        Args:
            field: Distances to the solid.
            label: Vocabulary id to write.
            over: Ids that may be replaced.
            also: Mask of the field's box; None for all of it.
        """
        if label in self.taken:
            return
        view = self.labels[field.slices]
        inside = (field.mm < 0) & lookup(over)[view]
        if self.fixed is not None:
            inside &= ~self.fixed[field.slices]
        if also is not None:
            inside &= also
        view[inside] = label

    def paint_tissue(self, field: Field, tissue: int, *, also: NDArray[np.bool_] | None = None) -> None:
        """Write a tissue inside a solid; labels are not changed.

        Args:
            field: Distances to the solid.
            tissue: One of the ``TISSUE_`` ids.
            also: Mask of the field's box; None for all of it.
        """
        inside = field.mm < 0
        if also is not None:
            inside &= also
        self.tissue[field.slices][inside] = tissue


def _relative(box: Sequence[slice], outer: Slices) -> Slices:
    """The slices of a box of the grid within an outer box."""
    i, j, k = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))
    return i, j, k


def lookup(ids: Iterable[int]) -> NDArray[np.bool_]:
    """Return a ``(256,)`` table that is True at the given ids, for membership tests by indexing."""
    table = np.zeros(256, dtype=bool)
    table[list(ids)] = True
    return table


def ellipsoid(
    frame: Frame,
    centre: ArrayLike,
    radii: ArrayLike,
    *,
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0),
    margin_mm: float = 3.0,
) -> Field:
    """Return the distances to an ellipsoid in canonical space, turned about x, then y, then z.

    The distance is the usual first-order approximation, ``k0 (k0 - 1) / k1`` with ``k0 = |p / r|`` and ``k1 = |p /
    r^2|``.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        centre: ``(3,)`` centre in canonical mm.
        radii: ``(3,)`` radii in mm along x, y, z before turning.
        turn_deg: Angles in degrees about x, y and z.
        margin_mm: Distance in mm up to which the result reaches beyond the surface.
    """
    middle, size = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    turn = rotation(turn_deg)
    reach = np.sqrt((turn**2) @ size**2) + margin_mm
    box = frame.box(middle - reach, middle + reach)
    p = turned(frame, box, middle, turn)
    k0: F32 = np.sqrt(sum(((p[a] / np.float32(size[a])) ** 2 for a in range(3)), start=np.float32(0)))
    k1: F32 = np.sqrt(sum(((p[a] / np.float32(size[a] ** 2)) ** 2 for a in range(3)), start=np.float32(0)))
    distance = k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-6))
    return Field(box, distance.astype(np.float32, copy=False))


def rotation(turn_deg: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the ``(3, 3)`` matrix of a rotation about x, then y, then z; its columns are the solid's own axes."""
    (a, b, c) = np.deg2rad(turn_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turn: NDArray[np.float64] = about_z @ about_y @ about_x
    return turn


def turned(frame: Frame, box: Slices, centre: NDArray[np.float64], turn: NDArray[np.float64]) -> list[F32]:
    """Return the canonical coordinates of a box of voxels relative to a centre, along the columns of a rotation.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        box: Slices along I, J, K.
        centre: ``(3,)`` centre in canonical mm.
        turn: ``(3, 3)`` rotation.

    Returns:
        Three arrays of the box's shape, in mm.
    """
    x, y, z = (axis[box] - np.float32(c) for axis, c in zip((frame.x, frame.y, frame.z), centre, strict=True))
    return [x * np.float32(turn[0, a]) + y * np.float32(turn[1, a]) + z * np.float32(turn[2, a]) for a in range(3)]


def smooth_path(knots: Knots, *, step_mm: float = 6.0) -> NDArray[np.float64]:
    """Return ``(N, 4)`` points and radii along a natural cubic spline through the knots.

    Args:
        knots: Points and radii in mm; with fewer than three the path is straight.
        step_mm: Distance of the points in mm.
    """
    rows = np.asarray(knots, dtype=np.float64)
    if len(rows) < 3:
        return rows
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(rows[:, :3], axis=0), axis=1))])
    num_points = max(len(rows), int(np.ceil(arc[-1] / step_mm)) + 1)
    path: NDArray[np.float64] = CubicSpline(arc, rows, bc_type="natural")(np.linspace(0, arc[-1], num_points))
    path[:, 3] = np.clip(path[:, 3], rows[:, 3].min(), rows[:, 3].max())
    return path


def tube(frame: Frame, knots: Knots, *, step_mm: float = 6.0, margin_mm: float = 3.0, smooth: bool = True) -> Field:
    """Return the distances to a tube of varying radius along a spline through canonical knots.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        knots: Points and radii in canonical mm.
        step_mm: Distance of the points along the spline in mm.
        margin_mm: Distance in mm up to which the result reaches beyond the surface.
        smooth: Whether to lay a spline through the knots; otherwise straight pieces.
    """
    path = smooth_path(knots, step_mm=step_mm) if smooth else np.asarray(knots, dtype=np.float64)
    return capsules(frame, path[:-1], path[1:], margin_mm=margin_mm)


def capsules(frame: Frame, starts: NDArray[np.float64], ends: NDArray[np.float64], *, margin_mm: float = 3.0) -> Field:
    """Return the distances to a union of tapered capsules between ``(N, 4)`` canonical points with radii.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        starts: ``(N, 4)`` x, y, z and radius of one end of every capsule, in canonical mm.
        ends: ``(N, 4)`` the same of the other end.
        margin_mm: Distance in mm up to which the result reaches beyond the surface.
    """
    both = np.concatenate([starts, ends])
    placed = np.column_stack([frame.to_patient(both[:, :3]), both[:, 3] * frame.radius_scale])
    return patient_capsules(frame, placed[: len(starts)], placed[len(starts) :], margin_mm=margin_mm)


def patient_capsules(
    frame: Frame, starts: NDArray[np.float64], ends: NDArray[np.float64], *, margin_mm: float = 3.0
) -> Field:
    """Return the distances to a union of tapered capsules between ``(N, 4)`` points in patient mm with radii.

    Each capsule is evaluated in its own box only.

    Args:
        frame: Placed grid.
        starts: ``(N, 4)`` x, y, z and radius of one end of every capsule, in patient mm.
        ends: ``(N, 4)`` the same of the other end.
        margin_mm: Distance in mm up to which the result reaches beyond the surface.
    """
    first, last, radius_first, radius_last = starts[:, :3], ends[:, :3], starts[:, 3], ends[:, 3]
    reach = np.maximum(radius_first, radius_last)[:, None] + margin_mm
    low, high = np.minimum(first, last) - reach, np.maximum(first, last) + reach
    box = frame.slices_of(low.min(axis=0), high.max(axis=0))
    out = np.full(tuple(side.stop - side.start for side in box), FAR_MM, dtype=np.float32)
    if out.size:
        start, stop = frame.bounds_of(low, high)
        for n in np.flatnonzero((stop > start).all(axis=1)):
            i, j, k = (slice(*pair) for pair in zip(start[n].tolist(), stop[n].tolist(), strict=True))
            view = out[_relative((i, j, k), box)]
            np.minimum(view, _capsule(frame, (i, j, k), first[n], last[n], radius_first[n], radius_last[n]), out=view)
    return Field(box, out)


def _capsule(
    frame: Frame, box: Slices, first: NDArray[np.float64], last: NDArray[np.float64], radius_0: float, radius_1: float
) -> F32:
    """Distance to one tapered capsule; separable terms stay one-dimensional until the last moment."""
    axis = last - first
    length2 = max(float(axis @ axis), 1e-9)
    along: F32 = np.zeros((1, 1, 1), dtype=np.float32)
    square: F32 = np.zeros((1, 1, 1), dtype=np.float32)
    for a in range(3):
        shape = [1, 1, 1]
        shape[a] = -1
        offset = (frame.axes[a][box[a]] - np.float32(first[a])).reshape(shape)
        along = along + offset * np.float32(axis[a] / length2)
        square = square + offset * offset
    t = np.clip(along, 0, 1)
    # |p - t d|^2 = |p|^2 - 2 t (p.d) + t^2 |d|^2, with p.d = along * |d|^2
    distance2 = square + np.float32(length2) * t * (t - 2 * along)
    taper = np.float32(radius_0) + np.float32(radius_1 - radius_0) * t
    result: F32 = np.sqrt(np.maximum(distance2, 0)) - taper
    return result


def sheet(
    frame: Frame, edge: Knots, opposite: Knots, *, bulge: ArrayLike = (0.0, 0.0, 0.0), step_mm: float = 5.0
) -> Field:
    """Return the distances to a curved plate, made of capsules between two edge curves.

    ``bulge`` displaces the middle of the plate, in mm.

    Args:
        frame: Placed grid, with canonical coordinates of its voxels.
        edge: Points and radii of one edge, in canonical mm.
        opposite: Points and radii of the other edge.
        bulge: ``(3,)`` displacement of the middle in mm.
        step_mm: Distance of the capsules in mm.
    """
    first, last = smooth_path(edge, step_mm=1.0), smooth_path(opposite, step_mm=1.0)
    longest = max(_length(first), _length(last))
    num_rules = max(2, int(np.ceil(longest / step_mm)) + 1)
    picks = np.linspace(0, 1, num_rules)
    a = np.stack([np.interp(picks, np.linspace(0, 1, len(first)), first[:, c]) for c in range(4)], axis=1)
    b = np.stack([np.interp(picks, np.linspace(0, 1, len(last)), last[:, c]) for c in range(4)], axis=1)
    stations = []
    for t in (0.0, 0.33, 0.67, 1.0):
        row = (1 - t) * a + t * b
        row[:, :3] += 4 * t * (1 - t) * np.asarray(bulge, dtype=np.float64)
        stations.append(row)
    return capsules(frame, np.concatenate(stations[:-1]), np.concatenate(stations[1:]))


def _length(path: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1).sum())


def mirrored(knots: Knots) -> list[tuple[float, float, float, float]]:
    """Return the knots mirrored to the other side of the body."""
    return [(-x, y, z, radius) for x, y, z, radius in knots]


def smooth_max(first: F32, second: F32, blend_mm: float) -> F32:
    """Return the distances to the intersection of two solids, with the edge rounded over ``blend_mm``.

    Args:
        first: Signed distances to the first solid in mm.
        second: Signed distances to the second solid, of the same shape.
        blend_mm: Width of the rounding in mm, above 0.
    """
    h = np.maximum(np.float32(blend_mm) - np.abs(first - second), 0) / np.float32(blend_mm)
    result: F32 = np.maximum(first, second) + h * h * np.float32(blend_mm * 0.25)
    return result
