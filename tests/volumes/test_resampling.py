"""Resampling: equal to the slow version, free of aliasing, and lesions keep their volume."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError
from maisi_aug.lesions.planting import measure_lesions, plant_lesions
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.resampling import centre_grid_on, crop_or_pad, resample_image, resample_label_map
from tests.builders.lesions import ask_for

ANISOTROPIC = Grid.from_spacing((7, 9, 11), (0.7, 0.8, 2.5))
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def centre_of(grid: Grid) -> NDArray[np.float64]:
    """Centre of a grid in RAS+ millimetres."""
    centre: NDArray[np.float64] = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    return centre


def rotated(grid: Grid, *, degrees: float = 20.0) -> Grid:
    """The grid turned about its centre, around an axis that is none of its own."""
    angle = np.deg2rad(degrees)
    x, y, z = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = rotation @ grid.affine[:3, :3]
    affine[:3, 3] = centre_of(grid) - affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2)
    return Grid(grid.shape, affine)


def source_positions(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Source voxel positions ``(I, J, K, 3)`` of all target voxels: the slow, obvious way through millimetres."""
    positions = np.empty((*target.shape, 3))
    to_source = np.linalg.inv(source.affine)
    for index in product(*map(range, target.shape)):
        world_mm = target.affine @ np.array([*index, 1.0])
        positions[index] = (to_source @ world_mm)[:3]
    return positions


def nearest_slowly(array: NDArray[np.uint8], source: Grid, target: Grid, fill: int) -> NDArray[np.uint8]:
    positions = source_positions(source, target)
    result = np.full(target.shape, fill, dtype=array.dtype)
    for index in product(*map(range, target.shape)):
        voxel = tuple(int(np.floor(round(value, 6) + 0.5)) for value in positions[index])
        if all(0 <= value < side for value, side in zip(voxel, source.shape, strict=True)):
            result[index] = array[voxel]
    return result


def linear_slowly(array: NDArray[np.float64], source: Grid, target: Grid, fill: float) -> NDArray[np.float64]:
    positions = source_positions(source, target)
    result = np.full(target.shape, fill)
    for index in product(*map(range, target.shape)):
        position = positions[index]
        if any(not -0.5 <= round(value, 6) < side - 0.5 for value, side in zip(position, source.shape, strict=True)):
            continue
        position = np.clip(position, 0, np.asarray(source.shape) - 1)
        low = np.minimum(np.floor(position).astype(int), np.asarray(source.shape) - 2)
        share, total = position - low, 0.0
        for corner in product((0, 1), repeat=3):
            weight = np.prod(np.where(np.array(corner) == 1, share, 1 - share))
            total += weight * array[tuple(low + corner)]
        result[index] = total
    return result


