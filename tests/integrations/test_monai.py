from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, Flipd, Spacingd

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import ExportError, RequestError
from maisi_aug.integrations.monai import CohortDataset
from maisi_aug.integrations.monai_data_list import DATA_LIST_NAME, MAPPING_NAME, TASK_NAME, export_monai
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from tests.builders.tiny_cohort import (
    GRID,
    HEPATIC_TUMOR,
    KIDNEY_TUMOR,
    build_anatomy,
    oblique_grid,
    save_case,
    write_cohort,
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)


def write_real(folder: Path, labels: dict[str, int], num_cases: int = 6) -> Path:
    for number in range(num_cases):
        image_hu = np.random.default_rng(number).integers(-900, 900, GRID.shape).astype(np.int16)
        save_image(folder / "imagesTr" / f"real_{number}_0000.nii.gz", image_hu, GRID)
        label_map = (build_anatomy(HEPATIC_TUMOR) == HEPATIC_TUMOR).astype(np.uint8)
        save_label_map(folder / "labelsTr" / f"real_{number}.nii.gz", label_map, GRID)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": num_cases}))
    return folder


def test_items_are_metatensors_with_the_geometry(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, [HEPATIC_TUMOR], [HEPATIC_TUMOR, KIDNEY_TUMOR], grid=oblique_grid())
    dataset = CohortDataset(cohort)
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 2
    assert dataset.numbering.to_dict() == {"background": 0, "hepatic tumor": 1, "kidney tumor": 2}
    item = dataset[1]
    image = load_image(cohort / "images" / "case_0002.nii.gz")
    anatomy = load_label_map(cohort / "anatomy" / "case_0002.nii.gz").array
    assert item["case_id"] == "case_0002"
    assert isinstance(item["image"], MetaTensor)
    assert item["image"].dtype == torch.float32
    assert np.array_equal(item["image"][0].numpy(), image.array)
    assert np.allclose(item["image"].affine, image.grid.affine)
    assert np.allclose(item["image"].pixdim, image.grid.spacing_mm)
    assert np.array_equal(item["label"][0].numpy() == 2, anatomy == KIDNEY_TUMOR)


def test_items_take_the_numbers_of_a_real_dataset(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    dataset = CohortDataset(cohort, numbers={"background": 0, "liver tumor": 1, "liver": 2})
    assert dataset.numbering.to_dict() == {"background": 0, "liver": 2, "hepatic tumor": 1}
    anatomy = load_label_map(cohort / "anatomy" / "case_0001.nii.gz").array
    label = dataset[0]["label"][0].numpy()
    assert np.array_equal(label == 1, anatomy == HEPATIC_TUMOR)
    assert np.array_equal(label == 2, anatomy == 1)
    background = CohortDataset(cohort, numbers={"liver": 1, "hepatic tumor": 0})
    assert np.array_equal(background[0]["label"][0].numpy() == 1, anatomy == 1)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"liver": 1}, "numbers: 'hepatic tumor', which was requested for the cases, has no number"),
        ({"hepatic tumor": 0}, "numbers: at least one label needs a number above 0"),
        ({"hepatic tumor": -1}, "'hepatic tumor': expected an integer from 0 to 255, found -1"),
        ({"hepatic tumor": 1, "background": 2}, "'background': expected 0, found 2"),
        ({"hepatic tumor": 1, "liver tumor": 2}, "'liver tumor': the label has another number already, 1"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path: Path, numbers: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        CohortDataset(write_cohort(tmp_path, [HEPATIC_TUMOR]), numbers=numbers)


def test_number_of_a_label_that_no_case_holds(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has pancreas"):
        CohortDataset(write_cohort(tmp_path, [HEPATIC_TUMOR]), numbers={"hepatic tumor": 1, "pancreas": 2})


def test_transforms_and_loaders_of_monai_take_the_items(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    keys = ["image", "label"]
    resample = Spacingd(keys, (1.4, 1.6, 2.5), mode=["bilinear", "nearest"])
    dataset = CohortDataset(cohort, Compose([Flipd(keys, 0), resample]))
    batch = next(iter(DataLoader(dataset, batch_size=2, num_workers=0)))
    assert batch["image"].shape == batch["label"].shape
    assert batch["image"].shape[:2] == (2, 1)
    assert batch["case_id"] == ["case_0001", "case_0002"]


def test_data_list_keeps_synthetic_cases_out_of_validation(tmp_path: Path) -> None:
    from monai.auto3dseg.utils import datafold_read

    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    real, out = write_real(tmp_path / "Dataset003_Liver", {"liver": 2, "cancer": 1}), tmp_path / "monai"
    report = export_monai(cohort, out, like=real, label=["cancer=hepatic tumor"])
    assert (report.num_synthetic, report.num_real, report.num_folds, report.num_linked) == (2, 6, 5, 2)
    validated = []
    for fold in range(5):
        training, validation = datafold_read(str(out / DATA_LIST_NAME), str(out), fold)
        validated += [row["image"] for row in validation]
        assert all("Dataset003_Liver" in row["image"] for row in validation)
        assert sum("images/case_" in row["image"] for row in training) == 2
        assert all(Path(row[key]).is_file() for row in (*training, *validation) for key in ("image", "label"))
    assert len(validated) == len(set(validated)) == 6
    assert (out / "images" / "case_0001.nii.gz").samefile(cohort / "images" / "case_0001.nii.gz")
    # The real dataset's numbers: "cancer" is 1, whatever the order of the vocabulary's ids.
    anatomy = load_label_map(cohort / "anatomy" / "case_0001.nii.gz").array
    label_map = load_label_map(out / "labels" / "case_0001.nii.gz").array
    assert np.array_equal(label_map == 1, anatomy == HEPATIC_TUMOR)
    assert np.array_equal(label_map == 2, anatomy == 1)
    rows = json.loads((out / MAPPING_NAME).read_text())["labels"]
    assert {row["name"]: (row["label"], row["vocabulary_id"], row["totalsegmentator"]) for row in rows} == {
        "liver": (2, 1, "total/liver"),
        "cancer": (1, HEPATIC_TUMOR, "liver_lesions/liver_lesions"),
    }


@pytest.fixture
def real_with_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """A real dataset of four cases whose ``splits_final.json`` holds the given folds."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))

    def write(folds: list[tuple[str, str]]) -> Path:
        real = write_real(tmp_path / "Dataset003_Liver", {"hepatic tumor": 1}, 4)
        content = [{"train": [f"real_{n}" for n in a], "val": [f"real_{n}" for n in b]} for a, b in folds]
        (real / "splits_final.json").write_text(json.dumps(content))
        return real

    return write


def test_folds_are_those_of_nnunet(tmp_path: Path, real_with_folds: Callable[[Any], Path]) -> None:
    real = real_with_folds([("01", "32"), ("123", "0")])
    report = export_monai(write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]), tmp_path / "out", like=real)
    rows = json.loads((tmp_path / "out" / DATA_LIST_NAME).read_text())["training"]
    # Case 1 trains in both folds, as it does in nnU-Net.
    assert [row.get("fold") for row in rows] == [1, None, 0, 0, None]
    assert report.folds_source == str(real / "splits_final.json")


def test_real_cases_of_no_fold_are_left_out(tmp_path: Path, real_with_folds: Callable[[Any], Path]) -> None:
    from monai.auto3dseg.utils import datafold_read

    real, out = real_with_folds([("0", "1"), ("1", "0")]), tmp_path / "out"
    report = export_monai(write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]), out, like=real)
    assert report.notes == ("2 of the 4 real cases are left out, because no fold has them (real_2).",)
    assert report.num_real == 2
    for fold, (trains, validates) in enumerate(((0, 1), (1, 0))):
        training, validation = datafold_read(str(out / DATA_LIST_NAME), str(out), fold)
        names = [[Path(row["image"]).name for row in rows] for rows in (training, validation)]
        assert names == [[f"real_{trains}_0000.nii.gz", "case_0001.nii.gz"], [f"real_{validates}_0000.nii.gz"]]


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([("01", "23"), ("01", "3")], "a case can be a validation case of one fold at most, found 'real_3' in folds 0"),
        ([("01", "23"), ("2", "0")], "real_1'"),
        ([("0123", "")], "splits_final.json: fold 0 has no validation cases"),
        ([("011", "23")], "fold 0 names 'real_1' twice on the side 'train'"),
        ([("01", "33")], "fold 0 names 'real_3' twice on the side 'val'"),
    ],
)
def test_folds_that_a_data_list_cannot_hold_are_refused(
    tmp_path: Path, real_with_folds: Callable[[Any], Path], folds: Any, message: str
) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    with pytest.raises(ExportError, match=message):
        export_monai(cohort, tmp_path / "out", like=real_with_folds(folds))
    assert not (tmp_path / "out").exists()


def test_cases_made_from_label_maps_that_validate_are_left_out(tmp_path: Path) -> None:
    real = write_real(tmp_path / "Dataset003_Liver", {"hepatic tumor": 1}, 3)
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    origin = {"source": "given", "file": "real_1.nii.gz"}
    with ManifestWriter(cohort / MANIFEST_NAME) as writer:
        writer.append(save_case(cohort, 1, [HEPATIC_TUMOR], mask_origin=origin))
    report = export_monai(cohort, tmp_path / "out", like=real)
    assert report.num_synthetic == 1
    assert report.notes[0].startswith("1 of the 2 synthetic cases are left out: they were made from label maps of real")
    assert "no splits_final.json was found in nnU-Net's folders" in report.folds_source
    rows = json.loads((tmp_path / "out" / DATA_LIST_NAME).read_text())["training"]
    assert [row["image"] for row in rows if "fold" not in row] == ["images/case_0001.nii.gz"]
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["case_0001.nii.gz"]
    with ManifestWriter(cohort / MANIFEST_NAME) as writer:
        writer.append(save_case(cohort, 0, [HEPATIC_TUMOR], mask_origin=origin))
    with pytest.raises(ExportError, match="every case was made from the label map of a validation case of"):
        export_monai(cohort, tmp_path / "other", like=real)


def test_partial_cohort_is_noted(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    (cohort / "cohort.yaml").write_text("configuration: {labels: [hepatic tumor], num_cases: 12}\n")
    assert export_monai(cohort, tmp_path / "out").notes[0] == ("2 of 12 planned cases of the cohort are accepted.")


@pytest.mark.filterwarnings("ignore")  # its own
def test_auto3dseg_runs_on_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.apps.auto3dseg import AutoRunner, DataAnalyzer

    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    out = tmp_path / "monai"
    export_monai(cohort, out, like=write_real(tmp_path / "Dataset003_Liver", {"hepatic tumor": 1}, 3))
    monkeypatch.chdir(tmp_path)
    runner = AutoRunner(work_dir=str(tmp_path / "work"), input=str(out / TASK_NAME), algos="segresnet")
    assert runner.num_fold == 3
    task = yaml.safe_load((out / TASK_NAME).read_text())
    analyzer = DataAnalyzer(
        task["datalist"], task["dataroot"], output_path=str(tmp_path / "stats.yaml"), device="cpu", worker=0
    )
    analyzer.get_all_case_stats()
    stats = yaml.safe_load((tmp_path / "stats.yaml").read_text())["stats_summary"]
    assert stats["n_cases"] == 5
    assert stats["label_stats"]["labels"] == [0, 1]


def test_cohort_alone_is_dealt_into_folds(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    cohort, out = write_cohort(tmp_path / "cohort", *[[HEPATIC_TUMOR]] * 3), tmp_path / "monai"
    outcome = run_cli("export", "monai", cohort, "--out", out, "--labels", "liver", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["labels"], report["num_folds"]) == ({"background": 0, "liver": 1}, 3)
    assert "The folds consist of synthetic cases, so that validation says nothing about" in outcome.stderr
    rows = json.loads((out / DATA_LIST_NAME).read_text())["training"]
    assert sorted(row["fold"] for row in rows) == [0, 1, 2]
    again = run_cli("export", "monai", cohort, "--out", out)
    assert (again.code, again.stdout) == (1, "")
    assert "the folder must be new or empty, found" in again.stderr
    idle = run_cli("export", "monai", cohort, "--out", tmp_path / "x", "--label", "a=b")
    assert "--map can only be used with --like. Leave it out, or add --like." in idle.stderr


def test_labels_without_a_counterpart_are_named(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    real = write_real(tmp_path / "Dataset003_Liver", {"liver": 1, "vessel": 2}, 2)
    with pytest.raises(ExportError, match="Label 'hepatic tumor', which was requested for the cohort: "):
        export_monai(cohort, tmp_path / "out", like=real)
    with pytest.raises(
        ExportError, match="Label 'vessel' of Dataset003_Liver: the cohort has no label of that name, and"
    ):
        export_monai(cohort, tmp_path / "out", like=real, label=["background=hepatic tumor"])
    assert not (tmp_path / "out").exists()


def test_flags_that_clash_and_single_cases_are_refused(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    with pytest.raises(ExportError, match="--labels cannot be used with --like, .* Leave one of the two out"):
        export_monai(cohort, tmp_path / "out", like=tmp_path, labels=["liver"])
    with pytest.raises(ExportError, match="at least two cases are needed for folds, found one"):
        export_monai(cohort, tmp_path / "out")


def test_cohort_without_requested_labels_needs_to_be_told(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [])
    with pytest.raises(ExportError, match="the cohort was made without label requests, so that there is no label to"):
        CohortDataset(cohort)
    assert CohortDataset(cohort, include_anatomy=True).numbering.ids == (1, 3)


def test_beside_real_cases_a_cohort_needs_no_requested_labels(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [], [])
    real = write_real(tmp_path / "Dataset003_Liver", {"liver": 1}, 2)
    report = export_monai(cohort, tmp_path / "out", like=real)
    assert report.labels == {"background": 0, "liver": 1}


def test_several_cohorts_are_exported_as_one(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    small = write_cohort(tmp_path / "small", [HEPATIC_TUMOR])
    large = write_cohort(tmp_path / "large", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    real = write_real(tmp_path / "Dataset003_Liver", {"tumor": 1, "liver": 2})
    done = run_cli("export", "monai", small, large, "--like", real, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["num_synthetic"] == 3
    names = sorted(path.name for path in (tmp_path / "out" / "labels").iterdir())
    assert names == ["large_case_0001.nii.gz", "large_case_0002.nii.gz", "small_case_0001.nii.gz"]
    for name, cohort in (("small_case_0001", small), ("large_case_0002", large)):
        image = load_image(tmp_path / "out" / "images" / f"{name}.nii.gz").array
        own = load_image(cohort / "images" / f"{name.partition('_')[2]}.nii.gz").array
        assert np.array_equal(image, own)
    (tmp_path / "again").mkdir()
    with pytest.raises(ExportError, match="Cohorts: two folders are named 'small'"):
        export_monai([small, tmp_path / "again" / ".." / "small"], tmp_path / "no")


def test_earlier_flag_for_a_mapping_works_with_a_note(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    real = write_real(tmp_path / "Dataset003_Liver", {"Herd": 1})
    words = ("export", "monai", cohort, "--like", real, "--json")
    old = run_cli(*words, "--out", tmp_path / "old", "--label", "hepatic tumor=Herd")
    new = run_cli(*words, "--out", tmp_path / "new", "--map", "Herd=hepatic tumor")
    assert (old.code, new.code) == (0, 0)
    assert json.loads(old.stdout)["labels"] == json.loads(new.stdout)["labels"] == {"background": 0, "Herd": 1}
    assert "--label 'hepatic tumor=Herd' is an earlier spelling" in old.stderr
    assert "Write --map 'Herd=hepatic tumor'." in old.stderr
    assert "earlier" not in new.stderr
