"""Resampling between grids: images without aliasing, label maps without losing small lesions.

All maps between grids go through their affines, so that anisotropic, flipped, permuted and oblique grids are one case.
A voxel covers half a step on either side of its centre; what lies outside the source's voxels gets the fill value.

ITK, nnU-Net's first reader, qforms and DICOM hold orthogonal axes only; nibabel's affine holds a shear, as of a tilted
gantry. A sheared volume is brought to right angles: the two axes that are closest to one stay, so that every slice of a
tilted scan keeps its plane and is moved within it, and the third runs along their normal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError
from maisi_aug.volumes.components import TOUCHING, Box, Mask, connected_parts, flood, is_any_of, label_parts
from maisi_aug.volumes.grid import Grid, Shape, Spacing

Scalar = TypeVar("Scalar", bound=np.generic)

VOLUME_TOLERANCE = 0.05
VOXEL_TOLERANCE = 0.5
"""A lesion may change by 5%, or by rounding to whole voxels: half of what the lesion size gate allows."""
MAX_SLAB_VOXELS = 2_000_000
DECIMALS = 6
"""Voxel indices are rounded to this, so that a centre on the border of two voxels does not depend on round-off."""
AIR_HU = -1000.0
_PAIRS = ((0, 1), (0, 2), (1, 2))


def resample_image(image: NDArray[Scalar], source: Grid, target: Grid, *, fill: float = -1000.0) -> NDArray[Scalar]:
    """Resample an image linearly, smoothed beforehand along axes on which the target is coarser.

    The smoothing is a Gaussian with a standard deviation of ``(factor - 1) / 2`` source voxels, where ``factor`` is the
    target's step along the source axis in source voxels. Axes with a factor of 1 or less are not smoothed.

    Args:
        image: ``(I, J, K)`` values on the source grid, of any integer or float dtype; not modified.
        source: Grid of the image: its shape and its affine from voxel index to RAS+ mm.
        target: Grid of the result; its axes may have other spacings, directions and another origin.
        fill: Value of target voxels whose centre lies outside the source's voxels; the default is air in HU.

    Returns:
        ``(I, J, K)`` values of the target's shape and the image's dtype; integers are rounded and clipped to the range
        of the dtype. Equal grids give an unchanged copy.

    Raises:
        GridError: The image does not have the source grid's shape.
    """
    _require_shape(image, source)
    if source.is_close(target, tolerance_mm=1e-6):
        return image.copy()
    to_source = _index_map(target, source)
    # (3,) in source voxels: half of what the step is longer than one voxel
    sigma = np.maximum((np.linalg.norm(to_source[:3, :3], axis=1) - 1.0) / 2.0, 0.0)
    values = image.astype(np.float32)
    if (sigma > 0.01).any():
        values = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.0)
    return _interpolate(values, to_source, source, target, fill, image.dtype)


def interpolate_image(image: NDArray[Scalar], source: Grid, target: Grid, *, fill: float) -> NDArray[Scalar]:
    """Resample an image linearly without smoothing, for a target with steps like the source's.

    Args:
        image: ``(I, J, K)`` values on the source grid; not modified.
        source: Grid of the image; its axes may meet at any angle.
        target: Grid of the result.
        fill: Value of target voxels whose centre lies outside the source's voxels.

    Returns:
        ``(I, J, K)`` values of the target's shape and the image's dtype; integers are rounded and clipped to the range
        of the dtype.

    Raises:
        GridError: The image does not have the source grid's shape.
    """
    _require_shape(image, source)
    return _interpolate(image.astype(np.float32), _index_map(target, source), source, target, fill, image.dtype)


def _interpolate(
    values: NDArray[np.float32],
    to_source: NDArray[np.float64],
    source: Grid,
    target: Grid,
    fill: float,
    dtype: np.dtype[Scalar],
) -> NDArray[Scalar]:
    matrix = to_source[:3, :3]  # (3, 3) target index to source index
    if np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-9:
        matrix = np.diag(matrix)  # SciPy has a quicker path for this form
    resampled = ndimage.affine_transform(
        values, matrix, to_source[:3, 3], output_shape=target.shape, order=1, mode="nearest"
    )
    for slab, indices in _source_indices(to_source, target.shape):
        outside = np.zeros(resampled[slab].shape, dtype=bool)
        for index, side in zip(indices, source.shape, strict=True):
            outside |= (index < 0) | (index >= side)
        resampled[slab][outside] = fill
    if dtype.kind in "iu":
        limits: np.iinfo[Any] = np.iinfo(dtype.name)
        resampled = np.clip(np.rint(resampled), limits.min, limits.max)
    converted: NDArray[Scalar] = resampled.astype(dtype)
    return converted


def resample_label_map(
    label_map: NDArray[Scalar], source: Grid, target: Grid, *, fill: int = 0, keep_ids: Iterable[int] = ()
) -> NDArray[Scalar]:
    """Resample a label map to the nearest labels, and correct lesions whose volume would change.

    A connected lesion of the ids to keep that would be lost, split, joined to another one, or changed by more than 5%
    and more than rounding, is drawn anew: it gets the number of voxels (at least one) of its volume inside the target's
    field of view, where it covers the target's voxels most. Voxels that it gives up get the nearest other label.

    Args:
        label_map: ``(I, J, K)`` label ids on the source grid; not modified.
        source: Grid of the label map.
        target: Grid of the result.
        fill: Id outside the source's field of view.
        keep_ids: Ids whose connected lesions keep their volume.

    Returns:
        ``(I, J, K)`` label ids on the target grid, of the label map's dtype. Equal grids give a copy.

    Raises:
        GridError: The label map does not have the source grid's shape.
    """
    _require_shape(label_map, source)
    if source.is_close(target, tolerance_mm=1e-6):
        return label_map.copy()
    resampled = _take_nearest(label_map, source, target, fill)
    kept = frozenset(keep_ids)
    lesions = [_Lesion(*part, label_id) for label_id in sorted(kept) for part in connected_parts(label_map == label_id)]
    for lesion in sorted(lesions, key=lambda found: -int(np.count_nonzero(found.mask))):
        _keep_volume(resampled, label_map, lesion, source, target, kept)
    return resampled


def crop_or_pad(
    array: NDArray[Scalar],
    grid: Grid,
    shape: Shape,
    *,
    fill: float,
    centre_ijk: Sequence[float] | None = None,
) -> tuple[NDArray[Scalar], Grid]:
    """Crop or pad an array to a shape without moving its content in space.

    Args:
        array: ``(I, J, K)`` values; not modified.
        grid: Grid of the array.
        shape: Shape of the result.
        fill: Value of padded voxels.
        centre_ijk: Voxel index that becomes the centre of the result; the array's centre by default.

    Returns:
        The array of the given shape, and its grid.

    Raises:
        GridError: The array does not have the grid's shape, or the shape is not positive.
    """
    _require_shape(array, grid)
    centre = (np.asarray(grid.shape) - 1) / 2 if centre_ijk is None else np.asarray(centre_ijk, dtype=np.float64)
    # (3,) index of the first voxel taken, which may be negative
    first = np.floor(np.round(centre - (np.asarray(shape) - 1) / 2, DECIMALS) + 0.5).astype(int)
    target = grid.cut(first, shape)
    result = np.full(shape, fill, dtype=array.dtype)
    taken = [range(max(0, low), min(side, low + n)) for low, side, n in zip(first, grid.shape, shape, strict=True)]
    if all(len(part) for part in taken):
        to = tuple(slice(part.start - low, part.stop - low) for part, low in zip(taken, first, strict=True))
        result[to] = array[tuple(slice(part.start, part.stop) for part in taken)]
    return result, target


def centre_grid_on(centre_mm: Sequence[float], *, shape: Shape, spacing_mm: Spacing, like: Grid | None = None) -> Grid:
    """Return a grid of a shape and spacing whose centre lies on a point.

    Args:
        centre_mm: Point in RAS+ millimetres.
        shape: Number of voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        like: Grid whose axis directions are taken over; axis-aligned RAS+ by default.
    """
    directions = np.eye(3) if like is None else like.affine[:3, :3] / np.asarray(like.spacing_mm)  # (3, 3) unit columns
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing_mm, dtype=np.float64)
    # affine @ centre index = centre_mm
    affine[:3, 3] = np.asarray(centre_mm, dtype=np.float64) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid(shape, affine)


# Lesions that keep their volume.


@dataclass(frozen=True, slots=True)
class _Lesion:
    """One connected lesion on the source grid: its mask inside a box."""

    box: Box
    mask: Mask
    label_id: int


@dataclass(frozen=True, slots=True)
class _Landing:
    """Where a lesion lands on the target grid: a place with some room around it, and the voxels that it should have."""

    place: Box
    place_grid: Grid
    num_voxels: int
    exact_voxels: float
    centre: NDArray[np.float64]


def _find_landing(lesion: _Lesion, source: Grid, target: Grid) -> _Landing | None:
    """None for a lesion outside the target's field of view; of a cut one, the part inside counts."""
    to_target = _index_map(source, target)
    points = np.argwhere(lesion.mask) + [part.start for part in lesion.box]  # (N, 3) source indices
    landed = np.round(points @ to_target[:3, :3].T + to_target[:3, 3], DECIMALS)  # (N, 3) target indices
    landed = landed[((landed >= -0.5) & (landed < np.asarray(target.shape) - 0.5)).all(axis=1)]
    if len(landed) == 0:
        return None
    exact_voxels = len(landed) * source.voxel_ml / target.voxel_ml
    num_voxels = max(1, round(exact_voxels))
    reach = 3 + np.ceil(num_voxels ** (1 / 3) / 2) + np.ceil(np.abs(to_target[:3, :3]).sum(axis=1))
    low = np.maximum(np.floor(landed.min(axis=0) - reach), 0).astype(int)
    high = np.minimum(np.ceil(landed.max(axis=0) + reach) + 1, target.shape).astype(int)
    place = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return _Landing(place, target.cut_to(place), num_voxels, exact_voxels, landed.mean(axis=0) - low)


