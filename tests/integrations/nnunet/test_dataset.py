from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import CohortError, ExportError, VocabularyError
from maisi_aug.integrations.nnunet import check as nnunet_check
from maisi_aug.integrations.nnunet import dataset as nnunet
from maisi_aug.integrations.nnunet.dataset import ExportReport, export_nnunet
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from maisi_aug.integrations.reading.export_labels import name_in_totalsegmentator
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.image_files import load_image, load_label_map, save_label_map
from tests.builders.tiny_cohort import (
    BODY,
    GRID,
    HEPATIC_TUMOR,
    KIDNEY_TUMOR,
    LIVER,
    LUNG_TUMOR,
    SPLEEN,
    build_anatomy,
    save_case,
    shear_cohort,
    write_cohort,
)

BuildCohort = Callable[..., Path]


@pytest.fixture
def build_cohort(tmp_path: Path) -> BuildCohort:
    return partial(write_cohort, tmp_path / "cohort", requested=(HEPATIC_TUMOR,))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def without_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nnU-Net out: its check takes seconds, and one test runs it for real."""
    monkeypatch.setattr(nnunet, "verify_integrity", lambda dataset, num_processes: None)


def export(cohort: Path, **settings: Any) -> ExportReport:
    defaults: dict[str, Any] = {"dataset_id": 501, "name": "SynLiver", "out": cohort.parent / "raw"}
    return export_nnunet(cohort, **(defaults | settings))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_export_passes_nnunets_own_check(build_cohort: BuildCohort, run_cli: Callable[..., Any]) -> None:
    cohort = build_cohort([HEPATIC_TUMOR], [HEPATIC_TUMOR])
    raw = cohort.parent / "raw"
    outcome = run_cli("export", "nnunet", cohort, "--dataset-id", 501, "--name", "SynLiver", "--out", raw, "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["labels"] == {"background": 0, "hepatic tumor": 1}
    assert outcome.stderr.count("Note:") == 1
    assert "5 folds" in outcome.stderr
    assert [path.name for path in raw.iterdir()] == ["Dataset501_SynLiver"]


def test_check_refuses_a_label_that_dataset_json_lacks(build_cohort: BuildCohort) -> None:
    report = export(build_cohort([HEPATIC_TUMOR]), include_anatomy=True)
    path = report.path / "labelsTr" / "case_0001.nii.gz"
    label_map = load_label_map(path).array.copy()
    label_map[0, 0, 0] = 9
    save_label_map(path, label_map, GRID)
    with pytest.raises(ExportError, match="Unexpected labels found in file.*case_0001"):
        nnunet_check.verify_integrity(report.path, num_processes=1)


def test_failed_check_leaves_nothing_behind(build_cohort: BuildCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dataset: Path, num_processes: int) -> None:
        raise ExportError("nnU-Net's integrity check complains:")

    monkeypatch.setattr(nnunet, "verify_integrity", refuse)
    cohort = build_cohort([HEPATIC_TUMOR])
    with pytest.raises(ExportError, match="integrity check complains"):
        export(cohort)
    assert list((cohort.parent / "raw").iterdir()) == []


@pytest.mark.usefixtures("without_check")
class TestContent:
    def test_labels_are_consecutive_and_mapped_back(self, build_cohort: BuildCohort) -> None:
        report = export(build_cohort([HEPATIC_TUMOR], [KIDNEY_TUMOR], requested=(HEPATIC_TUMOR, KIDNEY_TUMOR)))
        assert report.labels == {"background": 0, "hepatic tumor": 1, "kidney tumor": 2}
        mapping = read_json(report.path / MAPPING_NAME)
        assert mapping["labels"] == [
            {
                "label": 1,
                "name": "hepatic tumor",
                "vocabulary_id": HEPATIC_TUMOR,
                "totalsegmentator": "liver_lesions/liver_lesions",
            },
            {
                "label": 2,
                "name": "kidney tumor",
                "vocabulary_id": KIDNEY_TUMOR,
                "totalsegmentator": name_in_totalsegmentator(KIDNEY_TUMOR),
            },
        ]
        assert [entry["vocabulary_id"] for entry in mapping["background"]] == [LIVER, SPLEEN, BODY]
        assert set(mapping["cases"]) == {"case_0001", "case_0002"}
        for index, tumor in enumerate((HEPATIC_TUMOR, KIDNEY_TUMOR)):
            label_map = load_label_map(report.path / "labelsTr" / f"case_000{index + 1}.nii.gz")
            expected = np.where(build_anatomy(tumor) == tumor, index + 1, 0)
            np.testing.assert_array_equal(label_map.array, expected)
            assert label_map.grid.is_close(GRID)

    def test_a_tumor_that_its_case_was_not_asked_for_is_labelled(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR, LUNG_TUMOR], requested=(HEPATIC_TUMOR,))
        with ManifestWriter(cohort / MANIFEST_NAME) as writer:
            writer.append(save_case(cohort, 1, [LUNG_TUMOR], requested=(LUNG_TUMOR,)))
        report = export(cohort)
        assert report.vocabulary_ids == {"lung tumor": LUNG_TUMOR, "hepatic tumor": HEPATIC_TUMOR}
        label_map = load_label_map(report.path / "labelsTr" / "case_0001.nii.gz").array
        assert sorted(np.unique(label_map)) == [0, 1, 2]

    def test_dataset_json_has_nnunets_keys(self, build_cohort: BuildCohort) -> None:
        report = export(build_cohort([HEPATIC_TUMOR], [HEPATIC_TUMOR]))
        dataset = read_json(report.path / "dataset.json")
        assert dataset["channel_names"] == {"0": "CT"}
        assert dataset["labels"] == {"background": 0, "hepatic tumor": 1}
        assert dataset["numTraining"] == 2
        assert dataset["file_ending"] == ".nii.gz"
        assert dataset["licence"] == "Apache-2.0"
        assert "overwrite_image_reader_writer" not in dataset

    def test_large_dataset_names_the_files_that_nnunet_would_find_by_comparing_all(
        self, build_cohort: BuildCohort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets as find_files

        cohort = build_cohort([HEPATIC_TUMOR], [HEPATIC_TUMOR])
        small = export(cohort).path
        monkeypatch.setattr(nnunet, "NAMED_FROM", 2)
        large = export(cohort, dataset_id=502).path
        assert "dataset" not in read_json(small / "dataset.json")
        found = {path: find_files(str(path)) for path in (small, large)}
        assert found[large] == {
            str(case_id): {
                "images": [place.replace(small.name, large.name) for place in files["images"]],
                "label": files["label"].replace(small.name, large.name),
            }
            for case_id, files in found[small].items()
        }

    def test_sheared_axes_are_refused(self, build_cohort: BuildCohort) -> None:
        cohort = shear_cohort(build_cohort([HEPATIC_TUMOR]))
        with pytest.raises(ExportError, match="case_0001: .* has sheared voxel axes"):
            export(cohort)
        assert not (cohort.parent / "raw" / "Dataset501_SynLiver").exists()

    def test_images_are_links_to_unchanged_files(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR])
        report = export(cohort)
        exported = report.path / "imagesTr" / "case_0001_0000.nii.gz"
        assert exported.samefile(cohort / "images" / "case_0001.nii.gz")
        assert report.num_linked == 1

    def test_copy_makes_files_of_their_own_with_the_same_bytes(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR])
        report = export(cohort, copy=True)
        exported = report.path / "imagesTr" / "case_0001_0000.nii.gz"
        assert exported.stat().st_nlink == 1
        assert sha256_of(exported) == sha256_of(cohort / "images" / "case_0001.nii.gz")
        assert load_image(exported).grid.is_close(GRID)

    def test_images_are_copied_where_links_are_not_possible(
        self, build_cohort: BuildCohort, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Path, target: Path) -> None:
            raise OSError("Invalid cross-device link")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        report = export(build_cohort([HEPATIC_TUMOR]))
        assert report.num_linked == 0
        assert (report.path / "imagesTr" / "case_0001_0000.nii.gz").is_file()

    def test_anatomy_adds_every_organ_but_the_body(self, build_cohort: BuildCohort) -> None:
        report = export(build_cohort([HEPATIC_TUMOR]), include_anatomy=True)
        assert report.labels == {"background": 0, "liver": 1, "spleen": 2, "hepatic tumor": 3}

    def test_labels_choose_what_is_exported(self, build_cohort: BuildCohort) -> None:
        report = export(build_cohort([KIDNEY_TUMOR], [], requested=(KIDNEY_TUMOR,)), labels=["Kidney_Tumor", "3"])
        assert report.vocabulary_ids == {"spleen": SPLEEN, "kidney tumor": KIDNEY_TUMOR}

    def test_cohort_is_left_as_it_was(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR])
        before = {path: sha256_of(path) for path in cohort.rglob("*") if path.is_file()}
        export(cohort)
        assert {path: sha256_of(path) for path in cohort.rglob("*") if path.is_file()} == before

    def test_unfinished_and_empty_cases_are_noted(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([LUNG_TUMOR], [])
        (cohort / "cohort.yaml").write_text("configuration: {labels: [lung tumor], num_cases: 6}\n")
        notes = export(cohort, labels=["lung tumor"]).notes
        assert notes[0] == "2 of 6 planned cases of the cohort are accepted."
        assert notes[2] == "1 of 2 cases hold none of the exported labels."

    def test_raw_folder_comes_from_the_environment(
        self, build_cohort: BuildCohort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "from_environment"))
        report = export(build_cohort([HEPATIC_TUMOR]), out=None)
        assert report.path == tmp_path / "from_environment" / "Dataset501_SynLiver"


@pytest.mark.usefixtures("without_check")
class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dataset_id": 0}, "must be 1 to 999, found 0"),
            ({"dataset_id": 1000}, "must be 1 to 999, found 1000"),
            ({"name": "Syn Liver"}, "found 'Syn Liver'"),
            ({"name": "../Liver"}, "found '../Liver'"),
            ({"out": None}, "Use --out FOLDER, or export nnUNet_raw"),
            ({"labels": ["lung tumor"]}, "has lung tumor"),
        ],
    )
    def test_wrong_settings(self, build_cohort: BuildCohort, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ExportError, match=message):
            export(build_cohort([HEPATIC_TUMOR]), **settings)

    def test_unknown_label_offers_the_closest(self, build_cohort: BuildCohort) -> None:
        with pytest.raises(VocabularyError, match="hepatic tumor"):
            export(build_cohort([HEPATIC_TUMOR]), labels=["hepatik tumor"])

    @pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
    def test_id_in_use(
        self, build_cohort: BuildCohort, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable / "Dataset501_Other").mkdir(parents=True)
        with pytest.raises(ExportError, match="Dataset id 501: already used by"):
            export(build_cohort([HEPATIC_TUMOR]))

    def test_second_export_does_not_touch_the_first(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR])
        export(cohort)
        with pytest.raises(ExportError, match="Dataset501_SynLiver"):
            export(cohort)
        shutil.rmtree(cohort.parent / "raw")
        export(cohort)

    def test_no_cohort(self, tmp_path: Path) -> None:
        with pytest.raises(CohortError, match=MANIFEST_NAME):
            export(tmp_path)
        assert not (tmp_path.parent / "raw").exists()

    def test_no_accepted_case(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR], status="rejected")
        with pytest.raises(ExportError, match="has no accepted case in 1 attempts"):
            export(cohort)

    def test_cohort_that_is_being_written(self, build_cohort: BuildCohort) -> None:
        cohort = build_cohort([HEPATIC_TUMOR])
        with (
            ManifestWriter(cohort / MANIFEST_NAME),
            pytest.raises(ExportError, match="another process is still writing this cohort"),
        ):
            export(cohort)
        export(cohort)

    def test_disk_without_locks(self, build_cohort: BuildCohort, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(file: object, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        cohort = build_cohort([HEPATIC_TUMOR])
        monkeypatch.setattr(fcntl, "flock", refuse)
        assert export(cohort).num_cases == 1

    @pytest.mark.parametrize("role", ["images", "anatomy"])
    def test_altered_or_missing_file(self, build_cohort: BuildCohort, role: str) -> None:
        cohort = build_cohort([HEPATIC_TUMOR])
        path = cohort / role / "case_0001.nii.gz"
        path.write_bytes(path.read_bytes() + b"\0")
        advice = "or remove its lines from manifest.jsonl and run synthesize again"
        with pytest.raises(ExportError, match=f"case_0001: .*{role}.* has changed since it was written.*, {advice}"):
            export(cohort)
        path.unlink()
        with pytest.raises(ExportError, match=f"case_0001: .*{role}.* is missing.*, {advice}"):
            export(cohort)
        assert list((cohort.parent / "raw").iterdir()) == []