TARGETS = {
    "finer": Grid.from_spacing((12, 10, 14), (0.4, 0.7, 1.9)),
    "beyond the border": Grid.from_spacing((14, 13, 12), (0.7, 0.8, 2.5)),
    "shifted": centre_grid_on((0.3, -0.5, 1.1), shape=(7, 8, 9), spacing_mm=(0.6, 0.7, 2.0)),
    "oblique": rotated(Grid.from_spacing((9, 8, 10), (0.5, 0.6, 0.7))),
    "flipped and permuted": Grid(
        (9, 11, 7), np.array([[0, 0, -0.7, 2.1], [0.8, 0, 0, -3.2], [0, -2.5, 0, 12.5], [0, 0, 0, 1.0]])
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_nearest_equals_the_slow_version(name: str) -> None:
    label_map = np.random.default_rng(0).integers(0, 200, ANISOTROPIC.shape).astype(np.uint8)
    expected = nearest_slowly(label_map, ANISOTROPIC, TARGETS[name], 7)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(resample_label_map(label_map, ANISOTROPIC, TARGETS[name], fill=7), expected)


@pytest.mark.parametrize("name", TARGETS)
def test_linear_equals_the_slow_version_where_the_target_is_finer(name: str) -> None:
    image = np.random.default_rng(0).normal(0, 100, ANISOTROPIC.shape)
    expected = linear_slowly(image, ANISOTROPIC, TARGETS[name], -1000.0)
    resampled = resample_image(image, ANISOTROPIC, TARGETS[name])
    np.testing.assert_allclose(resampled, expected, atol=1e-2)


def test_equal_grids_give_identical_bytes_in_a_new_array() -> None:
    image = np.random.default_rng(0).normal(0, 100, ANISOTROPIC.shape).astype(np.float32)
    label_map = np.random.default_rng(0).integers(0, 255, ANISOTROPIC.shape).astype(np.uint8)
    same = Grid(ANISOTROPIC.shape, ANISOTROPIC.affine.copy())
    for before, after in (
        (image, resample_image(image, ANISOTROPIC, same)),
        (label_map, resample_label_map(label_map, ANISOTROPIC, same, keep_ids=(3, 4))),
    ):
        assert after.tobytes() == before.tobytes()
        assert after.dtype == before.dtype
        assert not np.shares_memory(after, before)


def test_a_linear_world_stays_linear_through_an_oblique_grid() -> None:
    source = rotated(Grid.from_spacing((20, 22, 24), (1.0, 1.2, 1.5)), degrees=-33.0)
    target = Grid.from_spacing((8, 9, 7), (0.9, 1.0, 1.1))

    def ramp(grid: Grid) -> NDArray[np.float64]:
        index = np.moveaxis(np.indices(grid.shape), 0, -1)
        world_mm = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        return np.asarray(world_mm @ np.array([3.0, -2.0, 5.0]))

    np.testing.assert_allclose(resample_image(ramp(source), source, target), ramp(target), atol=1e-2)


def test_downsampling_averages_instead_of_aliasing() -> None:
    source = Grid.from_spacing((48, 40, 44), (1.0, 1.0, 1.0))
    noise = np.random.default_rng(0).normal(0, 100, source.shape).astype(np.float32)
    coarse = resample_image(noise, source, Grid.from_spacing((12, 10, 11), (4.0, 4.0, 4.0)))
    assert coarse.std() < 25.0  # picking every fourth voxel would keep about 100 (or 35 between voxels)
    flat = np.full(source.shape, 37, dtype=np.int16)
    result = resample_image(flat, source, Grid.from_spacing((12, 10, 11), (4.0, 4.0, 4.0)))
    assert result.dtype == np.int16
    assert (result == 37).all()


def test_image_integers_are_rounded_and_inputs_untouched() -> None:
    image = np.random.default_rng(0).integers(-1000, 1000, ANISOTROPIC.shape).astype(np.int16)
    untouched = image.copy()
    finer = TARGETS["finer"]
    resampled = resample_image(image, ANISOTROPIC, finer)
    expected = linear_slowly(image.astype(np.float64), ANISOTROPIC, finer, -1000.0)
    assert resampled.dtype == np.int16
    assert np.abs(resampled - expected).max() <= 0.51
    np.testing.assert_array_equal(image, untouched)


# Lesions.


def plant(grid: Grid, diameters_mm: tuple[float, ...], seed: int) -> NDArray[np.uint8]:
    label_map = np.zeros(grid.shape, dtype=np.uint8)
    label_map[2:-2, 2:-2, 2:-2] = 200
    margins = [int(12 / step) for step in grid.spacing_mm]
    label_map[tuple(slice(margin, -margin) for margin in margins)] = 1
    wanted = [ask_for(26, (1,), float(np.pi / 6 * mm**3 / 1000)) for mm in diameters_mm]
    rng = np.random.default_rng(seed)
    return plant_lesions(label_map, wanted, spacing_mm=grid.spacing_mm, rng=rng)[0]


CASES: list[tuple[Shape, Spacing, Shape, Spacing, bool]] = [
    ((96, 88, 80), (1.0, 1.0, 1.0), (24, 22, 20), (4.0, 4.0, 4.0), False),
    ((100, 90, 36), (0.7, 0.8, 2.5), (24, 24, 24), (3.0, 3.0, 4.0), False),
    ((60, 56, 24), (1.5, 1.5, 4.0), (46, 44, 48), (2.0, 2.0, 2.0), True),
    ((96, 88, 80), (1.0, 1.0, 1.0), (32, 30, 28), (3.3, 3.3, 3.3), True),
]


@pytest.mark.parametrize(("shape", "spacing_mm", "coarse_shape", "coarse_mm", "oblique"), CASES)
def test_every_lesion_keeps_its_volume_and_stays_apart(
    shape: Shape, spacing_mm: Spacing, coarse_shape: Shape, coarse_mm: Spacing, oblique: bool
) -> None:
    source = Grid.from_spacing(shape, spacing_mm)
    target = Grid.from_spacing(coarse_shape, coarse_mm)
    target = rotated(target) if oblique else target
    for seed in range(3):
        label_map = plant(source, (4.0, 5.0, 6.0, 9.0, 14.0), seed)
        before_ml = measure_lesions(label_map, 26, source.voxel_ml)
        nearest = resample_label_map(label_map, source, target)
        kept = resample_label_map(label_map, source, target, keep_ids=(26,))
        after_ml = measure_lesions(kept, 26, target.voxel_ml)
        assert len(after_ml) == len(before_ml)
        for before, after in zip(before_ml, after_ml, strict=True):
            tolerance_ml = max(0.1 * before, 2.0 * target.voxel_ml)
            assert after == pytest.approx(before, abs=tolerance_ml + 1e-9)
        assert sum(after_ml) == pytest.approx(sum(before_ml), rel=0.25)
        elsewhere = ~ndimage.binary_dilation(nearest == 26, TOUCHING, iterations=2) & (kept != 26)
        np.testing.assert_array_equal(kept[elsewhere], nearest[elsewhere])


def test_lesion_that_nearest_would_lose_is_kept_where_it_was_at_four_times_coarser() -> None:
    source = Grid.from_spacing((40, 44, 48), (1.0, 1.0, 1.0))
    target = Grid.from_spacing((10, 11, 12), (4.0, 4.0, 4.0))
    label_map = np.full(source.shape, 1, dtype=np.uint8)
    label_map[16, 20, 24] = 26  # a target voxel's centre lies at 16 + 2
    label_map[4:6, 8:10, 32:34] = 23
    assert not np.isin(resample_label_map(label_map, source, target), (23, 26)).any()
    kept = resample_label_map(label_map, source, target, keep_ids=(23, 26))
    np.testing.assert_array_equal(np.argwhere(kept == 26), [[4, 5, 6]])
    np.testing.assert_array_equal(np.argwhere(kept == 23), [[1, 2, 8]])
    assert (kept[~np.isin(kept, (23, 26))] == 1).all()


def test_lesion_that_nearest_would_swell_shrinks_to_its_volume_and_its_host_returns() -> None:
    source = Grid.from_spacing((40, 40, 40), (1.0, 1.0, 1.0))
    target = centre_grid_on((0.5, 0.5, 0.5), shape=(10, 10, 10), spacing_mm=(4.0, 4.0, 4.0))
    label_map = np.full(source.shape, 5, dtype=np.uint8)
    label_map[:20] = 1
    # A thin lattice through the centres of target voxels: every sample hits it.
    label_map[2:39:4, 18, 18] = 26
    label_map[2:39, 18, 18] = 26
    nearest = resample_label_map(label_map, source, target)
    kept = resample_label_map(label_map, source, target, keep_ids=(26,))
    assert (nearest == 26).sum() == 10
    assert (kept == 26).sum() == 1
    returned = (nearest == 26) & (kept != 26)
    np.testing.assert_array_equal(np.unique(kept[returned]), [1, 5])


def test_lesion_outside_the_field_of_view_is_not_invented() -> None:
    source = Grid.from_spacing((40, 40, 40), (1.0, 1.0, 1.0))
    label_map = np.full(source.shape, 1, dtype=np.uint8)
    label_map[1:5, 1:5, 1:5] = 26
    target = Grid.from_spacing((6, 6, 6), (4.0, 4.0, 4.0))
    assert set(np.unique(resample_label_map(label_map, source, target, keep_ids=(23, 26)))) == {1}


def test_lesion_cut_by_the_field_of_view_keeps_the_part_inside() -> None:
    source = Grid.from_spacing((40, 40, 40), (1.0, 1.0, 1.0))
    label_map = np.full(source.shape, 1, dtype=np.uint8)
    label_map[4:16, 14:26, 14:26] = 26
    target = Grid.from_spacing((8, 10, 10), (3.0, 3.0, 3.0))
    kept = resample_label_map(label_map, source, target, keep_ids=(26,))
    inside_ml = 8 * 12 * 12 / 1000  # 8 of the 12 voxel layers lie within the 24 mm of the target
    assert measure_lesions(kept, 26, target.voxel_ml) == [pytest.approx(inside_ml, abs=0.1 * inside_ml + 0.06)]


def test_label_map_of_nothing_but_lesion_resamples() -> None:
    source = Grid.from_spacing((8, 8, 8), (1.0, 1.0, 1.0))
    label_map = np.full(source.shape, 26, dtype=np.uint8)
    kept = resample_label_map(label_map, source, Grid.from_spacing((4, 4, 4), (3.0, 3.0, 3.0)), keep_ids=(26,))
    assert (kept == 26).sum() == round(512 / 27)


# Grids.


@pytest.mark.parametrize("shape", [(7, 9, 11), (5, 12, 11), (20, 3, 4), (1, 1, 30)])
def test_cropping_and_padding_move_nothing_in_space(shape: Shape) -> None:
    grid = rotated(ANISOTROPIC)
    image = np.random.default_rng(0).normal(0, 100, grid.shape).astype(np.float32)
    result, result_grid = crop_or_pad(image, grid, shape, fill=-1000.0)
    assert result.shape == result_grid.shape == shape
    np.testing.assert_array_equal(result, resample_image(image, grid, result_grid))
    offset_mm = np.linalg.norm(centre_of(result_grid) - centre_of(grid))
    assert offset_mm <= np.linalg.norm(np.asarray(grid.spacing_mm)) / 2 + 1e-6


def test_cropping_far_away_gives_the_fill() -> None:
    result, _ = crop_or_pad(np.ones((7, 9, 11)), ANISOTROPIC, (3, 3, 3), fill=5.0, centre_ijk=(50, 4, 4))
    assert (result == 5.0).all()


def test_grid_is_centred_on_the_point_in_its_own_directions() -> None:
    like = rotated(ANISOTROPIC)
    grid = centre_grid_on((10.0, -20.0, 5.0), shape=(6, 8, 4), spacing_mm=(2.0, 3.0, 4.0), like=like)
    np.testing.assert_allclose(centre_of(grid), (10.0, -20.0, 5.0))
    assert grid.spacing_mm == pytest.approx((2.0, 3.0, 4.0))
    directions = grid.affine[:3, :3] / grid.spacing_mm
    np.testing.assert_allclose(directions, like.affine[:3, :3] / like.spacing_mm)
    plain = centre_grid_on((0.0, 0.0, 0.0), shape=(6, 8, 4), spacing_mm=(2.0, 3.0, 4.0))
    assert plain.is_close(Grid.from_spacing((6, 8, 4), (2.0, 3.0, 4.0)))


def test_array_that_does_not_match_its_grid_is_refused() -> None:
    wrong = np.zeros((7, 9, 12), dtype=np.uint8)
    target = Grid.from_spacing((4, 4, 4), (2.0, 2.0, 2.0))
    for call in (
        lambda: resample_image(wrong, ANISOTROPIC, target),
        lambda: resample_label_map(wrong, ANISOTROPIC, target),
        lambda: crop_or_pad(wrong, ANISOTROPIC, (4, 4, 4), fill=0),
    ):
        with pytest.raises(GridError, match="expected the shape of its grid, 7x9x11, found 7x9x12"):
            call()