def _keep_volume(
    resampled: NDArray[Any],
    label_map: NDArray[Any],
    lesion: _Lesion,
    source: Grid,
    target: Grid,
    keep_ids: frozenset[int],
) -> None:
    """Set one lesion of the resampled map anew, in place, unless it kept its volume by itself."""
    landing = _find_landing(lesion, source, target)
    if landing is None:
        return
    labels, grid = resampled[landing.place], landing.place_grid
    margin = 2 + int(np.ceil(np.linalg.norm(_index_map(target, source)[:3, :3], axis=1).max()))
    padded_shape = (np.asarray(lesion.mask.shape) + 2 * margin).tolist()
    mask, mask_grid = crop_or_pad(lesion.mask.astype(np.float32), source.cut_to(lesion.box), padded_shape, fill=0.0)
    # (place) voxels that nearest-neighbour resampling gave to the lesion
    now = (_take_nearest(mask, mask_grid, grid, 0) > 0.5) & (labels == lesion.label_id)
    beside_others = ndimage.binary_dilation((labels == lesion.label_id) & ~now, TOUCHING)
    if _is_kept(now, landing.exact_voxels) and not (now & beside_others).any():
        return
    # (place) share of each target voxel that the lesion covers
    coverage = resample_image(mask, mask_grid, grid, fill=0.0)
    steps = np.indices(coverage.shape).reshape(3, -1).T - landing.centre  # (voxels, 3)
    distance_mm = np.linalg.norm(steps * target.spacing_mm, axis=1).reshape(coverage.shape)  # (place)
    score = 1e-4 * distance_mm - coverage  # the distance decides among equals and where nothing is covered
    free = ~is_any_of(labels, keep_ids) | now
    for room in (free & ~beside_others, free):
        start = np.array(np.unravel_index(np.argmin(np.where(room, score, np.inf)), score.shape))
        taken = flood(score, room, start, landing.num_voxels) if room.any() else None
        if taken is not None:
            left = now & ~taken
            labels[left] = _without_lesions(label_map, lesion, source, grid, keep_ids)[left]
            labels[taken] = lesion.label_id
            return


