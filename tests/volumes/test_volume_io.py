"""Files come in as RAS+ with their geometry, go out whole, and give the same bytes every time."""

from __future__ import annotations

import errno
import gzip
import locale
import os
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.system import whole_files
from maisi_aug.volumes import image_files as volume_io
from maisi_aug.volumes.grid import Grid

SHAPE = (7, 9, 11)
SPACING_MM = (0.7, 0.8, 2.5)


@pytest.fixture
def grid() -> Grid:
    """A rotated grid: oblique by 10 degrees about the long axis, so no axis test can pass by luck."""
    affine = np.eye(4)
    angle = np.deg2rad(10)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = rotation * np.array(SPACING_MM)
    affine[:3, 3] = (-20.0, 35.0, 410.0)
    return Grid(SHAPE, affine)


@pytest.fixture
def image_hu() -> NDArray[np.int16]:
    return np.random.default_rng(5).integers(-1000, 1500, SHAPE).astype(np.int16)


def _write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> Path:
    nib.Nifti1Image(array, affine).to_filename(path)
    return path


def _world_values(volume: volume_io.Volume) -> dict[tuple[float, ...], float]:
    """Value at every world position, rounded to a micrometre."""
    indices = np.indices(volume.grid.shape).reshape(3, -1)
    world = volume.grid.affine[:3, :3] @ indices + volume.grid.affine[:3, 3:]
    values = volume.array.reshape(-1)
    return {tuple(np.round(world[:, n], 2) + 0.0): float(values[n]) for n in range(values.size)}


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_any_axis_order_loads_as_ras_with_every_voxel_where_it_was(
    tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16], axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    index_map = np.zeros((4, 4))  # from the file's index to the RAS index
    index_map[3, 3] = 1
    stored = image_hu.transpose(axes)
    for file_axis, (ras_axis, flip) in enumerate(zip(axes, flips, strict=True)):
        index_map[ras_axis, file_axis] = flip
        index_map[ras_axis, 3] = 0 if flip == 1 else SHAPE[ras_axis] - 1
        stored = stored if flip == 1 else np.flip(stored, file_axis)
    volume = volume_io.load_image(_write_nifti(tmp_path / "a.nii.gz", stored, grid.affine @ index_map))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, image_hu)
    assert volume.grid.is_close(grid, tolerance_mm=1e-4)


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd", "nii", "nii.gz"])
def test_formats_agree_voxel_by_voxel(tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16], suffix: str) -> None:
    volume_io.save_image(tmp_path / "a.nii.gz", image_hu, grid)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")), str(tmp_path / f"b.{suffix}"))
    volume = volume_io.load_image(tmp_path / f"b.{suffix}")
    assert volume.array.dtype == np.int16
    assert volume.grid.is_close(grid, tolerance_mm=1e-3)
    expected = _world_values(volume_io.Volume(image_hu, grid))
    assert _world_values(volume) == expected


def _write_dicom_series(
    folder: Path, array: NDArray[np.int16], positions_mm: list[float], uid: str = "1.2.3", compressor: str = ""
) -> None:
    folder.mkdir(exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    writer.KeepOriginalImageUIDOn()
    for number, position in enumerate(positions_mm):
        one = SimpleITK.GetImageFromArray(np.ascontiguousarray(array[:, :, number].T)[None])
        one.SetSpacing(SPACING_MM)
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{number + 1}",
            "0020|000d": "1.2.9",
            "0020|000e": uid,
            "0020|0032": f"5\\7\\{position}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number + 1),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{number:03d}.dcm"))
        writer.Execute(one)


def test_dicom_series_loads_in_hu_and_ras(tmp_path: Path, image_hu: NDArray[np.int16]) -> None:
    _write_dicom_series(tmp_path / "dicom", image_hu, [2.5 * k - 30 for k in range(SHAPE[2])])
    volume = volume_io.load_image(tmp_path / "dicom")
    np.testing.assert_array_equal(volume.array, image_hu[::-1, ::-1])  # LPS rows and columns turn round
    np.testing.assert_allclose(volume.grid.spacing_mm, SPACING_MM, rtol=1e-4)
    last_i, last_j = SPACING_MM[0] * (SHAPE[0] - 1), SPACING_MM[1] * (SHAPE[1] - 1)
    np.testing.assert_allclose(volume.grid.affine[:3, 3], [-5 - last_i, -7 - last_j, -30], atol=1e-3)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_dicom_series_loads_the_same(tmp_path: Path, image_hu: NDArray[np.int16], compressor: str) -> None:
    _write_dicom_series(tmp_path / "dicom", image_hu, [2.5 * k for k in range(SHAPE[2])], compressor=compressor)
    volume = volume_io.load_image(tmp_path / "dicom")
    np.testing.assert_array_equal(volume.array, image_hu[::-1, ::-1])


