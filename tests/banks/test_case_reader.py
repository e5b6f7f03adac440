"""Every way in asks the same of a CT and of its label map: HU, and one place."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.banks.case_reader import load_ct, place_labels, require_hu
from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_ids import guess_maisi_ids
from maisi_aug.cohort.balance import SizeBins, read_targets
from maisi_aug.cohort.census import take_census
from maisi_aug.errors import BankError, BenchmarkError, MaisiAugError, VolumeError
from maisi_aug.evaluation.benchmark.cases import find_real_cases
from maisi_aug.evaluation.benchmark.data import load_case
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.preparation.case import load_organs
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.preparation.survey import survey_case
from maisi_aug.vocabulary.labels import BODY_ID, MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, save_image, save_label_map
from tests.builders.tiny_bank import build_ct, build_trunk, trunk_grid

CASE = ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")


def write_case(folder: Path, labels: NDArray[Any], grid: Grid, change: Callable[[Any], Any] = lambda hu: hu) -> Path:
    save_image(folder / CASE[0], change(build_ct(build_trunk())), trunk_grid())
    save_label_map(folder / CASE[1], labels, grid)
    names = {"background": 0, "liver": 1, "hepatic tumor": 2}
    document = {"channel_names": {"0": "CT"}, "labels": names, "file_ending": ".nii.gz", "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def own_labels() -> NDArray[np.uint8]:
    labels: NDArray[np.uint8] = (build_trunk() == 1).astype(np.uint8)
    middle = np.argwhere(labels).mean(axis=0).astype(int)
    labels[tuple(slice(side, side + 2) for side in middle)] = 2
    return labels


def cut(labels: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Grid]:
    """The labels cropped to themselves, as 3D Slicer stores them."""
    found = np.argwhere(labels)
    low, high = found.min(axis=0), found.max(axis=0) + 1
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ low
    part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    i, j, k = part.shape
    return part, Grid((i, j, k), affine)


def read_bank(folder: Path) -> Volume:
    bank = FolderBank(folder, vocabulary=MAISI, grid=trunk_grid(), min_cover=0.0)
    found = bank.load(0)
    if found is None:
        raise VolumeError(bank.fault_of(0))
    return Volume(np.where(found.label_map == 26, 2, found.label_map == 1), found.grid)


def read_evaluated(folder: Path) -> Volume:
    found = find_case_set(folder, vocabulary=MAISI)
    image, label_map = found.load_pair(found.cases[0])
    return Volume(np.where(label_map == 26, 2, label_map == 1), image.grid)


def read_benchmark(folder: Path) -> Volume:
    source = find_real_cases(folder, None)
    case = load_case(source.cases[0], source.label_ids)
    return Volume(case.classes, case.grid)


def read_prepared(folder: Path) -> Volume:
    files = SourceCase("a", folder / CASE[0], (LabelFile(folder / CASE[1]),))
    survey = survey_case(files)
    load_ct(files.image)
    if survey.problem:
        raise VolumeError(survey.problem)
    return Volume(np.zeros(0), trunk_grid())


def read_census(folder: Path) -> Volume:
    targets = read_targets(["hepatic tumor"], vocabulary=MAISI, bins=SizeBins())
    take_census(folder, targets, vocabulary=MAISI)
    return Volume(np.zeros(0), trunk_grid())


WAYS = {
    "mask bank": read_bank,
    "evaluate": read_evaluated,
    "benchmark": read_benchmark,
    "prepare": read_prepared,
    "balance": read_census,
}


@pytest.mark.parametrize("way", WAYS)
def test_pair_in_one_place_is_read_by_all(tmp_path: Path, way: str) -> None:
    found = WAYS[way](write_case(tmp_path, own_labels(), trunk_grid()))
    if found.array.size:
        np.testing.assert_array_equal(found.array, own_labels())


@pytest.mark.parametrize("way", WAYS)
def test_cropped_label_map_is_put_into_its_place_by_all_and_said(tmp_path: Path, way: str) -> None:
    folder = write_case(tmp_path, *cut(own_labels(), trunk_grid()))
    with pytest.warns(UserWarning, match="voxels, its CT 44x36x40; it is placed into the CT's grid"):
        found = WAYS[way](folder)
    if found.array.size:
        assert found.grid.shape == trunk_grid().shape
        np.testing.assert_array_equal(found.array, own_labels())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["shifted by voxels", "shifted", "other spacing", "mirrored"])
def test_label_map_of_another_place_is_refused_by_all(tmp_path: Path, way: str, kind: str) -> None:
    affine = trunk_grid().affine.copy()
    if kind == "mirrored":
        affine[0] *= -1
    elif kind == "other spacing":
        affine[:3, :3] = np.eye(3)
    else:
        affine[:3, 3] += affine[:3, :3] @ ([2, 0, 0] if kind == "shifted by voxels" else [0.4, 0, 0.7])
    folder = write_case(tmp_path, own_labels(), Grid(trunk_grid().shape, affine))
    with pytest.raises(
        MaisiAugError, match="expected the image's grid, 44x36x40 at 7x7.5x6.5 mm from .*, found 44x36x40"
    ):
        WAYS[way](folder)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "balance"])
@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu + 1024,
        lambda hu: (hu + 1000) / 2000,
        lambda hu: hu - 1024.0,
        lambda hu: np.where(hu < -990, -2000, hu + 1024),
    ],
    ids=["offset", "normalised", "offset taken off twice", "offset and padding"],
)
def test_ct_that_is_not_in_hu_is_refused_by_all(tmp_path: Path, way: str, change: Callable[[Any], Any]) -> None:
    folder = write_case(tmp_path, own_labels(), trunk_grid(), change)
    with pytest.raises(MaisiAugError, match="expected HU, with air near -1000 and tissue near 0, found"):
        WAYS[way](folder)


def test_benchmark_names_the_case(tmp_path: Path) -> None:
    folder = write_case(tmp_path, own_labels(), trunk_grid(), lambda hu: hu + 1024)
    with pytest.raises(BenchmarkError, match="Case a: a_0000.nii.gz: expected HU"):
        read_benchmark(folder)


def test_labels_beyond_the_image_are_refused_and_empty_margins_are_not() -> None:
    image = Grid.from_spacing((7, 9, 11), (0.7, 0.8, 2.5))
    affine = image.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [1, 0, 0]
    labels = np.zeros((9, 9, 11), dtype=np.uint8)
    labels[3, 4, 5] = 4
    with pytest.warns(UserWarning, match="map: has 9x9x11 voxels, its CT 7x9x11; it is placed into the CT's grid"):
        placed = place_labels(Volume(labels, Grid((9, 9, 11), affine)), image, subject="map")
    assert (placed.array.shape, placed.array[2, 4, 5], placed.grid) == (image.shape, 4, image)
    labels[0, 4, 5] = 4
    with pytest.raises(VolumeError, match="map: expected the image's grid, 7x9x11"):
        place_labels(Volume(labels, Grid((9, 9, 11), affine)), image, subject="map")


def test_other_voxels_of_the_same_field_of_view_do_on_their_own_grid() -> None:
    image = Grid.from_spacing((20, 18, 12), (1.0, 1.0, 2.0))
    coarse = Volume(np.ones((10, 9, 12), dtype=np.uint8), Grid.from_spacing((10, 9, 12), (2.0, 2.0, 2.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert place_labels(coarse, image, subject="map", on="its own grid") is coarse
    with pytest.raises(VolumeError, match="map: expected the image's grid, 20x18x12 at 1x1x2 mm"):
        place_labels(coarse, image, subject="map")
    half = Volume(coarse.array[:, :, :6], Grid.from_spacing((10, 9, 6), (2.0, 2.0, 2.0)))
    with pytest.raises(VolumeError, match="map: expected the image's grid"):
        place_labels(half, image, subject="map", on="its own grid")


def test_lung_alone_and_masked_scans_are_hu() -> None:
    rng = np.random.default_rng(0)
    require_hu(rng.normal(-850, 30, (20, 22, 9)).astype(np.int16), "a crop inside the lung")
    masked = np.full((30, 28, 20), -1024, dtype=np.int16)
    masked[5:25, 5:22, 3:17] = rng.normal(40, 20, (20, 17, 14))
    require_hu(masked, "a body on padding")
    padded = np.where(masked == -1024, -3024, masked)
    require_hu(padded, "the same with other padding")


def test_bank_map_with_a_body_of_its_own_is_held_against_its_ct_too(tmp_path: Path) -> None:
    affine = trunk_grid().affine.copy()
    affine[2, 3] += 30.0
    label_map = np.where(build_trunk() > 0, BODY_ID, 0).astype(np.uint8)
    label_map[own_labels() == 1] = 1
    save_label_map(tmp_path / "a_seg.nii.gz", label_map, Grid(trunk_grid().shape, affine))
    save_image(tmp_path / "a_ct.nii.gz", build_ct(label_map), trunk_grid())
    bank = FolderBank(tmp_path, vocabulary=MAISI, grid=trunk_grid(), min_cover=0.0, mapping="maisi")
    with pytest.raises(BankError, match="a_seg.nii.gz: expected the image's grid, 44x36x40"):
        bank.load(0)


def test_organs_of_another_place_are_refused(tmp_path: Path) -> None:
    affine = trunk_grid().affine.copy()
    affine[2, 3] += 30.0
    organs = (own_labels() == 1).astype(np.uint8)
    save_label_map(tmp_path / "organs.nii.gz", organs, Grid(trunk_grid().shape, affine))
    files = [LabelFile(tmp_path / "organs.nii.gz")]
    with pytest.raises(VolumeError, match=r"organs.nii.gz: expected the image's grid, 44x36x40 .* found 44x36x40"):
        load_organs(
            files,
            guess_maisi_ids(np.array([0, 1, BODY_ID]), MAISI, subject="organs"),
            trunk_grid(),
            tmp_path / "ct.nii.gz",
        )
