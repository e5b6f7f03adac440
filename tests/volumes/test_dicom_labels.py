"""Segmentations and structure sets become label maps on their CT's grid, segment by segment, contour by contour."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.image_files import load_drawn_names, load_grid, load_image, load_label_map
from tests.builders.made_dicom import write_segmentation, write_series, write_structures

SHAPE_KJI = (12, 18, 26)
SPACING_MM = (0.7, 0.8, 2.5)

Masks = dict[str, NDArray[np.bool_]]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A CT that is neither square nor at the origin."""
    hu = np.random.default_rng(2).integers(-1000, 500, SHAPE_KJI)
    return write_series(tmp_path / "ct", hu, place=lambda k: (-11.0, 23.0, 2.5 * k - 300))


@pytest.fixture
def masks() -> Masks:
    """Two organs apart from each other, neither on the first or last slices."""
    liver, spleen = np.zeros(SHAPE_KJI, dtype=bool), np.zeros(SHAPE_KJI, dtype=bool)
    liver[2:5, 3:9, 4:20] = True
    liver[7:9, 4:8, 5:9] = True
    spleen[4:10, 10:17, 15:25] = True
    return {"liver": liver, "spleen": spleen}


def to_ras(array_kji: NDArray[np.generic]) -> NDArray[np.generic]:
    """``(slice, row, column)`` of an axial CT as the reader turns it."""
    return array_kji.transpose(2, 1, 0)[::-1, ::-1]


def label(masks: Masks) -> NDArray[np.uint8]:
    merged = np.zeros(SHAPE_KJI, dtype=np.uint8)
    for number, mask in enumerate(masks.values(), start=1):
        merged[mask] = number
    return merged


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("omit_empty", [True, False])
def test_segments_lie_on_the_cts_grid(tmp_path: Path, series: Path, masks: Masks, kind: str, omit_empty: bool) -> None:
    path = write_segmentation(tmp_path / "seg.dcm", series, masks, kind=kind, omit_empty=omit_empty)
    volume = load_label_map(path, image=series)
    np.testing.assert_array_equal(volume.array, to_ras(label(masks)))
    assert volume.grid.is_close(load_grid(series))
    assert load_drawn_names(path) == {1: "liver", 2: "spleen"}


def test_sparse_frames_keep_their_places_without_a_ct(tmp_path: Path, series: Path, masks: Masks) -> None:
    path = write_segmentation(tmp_path / "seg.dcm", series, masks)
    volume = load_label_map(path)
    np.testing.assert_array_equal(volume.array, to_ras(label(masks)[2:10]))
    np.testing.assert_allclose(volume.grid.spacing_mm, SPACING_MM, rtol=1e-6)
    np.testing.assert_allclose(volume.grid.affine[:3, 3] - load_grid(series).affine[:3, 3], [0, 0, 5], atol=1e-6)


def test_single_frame_and_frames_far_apart_keep_their_places(tmp_path: Path, series: Path) -> None:
    for number, slices in enumerate(([5], [2, 8], [1, 7, 10])):
        mask = np.zeros(SHAPE_KJI, dtype=bool)
        mask[slices, 3:9, 4:20] = True
        path = write_segmentation(tmp_path / f"seg{number}.dcm", series, {"liver": mask})
        np.testing.assert_array_equal(load_label_map(path, image=series).array, to_ras(mask.astype(np.uint8)))


def test_fractions_from_a_half_are_inside(tmp_path: Path, series: Path, masks: Masks) -> None:
    shares = {name: np.where(mask, 0.6, 0.0) for name, mask in masks.items()}
    shares["liver"][2] *= 0.5
    path = write_segmentation(tmp_path / "seg.dcm", series, shares, kind="FRACTIONAL")
    masks["liver"][2] = False
    np.testing.assert_array_equal(load_label_map(path, image=series).array, to_ras(label(masks)))


@pytest.mark.parametrize(("name", "is_abnormal"), [("hepatic tumor", False), ("region 7", True)])
def test_lesion_wins_over_its_organ_and_the_overlap_is_said(
    tmp_path: Path, series: Path, masks: Masks, name: str, is_abnormal: bool
) -> None:
    lesion = np.zeros(SHAPE_KJI, dtype=bool)
    lesion[3:5, 4:9, 5:15] = True
    small = np.zeros(SHAPE_KJI, dtype=bool)
    small[4, 4:6, 5:7] = True
    drawn = {name: lesion, "liver": masks["liver"], "gallbladder": small}
    path = write_segmentation(tmp_path / "seg.dcm", series, drawn, lesions=[name] if is_abnormal else [])
    with pytest.warns(UserWarning, match=f"seg.dcm: labels overlap .*{name} in liver"):
        volume = load_label_map(path, image=series)
    np.testing.assert_array_equal(volume.array == 1, to_ras(lesion))
    np.testing.assert_array_equal(volume.array == 2, to_ras(masks["liver"] & ~lesion))


