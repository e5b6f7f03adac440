"""Sheared volumes come to a grid at right angles that covers them, whichever way they were stored."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_grid, load_image, load_label_map, save_image, save_label_map
from maisi_aug.volumes.orientation import turn_volume
from maisi_aug.volumes.resampling import describe_shear, right_angled_grid, straighten_image, straighten_label_map

SHAPE = (7, 9, 11)
SPACING_MM = (0.7, 0.8, 2.5)


def sheared(shear: float, *, between: tuple[int, int] = (1, 2)) -> Grid:
    """A grid whose second axis of the pair leans along the first, in mm per mm."""
    slant = np.eye(3)
    slant[between] = shear
    affine = np.eye(4)
    affine[:3, :3] = slant * SPACING_MM
    affine[:3, 3] = (-20.0, 35.0, 410.0)
    return Grid(SHAPE, affine)


@pytest.mark.parametrize("between", list(permutations(range(3), 2)))
@pytest.mark.parametrize("shear", [-0.6, 0.05, 0.3])
def test_grid_covers_every_voxel_and_keeps_the_volume_of_its_voxels(shear: float, between: tuple[int, int]) -> None:
    grid = sheared(shear, between=between)
    target = right_angled_grid(grid)
    assert target.has_right_angles
    corners = np.array(list(product(*((0, side - 1) for side in SHAPE))))
    world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    indices = (world - target.affine[:3, 3]) @ np.linalg.inv(target.affine[:3, :3]).T
    assert (indices >= -0.01).all()
    assert (indices <= np.asarray(target.shape) - 0.99).all()
    assert target.voxel_ml == pytest.approx(grid.voxel_ml, rel=1e-6)


def test_tilted_scan_keeps_its_slices() -> None:
    grid = sheared(0.25)
    target = right_angled_grid(grid)
    assert target.shape[0] == 7
    assert target.shape[2] == 11
    np.testing.assert_allclose(target.spacing_mm, SPACING_MM, rtol=1e-9)
    label_map = np.arange(7 * 9 * 11, dtype=np.uint16).reshape(SHAPE)
    straight = straighten_label_map(label_map, grid, target)
    np.testing.assert_array_equal(straight[:, :9, 0], label_map[:, :, 0])  # the first slice is not moved
    for k in range(11):
        assert set(np.unique(straight[:, :, k])) - {0} <= set(np.unique(label_map[:, :, k]))


def test_straight_grid_is_handed_back() -> None:
    grid = sheared(0.0)
    assert right_angled_grid(grid) is grid
    assert not sheared(0.001).has_right_angles
    assert sheared(0.0001).has_right_angles  # a three-hundredth of a voxel at the far end


@pytest.mark.parametrize(("lowest", "beyond"), [(-1024.0, -1000.0), (-500.0, -500.0)])
def test_beyond_the_image_is_air_unless_it_has_none(lowest: float, beyond: float) -> None:
    grid = sheared(0.5)
    image = np.full(SHAPE, 40.0)
    image[0, 0, 0] = lowest
    straight = straighten_image(image, grid, right_angled_grid(grid))
    assert straight[0, -1, 0] == beyond
    assert straight.dtype == image.dtype


def test_words_for_a_shear() -> None:
    assert describe_shear(sheared(1.0)) == "axes that meet at 45 degrees"


def write(path: Path, array: NDArray[np.generic], grid: Grid) -> Path:
    image = nib.Nifti1Image(array, grid.affine)
    image.set_qform(None, 0)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_image_and_label_map_stored_otherwise_share_the_grid(tmp_path: Path, codes: str) -> None:
    grid, rng = sheared(0.3, between=(0, 2)), np.random.default_rng(0)
    image, labels = rng.integers(-1000, 900, SHAPE).astype(np.int16), rng.integers(0, 5, SHAPE).astype(np.uint8)
    image_path = write(tmp_path / "image.nii.gz", image, grid)
    label_path = write(tmp_path / "label.nii.gz", *turn_volume(labels, grid, codes))
    with pytest.warns(UserWarning, match="image.nii.gz: voxel axes are not at right angles"):
        volume = load_image(image_path)
    with pytest.warns(UserWarning, match="label.nii.gz: voxel axes are not at right angles"):
        label_map = load_label_map(label_path)
    assert volume.grid.is_close(label_map.grid, tolerance_mm=1e-4)
    assert load_grid(label_path).is_close(volume.grid, tolerance_mm=1e-4)
    assert label_map.array.dtype == np.uint8


@pytest.mark.parametrize("save", [save_image, save_label_map])
def test_sheared_grid_is_never_written(tmp_path: Path, save: object) -> None:
    with pytest.raises(VolumeError, match="a.nii.gz: voxel axes are not at right angles: affine"):
        save(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), sheared(0.2))  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []
