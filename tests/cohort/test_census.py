from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.cohort.balance import BalanceTarget, SizeBins, read_targets
from maisi_aug.cohort.census import take_census
from maisi_aug.errors import BankError, RequestError
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map

GRID = Grid.from_spacing((20, 18, 11), (1.0, 2.0, 5.0))  # a voxel is 0.01 mL


def targets(*texts: str) -> tuple[BalanceTarget, ...]:
    return read_targets(texts, vocabulary=MAISI, bins=SizeBins())


def write_dataset(folder: Path, labels: dict[str, int], *, lesion: int = 2) -> Path:
    """Three cases: lesions of 12 and 2 voxels that do not touch, one of 4, and none."""
    boxes = [[(2, 3, 2), (1, 2, 1)], [(2, 2, 1)], []]
    for number, sides in enumerate(boxes):
        label_map = np.zeros(GRID.shape, dtype=np.uint8)
        label_map[1:19, 1:17, 1:10] = 1
        for place, (i, j, k) in enumerate(sides):
            start = 3 + 8 * place
            label_map[start : start + i, 4 : 4 + j, 4 : 4 + k] = lesion
        save_label_map(folder / "labelsTr" / f"case_{number}.nii.gz", label_map, GRID)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))
    return folder


@pytest.mark.parametrize(
    ("labels", "source"),
    [
        ({"liver": 1, "liver_tumor": 2}, "label 2 'liver_tumor'"),
        ({"liver": 1, "cancer": 2}, "label 2 'cancer' next to its host organ"),
    ],
)
def test_lesions_are_measured_case_by_case(tmp_path: Path, labels: dict[str, int], source: str) -> None:
    seen = []
    (census,) = take_census(
        write_dataset(tmp_path, labels),
        targets("liver tumor"),
        vocabulary=MAISI,
        report=lambda done, total: seen.append((done, total)),
    )
    assert census.source == source
    assert [pytest.approx(volumes) for volumes in census.volumes_ml] == [(0.12, 0.02), (0.04,), ()]
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("wanted", ["2", "Herd"])
def test_mapping_tells_what_a_lesion_is_called(tmp_path: Path, wanted: str) -> None:
    dataset = write_dataset(tmp_path, {"Organ": 1, "Herd": 2})
    (census,) = take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI, mapping={"liver tumor": wanted})
    assert len(census.volumes_ml[0]) == 2


def test_folder_of_label_maps_without_names_needs_a_mapping(tmp_path: Path) -> None:
    write_dataset(tmp_path, {})
    (tmp_path / "dataset.json").unlink()
    (census,) = take_census(tmp_path / "labelsTr", targets("hepatic tumor"), vocabulary=MAISI, mapping={"26": "2"})
    assert census.source == "label 2"
    with pytest.raises(BankError, match="no label is recognised as '"):
        take_census(tmp_path / "labelsTr", targets("hepatic tumor"), vocabulary=MAISI)


def test_dataset_that_points_at_its_files_is_followed(tmp_path: Path) -> None:
    elsewhere = write_dataset(tmp_path / "elsewhere", {})
    dataset = tmp_path / "Dataset004_Linked"
    dataset.mkdir()
    rows = {f"c{n}": {"images": [], "label": f"../elsewhere/labelsTr/case_{n}.nii.gz"} for n in (0, 2)}
    description = {"labels": {"background": 0, "liver": 1, "tumor": 2}, "dataset": rows}
    (dataset / "dataset.json").write_text(json.dumps(description))
    (census,) = take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI)
    assert list(map(len, census.volumes_ml)) == [2, 0]
    (elsewhere / "labelsTr" / "case_2.nii.gz").unlink()
    with pytest.raises(BankError, match="cannot be used as a label map:"):
        take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI)
    (dataset / "dataset.json").write_text("[]")
    with pytest.raises(BankError, match="expected nnU-Net's description"):
        take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI)


def test_regions_join_their_labels_and_variables_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "elsewhere", {})
    monkeypatch.setenv("LAB", str(tmp_path / "elsewhere"))
    dataset = tmp_path / "Dataset005_Regions"
    dataset.mkdir()
    rows = {"c0": {"images": [], "label": "$LAB/labelsTr/case_0.nii.gz"}}
    labels = {"background": 0, "whole liver": [1, 2], "liver tumor": [2]}
    (dataset / "dataset.json").write_text(json.dumps({"labels": labels, "dataset": rows}))
    (census,) = take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI)
    assert census.source == "label 2 'liver tumor'"
    assert [pytest.approx(volumes) for volumes in census.volumes_ml] == [(0.12, 0.02)]
    (census,) = take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI, mapping={"26": "whole liver"})
    assert census.source == "label 1+2 'whole liver'"
    assert [pytest.approx(volumes) for volumes in census.volumes_ml] == [(18 * 16 * 9 / 100,)]
    (census,) = take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI, mapping={"26": "1"})
    assert census.source == "label 1"


@pytest.mark.parametrize(
    ("labels", "source"),
    [
        ({"kidney_and_mass": [1, 2], "tumor": 2}, "label 2 'tumor' next to its host organ"),
        ({"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, "label 2 'tumor' next to its host organ"),
        ({"kidney": 1, "kidney mass": [2, 3], "cyst": 3}, "label 2 'kidney mass'"),
    ],
)
def test_region_of_an_organ_or_of_several_lesions_is_not_the_lesion(
    tmp_path: Path, labels: dict[str, object], source: str
) -> None:
    dataset = write_dataset(tmp_path, labels)  # type: ignore[arg-type]
    wanted = read_targets(["kidney tumor"], vocabulary=FULL_VOCABULARY, bins=SizeBins())
    (census,) = take_census(dataset, wanted, vocabulary=FULL_VOCABULARY)
    assert census.source == source
    assert [pytest.approx(volumes) for volumes in census.volumes_ml] == [(0.12, 0.02), (0.04,), ()]


def test_lesion_beside_organs_of_several_is_not_guessed(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, {"liver": 1, "tumor": 2, "pancreas": 3})
    with pytest.raises(BankError, match="no label is recognised as 'hepatic tumor', found 1 'liver', 2 'tumor'"):
        take_census(dataset, targets("hepatic tumor"), vocabulary=MAISI)


def test_ids_of_one_name_are_one_lesion_wherever_the_names_stand(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", {}, lesion=3)
    (folder / "dataset.json").unlink()
    (folder / "labels.json").write_text(json.dumps({"1": "liver", "2": "liver tumor", "3": "liver tumor"}))
    for place in (folder, tmp_path):
        (census,) = take_census(place, targets("hepatic tumor"), vocabulary=MAISI)
        assert census.source == "label 2+3 'liver tumor'"
        assert list(map(len, census.volumes_ml)) == [2, 1, 0]


def test_masks_of_single_organs_are_measured(tmp_path: Path) -> None:
    for name in ("liver", "spleen", "liver_tumor"):
        mask = np.zeros(GRID.shape, dtype=np.uint8)
        mask[2:5, 2:4, 2:3] = 1
        save_label_map(tmp_path / "patient" / f"{name}.nii.gz", mask, GRID)
    (census,) = take_census(tmp_path, targets("hepatic tumor"), vocabulary=MAISI)
    assert [pytest.approx(volumes) for volumes in census.volumes_ml] == [(0.06,)]


@pytest.mark.parametrize(
    ("labels", "mapping", "error", "message"),
    [
        ({"liver": 1, "vessel": 2}, {}, BankError, "no label is recognised as 'hepatic tumor', found 1 'liver'"),
        ({"spleen": 1, "cancer": 2}, {}, BankError, "no label is recognised as 'hepatic tumor', found 1 'spleen'"),
        (
            {"liver": 1, "cancer": 2},
            {"hepatic tumor": "canser"},
            BankError,
            "has no such label; .* Did you mean 'cancer'?",
        ),
        ({"liver": 1, "cancer": 2}, {"hepatic tumor": "7"}, BankError, "has no such label"),
        (
            {"liver": 1, "cancer": 2},
            {"lung tumor": "2"},
            RequestError,
            "--map 'lung tumor': not one of the lesions requested with --labels",
        ),
    ],
)
def test_labels_that_cannot_be_found_are_named(
    tmp_path: Path, labels: dict[str, int], mapping: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        take_census(write_dataset(tmp_path, labels), targets("hepatic tumor"), vocabulary=MAISI, mapping=mapping)


def test_folders_without_whole_label_maps_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(BankError, match="neither an nnU-Net dataset with labelsTr nor a folder of label maps"):
        take_census(tmp_path, targets("hepatic tumor"), vocabulary=MAISI)
    (tmp_path / "labelsTr" / "a.nii.gz").touch()
    with pytest.raises(BankError, match="labelsTr/a.nii.gz cannot be used as a label map: a.nii.gz is empty"):
        take_census(tmp_path, targets("hepatic tumor"), vocabulary=MAISI)
