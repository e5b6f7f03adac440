from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, FileRecord, Manifest, ManifestWriter, VerdictRecord
from maisi_aug.evaluation.cohort.lesion_sizes import main, measure_lesion_sizes, to_report
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.vocabulary.sizes import volume_ml

VOXEL_ML = 0.03


def build_record(index: int, lesions: list[tuple[str, float, float]], **changes: Any) -> AttemptRecord:
    sizes = VerdictRecord("lesion size", True, {"voxel_ml": VOXEL_ML}, "")
    fields: dict[str, Any] = {
        "case_id": f"case_{index + 1:04d}",
        "case_index": index,
        "attempt": 0,
        "seed": index,
        "status": "accepted",
        "request": "",
        "lesions": tuple(Lesion(26, label, wanted, None, found) for label, wanted, found in lesions),
        "required_ids": (),
        "verdicts": (sizes,),
        "reason": "",
        "mask_origin": {},
        "bundle": "",
        "bundle_fingerprint": "",
        "licence": "",
        "settings": {},
        "files": {"image": FileRecord(f"images/case_{index + 1:04d}.nii.gz", "00ff" * 16)},
        "seconds": {},
    }
    return AttemptRecord(**(fields | changes))


@pytest.fixture
def manifest() -> Manifest:
    failed = VerdictRecord("organ HU", False, {}, "bone is off")
    small, large = volume_ml(8.0), volume_ml(40.0)
    return Manifest.from_records(
        [
            build_record(0, [("hepatic tumor", large, 1.05 * large), ("lung tumor", small, small + 2 * VOXEL_ML)]),
            build_record(1, [("lung tumor", large, 0)], status="retried", verdicts=(failed,)),
            build_record(1, [("lung tumor", large, 1.2 * large)], attempt=1),
            build_record(2, [("hepatic tumor", large, 0)], status="rejected", verdicts=()),
        ]
    )


def test_lesions_of_accepted_cases_count_with_the_wider_tolerance(manifest: Manifest) -> None:
    found = measure_lesion_sizes(manifest)
    assert found["all"]["num_lesions"] == 3
    assert found["all"]["within_tolerance"] == pytest.approx(2 / 3)
    assert found["all"]["largest_error"] == pytest.approx(2 * VOXEL_ML / volume_ml(8.0))
    assert (found["num_cases"], found["num_accepted"], found["num_rejected"], found["num_attempts"]) == (3, 2, 1, 4)


def test_first_attempts_count_once_per_case_by_label_and_by_size(manifest: Manifest) -> None:
    found = measure_lesion_sizes(manifest)
    assert found["all"]["first_attempt_rate"] == pytest.approx(1 / 3)
    assert [(row["name"], row["num_first_attempts"], row["first_attempt_rate"]) for row in found["by_label"]] == [
        ("hepatic tumor", 2, 0.5),
        ("lung tumor", 2, 0.5),
    ]
    assert [(row["name"], row["num_lesions"], row["num_first_attempts"]) for row in found["by_size"]] == [
        ("under 10 mm", 1, 1),
        ("30-50 mm", 2, 3),
    ]
    assert found["failures"] == {"organ HU": 1, "no label map": 1}


def test_report_says_what_is_met(manifest: Manifest) -> None:
    report = to_report(measure_lesion_sizes(manifest))
    assert "| lesions within 10% or two voxels | 100% | 67% | 3 | no |" in report
    assert "| cases accepted at the first attempt | 80% | 33% | 3 | no |" in report


def test_empty_manifest_gives_a_report_without_figures() -> None:
    found = measure_lesion_sizes(Manifest(()))
    assert found["all"]["within_tolerance"] is None
    assert "| - | 0 | no |" in to_report(found)


def test_command_writes_and_prints_the_report(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cohort").mkdir()
    with ManifestWriter(tmp_path / "cohort" / MANIFEST_NAME) as writer:
        for record in manifest.records:
            writer.append(record)
    assert main([str(tmp_path / "cohort"), "--out", str(tmp_path / "results")]) == 0
    report = (tmp_path / "results" / "lesion_sizes.md").read_text()
    assert capsys.readouterr().out == report + "\n"
    assert json.loads((tmp_path / "results" / "lesion_sizes.json").read_text()) == measure_lesion_sizes(manifest)


def test_folder_that_is_no_cohort_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "not a cohort, because manifest.jsonl is missing" in capsys.readouterr().err