@pytest.mark.skipif(sys.platform == "win32", reason="the C.UTF-8 locale is not there")
def test_reading_dicom_leaves_the_locale_alone(tmp_path: Path, image_hu: NDArray[np.int16]) -> None:
    _write_dicom_series(tmp_path / "dicom", image_hu, [float(k) for k in range(SHAPE[2])])
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    volume_io.load_image(tmp_path / "dicom")
    assert locale.getencoding().lower() == "utf-8"


def test_dicom_series_with_a_missing_slice_is_refused(tmp_path: Path, image_hu: NDArray[np.int16]) -> None:
    positions = [2.5 * k for k in range(SHAPE[2] + 1) if k != 4]
    _write_dicom_series(tmp_path / "dicom", image_hu, positions)
    with pytest.raises(VolumeError, match="slices are 2.50 mm apart, but 5.00 mm between slices 4 and 5 of 11"):
        volume_io.load_image(tmp_path / "dicom")


def test_folder_with_two_series_or_none_is_refused(tmp_path: Path, image_hu: NDArray[np.int16]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="one DICOM series, found no DICOM file"):
        volume_io.load_image(tmp_path / "empty")
    for uid in ("1.2.3", "1.2.4"):
        _write_dicom_series(tmp_path / "two", image_hu, [float(k) for k in range(3)], uid)
    with pytest.raises(VolumeError, match="found 2 series"):
        volume_io.load_image(tmp_path / "two")


