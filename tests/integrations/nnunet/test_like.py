from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import ExportError, VocabularyError, VolumeError
from maisi_aug.integrations.nnunet import check as nnunet_check
from maisi_aug.integrations.nnunet import like as nnunet_like
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from maisi_aug.integrations.nnunet.like import export_like
from maisi_aug.integrations.nnunet.report import LikeReport
from maisi_aug.integrations.request import NnunetExport
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map, load_stored_grid, save_label_map
from tests.builders.tiny_cohort import (
    GRID,
    HEPATIC_TUMOR,
    HEPATIC_VESSEL,
    KIDNEY_TUMOR,
    LIVER,
    LUNG_TUMOR,
    build_anatomy,
    save_case,
    shear_cohort,
    write_cohort,
    write_real_dataset,
)

TUMOR = "tumor=hepatic tumor"


class Place:
    """A cohort, a real dataset and nnU-Net's folders."""

    def __init__(self, folder: Path) -> None:
        self.cohort = folder / "cohort"
        self.raw, self.preprocessed = folder / "raw", folder / "preprocessed"
        self.real = self.raw / "Dataset003_Liver"
        self.target = self.raw / "Dataset503_LiverSynthetic"
        self.preprocessed_target = self.preprocessed / self.target.name

    def fill(self, *tumors_per_case: Any, num_real: int = 5, codes: str = "RAS", **description: Any) -> Place:
        write_cohort(self.cohort, *(tumors_per_case or ([HEPATIC_TUMOR],) * 3), requested=(HEPATIC_TUMOR,))
        write_real_dataset(self.raw, num_real, codes=codes, **description)
        return self

    def export(self, **settings: Any) -> LikeReport:
        folders = {"out": self.raw, "preprocessed": self.preprocessed}
        defaults: dict[str, Any] = {"like": self.real, "dataset_id": 503, "map": [TUMOR], **folders}
        return export_like([self.cohort], NnunetExport(**(defaults | settings)))

    def require_nothing_exported(self) -> None:
        assert [path.name for path in self.raw.iterdir()] == ["Dataset003_Liver"]
        assert not self.preprocessed.exists() or not [*self.preprocessed.glob("*503*")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def without_nnunet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nnU-Net's processes out: they take seconds, and tests of their own run them."""

    def write_plans(real: Any, plans: Any, target: Path, building: Path, example: Any) -> dict[str, Any]:
        content = {"plans_name": plans.moved_name, "configurations": {"3d_fullres": {"spacing": [2.5, 0.8, 0.7]}}}
        (building / f"{plans.moved_name}.json").write_text(json.dumps(content))
        return content

    monkeypatch.setattr(nnunet_like, "move_real_plans", write_plans)
    monkeypatch.setattr(nnunet_like, "verify_mixed_integrity", lambda dataset, num_processes: ())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_export_runs_nnunets_planner_on_real_cases_and_passes_its_check(
    place: Place, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill()
    monkeypatch.setenv("nnUNet_raw", str(place.raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(place.preprocessed))
    outcome = run_cli("export", "nnunet", place.cohort, "--like", place.real, "--dataset-id", 503, "--map", TUMOR)
    assert outcome.code == 0, outcome.stderr
    assert "nnUNetv2_train 503 3d_fullres 0 -p nnUNetPlans_real -tr nnUNetTrainerSynthetic50" in outcome.stdout
    assert "export nnUNet_" not in outcome.stdout
    assert {path.name for path in place.raw.iterdir()} == {"Dataset003_Liver", "Dataset503_LiverSynthetic"}
    assert [path.name for path in place.preprocessed.iterdir()] == ["Dataset503_LiverSynthetic"]
    fingerprint = read_json(place.preprocessed_target / "dataset_fingerprint.json")
    assert len(fingerprint["spacings"]) == 5  # the real cases, and not the synthetic ones
    plans = read_json(place.preprocessed_target / "nnUNetPlans_real.json")
    assert plans["dataset_name"] == "Dataset503_LiverSynthetic"
    assert plans["plans_name"] == "nnUNetPlans_real"
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_real_3d_fullres"


@pytest.mark.slow
def test_environment_of_a_training_without_workers_does_not_stop_the_planner(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    place.fill(num_real=2).export()
    assert (place.preprocessed_target / "nnUNetPlans_real.json").is_file()


def test_check_names_the_file_that_is_wrong(place: Place) -> None:
    place.fill()
    path = place.real / "labelsTr" / "liver_1.nii.gz"
    label_map = load_label_map(path).array.copy()
    label_map[0, 0, 0] = 9
    save_label_map(path, label_map, GRID)
    with pytest.raises(ExportError, match="Unexpected labels found in file .*liver_1.*repair the case that it names"):
        nnunet_check.verify_mixed_integrity(place.real, num_processes=1)


def test_dry_run_refuses_what_nnunets_check_would(place: Place) -> None:
    place.fill(num_real=1)
    path = place.real / "labelsTr" / "liver_0.nii.gz"
    label_map = load_label_map(path).array.copy()
    label_map[0, 0, 0] = 9
    save_label_map(path, label_map, GRID)
    with pytest.raises(
        ExportError, match=r"integrity check complains: .*liver_0.*\. Nothing was exported; repair the case that it"
    ):
        place.export(dry_run=True)
    place.require_nothing_exported()


@pytest.mark.slow
def test_failure_of_nnunet_leaves_nothing_behind(place: Place) -> None:
    place.fill(num_real=1)
    smaller = build_anatomy(LIVER)[:-2]
    save_label_map(place.real / "labelsTr" / "liver_0.nii.gz", smaller, Grid.from_spacing(smaller.shape, (1, 1, 1)))
    with pytest.raises(ExportError, match="Dataset003_Liver: nnU-Net cannot plan on its cases:"):
        place.export()
    place.require_nothing_exported()


def test_cascade_is_taken_out_of_moved_plans(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second stage would look for predictions of the first on synthetic cases, which nnU-Net never makes."""
    monkeypatch.setattr(nnunet_like, "verify_mixed_integrity", lambda dataset, num_processes: ())
    place.fill()
    folder = place.preprocessed / place.real.name
    folder.mkdir(parents=True)
    configurations = {
        "3d_lowres": {"data_identifier": "nnUNetPlans_3d_lowres", "next_stage": "3d_cascade_fullres"},
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres", "spacing": [2.5, 0.8, 0.7]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "3d_cascade_large": {"inherits_from": "3d_cascade_fullres", "batch_size": 4},
    }
    plans = {"plans_name": "nnUNetPlans", "configurations": configurations}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset_fingerprint.json").write_text("{}")
    place.export()
    moved = read_json(place.preprocessed_target / "nnUNetPlans_real.json")["configurations"]
    assert set(moved) == {"3d_lowres", "3d_fullres"}
    assert "next_stage" not in moved["3d_lowres"]
    assert read_json(folder / "nnUNetPlans.json") == plans


def test_nnunet_accumulates_the_results_of_all_folds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nnUNetv2_find_best_configuration does: on label maps that it looks for in the raw dataset first."""
    monkeypatch.setattr(nnunet_like, "verify_mixed_integrity", lambda dataset, num_processes: ())
    place.fill(num_real=2).export()
    results = place.raw.parent / "results" / place.target.name / "trained"
    dataset = read_json(place.target / "dataset.json")
    ground_truth = place.preprocessed_target / "gt_segmentations"  # what nnU-Net's preprocessing writes
    ground_truth.mkdir()
    for case_id, files in dataset["dataset"].items():
        shutil.copy(place.target / files["label"], ground_truth / f"{case_id}.nii.gz")
    for number, fold in enumerate(read_json(place.preprocessed_target / "splits_final.json")):
        validation = results / f"fold_{number}" / "validation"
        validation.mkdir(parents=True)
        for case_id in fold["val"]:
            shutil.copy(ground_truth / f"{case_id}.nii.gz", validation)
    shutil.copy(place.target / "dataset.json", results)
    shutil.copy(place.preprocessed_target / "nnUNetPlans_real.json", results / "plans.json")
    done = nnunet_check.run_nnunet(
        "import sys\n"
        "from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results\n"
        "accumulate_cv_results(sys.argv[1], sys.argv[2], (0, 1), num_processes=1)\n",
        [str(results), str(results / "all")],
        environment={"nnUNet_raw": str(place.raw), "nnUNet_preprocessed": str(place.preprocessed)},
    )
    assert done.returncode == 0, done.stderr
    summary = read_json(results / "all" / "summary.json")
    assert summary["foreground_mean"]["Dice"] == 1
    assert len(summary["metric_per_case"]) == 2


@pytest.mark.usefixtures("without_nnunet")
class TestContent:
    def test_real_cases_are_referred_to_and_nothing_is_copied(self, place: Place) -> None:
        place.fill().export()
        dataset = read_json(place.target / "dataset.json")
        assert dataset["labels"] == {"background": 0, "liver": 1, "tumor": 2}
        assert dataset["numTraining"] == len(dataset["dataset"]) == 8
        real = dataset["dataset"]["liver_0"]
        assert real == {
            "images": ["../Dataset003_Liver/imagesTr/liver_0_0000.nii.gz"],
            "label": "../Dataset003_Liver/labelsTr/liver_0.nii.gz",
        }
        synthetic = dataset["dataset"]["synthetic_case_0001"]
        assert synthetic["images"] == [str(place.cohort / "images" / "case_0001.nii.gz")]
        assert not (place.target / "imagesTr").exists()
        assert not (place.target / "labelsTr").exists()  # nnU-Net would take it for the label maps of all cases
        assert sorted(path.name for path in (place.target / "labelsSynthetic").iterdir()) == [
            f"synthetic_case_000{number}.nii.gz" for number in (1, 2, 3)
        ]

    def test_nnunet_finds_every_file(self, place: Place) -> None:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        place.fill().export()
        found = get_filenames_of_train_images_and_targets(str(place.target))
        assert len(found) == 8
        for files in found.values():
            assert all(Path(path).is_file() for path in (*files["images"], files["label"]))

    def test_synthetic_label_maps_have_the_real_values(self, place: Place) -> None:
        place.fill().export()
        label_map = load_label_map(place.target / "labelsSynthetic" / "synthetic_case_0001.nii.gz")
        anatomy = build_anatomy(HEPATIC_TUMOR)
        expected = np.select([anatomy == LIVER, anatomy == HEPATIC_TUMOR], [1, 2], 0)
        np.testing.assert_array_equal(label_map.array, expected)
        assert label_map.grid.is_close(GRID)

    def test_validation_folds_are_nnunets_own_on_the_real_cases(self, place: Place) -> None:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        place.fill(num_real=7).export()
        splits = read_json(place.preprocessed_target / "splits_final.json")
        expected = generate_crossval_split([f"liver_{number}" for number in range(7)])
        assert len(splits) == 5
        for found, own in zip(splits, expected, strict=True):
            assert found["val"] == list(own["val"])
            assert found["train"][:-3] == list(own["train"])
            assert found["train"][-3:] == [f"synthetic_case_000{number}" for number in (1, 2, 3)]

    def test_validation_folds_are_the_real_datasets_file_where_it_has_one(self, place: Place) -> None:
        place.fill()
        own = [{"train": ["liver_1", "liver_2"], "val": ["liver_0", "liver_3"]}]
        folder = place.preprocessed / "Dataset003_Liver"
        folder.mkdir(parents=True)
        (folder / "splits_final.json").write_text(json.dumps(own))
        report = place.export()
        (fold,) = read_json(place.preprocessed_target / "splits_final.json")
        assert fold["val"] == ["liver_0", "liver_3"]
        assert fold["train"][:2] == ["liver_1", "liver_2"]
        assert report.folds_source == str(folder / "splits_final.json")

    def test_folds_of_the_raw_dataset_count_since_nnunets_planner_copies_them(self, place: Place) -> None:
        place.fill()
        own = [{"train": ["liver_1", "liver_2"], "val": ["liver_0", "liver_3"]}]
        (place.real / "splits_final.json").write_text(json.dumps(own))
        report = place.export(dry_run=True)
        assert report.folds_source == str(place.real / "splits_final.json")
        folder = place.preprocessed / "Dataset003_Liver"
        folder.mkdir(parents=True)
        more = [
            {"train": ["liver_2", "liver_1"], "val": ["liver_3", "liver_0"]},
            {"train": ["liver_1"], "val": ["liver_0"]},
        ]
        (folder / "splits_final.json").write_text(json.dumps(more))
        assert place.export(dry_run=True).folds_source == str(folder / "splits_final.json")
        (folder / "splits_final.json").write_text(json.dumps(more[1:]))
        with pytest.raises(ExportError, match="differ, which nnU-Net's planner refuses"):
            place.export(dry_run=True)

    def test_folds_and_plans_are_found_where_the_environment_says_too(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        place.fill()
        report = place.export(dry_run=True)
        assert report.folds_source.endswith(
            f"no splits_final.json was found in {place.preprocessed / place.real.name} or {place.real}"
        )
        assert report.plans_source.endswith(f"none were found in {place.preprocessed / place.real.name}")
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "usual"))
        usual, given = (folder / place.real.name for folder in (tmp_path / "usual", place.preprocessed))
        folds = [{"train": ["liver_1", "liver_2"], "val": ["liver_0", "liver_3"]}]
        for folder in (usual, given):
            folder.mkdir(parents=True)
        (usual / "splits_final.json").write_text(json.dumps(folds))
        (usual / "nnUNetPlans.json").write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {}}))
        report = place.export(dry_run=True)
        assert report.folds_source == str(usual / "splits_final.json")
        assert report.plans_source == str(usual / "nnUNetPlans.json")
        for name in ("splits_final.json", "nnUNetPlans.json"):
            content = read_json(usual / name)
            (given / name).write_text(json.dumps(content, indent=3))
            assert place.export(dry_run=True).num_synthetic == 3
            (given / name).write_text(json.dumps([*content] * 2 if isinstance(content, list) else content | {"a": 1}))
            with pytest.raises(ExportError, match=f"{name} and .*{name} differ"):
                place.export(dry_run=True)
            shutil.copy(usual / name, given / name)

    def test_cases_made_from_a_real_label_map_do_not_train_where_it_validates(self, place: Place) -> None:
        place.fill(num_real=5)
        path = place.real / "labelsTr" / "liver_2.nii.gz"
        label_map = load_label_map(path).array.copy()
        label_map[2, 2, 1] = 0
        save_label_map(path, label_map, GRID)
        digest = sha256_of(path)
        origins: list[dict[str, Any]] = [
            {"source": "plant", "bank": "masks", "file": "labelsTr/liver_1.nii.gz", "sha256": "0" * 16},
            {"source": "bank", "file": "renamed.nii.gz", "sha256": digest[:16]},
            {"source": "plant"},
        ]
        with ManifestWriter(place.cohort / MANIFEST_NAME) as writer:
            for index, origin in enumerate(origins):
                writer.append(save_case(place.cohort, index, [HEPATIC_TUMOR], mask_origin=origin))
        report = place.export()
        splits = read_json(place.preprocessed_target / "splits_final.json")
        for fold in splits:
            assert ("synthetic_case_0001" in fold["train"]) == ("liver_1" not in fold["val"])
            assert ("synthetic_case_0002" in fold["train"]) == ("liver_2" not in fold["val"])
            assert "synthetic_case_0003" in fold["train"]
        assert [fold["num_synthetic_train"] for fold in report.folds] == [len(fold["train"]) - 4 for fold in splits]
        assert any("2 of the 3 synthetic cases were made from label maps of real cases" in n for n in report.notes)
        cases = read_json(place.target / MAPPING_NAME)["cases"]
        assert [cases[f"synthetic_case_000{number}"]["mask_origin"] for number in (1, 2, 3)] == origins

    def test_fold_that_is_left_nothing_to_train_on_is_refused(self, place: Place) -> None:
        origin = {"source": "given", "file": "liver_0.nii.gz"}
        write_cohort(place.cohort, [HEPATIC_TUMOR], mask_origin=origin)
        write_real_dataset(place.raw, 1)
        with pytest.raises(
            ExportError, match="Fold 0: no case is left to train on: there is no other real case, and every"
        ):
            place.export()
        place.require_nothing_exported()

    @pytest.mark.parametrize(("num_real", "num_folds"), [(1, 1), (2, 2), (4, 4)])
    def test_fewer_than_five_cases_validate_once_each(self, place: Place, num_real: int, num_folds: int) -> None:
        report = place.fill(num_real=num_real).export()
        splits = read_json(place.preprocessed_target / "splits_final.json")
        assert len(splits) == num_folds
        assert sorted(case_id for fold in splits for case_id in fold["val"]) == [f"liver_{i}" for i in range(num_real)]
        assert f"{num_real} real cases give {num_folds} folds" in report.notes[0]
        assert ("Synthetic100" in report.commands[-1]) == (num_real == 1)

    def test_commands_name_folders_that_the_environment_does_not(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("nnUNet_raw", str(place.raw))
        monkeypatch.setenv("nnUNet_preprocessed", "/elsewhere")
        report = place.fill().export()
        assert report.commands[0] == f"export nnUNet_preprocessed={place.preprocessed}"
        assert report.commands[1].startswith("eval ")

    def test_synthetic_files_take_the_axes_of_the_real_ones(self, place: Place) -> None:
        report = place.fill(codes="LPS").export()
        image = place.target / "imagesSynthetic" / "synthetic_case_0001_0000.nii.gz"
        real = place.real / "imagesTr" / "liver_0_0000.nii.gz"
        np.testing.assert_allclose(load_stored_grid(image).affine, load_stored_grid(real).affine)
        source = load_image(place.cohort / "images" / "case_0001.nii.gz")
        np.testing.assert_array_equal(load_image(image).array, source.array)
        label_map = place.target / "labelsSynthetic" / "synthetic_case_0001.nii.gz"
        np.testing.assert_allclose(load_stored_grid(label_map).affine, load_stored_grid(image).affine)
        assert report.num_images_written == 3
        assert "axes LPS" in report.notes[0]

    def test_reader_that_turns_images_leaves_them_alone(self, place: Place) -> None:
        report = place.fill(codes="LPS", overwrite_image_reader_writer="NibabelIOWithReorient").export()
        assert report.num_images_written == 0
        assert report.orientation == "RAS"

    @pytest.mark.parametrize("link", ["symlink", "hard"])
    def test_links_make_a_dataset_without_references(self, place: Place, link: str) -> None:
        place.fill().export(link=link)
        assert "dataset" not in read_json(place.target / "dataset.json")
        images = sorted((place.target / "imagesTr").iterdir())
        assert len(images) == len(list((place.target / "labelsTr").iterdir())) == 8
        assert images[0].samefile(place.real / "imagesTr" / "liver_0_0000.nii.gz")
        assert images[-1].samefile(place.cohort / "images" / "case_0003.nii.gz")
        assert images[0].is_symlink() == (link == "symlink")

    def test_mapping_file_says_what_became_of_every_label(self, place: Place) -> None:
        place.fill([HEPATIC_TUMOR], [HEPATIC_TUMOR, LUNG_TUMOR]).export()
        mapping = read_json(place.target / MAPPING_NAME)
        rows = [(row["name"], row["label"], row["value"], row["found_by"]) for row in mapping["labels"]]
        classes = [row["totalsegmentator"] for row in mapping["labels"]]
        assert classes == ["total/liver", "liver_lesions/liver_lesions"]
        assert rows == [("liver", "liver", 1, "name"), ("hepatic tumor", "tumor", 2, "flag")]
        assert [row["name"] for row in mapping["background"]] == ["spleen", "lung tumor", "body"]
        assert mapping["cases"]["synthetic_case_0002"]["case_id"] == "case_0002"

    def test_several_cohorts_are_added_as_one(self, place: Place, tmp_path: Path) -> None:
        place.fill()
        other = write_cohort(tmp_path / "other", [HEPATIC_TUMOR], requested=(HEPATIC_TUMOR,))
        request = NnunetExport(like=place.real, dataset_id=503, out=place.raw, preprocessed=place.preprocessed)
        assert export_like([place.cohort, other], request).num_synthetic == 4
        cases = read_json(place.target / "dataset.json")["dataset"]
        image = place.target / cases["synthetic_other_case_0001"]["images"][0]
        assert image.resolve() == (other / "images" / "case_0001.nii.gz").resolve()
        assert "synthetic_cohort_case_0003" in cases

    def test_bare_lesion_is_found_beside_its_organ(self, place: Place) -> None:
        place.fill(labels={"background": 0, "liver": 1, "cancer": 2}).export(map=[])
        rows = read_json(place.target / MAPPING_NAME)["labels"]
        assert [(row["name"], row["label"], row["found_by"]) for row in rows] == [
            ("liver", "liver", "name"),
            ("hepatic tumor", "cancer", "name"),
        ]

    def test_regions_are_reached_by_value(self, place: Place) -> None:
        labels = {"background": 0, "liver and tumor": [1, 2], "tumor": 2}
        place.fill(labels=labels, regions_class_order=[1, 2]).export(map=["1=liver", "2=hepatic tumor"])
        dataset = read_json(place.target / "dataset.json")
        assert dataset["labels"] == labels
        assert dataset["regions_class_order"] == [1, 2]
        label_map = load_label_map(place.target / "labelsSynthetic" / "synthetic_case_0001.nii.gz").array
        assert sorted(np.unique(label_map)) == [0, 1, 2]

    def test_several_labels_may_become_one(self, place: Place) -> None:
        place.fill(labels={"background": 0, "liver": 1}).export(map=["liver=hepatic tumor+liver"])
        label_map = load_label_map(place.target / "labelsSynthetic" / "synthetic_case_0001.nii.gz").array
        np.testing.assert_array_equal(label_map == 1, np.isin(build_anatomy(HEPATIC_TUMOR), [LIVER, HEPATIC_TUMOR]))

    @pytest.mark.parametrize(
        ("labels", "given"),
        [
            ({"liver": 1, "Herd": 2}, ["hepatic tumor=Herd"]),
            ({"liver": 1, "Herd": 2}, ["hepatic tumor=2", "spleen=background"]),
            ({"Organ": 1, "Herd": 2}, ["hepatic tumor=2", "liver=1"]),
        ],
    )
    def test_earlier_direction_is_still_read(self, place: Place, labels: dict[str, int], given: list[str]) -> None:
        place.fill(labels={"background": 0, **labels}).export(map=given)
        rows = {row["name"]: row["value"] for row in read_json(place.target / MAPPING_NAME)["labels"]}
        assert (rows["liver"], rows["hepatic tumor"]) == (1, 2)

    def test_label_may_be_left_out_and_an_absent_one_said_to_be_so(self, place: Place) -> None:
        place.fill(labels={"background": 0, "spleen": 1, "stent": 2, "ignore": 3}).export(
            map=["background=hepatic tumor"], absent=["stent"]
        )
        mapping = read_json(place.target / MAPPING_NAME)
        assert mapping["absent"] == [2]
        assert [(row["name"], row["value"]) for row in mapping["labels"]] == [("hepatic tumor", 0), ("spleen", 1)]

    def test_ratio_and_cap_keep_every_request(self, place: Place) -> None:
        place.fill(num_real=4)
        with ManifestWriter(place.cohort / MANIFEST_NAME) as writer:
            for index in (3, 4):
                record = save_case(
                    place.cohort, index, [HEPATIC_TUMOR], requested=[HEPATIC_TUMOR], request="hepatic tumor:0.9"
                )
                writer.append(record)
        report = place.export(ratio=0.5)
        assert (report.num_synthetic, report.num_available) == (2, 5)
        cases = read_json(place.target / MAPPING_NAME)["cases"]
        assert {row["request"] for row in cases.values()} == {"hepatic tumor:0.3", "hepatic tumor:0.9"}
        assert place.export(dry_run=True, max_per_label=3, dataset_id=504).num_synthetic == 3

    def test_too_few_cases_for_the_ratio_are_noted(self, place: Place) -> None:
        notes = place.fill().export(ratio=2).notes
        assert notes[0].startswith("--ratio requests 10 synthetic cases; 3 of the cohort's 3 accepted ones are")
        assert not any("--ratio" in note for note in place.export(ratio=0.4, dry_run=True, dataset_id=504).notes)

    def test_label_that_leaves_a_hole_is_named(self, place: Place) -> None:
        notes = place.fill([HEPATIC_TUMOR, HEPATIC_VESSEL]).export().notes
        assert notes == (
            "'hepatic vessel' becomes background and lies mostly in or at 'liver'; if the real dataset counts it as "
            "part of 'liver', give --map 'liver=hepatic vessel'.",
            *notes[1:],
        )
        assert not any("spleen" in note for note in notes)

    def test_dry_run_writes_nothing(self, place: Place) -> None:
        report = place.fill().export(dry_run=True)
        assert not report.is_written
        assert report.num_synthetic == 3
        place.require_nothing_exported()

    def test_identifiers_of_real_cases_stay_free(self, place: Place) -> None:
        place.fill(num_real=1)
        for folder, suffix in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            (place.real / folder / f"liver_0{suffix}").rename(place.real / folder / f"synthetic_case_0001{suffix}")
        place.export()
        assert "maisi_synthetic_case_0001" in read_json(place.target / "dataset.json")["dataset"]
        assert read_json(place.preprocessed_target / "splits_final.json")[0]["val"] == ["synthetic_case_0001"]


@pytest.mark.usefixtures("without_nnunet")
class TestRefusals:
    @pytest.mark.parametrize(
        ("description", "settings", "message"),
        [
            ({"channel_names": {"0": "CT", "1": "PET"}}, {}, "must have one channel, like the cohort, found 2"),
            ({"channel_names": {"0": "zscore"}}, {}, "the channel must be named CT, found 'zscore'"),
            (
                {"labels": {"background": 0, "liver": 1, "tumor": 3}},
                {"dry_run": True},
                "0, 1, 2, ... without gaps, with 0 for background, found 0, 1, 3, without 2",
            ),
            ({"labels": {"liver": 0, "tumor": 1}}, {}, "found another number for background"),
            (
                {"labels": {"0": "background", "1": "liver"}},
                {},
                "a name for each number, as in the Medical Segmentation",
            ),
            ({"labels": ["liver"]}, {}, r"expected a number for each name.* as 'labels', found \[\"liver\"\]. Correct"),
            ({"labels": {"background": 0, "liver": None}}, {}, "an integer, or a list of them, for 'liver'"),
            ({"dataset": [{"image": "a"}]}, {}, r"expected files of each case by its name as 'dataset', found \[\{"),
            ({"dataset": {"a": {"images": "b"}}}, {}, "as 'dataset/a', found"),
            ({"numTraining": "5"}, {}, 'expected an integer as .numTraining., found "5". Correct the file'),
            ({"channel_names": ["CT"]}, {}, r"as 'channel_names', found \[\"CT\"\]. Correct the file"),
            ({"file_ending": None}, {}, "expected text such as '.nii.gz' as 'file_ending', found null"),
            ({"file_ending": ".mha"}, {}, "like the cohort's, found '.mha'"),
            ({"numTraining": 9}, {}, "dataset.json counts 9 cases, found 5"),
            ({"maisi_aug": {}}, {}, "this dataset was exported by maisi-aug and has synthetic cases, but"),
            ({"labels": {"background": 0}}, {}, "has no labels besides the background"),
            (
                {"labels": {"background": 0, "liver": 1, "finding": 2}},
                {"map": []},
                "Label 'hepatic tumor', which was requested for the cohort: Dataset003",
            ),
            ({}, {"map": ["hepatic tumor"]}, "must have the form LABEL=NAME, with a label of"),
            ({}, {"map": [TUMOR, "liver=hepatic tumor"]}, "hepatic tumor' already has a label"),
            ({}, {"map": ["tumour x=hepatic tumor"]}, r"has no label 'tumour x', only liver, tumor"),
            ({"labels": {"background": 0, "liver": 1, "tumor": 2, "stent": 3}}, {}, "'stent' of .* as background"),
            ({"labels": {"background": 0, "liver": 1, "tumor": 2, "pancreas": 3}}, {}, "has pancreas"),
            ({}, {"absent": ["lung"]}, "--absent 'lung': Dataset003"),
            ({}, {"absent": ["liver"]}, "--absent 'liver': the label occurs in exported cases of"),
            ({}, {"ratio": 0.0}, "--ratio: must be above 0, found 0"),
            ({}, {"max_per_label": 0}, "--max-per-label: must be at least 1, found 0"),
            ({}, {"plans": "nnUNetPlans"}, "--plans nnUNetPlans: there is no nnUNetPlans.json in"),
            ({}, {"out": None}, "Use --out FOLDER, or export nnUNet_raw=FOLDER"),
            ({}, {"preprocessed": None}, "Use --preprocessed FOLDER, or export nnUNet_preprocessed=FOLDER"),
        ],
    )
    def test_what_does_not_fit(
        self, place: Place, description: dict[str, Any], settings: dict[str, Any], message: str
    ) -> None:
        place.fill(**description)
        with pytest.raises(ExportError, match=message):
            place.export(**settings)
        place.require_nothing_exported()

    def test_unknown_label_of_the_cohort(self, place: Place) -> None:
        place.fill()
        with pytest.raises(VocabularyError, match="hepatik"):
            place.export(map=["tumor=hepatik"])

    def test_tumor_that_would_be_a_hole_in_its_organ(self, place: Place) -> None:
        place.fill(labels={"background": 0, "liver": 1, "kidney tumor": 2})
        with ManifestWriter(place.cohort / MANIFEST_NAME) as writer:
            writer.append(save_case(place.cohort, 0, [KIDNEY_TUMOR, HEPATIC_TUMOR], requested=[KIDNEY_TUMOR]))
            for index in (1, 2):
                writer.append(save_case(place.cohort, index, [KIDNEY_TUMOR], requested=[KIDNEY_TUMOR]))
        with pytest.raises(
            ExportError, match="'hepatic tumor', which the cohort's label maps contain and lies in liver"
        ):
            place.export(map=[])

    @pytest.mark.parametrize("folder", ["raw", "preprocessed", "results"])
    def test_id_in_use(self, place: Place, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        place.fill()
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        (tmp_path / folder / "Dataset503_Other").mkdir(parents=True)
        with pytest.raises(ExportError, match="Dataset id 503: already used by"):
            place.export()

    def test_cohort_that_is_being_written(self, place: Place) -> None:
        place.fill()
        with (
            ManifestWriter(place.cohort / MANIFEST_NAME),
            pytest.raises(ExportError, match="another process is still writing this cohort"),
        ):
            place.export()
        place.require_nothing_exported()

    def test_cohort_of_another_modality(self, place: Place) -> None:
        write_cohort(place.cohort, [HEPATIC_TUMOR], settings={"modality": "mri_t1"})
        write_real_dataset(place.raw)
        with pytest.raises(ExportError, match="needs CT images as in Dataset003_Liver, found mri_t1"):
            place.export()

    def test_skewed_axes(self, place: Place) -> None:
        shear_cohort(write_cohort(place.cohort, [HEPATIC_TUMOR]))
        write_real_dataset(place.raw)
        with pytest.raises(ExportError, match="case_0001: .* has sheared voxel axes"):
            place.export()
        place.require_nothing_exported()

    def test_no_raw_dataset(self, place: Place, tmp_path: Path) -> None:
        place.fill()
        with pytest.raises(ExportError, match="not a raw dataset of nnU-Net.*no such folder"):
            export_like([place.cohort], NnunetExport(like=tmp_path / "Dataset009_Nothing", dataset_id=503))

    def test_image_without_a_header(self, place: Place) -> None:
        place.fill()
        (place.real / "imagesTr" / "liver_0_0000.nii.gz").write_bytes(b"no image")
        with pytest.raises(VolumeError, match="not a readable NIfTI file"):
            place.export()
        place.require_nothing_exported()

    def test_missing_and_strange_files(self, place: Place) -> None:
        place.fill()
        label = place.real / "labelsTr" / "liver_2.nii.gz"
        label.rename(label.with_name("elsewhere.nii.gz"))
        with pytest.raises(ExportError, match="liver_2: .*labelsTr/liver_2.nii.gz is missing"):
            place.export()
        (place.real / "imagesTr" / "liver_0_0001.nii.gz").touch()
        with pytest.raises(ExportError, match="liver_0_0001.nii.gz: the name must end in _0000.nii.gz"):
            place.export()

    def test_damaged_description(self, place: Place) -> None:
        place.fill()
        (place.real / "dataset.json").write_text("{")
        with pytest.raises(ExportError, match="dataset.json: not valid JSON"):
            place.export()
        (place.real / "dataset.json").write_text('{"labels": {}}')
        with pytest.raises(ExportError, match="keys of nnU-Net v2 are missing: numTraining, file_ending"):
            place.export()

    def test_references_of_the_real_dataset(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        place.fill(num_real=1)
        content = read_json(place.real / "dataset.json")
        entry: dict[str, Any] = {"images": ["imagesTr/liver_0_0000.nii.gz"], "label": "$HERE/labelsTr/liver_0.nii.gz"}
        monkeypatch.setenv("HERE", str(place.real))
        (place.real / "dataset.json").write_text(json.dumps(content | {"dataset": {"first": entry}}))
        assert place.export(dry_run=True).folds[0]["val"] == ["first"]
        entry["images"] *= 2
        (place.real / "dataset.json").write_text(json.dumps(content | {"dataset": {"first": entry}}))
        with pytest.raises(ExportError, match="first: must have one image, found 2"):
            place.export()
        (place.real / "dataset.json").write_text(json.dumps(content | {"dataset": {}, "numTraining": 0}))
        with pytest.raises(ExportError, match="has no training cases"):
            place.export()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "has no folds"),
            ({"a": 1}, "must be a list of folds with 'train' and 'val'"),
            ([{"train": ["liver_1"], "val": ["gone"]}], "fold 0 names 'gone'"),
            ([{"train": ["liver_1"], "val": ["liver_1"]}], "liver_1' is used for both training and validation"),
        ],
    )
    def test_splits_that_do_not_fit(self, place: Place, content: Any, message: str) -> None:
        place.fill()
        path = place.preprocessed / "Dataset003_Liver" / "splits_final.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
        with pytest.raises(ExportError, match=message):
            place.export()

    def test_several_plans_to_choose_from(self, place: Place) -> None:
        place.fill()
        folder = place.preprocessed / "Dataset003_Liver"
        folder.mkdir(parents=True)
        for name in ("PlansA", "PlansB"):
            (folder / f"{name}.json").write_text(json.dumps({"plans_name": name, "configurations": {}}))
        with pytest.raises(ExportError, match="has several files of plans, PlansA, PlansB"):
            place.export()
        assert place.export(plans="PlansB", dry_run=True).plans == "PlansB_real"

    def test_hard_links_across_file_systems(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, target: Path) -> None:
            raise OSError(18, "Invalid cross-device link")

        place.fill()
        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(ExportError, match="cannot be linked from the file system of"):
            place.export(link="hard")
        place.require_nothing_exported()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--ratio", 1, "--name", "X"], "--ratio"),
            (["--like", "raw/Dataset003_Liver", "--copy"], "--copy"),
            ([], "--name"),
        ],
    )
    def test_options_of_the_other_case(self, run_cli: Callable[..., Any], words: list[Any], message: str) -> None:
        outcome = run_cli("export", "nnunet", "cohort", "--dataset-id", 503, *words)
        assert outcome.code == 2
        assert message in outcome.stderr
