from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.orientation import axis_codes, in_c_order, slabs_in_file_order, turn_volume

CODES = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]


def oblique_grid() -> Grid:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0.1], [0, 0, 1]]
    affine[:3, :3] *= (0.7, 0.8, 2.5)
    affine[:3, 3] = (-10, 20, 30)
    return Grid((7, 9, 11), affine)


def test_there_are_48_orientations() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_turning_gives_the_axes_and_keeps_every_voxel_in_its_place(codes: str) -> None:
    grid = oblique_grid()
    array = np.arange(7 * 9 * 11).reshape(grid.shape)
    turned, turned_grid = turn_volume(array, grid, codes)
    assert axis_codes(turned_grid.affine) == codes
    assert turned_grid.shape == turned.shape
    index = np.array([1, 2, 3]) % turned.shape
    position = turned_grid.affine @ [*index, 1]
    i, j, k, _ = np.rint(np.linalg.solve(grid.affine, position)).astype(int)
    assert array[i, j, k] == turned[tuple(index)]
    back, back_grid = turn_volume(turned, turned_grid, "RAS")
    np.testing.assert_array_equal(back, array)
    assert back_grid.is_close(grid)


@pytest.mark.parametrize("codes", CODES)
def test_codes_are_those_of_nibabel(codes: str) -> None:
    _, grid = turn_volume(np.zeros((7, 9, 11)), oblique_grid(), codes)
    assert "".join(aff2axcodes(grid.affine)) == codes


def stored_in_ways(shape: tuple[int, int, int]) -> list[NDArray[np.int16]]:
    """The same voxels with each axis fastest, flipped, and as a view of something larger."""
    array = np.random.default_rng(0).integers(-1000, 3000, shape).astype(np.int16)
    larger = np.zeros([side + 3 for side in shape], dtype=np.int16)
    larger[1:-2, 1:-2, 1:-2] = array
    orders = [
        np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes)) for axes in permutations(range(3))
    ]
    return [*orders, array[::-1, :, ::-1].copy()[::-1, :, ::-1], larger[1:-2, 1:-2, 1:-2]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 5, 16), (33, 7, 18), (2, 40, 15)])
def test_order_in_memory_changes_no_voxel(shape: tuple[int, int, int]) -> None:
    first, *others = stored_in_ways(shape)
    for array in (first, *others):
        ordered = in_c_order(array, np.float32)
        assert ordered.flags.c_contiguous
        assert ordered.dtype == np.float32
        np.testing.assert_array_equal(ordered, first)
        assert b"".join(slabs_in_file_order(array)) == first.tobytes(order="F")


def test_array_in_order_is_not_copied() -> None:
    array = np.zeros((4, 5, 6), dtype=np.int16)
    assert in_c_order(array, np.int16) is array