def test_saved_image_is_rounded_clipped_int16_with_both_codes_one(tmp_path: Path, grid: Grid) -> None:
    image = np.zeros(SHAPE, dtype=np.float32)
    image[0, 0, :5] = [-1000.4, 12.6, 40000.0, -40000.0, 0.5]
    before = image.copy()
    volume_io.save_image(tmp_path / "deep" / "a.nii.gz", image, grid)
    stored: Any = nib.load(tmp_path / "deep" / "a.nii.gz")
    assert stored.header.get_data_dtype() == np.int16
    assert int(stored.header["qform_code"]) == int(stored.header["sform_code"]) == 1
    np.testing.assert_allclose(stored.get_qform(), grid.affine, atol=1e-4)
    np.testing.assert_allclose(stored.get_sform(), grid.affine, atol=1e-4)
    assert stored.header.get_xyzt_units()[0] == "mm"
    assert np.asarray(stored.dataobj)[0, 0, :5].tolist() == [-1000, 13, 32767, -32768, 0]
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("highest", "dtype"), [(200, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_label_map_is_stored_in_the_smallest_unsigned_type(
    tmp_path: Path, grid: Grid, highest: int, dtype: type
) -> None:
    label_map = np.zeros(SHAPE, dtype=np.int64)
    label_map[1, 2, 3] = highest
    volume_io.save_label_map(tmp_path / "a.nii.gz", label_map, grid)
    stored: Any = nib.load(tmp_path / "a.nii.gz")
    assert stored.get_data_dtype() == dtype
    loaded = volume_io.load_label_map(tmp_path / "a.nii.gz")
    assert loaded.array.dtype == dtype
    np.testing.assert_array_equal(loaded.array, label_map)


def test_same_array_gives_the_same_bytes_at_another_time_and_name(
    tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume_io.save_image(tmp_path / "a.nii.gz", image_hu, grid)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    volume_io.save_image(tmp_path / "b.nii.gz", np.asfortranarray(image_hu.astype(np.float64)), grid)
    assert whole_files.sha256_of(tmp_path / "a.nii.gz") == whole_files.sha256_of(tmp_path / "b.nii.gz")
    volume_io.save_image(tmp_path / "c.nii", image_hu, grid)
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == (tmp_path / "c.nii").read_bytes()


def test_whole_numbers_stored_as_float_are_a_label_map_and_fractions_are_not(tmp_path: Path, grid: Grid) -> None:
    array = np.zeros(SHAPE, dtype=np.float64)
    array[2, 2, 2] = 26.0
    loaded = volume_io.load_label_map(_write_nifti(tmp_path / "a.nii.gz", array, grid.affine))
    assert loaded.array.dtype == np.uint8
    assert loaded.array[2, 2, 2] == 26
    array[2, 2, 2] = 26.0000002  # as a scale factor in the header leaves it
    loaded = volume_io.load_label_map(_write_nifti(tmp_path / "a.nii.gz", array, grid.affine))
    assert loaded.array.dtype == np.uint8
    assert loaded.array[2, 2, 2] == 26
    for odd in ("inf", "-inf", "nan", "26.002"):
        array[2, 2, 2] = float(odd)
        with pytest.raises(VolumeError, match=f"labels must be integers, found {odd}\\. Is this an image"):
            volume_io.load_label_map(_write_nifti(tmp_path / "b.nii.gz", array, grid.affine))
    array[2, 2, 2] = 26.5
    with pytest.raises(VolumeError, match="b.nii.gz: labels must be integers, found 26.5"):
        volume_io.load_label_map(_write_nifti(tmp_path / "b.nii.gz", array, grid.affine))


@pytest.mark.parametrize("value", [-3, 70000])
def test_labels_out_of_range_are_refused(tmp_path: Path, grid: Grid, value: int) -> None:
    array = np.full(SHAPE, value, dtype=np.int32)
    with pytest.raises(VolumeError, match=f"between 0 and 65535, found {value}"):
        volume_io.load_label_map(_write_nifti(tmp_path / "a.nii.gz", array, grid.affine))
    with pytest.raises(VolumeError, match=f"found {value}"):
        volume_io.save_label_map(tmp_path / "b.nii.gz", array, grid)


def test_fractional_hu_stay_float32_and_nan_is_refused(tmp_path: Path, grid: Grid) -> None:
    array = np.full(SHAPE, 0.25, dtype=np.float64)
    loaded = volume_io.load_image(_write_nifti(tmp_path / "a.nii.gz", array, grid.affine))
    assert loaded.array.dtype == np.float32
    assert loaded.array.flags.c_contiguous
    array[0, 0, 0] = np.nan
    with pytest.raises(VolumeError, match="b.nii.gz: has NaN or infinite values"):
        volume_io.load_image(_write_nifti(tmp_path / "b.nii.gz", array, grid.affine))
    with pytest.raises(VolumeError, match="has NaN or infinite HU"):
        volume_io.save_image(tmp_path / "c.nii.gz", array, grid)


def test_fourth_axis_of_one_is_dropped_and_a_longer_one_refused(tmp_path: Path, grid: Grid) -> None:
    array = np.zeros((*SHAPE, 1), dtype=np.int16)
    assert volume_io.load_image(_write_nifti(tmp_path / "a.nii.gz", array, grid.affine)).array.shape == SHAPE
    with pytest.raises(VolumeError, match="three axes, found 7x9x11x2"):
        volume_io.load_image(_write_nifti(tmp_path / "b.nii.gz", np.repeat(array, 2, -1), grid.affine))


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(suffix, damage) for suffix in ("nii.gz", "nii", "nrrd", "mha") for damage in ("empty", "truncated", "text")]
    + [("nii.gz", "flipped")],  # the other formats carry no checksum
)
def test_damaged_file_is_named_in_one_sentence(
    tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16], suffix: str, damage: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    volume_io.save_image(tmp_path / "good.nii.gz", image_hu, grid)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "good.nii.gz")), str(path))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0x10
    damaged = {"empty": b"", "truncated": content[: len(content) * 2 // 3], "flipped": bytes(flipped)}
    path.write_bytes(damaged.get(damage, b"no image"))
    problem = r"(not a readable image, but damaged or empty \(.+\)|expected 1386 bytes of voxels, found \d+)"
    with pytest.raises(VolumeError, match=rf"a\.{suffix}: {problem}\. Replace the file\.") as caught:
        volume_io.load_image(path)
    assert "\n" not in str(caught.value)
    assert "Exception thrown" not in str(caught.value)


def test_missing_file_and_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="gone.nii.gz: not found"):
        volume_io.load_image(tmp_path / "gone.nii.gz")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(VolumeError, match=r"a.png: the name must end in one of .nii.gz"):
        volume_io.load_image(tmp_path / "a.png")


def test_wrong_shape_dtype_or_name_is_refused_before_writing(tmp_path: Path, grid: Grid) -> None:
    with pytest.raises(VolumeError, match=r"grid's shape \(7, 9, 11\), found \(11, 9, 7\)"):
        volume_io.save_image(tmp_path / "a.nii.gz", np.zeros(SHAPE[::-1], np.int16), grid)
    with pytest.raises(VolumeError, match="expected integer labels, found float64"):
        volume_io.save_label_map(tmp_path / "a.nii.gz", np.zeros(SHAPE), grid)
    with pytest.raises(VolumeError, match="the name must end in .nii.gz or .nii"):
        volume_io.save_image(tmp_path / "a.mha", np.zeros(SHAPE, np.int16), grid)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing_and_keeps_the_old_file(
    tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    volume_io.save_image(path, image_hu, grid)
    before = path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(VolumeError, match=r"a.nii.gz: cannot be written: No space left on device"):
        volume_io.save_image(path, image_hu + 1, grid)
    assert path.read_bytes() == before
    assert [left.name for left in tmp_path.iterdir()] == ["a.nii.gz"]


def test_grid_is_told_by_the_header_alone(tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16]) -> None:
    path = _write_nifti(tmp_path / "a.nii.gz", np.tile(image_hu, (1, 1, 4)), grid.affine @ np.diag([-1, 1, 1, 1]))
    whole = volume_io.load_image(path).grid
    assert volume_io.load_grid(path).is_close(whole)
    path.write_bytes(path.read_bytes()[:-200])  # the last voxels are cut off
    assert volume_io.load_grid(path).is_close(whole)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image_hu), str(tmp_path / "a.mha"))
    assert volume_io.load_grid(tmp_path / "a.mha").is_close(volume_io.load_image(tmp_path / "a.mha").grid)
    (tmp_path / "b.nii.gz").write_bytes(b"x")
    with pytest.raises(VolumeError, match="b.nii.gz: not a readable image, but damaged or empty"):
        volume_io.load_grid(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axial_slice_is_that_of_the_volume(
    tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16], flips: tuple[int, ...], suffix: str
) -> None:
    shift = [0.0 if flip == 1 else side - 1.0 for flip, side in zip(flips, SHAPE, strict=True)]
    to_ras = np.diag([*map(float, flips), 1.0])
    to_ras[:3, 3] = shift
    stored = np.flip(image_hu, tuple(axis for axis, flip in enumerate(flips) if flip == -1))
    image = nib.Nifti1Image(stored, grid.affine @ to_ras)
    image.header.set_slope_inter(2.0, -5.0)
    path = tmp_path / f"a{suffix}"
    image.to_filename(path)
    whole = volume_io.load_image(path)
    for index in (0, 4, SHAPE[2] - 1):
        found = volume_io.load_axial_slice(path, index)
        assert found is not None
        np.testing.assert_array_equal(found.array, whole.array[:, :, index : index + 1])
        np.testing.assert_allclose(found.grid.affine[:3, 3], (whole.grid.affine @ [0, 0, index, 1])[:3], atol=1e-4)


