"""Voxel axes of a stored volume: which way they run, and the same volume with axes that run another way.

An orientation is written as nibabel writes it: ``RAS`` means that I runs to the right, J to the front and K upwards;
``LPS`` is what most DICOM converters store. Axes are permuted and flipped, nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from maisi_aug.volumes.grid import Grid

Scalar = TypeVar("Scalar", bound=np.generic)

_LETTERS = ("RL", "AP", "SI")  # per world axis: towards +, towards -
_TILE = 16
"""Voxels along I and K that are copied at once: lines of the processor's cache are used whole on both sides."""


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Return the anatomical direction that each voxel axis is closest to.

    Args:
        affine: ``(4, 4)`` matrix from voxel indices to RAS+ millimetres.

    Returns:
        Three letters, such as ``RAS`` or ``LPS``, one per axis I, J, K.
    """
    world_axes, signs = _closest_axes(affine)
    return "".join(_LETTERS[axis][0 if sign > 0 else 1] for axis, sign in zip(world_axes, signs, strict=True))


def turn_volume(array: NDArray[Scalar], grid: Grid, codes: str) -> tuple[NDArray[Scalar], Grid]:
    """Permute and flip a volume to given axis directions; every voxel keeps its world position.

    Args:
        array: ``(I, J, K)`` array.
        grid: Shape and affine of the array.
        codes: Directions of the axes as three letters, such as ``LPS``.

    Returns:
        A view of the array, permuted and flipped, and its grid.
    """
    world_axes, signs = _closest_axes(grid.affine)
    affine = grid.affine.copy()
    wanted = [next(axis for axis, letters in enumerate(_LETTERS) if code in letters) for code in codes]
    order = [world_axes.index(axis) for axis in wanted]
    turned = array.transpose(order)
    affine[:, :3] = affine[:, order]
    for axis, code in enumerate(codes):
        wants_plus = code == _LETTERS[wanted[axis]][0]
        if wants_plus != (signs[order[axis]] > 0):
            turned = np.flip(turned, axis)
            affine[:, 3] += affine[:, axis] * (turned.shape[axis] - 1)
            affine[:, axis] *= -1
    i, j, k = turned.shape
    return turned, Grid((i, j, k), affine)


def turn_to_ras(array: NDArray[Scalar], affine: NDArray[np.float64]) -> tuple[NDArray[Scalar], Grid]:
    """Permute and flip a stored array to the axes closest to R, A and S.

    Args:
        array: Array with three axes in any order.
        affine: ``(4, 4)`` matrix from its indices to RAS+ millimetres.

    Returns:
        A view of the array, and its grid.

    Raises:
        GridError: The affine cannot be inverted.
    """
    i, j, k = array.shape
    return turn_volume(array, Grid((i, j, k), affine), "RAS")


def in_c_order(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return a volume with K running fastest in memory, as ``numpy.ascontiguousarray`` does, four times faster.

    Files store I fastest; NumPy copies from one order to the other voxel by voxel, and loads a line of the processor's
    cache for each.

    Args:
        array: ``(I, J, K)``, stored in any order.
        dtype: Type of the returned array.

    Returns:
        The array itself where nothing has to change, else a copy.
    """
    if array.ndim != 3 or array.flags.c_contiguous:
        return np.ascontiguousarray(array, dtype=dtype)
    ordered = np.empty(array.shape, dtype=dtype)
    for k in range(0, array.shape[2], _TILE):
        _copy_slab(array[:, :, k : k + _TILE], ordered[:, :, k : k + _TILE])
    return ordered


def slabs_in_file_order(array: NDArray[Scalar]) -> Iterator[bytes]:
    """Yield the voxels of ``(I, J, K)`` with I running fastest, as files store them, a few slices at a time."""
    for k in range(0, array.shape[2], _TILE):
        slab = array[:, :, k : k + _TILE]
        if not slab.flags.f_contiguous:
            ordered: NDArray[Scalar] = np.empty(slab.shape, dtype=slab.dtype, order="F")
            _copy_slab(slab, ordered)
            slab = ordered
        yield slab.tobytes(order="F")


def _copy_slab(source: NDArray[Any], target: NDArray[Any]) -> None:
    for i in range(0, source.shape[0], _TILE):
        target[i : i + _TILE] = source[i : i + _TILE]


def _closest_axes(affine: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Per voxel axis its world axis and the sign along it; every world axis is taken once."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda axes: sum(abs(directions[axis, i]) for i, axis in enumerate(axes)))
    return list(best), [1 if directions[axis, i] > 0 else -1 for i, axis in enumerate(best)]
