"""Smooth fields on a grid: lobes for lesions, elastic variety for label maps, and room for a large lesion.

What lies around a large lesion's centre is pushed aside as a growing mass does. Every point moves along its ray from
the centre. Inside the lesion the map is magnified; outside, the shift falls as that of an incompressible medium
(``r^3 - s^3`` is constant) and fades to nothing. Bone, muscle, the body wall and other lesions stay where they are:
towards them the shift fades with their distance, more slowly than by one millimetre a millimetre, so that the map never
folds. Arrays have axes ``I J K``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, MAISI
from maisi_aug.volumes.components import Box, Mask

_T = TypeVar("_T", bound=np.generic)

KNOT_SPACING_MM = 40.0
KNOT_DEVIATION_MM = 12.0
MAX_ZOOM = 0.01
MAX_SLAB_VOXELS = 2_000_000
"""Deformation works in slabs of this size, which bounds its memory on full-size grids."""
MUSCLE_IDS = tuple(range(98, 108))
BONE_IDS = MAISI.hosts_of(128)
STIFF_IDS = (*BONE_IDS, *MUSCLE_IDS, 114, 121)
"""Bones, muscles, costal cartilages and the spinal cord: no mass of the organs next to them moves or crosses these."""
BRAIN_ID = 22
CLOSING_MM = 25.0
"""Half of the widest gap between organs that counts as the inside of chest or belly."""
MIN_DEPTH_MM = 12.0
"""Skin and the fat and muscle under it: nothing that grows inside comes closer to the air."""
WALL_MM = 10.0
"""Thickness in mm of the wall around the organs that gives way to a large lesion and is compressed."""
COARSE_MM = 4.0
REACH = 3.0
"""Radii of the lesion within which tissue is moved."""
SLOWNESS = 1.5
MIN_LEFT = 0.6
"""Smallest share of its voxels that every organ must keep; a deformation that squeezes an organ further is rejected."""


def deform_label_map(
    label_map: NDArray[np.uint8], *, spacing_mm: Sequence[float], rng: np.random.Generator, strength: float = 1.0
) -> NDArray[np.uint8]:
    """Vary an anatomy by a smooth elastic displacement and a zoom of at most 1%.

    The displacement is a cubic B-spline with knots every 40 mm whose standard deviation is about ``4 mm x strength``.
    Its knots are limited to 0.4 of their spacing, so that it cannot fold (Choi & Lee, "Injectivity conditions of 2D and
    3D uniform cubic B-spline functions", 2000). Voxels from beyond the border repeat the border, so that a body cut by
    the field of view stays cut. A draw that loses a label is repeated at half the strength, four draws at most; then
    the input is returned, as a copy.

    Args:
        label_map: ``(I, J, K)`` label ids; not modified.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        strength: Strength of the displacement: 0 for none, 1 for a standard deviation of 4 mm.

    Returns:
        ``(I, J, K)`` deformed label map.
    """
    return _draw_kept(label_map, spacing_mm, rng, strength)[0]


def deform_case(
    image_hu: NDArray[Any],
    label_map: NDArray[np.uint8],
    *,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    strength: float = 1.0,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Vary a case by :func:`deform_label_map`, and warp its image along.

    Args:
        image_hu: ``(I, J, K)`` HU; not modified.
        label_map: ``(I, J, K)`` label ids; not modified.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        strength: As there.

    Returns:
        The image, linearly interpolated, and the label map that the same random numbers give without an image.
    """
    deformed, displacement = _draw_kept(label_map, spacing_mm, rng, strength)
    if displacement is None:
        return image_hu.astype(np.float32), deformed
    return _deform_image(image_hu, displacement), deformed


def _draw_kept(
    label_map: NDArray[np.uint8], spacing_mm: Sequence[float], rng: np.random.Generator, strength: float
) -> tuple[NDArray[np.uint8], _Displacement | None]:
    """The first of four ever smaller deformations that loses no label; the map itself, and None, if all do."""
    present = np.bincount(label_map.ravel(), minlength=256) > 0  # (256,)
    for attempt in range(4):
        displacement = _draw_displacement(label_map.shape, spacing_mm, rng, strength * 0.5**attempt)
        deformed = _deform(label_map, displacement)
        if ((np.bincount(deformed.ravel(), minlength=256) > 0) | ~present).all():
            return deformed, displacement
    return label_map.copy(), None


def spline_basis(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return uniform cubic B-spline weights ``(len(positions), num_knots)`` at positions >= 0 in knot spacings."""
    cell = np.floor(positions).astype(np.int64)  # (n,) first of the four knots of each position
    t = positions - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0  # (4, n)
    basis = np.zeros((len(positions), int(cell.max(initial=0)) + 4))  # (n, num_knots)
    for shift in range(4):
        basis[np.arange(len(positions)), cell + shift] = weights[shift]
    return basis


def spline_field(knots: NDArray[np.float64], bases: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Evaluate a cubic B-spline on a grid.

    Args:
        knots: ``(A, B, C)`` coefficients.
        bases: For each axis the values of its basis functions at the grid's positions: ``(I, A)``, ``(J, B)`` and
            ``(K, C)``, results of :func:`spline_basis`.

    Returns:
        ``(I, J, K)`` values.
    """
    field: NDArray[np.float64] = np.einsum("abc,kc->abk", knots, bases[2])
    field = np.einsum("abk,jb->ajk", field, bases[1])
    return np.asarray(np.einsum("ajk,ia->ijk", field, bases[0]))


@dataclass(frozen=True, eq=False)
class _Displacement:
    """An elastic displacement and a zoom on a grid of voxels.

    Attributes:
        shape: Voxels of the grid along I, J, K.
        spacing_mm: ``(3,)`` their sides.
        knots_mm: ``(3, A, B, C)`` displacement of each knot along I, J, K.
        zoom: Factor by which the map grows around the grid's centre.
    """

    shape: tuple[int, ...]
    spacing_mm: NDArray[np.float64]
    knots_mm: NDArray[np.float64]
    zoom: float

    def slabs(self) -> Iterator[tuple[slice, list[NDArray[np.float64]]]]:
        """Yield slabs along I, with the places ``(slab, J, K)`` along each axis that their voxels come from."""
        bases = _spline_bases(self.shape, self.spacing_mm)
        rows = max(1, MAX_SLAB_VOXELS // max(1, self.shape[1] * self.shape[2]))
        for first in range(0, self.shape[0], rows):
            slab = slice(first, min(first + rows, self.shape[0]))
            places = []
            for axis, side in enumerate(self.shape):
                index = np.arange(side, dtype=np.float64)
                index = (index - (side - 1) / 2) / self.zoom + (side - 1) / 2
                index = index[slab] if axis == 0 else index
                # (slab, J, K) in voxels
                moved = spline_field(self.knots_mm[axis], [bases[0][slab], bases[1], bases[2]]) / self.spacing_mm[axis]
                moved += index.reshape([-1 if other == axis else 1 for other in range(3)])
                places.append(np.clip(moved, 0, side - 1))
            yield slab, places


def _draw_displacement(
    shape: tuple[int, ...], spacing_mm: Sequence[float], rng: np.random.Generator, strength: float
) -> _Displacement:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    bases = _spline_bases(shape, spacing)
    knots_mm = strength * KNOT_DEVIATION_MM * rng.standard_normal((3, *[basis.shape[1] for basis in bases]))
    # small against the knot spacing, so that the map does not fold
    knots_mm = np.clip(knots_mm, -0.4 * KNOT_SPACING_MM, 0.4 * KNOT_SPACING_MM)
    zoom = 1.0 + MAX_ZOOM * min(strength, 1.0) * rng.uniform(-1.0, 1.0)
    return _Displacement(shape, spacing, knots_mm, zoom)


def _spline_bases(shape: Sequence[int], spacing_mm: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [spline_basis(np.arange(n) * step / KNOT_SPACING_MM) for n, step in zip(shape, spacing_mm, strict=True)]


def _deform(label_map: NDArray[np.uint8], displacement: _Displacement) -> NDArray[np.uint8]:
    deformed = np.empty_like(label_map)
    for slab, places in displacement.slabs():
        i, j, k = (np.rint(place).astype(np.int32) for place in places)
        deformed[slab] = label_map[i, j, k]
    return deformed


def _deform_image(image_hu: NDArray[Any], displacement: _Displacement) -> NDArray[np.float32]:
    deformed = np.empty(image_hu.shape, dtype=np.float32)
    for slab, places in displacement.slabs():
        ndimage.map_coordinates(image_hu, places, output=deformed[slab], order=1, mode="nearest")
    return deformed


@cache
def visceral_ids() -> tuple[int, ...]:
    """Return the ids of the organs of chest and abdomen: all but bones, muscles, cartilage, cord and brain."""
    stiff = {*STIFF_IDS, BRAIN_ID}
    return tuple(label.id for label in MAISI if label.kind == "organ" and label.id not in stiff)


def find_cavity(label_map: NDArray[np.uint8], spacing_mm: Sequence[float], *, margin_mm: float = 0.0) -> Mask:
    """Return the inside of chest and abdomen: organs and the gaps of at most 50 mm between them, without stiff parts.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids with body (200).
        spacing_mm: Voxel sides along I, J, K in mm.
        margin_mm: Width in mm by which the result is extended on all sides.

    Returns:
        ``(I, J, K)`` mask.
    """
    table = _table_of((*visceral_ids(), *MAISI.tumor_ids))  # (256,)
    strides, coarse = _thin(table[label_map], spacing_mm)
    steps_mm = [side * stride for side, stride in zip(spacing_mm, strides, strict=True)]
    margins = [int(np.ceil(CLOSING_MM / step)) + 1 for step in steps_mm]
    if not coarse.any():
        return np.zeros(label_map.shape, dtype=bool)
    # closing: dilate by CLOSING_MM, then erode
    grown = ndimage.distance_transform_edt(~np.pad(coarse, [(m, m) for m in margins]), sampling=steps_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(np.pad(grown, 1), sampling=steps_mm)[1:-1, 1:-1, 1:-1] > CLOSING_MM
    inner = closed[tuple(slice(m, m + side) for m, side in zip(margins, coarse.shape, strict=True))] | coarse
    if margin_mm > 0:
        inner = ndimage.distance_transform_edt(~inner, sampling=steps_mm) <= margin_mm
    fine = _thicken(inner, strides, label_map.shape)
    stiff = _table_of((BACKGROUND_ID, *STIFF_IDS))
    cavity: Mask = (fine | table[label_map]) & ~stiff[label_map]
    return cavity


def find_depth_mm(label_map: NDArray[np.uint8], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Return how deep every voxel lies below the skin.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; 0 is outside the body.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` float32 depths in mm, 0 outside the body; infinite if no voxel is outside. The array's border does
        not count as skin.
    """
    strides, body = _thin(label_map > 0, spacing_mm)
    steps_mm = [side * stride for side, stride in zip(spacing_mm, strides, strict=True)]  # mm of the thinned voxels
    depth = np.full(body.shape, np.inf) if body.all() else ndimage.distance_transform_edt(body, sampling=steps_mm)
    return np.asarray(_thicken(depth.astype(np.float32), strides, label_map.shape))


def find_outside_room(
    label_map: NDArray[np.uint8], host: Mask, *, rim_mm: float, in_cavity: bool, spacing_mm: Sequence[float]
) -> Mask:
    """Return the body tissue outside of organs that a lesion may grow into: no bone, muscle or body wall.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        host: ``(I, J, K)`` mask of the part of the host organs that the lesion grows from.
        rim_mm: Largest distance in mm from the host.
        in_cavity: Whether it may also grow anywhere between the organs of chest and abdomen.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` mask.
    """
    room = np.zeros(label_map.shape, dtype=bool)
    if rim_mm > 0:
        strides, coarse = _thin(host, spacing_mm)
        steps_mm = [side * stride for side, stride in zip(spacing_mm, strides, strict=True)]
        near = ndimage.distance_transform_edt(~coarse, sampling=steps_mm) <= rim_mm if coarse.any() else coarse
        room |= _thicken(near, strides, label_map.shape)
    if in_cavity:
        room |= find_cavity(label_map, spacing_mm)
    room &= label_map == BODY_ID
    return room & (find_depth_mm(label_map, spacing_mm) >= MIN_DEPTH_MM)


def find_loose(label_map: NDArray[np.uint8], spacing_mm: Sequence[float]) -> Mask:
    """Return the tissue that a large lesion may push aside: inside chest and abdomen, and part of the wall.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids of the full label map.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` mask.
    """
    return find_cavity(label_map, spacing_mm, margin_mm=WALL_MM) & (
        find_depth_mm(label_map, spacing_mm) >= MIN_DEPTH_MM
    )


def make_room(
    label_map: NDArray[np.uint8],
    centre_ijk: Sequence[int],
    *,
    radius_mm: float,
    room_share: float,
    loose: Mask,
    spacing_mm: Sequence[float],
) -> NDArray[np.uint8] | None:
    """Push tissue away from a centre, so that a lesion planted there replaces less of it.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        centre_ijk: Voxel of the centre.
        radius_mm: Radius in mm of the lesion.
        room_share: Fraction of the lesion's volume for which tissue is pushed aside.
        loose: ``(I, J, K)`` mask of the tissue that may move (:func:`find_loose`), without existing lesions.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        The new label map; None if an organ would be left with less than ``MIN_LEFT`` of its voxels.
    """
    box = _box_around(centre_ijk, REACH * radius_mm, spacing_mm, label_map.shape)
    shift_mm = radius_mm * (1.0 - (1.0 - room_share) ** (1.0 / 3.0))
    # (box) 0 at tissue that stays, 1 where it may move freely
    freedom = np.clip(_distance_inside(loose[box], spacing_mm) / max(SLOWNESS * shift_mm, 10.0), 0.0, 1.0)
    start = [int(c) - part.start for c, part in zip(centre_ijk, box, strict=True)]
    moved = label_map.copy()
    moved[box] = _pull(label_map[box], start, radius_mm, room_share, freedom, spacing_mm)
    # (256,) voxels by id
    before, after = (np.bincount(part[box].ravel(), minlength=256) for part in (label_map, moved))
    kept = before[1:BODY_ID] * MIN_LEFT <= after[1:BODY_ID]
    return moved if kept.all() else None


def _pull(
    label_map: NDArray[np.uint8],
    start: Sequence[int],
    radius_mm: float,
    room_share: float,
    freedom: NDArray[np.float32],
    spacing_mm: Sequence[float],
) -> NDArray[np.uint8]:
    """Move voxels by ``shift`` away from the start, slab by slab."""
    axes = [(np.arange(n) - s) * step for n, s, step in zip(label_map.shape, start, spacing_mm, strict=True)]
    pulled = np.empty_like(label_map)
    for slab in range(label_map.shape[0]):
        i, j, k = np.ix_(axes[0][slab : slab + 1], axes[1], axes[2])
        radii = np.sqrt(i**2 + j**2 + k**2)  # (1, J, K) distance from the centre in mm
        # share of the distance by which a voxel's source is nearer to the centre
        share = _shift_mm(radii, radius_mm, room_share) * freedom[slab : slab + 1] / np.maximum(radii, 1e-6)
        source = [
            np.clip(np.rint(axis * (1.0 - share) / step + s), 0, side - 1).astype(np.intp)
            for axis, step, s, side in zip((i, j, k), spacing_mm, start, label_map.shape, strict=True)
        ]
        pulled[slab : slab + 1] = label_map[source[0], source[1], source[2]]
    return pulled


def _shift_mm(radii_mm: NDArray[np.float64], radius_mm: float, room_share: float) -> NDArray[np.float64]:
    """Return how far outwards the tissue at these distances from the centre has moved."""
    inside = radii_mm * (1.0 - (1.0 - room_share) ** (1.0 / 3.0))
    outer = np.maximum(radii_mm, radius_mm)  # (1, J, K)
    beyond = outer - np.cbrt(outer**3 - room_share * radius_mm**3)
    t = np.clip((radii_mm - radius_mm) / ((REACH - 1.0) * radius_mm), 0.0, 1.0)
    # smooth step from 1 at the lesion's surface to 0 at REACH radii
    return np.where(radii_mm < radius_mm, inside, beyond * (1.0 - t * t * (3.0 - 2.0 * t)))


def _distance_inside(mask: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Distance in mm from each voxel of a mask to what is not in it; the border of the array is not a limit."""
    strides, coarse = _thin(mask, spacing_mm)
    steps_mm = [side * stride for side, stride in zip(spacing_mm, strides, strict=True)]
    distance = np.full(coarse.shape, 1e3) if coarse.all() else ndimage.distance_transform_edt(coarse, sampling=steps_mm)
    smooth: NDArray[np.float32] = np.asarray(ndimage.gaussian_filter(distance.astype(np.float32), 0.7), np.float32)
    smooth[~coarse] = 0.0
    if strides == (1, 1, 1):
        return smooth
    factors = [side / thin for side, thin in zip(mask.shape, coarse.shape, strict=True)]
    fine = ndimage.zoom(smooth, factors, order=1, grid_mode=True, mode="nearest")
    fine[~mask] = 0.0
    return np.asarray(fine, dtype=np.float32)


def _box_around(centre: Sequence[int], reach_mm: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box:
    halves = [int(np.ceil(reach_mm / step)) + 1 for step in spacing_mm]
    return tuple(
        slice(max(0, int(c) - half), min(side, int(c) + half + 1))
        for c, half, side in zip(centre, halves, shape, strict=True)
    )


def _table_of(label_ids: Sequence[int]) -> NDArray[np.bool_]:
    table = np.zeros(256, dtype=bool)
    table[list(label_ids)] = True
    return table


def _thin(mask: Mask, spacing_mm: Sequence[float]) -> tuple[tuple[int, ...], Mask]:
    """Every n-th voxel of a mask, so that voxels are about ``COARSE_MM`` wide, and the n of each axis."""
    strides = tuple(max(1, int(COARSE_MM / step)) for step in spacing_mm)
    return strides, mask[
        tuple(
            slice(stride // 2 if stride < side else 0, None, stride)
            for stride, side in zip(strides, mask.shape, strict=True)
        )
    ]


def _thicken(thin: NDArray[_T], strides: Sequence[int], shape: Sequence[int]) -> NDArray[_T]:
    """The opposite of thinning: every voxel repeated, cut or continued to a shape."""
    indices = [
        np.minimum(np.arange(side) // stride, count - 1)
        for side, stride, count in zip(shape, strides, thin.shape, strict=True)
    ]
    return thin[np.ix_(*indices)]