def test_axial_slice_of_a_file_that_stores_others_or_of_another_format_is_none(
    tmp_path: Path, image_hu: NDArray[np.int16]
) -> None:
    sagittal = _write_nifti(tmp_path / "a.nii.gz", image_hu, np.eye(4)[[2, 0, 1, 3]])
    assert volume_io.load_axial_slice(sagittal, 0) is None
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image_hu), str(tmp_path / "a.mha"))
    assert volume_io.load_axial_slice(tmp_path / "a.mha", 0) is None


def test_axial_slice_that_a_file_does_not_hold_is_refused(
    tmp_path: Path, grid: Grid, image_hu: NDArray[np.int16]
) -> None:
    path = _write_nifti(tmp_path / "a.nii.gz", image_hu, grid.affine)
    with pytest.raises(VolumeError, match="it has no slice 11"):
        volume_io.load_axial_slice(path, SHAPE[2])
    path.write_bytes(path.read_bytes()[:-200])
    assert volume_io.load_axial_slice(path, 0) is not None
    with pytest.raises(VolumeError, match="a.nii.gz: not a readable image, but damaged or empty"):
        volume_io.load_axial_slice(path, SHAPE[2] - 1)


def test_stored_grid_keeps_the_axes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lps.nii.gz"
    grid = Grid((7, 9, 11), np.diag([-0.7, -0.8, 2.5, 1.0]))
    volume_io.save_image(path, np.zeros(grid.shape, np.int16), grid)
    np.testing.assert_allclose(volume_io.load_stored_grid(path).affine, grid.affine, atol=1e-6)
    assert volume_io.load_image(path).grid.affine[0, 0] > 0


def test_stored_grid_of_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(VolumeError, match="damaged.nii.gz: not a readable NIfTI file"):
        volume_io.load_stored_grid(path)
