"""A NIfTI header is read as nibabel and ITK agree on it, or the difference is said or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.image_files import load_grid, load_image, load_label_map

SHAPE = (7, 9, 11)
SPACING_MM = (0.7, 0.8, 2.5)
PLACE = np.array([[0.7, 0, 0, -20], [0, 0.8, 0, 35], [0, 0, 2.5, 410], [0, 0, 0, 1]])
ELSEWHERE = np.array([[-0.7, 0, 0, 10], [0, -0.8, 0, 5], [0, 0, 2.5, 100], [0, 0, 0, 1]])
VALUES = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def write(
    path: Path,
    change: Callable[[Any], None],
    *,
    sform: NDArray[np.float64] = PLACE,
    qform: NDArray[np.float64] = PLACE,
    codes: tuple[int, int] = (1, 1),
    image_class: Any = nib.Nifti1Image,
) -> Path:
    """A NIfTI file whose header is changed after it was written."""
    image = image_class(VALUES, sform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    content = path.read_bytes()
    header = image_class.header_class(content[: int(image.header["sizeof_hdr"])])
    change(header)
    path.write_bytes(header.binaryblock + content[len(header.binaryblock) :])
    return path


def setting(**fields: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for name, value in fields.items():
            header[name] = value

    return change


def scaled(factor: float) -> NDArray[np.float64]:
    affine = PLACE.copy()
    affine[:3] *= factor
    return affine


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 0.001), (2, 1), (3, 1000)])
def test_units_give_the_same_millimetres_as_itk(tmp_path: Path, unit: int, factor: float, image_class: Any) -> None:
    affine = scaled(factor)
    path = write(tmp_path / "a.nii", setting(xyzt_units=unit), sform=affine, qform=affine, image_class=image_class)
    for grid in (load_image(path).grid, load_grid(path), load_label_map(path).grid):
        np.testing.assert_allclose(grid.affine, PLACE, atol=1e-4)
    if image_class is nib.Nifti1Image:  # ITK reads no NIfTI-2
        np.testing.assert_allclose(SimpleITK.ReadImage(str(path)).GetSpacing(), SPACING_MM, rtol=1e-4)


@pytest.mark.parametrize(("unit", "word"), [(1, "metres"), (3, "micrometres")])
def test_unit_that_makes_no_voxel_of_a_ct_is_refused(tmp_path: Path, unit: int, word: str) -> None:
    path = write(tmp_path / "a.nii", setting(xyzt_units=unit))
    with pytest.raises(VolumeError, match=f"a.nii: voxels of .* mm are not those of a CT; .* unit is {word}"):
        load_image(path)


def test_file_without_orientation_is_refused_since_readers_mirror_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", setting(sform_code=0, qform_code=0))
    with pytest.raises(VolumeError, match="a.nii: has no sform or qform with a code above 0, so left and right are"):
        load_image(path)
    with pytest.raises(VolumeError, match="has no sform or qform with a code above 0, so left and right are unknown:"):
        load_grid(path)
    ours = nib.load(path).affine[:3, :3]
    itk = np.diag([-1, -1, 1]) @ np.reshape(SimpleITK.ReadImage(str(path)).GetDirection(), (3, 3))
    assert np.sign(np.linalg.det(ours)) != np.sign(np.linalg.det(itk))


@pytest.mark.parametrize(
    ("codes", "words"), [((1, 1), "as in nibabel and ITK"), ((2, 1), "as in nibabel; ITK and SimpleITK use the qform")]
)
def test_two_places_warn_and_the_sform_is_taken(tmp_path: Path, codes: tuple[int, int], words: str) -> None:
    path = write(tmp_path / "a.nii", setting(), qform=ELSEWHERE, codes=codes)
    with pytest.warns(UserWarning, match=f"a.nii: the sform .*{words}"):
        grid = load_image(path).grid
    np.testing.assert_allclose(grid.affine, PLACE, atol=1e-4)


@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (4, 1)])
def test_one_place_under_any_code_is_read_in_silence(tmp_path: Path, codes: tuple[int, int]) -> None:
    path = write(tmp_path / "a.nii", setting(), codes=codes)
    np.testing.assert_allclose(load_image(path).grid.affine, PLACE, atol=1e-4)


@pytest.mark.parametrize("pixdim", [(1, 1, 1), (0, 0, 0), (0.7, 0.8, -2.5), (0.7, 0.8, np.nan)])
def test_pixdim_that_is_not_the_sforms_is_refused(tmp_path: Path, pixdim: tuple[float, ...]) -> None:
    def change(header: Any) -> None:
        header["pixdim"][1:4] = pixdim
        header["qform_code"] = 0

    path = write(tmp_path / "a.nii", change)
    for load in (load_image, load_grid):
        with pytest.raises(VolumeError, match="0.7x0.8x2.5 mm"):
            load(path)


def test_pixdim_that_is_rounded_is_read(tmp_path: Path) -> None:
    def change(header: Any) -> None:
        header["pixdim"][1:4] = (0.7, 0.8, 2.505)

    np.testing.assert_allclose(load_image(write(tmp_path / "a.nii", change)).grid.affine, PLACE, atol=1e-4)


@pytest.mark.parametrize(
    ("slope", "intercept", "first"),
    [(0, 0, 0), (np.nan, np.nan, 0), (1, -1024, -1024), (2, 3, 3), (0, np.nan, 0), (1, 0, 0)],
)
def test_slope_and_intercept_give_the_values_of_itk(
    tmp_path: Path, slope: float, intercept: float, first: float
) -> None:
    path = write(tmp_path / "a.nii", setting(scl_slope=slope, scl_inter=intercept))
    volume = load_image(path)
    assert volume.array[0, 0, 0] == first
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T
    np.testing.assert_allclose(volume.array, itk)


@pytest.mark.parametrize("slope", [0, np.nan])
def test_intercept_without_a_slope_is_refused(tmp_path: Path, slope: float) -> None:
    path = write(tmp_path / "a.nii", setting(scl_slope=slope, scl_inter=-1024))
    with pytest.raises(VolumeError, match="a.nii: scl_inter is -1024 but scl_slope is"):
        load_image(path)


def test_sform_of_zeros_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", setting(srow_x=0, srow_y=0, srow_z=0))
    with (
        pytest.raises(VolumeError, match=r"a.nii: its geometry cannot be used.*invertible"),
        pytest.warns(UserWarning, match="the sform .* and the qform .* mm apart"),
    ):
        load_image(path)
