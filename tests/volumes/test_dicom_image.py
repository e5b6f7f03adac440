"""Every slice of a DICOM image lies where its own header puts it and has its own rescale, or the image is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.dicom_files import find_label_objects, find_volumes, holds_slices, is_dicom
from maisi_aug.volumes.image_files import load_grid, load_image, load_label_map
from tests.builders.made_dicom import AXIAL, add_pixels, build_header, write_enhanced, write_series

SPACING_MM = (0.7, 0.8, 2.5)
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture
def hu_kji() -> NDArray[np.float64]:
    return np.random.default_rng(3).integers(-1000, 1500, (11, 9, 7)).astype(np.float64)


def tilted(degrees: float) -> tuple[float, ...]:
    """Rows along L, columns leaning by an angle, as of a gantry that was tilted."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (1.0, 0.0, 0.0, 0.0, float(c), float(-s))


def value_at(volume: Any, point_lps: NDArray[np.float64]) -> float:
    """The value of the voxel that lies at a point."""
    index = np.linalg.solve(volume.grid.affine, [*(point_lps * LPS_TO_RAS), 1.0])[:3]
    assert np.abs(index - np.rint(index)).max() < 0.01
    return float(volume.array[tuple(np.rint(index).astype(int))])


def oblique(degrees: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions of an orthogonal image that stands at an angle, and its normal."""
    a = np.deg2rad(degrees)
    row, column = np.array([np.cos(a), np.sin(a), 0]), np.array([-np.sin(a) * 0.8, np.cos(a) * 0.8, -0.6])
    return np.concatenate([row, column]), np.cross(row, column)


@pytest.mark.parametrize("writer", ["series", "enhanced"])
@pytest.mark.parametrize("degrees", [0, 10, 80, -130])
def test_every_voxel_lies_where_its_slice_says(
    tmp_path: Path, hu_kji: NDArray[np.float64], writer: str, degrees: float
) -> None:
    direction, normal = oblique(degrees)
    places = [np.array([5.0, 7.0, -30.0]) + 2.5 * k * normal for k in range(11)]
    order = np.random.default_rng(0).permutation(11).tolist()
    if writer == "series":
        path = write_series(
            tmp_path / "s", hu_kji, direction=direction, place=lambda k: places[k], name=lambda k: f"{order[k]:03d}.dcm"
        )
    else:
        path = write_enhanced(tmp_path / "s.dcm", hu_kji, direction=direction, place=lambda k: places[k], order=order)
    volume = load_image(path)
    assert volume.array.dtype == np.int16
    for k, j, i in [(0, 0, 0), (10, 8, 6), (3, 2, 5), (7, 8, 0)]:
        point = places[k] + i * 0.7 * direction[:3] + j * 0.8 * direction[3:]
        assert value_at(volume, point) == hu_kji[k, j, i]
    assert load_grid(path).is_close(volume.grid)


@pytest.mark.parametrize("degrees", [-18.5, 2, 14])
def test_tilted_series_is_resampled_and_says_so(tmp_path: Path, degrees: float) -> None:
    direction = np.asarray(tilted(degrees))
    k, j, i = np.mgrid[:40, :64, :48]
    at = np.stack([0.7 * i, 0.8 * j * direction[4], 2.5 * k + 0.8 * j * direction[5]], axis=-1)
    slope_hu = np.array([5.0, 7.0, 11.0])  # HU per mm: linear interpolation keeps such a ramp
    path = write_series(tmp_path / "s", at @ slope_hu, direction=direction, rescale=lambda _: (0.05, -1024.0))
    with pytest.warns(UserWarning, match="s: voxel axes are not at right angles .axes that meet at .* degrees"):
        volume = load_image(path)
    assert volume.grid.has_right_angles
    assert load_grid(path).is_close(volume.grid)
    indices = np.indices(volume.grid.shape).reshape(3, -1).T
    points = (indices @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]) * LPS_TO_RAS
    back = (points - at[0, 0, 0]) @ np.linalg.inv(np.stack([at[0, 0, 1], at[0, 1, 0], at[1, 0, 0]])) + 1e-9
    inside = ((back >= 0) & (back <= np.array([47, 63, 39]) + 2e-9)).all(axis=1)
    assert inside.sum() > 0.9 * at[..., 0].size
    np.testing.assert_allclose(volume.array.ravel()[inside], (points @ slope_hu)[inside], atol=0.06)
    outside = ((back < -0.51) | (back > np.array([47, 63, 39]) + 0.51)).any(axis=1)
    assert (volume.array.ravel()[outside] == at.reshape(-1, 3).dot(slope_hu).min().round(2)).mean() > 0.99


def test_tilted_enhanced_image_is_refused(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    path = write_enhanced(tmp_path / "s.dcm", hu_kji, direction=tilted(15))
    with pytest.raises(
        VolumeError, match="frames of this enhanced image are tilted against their normal, which is not"
    ):
        load_image(path)


def test_rounded_positions_are_no_tilt(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    drift = np.random.default_rng(1).uniform(-0.004, 0.004, (11, 3))
    path = write_series(tmp_path / "s", hu_kji, place=lambda k: np.array([0.0, 0.0, 2.5 * k]) + drift[k])
    np.testing.assert_allclose(load_image(path).grid.affine[:3, :3], np.diag(SPACING_MM), atol=1e-3)


@pytest.mark.parametrize("writer", ["series", "enhanced"])
def test_every_slice_has_its_own_rescale(tmp_path: Path, hu_kji: NDArray[np.float64], writer: str) -> None:
    def rescale(k: int) -> tuple[float, float]:
        return ((1.0, -1024.0), (1.0, -2047.0), (0.5, -1024.0))[min(k // 3, 2)]

    hu_kji = hu_kji + np.where(np.arange(11) >= 6, 0.5, 0.0)[:, None, None]
    if writer == "series":
        path = write_series(tmp_path / "s", hu_kji, rescale=rescale)
    else:
        path = write_enhanced(tmp_path / "s.dcm", hu_kji, rescale=rescale)
    volume = load_image(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[::-1, ::-1], hu_kji.transpose(2, 1, 0))


def test_slices_of_other_types_are_not_cut_to_the_first_ones(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    def store_signed(k: int, dataset: Dataset) -> None:
        if k == 0:
            add_pixels(dataset, np.clip(hu_kji[0] / 10 + 100, 0, 255).astype(np.uint8).astype(np.uint16))
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit = 7
            dataset.RescaleIntercept = "0"
            dataset.PixelData = np.full(hu_kji[0].shape, 7, np.uint8).tobytes() + b"\0"

    volume = load_image(write_series(tmp_path / "s", hu_kji, change=store_signed))
    np.testing.assert_array_equal(volume.array[::-1, ::-1, 1:], hu_kji.transpose(2, 1, 0)[..., 1:])
    assert (volume.array[..., 0] == 7).all()


def test_bits_beyond_those_in_use_are_cut(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    def narrow(k: int, dataset: Dataset) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16) & 0x0FFF
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = (stored | (k % 3) << 13).astype(np.uint16).tobytes()  # an overlay in the upper bits

    volume = load_image(write_series(tmp_path / "s", hu_kji, change=narrow))
    np.testing.assert_array_equal(volume.array[::-1, ::-1], hu_kji.transpose(2, 1, 0))


def test_signed_values_keep_their_sign(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    def sign(k: int, dataset: Dataset) -> None:
        add_pixels(dataset, hu_kji[k].astype(np.int16))
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = (hu_kji[k].astype(np.int16) & 0x0FFF).astype(np.uint16).tobytes()
        dataset.RescaleIntercept = "0"

    volume = load_image(write_series(tmp_path / "s", hu_kji, change=sign))
    np.testing.assert_array_equal(volume.array[::-1, ::-1], hu_kji.transpose(2, 1, 0))


def test_compressed_slices_have_their_own_rescale_too(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    def compress(_: int, dataset: Dataset) -> None:
        dataset.compress(RLELossless)

    hu_kji = hu_kji + np.where(np.arange(11) >= 6, 0.5, 0.0)[:, None, None]
    path = write_series(
        tmp_path / "s", hu_kji, change=compress, rescale=lambda k: (0.5, -1024.0) if k >= 6 else (1.0, -1024.0)
    )
    np.testing.assert_array_equal(load_image(path).array[::-1, ::-1], hu_kji.transpose(2, 1, 0))


def test_cut_pixels_are_named(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    path = write_series(tmp_path / "s", hu_kji, change=set_on(4, PixelData=b"1234"))
    with pytest.raises(VolumeError, match=r"1-005.dcm: expected 9x7 pixels of 16 bits, found 4 bytes"):
        load_image(path)


def set_on(k: int, **values: Any) -> Callable[[int, Dataset], None]:
    def change(number: int, dataset: Dataset) -> None:
        for keyword, value in values.items() if number == k else ():
            setattr(dataset, keyword, value)

    return change


def delete(keyword: str) -> Callable[[int, Dataset], None]:
    return lambda _, dataset: delattr(dataset, keyword)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"change": delete("ImagePositionPatient")}, "ImagePositionPatient must be 3 numbers, found none"),
        ({"change": delete("ImageOrientationPatient")}, "ImageOrientationPatient must be 6 numbers, found none"),
        ({"change": delete("PixelSpacing")}, "PixelSpacing must be 2 numbers, found none"),
        ({"change": set_on(3, PixelSpacing=[0, 0.7])}, "PixelSpacing must be positive, found"),
        ({"change": set_on(3, PixelSpacing=[0.9, 0.7])}, "PixelSpacing differs between slices:"),
        ({"change": set_on(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])}, "orientation differs between slices:"),
        (
            {"change": set_on(3, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])},
            "ImageOrientationPatient must be two perpendicular directions, found",
        ),
        ({"change": set_on(3, RescaleType="ED")}, "values must be in HU, found RescaleType ED"),
        ({"change": set_on(3, RescaleSlope="0")}, "RescaleSlope is 0"),
        ({"change": set_on(3, RescaleSlope=None)}, "of 11 slices have a RescaleSlope"),
        ({"place": lambda _: (0, 0, 0)}, "two slices at the same position,"),
        ({"place": lambda k: (0, 0, 2.5 * (k // 2))}, "two slices at the same position,"),
        (
            {"place": lambda k: (0, 0, 2.5 * k + 20 * (k > 5))},
            "slices are 2.50 mm apart, but 22.50 mm between slices 6",
        ),
        ({"place": lambda k: (3 * (k == 5), 0, 2.5 * k)}, "slices are"),
        ({"place": lambda k: (0.6 * (k == 5), 0, 2.5 * k)}, "slices are not on one line: slice 6 of 11"),
    ],
)
def test_series_whose_voxels_are_not_certain_is_refused(
    tmp_path: Path, hu_kji: NDArray[np.float64], arguments: dict[str, Any], message: str
) -> None:
    path = write_series(tmp_path / "s", hu_kji, **arguments)
    for load in (load_image, load_grid):
        with pytest.raises(VolumeError, match=message):
            load(path)


def test_two_slices_are_checked_like_twenty(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    with pytest.raises(VolumeError, match="two slices at the same position,"):
        load_image(write_series(tmp_path / "same", hu_kji[:2], place=lambda _: (1, 2, 3)))
    volume = load_image(write_series(tmp_path / "good", hu_kji[:2], place=lambda k: (0, 0, -4 * k)))
    np.testing.assert_allclose(volume.grid.spacing_mm, (0.7, 0.8, 4))
    np.testing.assert_array_equal(volume.array[::-1, ::-1, ::-1], hu_kji[:2].transpose(2, 1, 0))


def test_single_slice_has_the_thickness_of_its_header(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    path = write_series(tmp_path / "one", hu_kji[:1])
    np.testing.assert_allclose(load_image(path / "1-001.dcm").grid.spacing_mm, SPACING_MM)
    path = write_series(tmp_path / "none", hu_kji[:1], change=delete("SliceThickness"))
    with pytest.raises(
        VolumeError, match="a single slice needs SliceThickness or SpacingBetweenSlices, and has neither"
    ):
        load_image(path)


def test_frames_without_places_or_in_colour_are_refused(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    def strip(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence

    path = write_enhanced(tmp_path / "bare.dcm", hu_kji, change=strip)
    with pytest.raises(VolumeError, match="the 11 frames have no positions"):
        load_image(path)


def test_gap_between_frames_is_refused(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    path = write_enhanced(tmp_path / "s.dcm", hu_kji, place=lambda k: (0, 0, 2.5 * k + 20 * (k > 5)))
    with pytest.raises(VolumeError, match="slices are 2.50 mm apart, but 22.50 mm between slices"):
        load_image(path)


def test_enhanced_image_in_several_files_is_one(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    uid = generate_uid()

    def join(dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = uid

    write_enhanced(tmp_path / "a.dcm", hu_kji[:6], change=join)
    write_enhanced(tmp_path / "b.dcm", hu_kji[6:], place=lambda k: (0, 0, 2.5 * (k + 6)), change=join)
    np.testing.assert_array_equal(load_image(tmp_path).array[::-1, ::-1], hu_kji.transpose(2, 1, 0))


@pytest.mark.parametrize("name", ["IM{:05d}", "{:04d}.IMA", "{:04d}.dcm", "1.2.840.{}", "study/series/1-{:03d}"])
def test_slices_are_found_by_content_under_any_name(tmp_path: Path, hu_kji: NDArray[np.float64], name: str) -> None:
    folder = tmp_path / "P1"
    inner = folder / "study" / "series" if "/" in name else folder
    write_series(inner, hu_kji, name=lambda k: name.rpartition("/")[2].format(k))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.dcm").write_bytes(b"x")
    np.testing.assert_array_equal(load_image(folder).array[::-1, ::-1], hu_kji.transpose(2, 1, 0))
    assert holds_slices(tmp_path)
    assert find_volumes(tmp_path) == [folder]
    first = next(path for path in sorted(inner.iterdir()) if is_dicom(path))
    assert load_image(first).array.shape == (7, 9, 1)


def test_scouts_and_objects_beside_a_series_are_left_out(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    write_series(tmp_path / "P1" / "ct", hu_kji)
    scout = set_on(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "P1" / "scout", hu_kji[:1], direction=(0, 1, 0, 0, 0, -1), change=scout)
    dose = build_header("1.2.840.10008.5.1.4.1.1.481.2")
    add_pixels(dose, np.zeros((4, 4), np.uint16))
    dose.save_as(tmp_path / "P1" / "dose.dcm", enforce_file_format=True)
    assert load_image(tmp_path / "P1").array.shape == (7, 9, 11)
    with pytest.raises(VolumeError, match="expected one DICOM series, found no DICOM file but an RT dose"):
        load_image(tmp_path / "P1" / "dose.dcm")
    write_series(tmp_path / "P1" / "again", hu_kji)
    with pytest.raises(VolumeError, match="expected one DICOM series, found 3 series"):
        load_image(tmp_path / "P1")


def test_files_with_frames_are_cases_of_their_own(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    paths = [write_enhanced(tmp_path / f"P{n}.dcm", hu_kji) for n in (1, 2)]
    assert find_volumes(tmp_path) == paths
    write_series(tmp_path / "P3", hu_kji)
    assert find_volumes(tmp_path) == [*paths, tmp_path / "P3"]
    assert find_label_objects(tmp_path) == []


def test_damaged_dicom_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s" / "a.dcm"
    path.parent.mkdir()
    for content in (b"", b"no image", b"\0" * 128 + b"DICM" + b"\xff" * 40):
        path.write_bytes(content)
        for target in (path, path.parent):
            with pytest.raises(VolumeError, match=rf"{re.escape(str(path))}: not a readable DICOM file"):
                load_image(target)
    assert find_volumes(tmp_path) == [path.parent]
    with pytest.raises(VolumeError, match="not a readable DICOM file"):
        load_label_map(path)


def test_axial_series_keeps_its_grid(tmp_path: Path, hu_kji: NDArray[np.float64]) -> None:
    grid = load_image(write_series(tmp_path / "s", hu_kji, direction=AXIAL)).grid
    np.testing.assert_allclose(grid.affine[:3, :3], np.diag(SPACING_MM), atol=1e-9)