def _is_kept(now: Mask, exact_voxels: float) -> bool:
    num_now = int(np.count_nonzero(now))
    close = abs(num_now - exact_voxels) <= max(VOLUME_TOLERANCE * exact_voxels, VOXEL_TOLERANCE)
    return num_now > 0 and close and label_parts(now)[1] == 1


def _without_lesions(
    label_map: NDArray[Any], lesion: _Lesion, source: Grid, place_grid: Grid, keep_ids: frozenset[int]
) -> NDArray[Any]:
    """The labels of a place on the target grid with every lesion replaced by the nearest other label."""
    wide, lesions = lesion.box, lesion.mask
    margin = 1
    while lesions.all() or margin == 1:
        margin *= 2
        wide = tuple(
            slice(max(0, part.start - margin), min(side, part.stop + margin))
            for part, side in zip(lesion.box, label_map.shape, strict=True)
        )
        lesions = is_any_of(label_map[wide], keep_ids)
        if lesions.all() and lesions.shape == label_map.shape:
            return np.zeros(place_grid.shape, dtype=label_map.dtype)
    # (3, *wide) index of the nearest voxel without a lesion
    nearest = ndimage.distance_transform_edt(
        lesions, sampling=source.spacing_mm, return_distances=False, return_indices=True
    )
    return _take_nearest(label_map[wide][tuple(nearest)], source.cut_to(wide), place_grid, 0)


# Indices.


def _require_shape(array: NDArray[Any], grid: Grid) -> None:
    if array.shape != grid.shape:
        raise GridError(
            f"Array: expected the shape of its grid, {'x'.join(map(str, grid.shape))}, found "
            f"{'x'.join(map(str, array.shape))}. Pass the grid that the array was loaded with."
        )


def _index_map(grid: Grid, other: Grid) -> NDArray[np.float64]:
    """``(4, 4)`` matrix from voxel indices of a grid to voxel indices of the other one."""
    return np.asarray(np.linalg.solve(other.affine, grid.affine), dtype=np.float64)


def _source_indices(to_source: NDArray[np.float64], shape: Shape) -> Iterator[tuple[slice, list[NDArray[np.int64]]]]:
    """Slabs of the target with the nearest source index along each source axis, broadcastable over the slab."""
    axis_aligned = (np.abs(to_source[:3, :3]) > 1e-9).sum(axis=1).max() <= 1
    rows = shape[0] if axis_aligned else max(1, MAX_SLAB_VOXELS // (shape[1] * shape[2]))
    for first in range(0, shape[0], rows):
        slab = slice(first, min(first + rows, shape[0]))
        target_axes = np.ix_(np.arange(slab.start, slab.stop), np.arange(shape[1]), np.arange(shape[2]))
        indices = []
        for row in to_source[:3]:
            terms = [(step, axis) for step, axis in zip(row[:3], target_axes, strict=True) if abs(step) > 1e-9]
            position: NDArray[Any] = np.full((1, 1, 1), row[3])
            for step, axis in terms:
                position = np.add(position, step * axis)
            indices.append(np.floor(np.round(position, DECIMALS) + 0.5).astype(np.int64))
        yield slab, indices


def _take_nearest(array: NDArray[Scalar], source: Grid, target: Grid, fill: float) -> NDArray[Scalar]:
    taken = np.full(target.shape, fill, dtype=array.dtype)
    for slab, indices in _source_indices(_index_map(target, source), target.shape):
        inside = np.ones((1, 1, 1), dtype=bool)
        clipped = []
        for index, side in zip(indices, source.shape, strict=True):
            inside = inside & (index >= 0) & (index < side)
            clipped.append(np.clip(index, 0, side - 1))
        np.copyto(taken[slab], array[tuple(clipped)], where=inside)
    return taken


def right_angled_grid(grid: Grid) -> Grid:
    """Return the orthogonal grid that covers all voxel centres of a sheared one.

    In the plane of the slices its spacing is that of the sheared grid, and along the normal the distance of the slices.
    It contains voxel ``(0, 0, 0)`` of the sheared grid. The order in which voxels are stored does not matter, provided
    that both grids are turned to the closest RAS+ first.

    Args:
        grid: Any grid; an orthogonal one is returned itself.

    Raises:
        GridError: The axes lie in one plane.
    """
    if grid.has_right_angles:
        return grid
    first, second, normal = _choose_plane(grid)
    axes = grid.affine[:3, :3]
    unit = axes / np.asarray(grid.spacing_mm)
    # The orthonormal pair closest to the two axes, whichever comes first (Loewdin 1950, symmetric orthogonalisation).
    left, _, right = np.linalg.svd(unit[:, [first, second]], full_matrices=False)
    directions = np.zeros((3, 3))
    directions[:, [first, second]] = left @ right
    across = np.cross(directions[:, first], directions[:, second])
    directions[:, normal] = across * np.sign(across @ axes[:, normal])
    steps = np.asarray(grid.spacing_mm).copy()
    steps[normal] = abs(across @ axes[:, normal])
    corners = np.array(list(product(*((0, side - 1) for side in grid.shape)))) @ axes.T
    reach = np.round(corners @ directions / steps, DECIMALS - 2)
    low, high = np.floor(reach.min(axis=0)), np.ceil(reach.max(axis=0))
    affine = np.eye(4)
    affine[:3, :3] = directions * steps
    affine[:3, 3] = grid.affine[:3, 3] + affine[:3, :3] @ low
    i, j, k = (int(side) + 1 for side in high - low)
    shape: Shape = (i, j, k)
    return Grid(shape, affine)


def straighten_image(image: NDArray[Scalar], source: Grid, target: Grid) -> NDArray[Scalar]:
    """Resample a sheared CT linearly to an orthogonal grid; beyond its voxels is air.

    Args:
        image: ``(I, J, K)`` HU on the sheared grid; not modified.
        source: Sheared grid.
        target: Result of :func:`right_angled_grid`.

    Returns:
        ``(I, J, K)`` values on the target, of the image's dtype. An image without values as low as air is padded with
        its own minimum, so that it is not mistaken for a CT in HU.
    """
    fill = max(float(image.min()), AIR_HU)
    return interpolate_image(image, source, target, fill=fill)


def straighten_label_map(label_map: NDArray[Scalar], source: Grid, target: Grid) -> NDArray[Scalar]:
    """Resample a sheared label map to an orthogonal grid, by the nearest label; beyond its voxels is background.

    Args:
        label_map: ``(I, J, K)`` label ids on the sheared grid; not modified.
        source: Sheared grid.
        target: Result of :func:`right_angled_grid`.

    Returns:
        ``(I, J, K)`` label ids on the target, of the label map's dtype; 0 beyond the source's voxels.
    """
    return resample_label_map(label_map, source, target)


def describe_shear(grid: Grid) -> str:
    """Describe how far the axes are from right angles: ``axes that meet at 74.9 degrees``."""
    unit = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    cosine = max(abs(float(unit[:, a] @ unit[:, b])) for a, b in _PAIRS)
    return f"axes that meet at {np.rad2deg(np.arccos(min(cosine, 1.0))):.4g} degrees"


def _choose_plane(grid: Grid) -> tuple[int, int, int]:
    """The two axes that stay and the one that gives way; of equals the longest step gives way."""
    unit: NDArray[Any] = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    best = min(
        _PAIRS, key=lambda pair: (round(abs(float(unit[:, pair[0]] @ unit[:, pair[1]])), 5), -_third_step(grid, pair))
    )
    return (*best, 3 - sum(best))


def _third_step(grid: Grid, pair: tuple[int, int]) -> float:
    return round(grid.spacing_mm[3 - sum(pair)], 4)