def test_segmentation_of_a_tilted_ct_follows_it(tmp_path: Path, masks: Masks) -> None:
    direction = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.2)), float(-np.sin(0.2)))
    hu = np.where(masks["liver"], 100, -1000)
    series = write_series(tmp_path / "ct", hu, direction=direction)
    path = write_segmentation(tmp_path / "seg.dcm", series, {"liver": masks["liver"]})
    with pytest.warns(UserWarning, match="voxel axes are not at right angles"):
        image = load_image(series)
    volume = load_label_map(path, image=series)
    assert volume.grid.is_close(image.grid)
    assert (image.array[volume.array == 1] > -451).all()
    assert (image.array[volume.array == 0] < -449).all()
    assert int((volume.array == 1).sum()) == pytest.approx(int(masks["liver"].sum()), rel=0.05)


def test_segmentation_of_another_ct_keeps_its_own_grid(tmp_path: Path, series: Path, masks: Masks) -> None:
    path = write_segmentation(tmp_path / "seg.dcm", series, masks)
    other = write_series(tmp_path / "other", np.zeros(SHAPE_KJI), place=lambda k: (-11.3, 23.0, 2.5 * k - 300))
    assert not load_label_map(path, image=other).grid.is_close(load_grid(other))
    shorter = write_series(tmp_path / "short", np.zeros(SHAPE_KJI)[:6], place=lambda k: (-11.0, 23.0, 2.5 * k - 300))
    with pytest.raises(VolumeError, match="seg.dcm: some segments are outside the CT"):
        load_label_map(path, image=shorter)


@pytest.mark.parametrize("load", [load_image, load_grid])
def test_segmentation_is_no_image(tmp_path: Path, series: Path, masks: Masks, load: object) -> None:
    path = write_segmentation(tmp_path / "seg.dcm", series, masks)
    with pytest.raises(VolumeError, match="expected one DICOM series, found no DICOM file but a DICOM segmentation"):
        load(path)  # type: ignore[operator]


def test_without_the_extra_a_segmentation_is_refused_by_its_class(
    tmp_path: Path, series: Path, masks: Masks, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_segmentation(tmp_path / "seg.dcm", series, masks)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(VolumeError, match="is read with highdicom, which is missing"):
        load_label_map(path, image=series)


def test_damaged_segmentation_is_refused(tmp_path: Path, series: Path, masks: Masks) -> None:
    import pydicom

    dataset = pydicom.dcmread(write_segmentation(tmp_path / "seg.dcm", series, masks))
    del dataset.SegmentSequence
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(VolumeError, match="seg.dcm: highdicom cannot read this DICOM segmentation:"):
        load_label_map(tmp_path / "seg.dcm", image=series)


# Structure sets.


def rectangle(k: float, rows: tuple[float, float], columns: tuple[float, float]) -> NDArray[np.float64]:
    """A contour on slice ``k`` whose corners lie at these rows and columns, LPS mm."""
    (j0, j1), (i0, i1) = rows, columns
    ij = np.array([(i0, j0), (i1, j0), (i1, j1), (i0, j1)])
    return np.column_stack([ij[:, 0] * 0.7 - 11, ij[:, 1] * 0.8 + 23, np.full(4, 2.5 * k - 300)])


def test_contours_fill_the_voxels_whose_centres_they_enclose(tmp_path: Path, series: Path) -> None:
    contours = {
        "liver": [rectangle(k, (2.5, 8.5), (3.5, 19.5)) for k in (2, 3, 5)],
        "spleen": [rectangle(5, (10.5, 16.5), (14.5, 25.5))],
    }
    path = write_structures(tmp_path / "rt.dcm", contours)
    volume = load_label_map(path, image=series)
    expected = np.zeros(SHAPE_KJI, dtype=np.uint8)
    expected[[2, 3, 5], 3:9, 4:20] = 1
    expected[5, 11:17, 15:26] = 2
    np.testing.assert_array_equal(volume.array, to_ras(expected))
    assert volume.grid.is_close(load_grid(series))
    assert load_drawn_names(path) == {1: "liver", 2: "spleen"}


def test_round_contour_has_the_area_of_its_circle(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", np.zeros((3, 140, 90)))
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.column_stack([31 + 21 * np.cos(angle), 57 + 21 * np.sin(angle), np.full(200, 2.5)])
    volume = load_label_map(write_structures(tmp_path / "rt.dcm", {"liver": [circle]}), image=series)
    assert int(volume.array.sum()) * 0.7 * 0.8 == pytest.approx(np.pi * 21**2, rel=0.005)
    j, i = np.mgrid[:140, :90]
    inside = np.hypot(0.7 * i - 31, 0.8 * j - 57) < 21
    expected = np.stack([np.zeros_like(inside), inside, np.zeros_like(inside)])
    assert np.count_nonzero(volume.array != to_ras(expected)) <= 2  # a polygon lies within its circle


def test_contour_inside_another_one_is_a_hole_and_nested_structures_show(tmp_path: Path, series: Path) -> None:
    contours = {
        "GTV": [rectangle(4, (7.5, 9.5), (8.5, 10.5))],
        "body": [rectangle(4, (0.5, 16.5), (0.5, 24.5)), rectangle(4, (10.5, 12.5), (15.5, 20.5))],
        "liver": [rectangle(4, (4.5, 10.5), (4.5, 12.5))],
    }
    path = write_structures(tmp_path / "rt.dcm", contours)
    with pytest.warns(UserWarning, match="rt.dcm: labels overlap"):
        volume = load_label_map(path, image=series)
    expected = np.zeros(SHAPE_KJI, dtype=np.uint8)
    expected[4, 1:17, 1:25] = 2
    expected[4, 11:13, 16:21] = 0
    expected[4, 5:11, 5:13] = 3
    expected[4, 8:10, 9:11] = 1
    np.testing.assert_array_equal(volume.array, to_ras(expected))


@pytest.mark.parametrize(
    ("contour", "message"),
    [
        (rectangle(4.4, (1, 5), (1, 5)), "a contour lies 1.00 mm from the CT's nearest slice, slice 5"),
        (rectangle(14, (1, 5), (1, 5)), "a contour is outside the CT"),
        (rectangle(4, (1, 5), (1, 45)), "a contour is outside the CT"),
    ],
)
def test_contours_of_another_ct_are_refused(
    tmp_path: Path, series: Path, contour: NDArray[np.float64], message: str
) -> None:
    path = write_structures(tmp_path / "rt.dcm", {"liver": [contour]})
    with pytest.raises(VolumeError, match=f"rt.dcm, 'liver': {message}"):
        load_label_map(path, image=series)


def test_structures_need_a_ct_and_closed_contours(tmp_path: Path, series: Path) -> None:
    path = write_structures(tmp_path / "rt.dcm", {"liver": [rectangle(4, (1, 5), (1, 5))]}, kind="OPEN_PLANAR")
    with pytest.raises(VolumeError, match="an RT structure set needs the grid of its CT"):
        load_label_map(path)
    with pytest.raises(VolumeError, match="has no closed contours"):
        load_label_map(path, image=series)


def test_points_beside_contours_are_left_out_and_said(tmp_path: Path, series: Path) -> None:
    import pydicom

    path = write_structures(
        tmp_path / "rt.dcm",
        {"liver": [rectangle(4, (0.5, 5.5), (0.5, 5.5))], "isocentre": [rectangle(4, (1, 2), (1, 2))]},
    )
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "POINT"
    dataset.save_as(path)
    with pytest.warns(UserWarning, match="isocentre"):
        volume = load_label_map(path, image=series)
    assert int(volume.array.sum()) == 25


def test_structures_numbered_from_zero_are_all_there(tmp_path: Path, series: Path) -> None:
    import pydicom

    contours = {
        "liver": [rectangle(k, (2.5, 8.5), (3.5, 19.5)) for k in (2, 3)],
        "rib": [rectangle(3, (10.5, 16.5), (4.0, 4.0))[:, [0, 1, 2]], rectangle(4, (10.5, 16.5), (14.5, 15.5))],
    }
    path = write_structures(tmp_path / "rt.dcm", contours)
    dataset = pydicom.dcmread(path)
    for number in (0, 1):
        dataset.StructureSetROISequence[number].ROINumber = number
        dataset.ROIContourSequence[number].ReferencedROINumber = number
    dataset.save_as(path)
    volume = load_label_map(path, image=series)
    assert np.bincount(volume.array.ravel())[1:].tolist() == [2 * 6 * 16, 6]
    assert load_drawn_names(path) == {1: "liver", 2: "rib"}


def test_tilted_ct_keeps_the_planes_of_its_contours(tmp_path: Path) -> None:
    c, s = float(np.cos(0.2)), float(np.sin(0.2))
    series = write_series(tmp_path / "ct", np.full(SHAPE_KJI, -1000), direction=(1, 0, 0, 0, c, -s))
    ij = np.array([(2.5, 3.5), (20.5, 3.5), (20.5, 12.5), (2.5, 12.5)])
    contour = np.column_stack([ij[:, 0] * 0.7, ij[:, 1] * 0.8 * c, 7.5 - ij[:, 1] * 0.8 * s])
    path = write_structures(tmp_path / "rt.dcm", {"liver": [contour]})
    volume = load_label_map(path, image=series)
    assert int(volume.array.sum()) == 18 * 9
    points = np.argwhere(volume.array) @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]
    np.testing.assert_allclose(points.mean(axis=0) * [-1, -1, 1], contour.mean(axis=0), atol=0.5)
