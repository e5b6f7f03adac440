"""Exports from Python: the same files and sentences as the command's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maisi_aug as ma
from maisi_aug.errors import RequestError
from tests.builders.tiny_cohort import HEPATIC_TUMOR, KIDNEY_TUMOR, write_cohort


@pytest.fixture
def cohort(tmp_path: Path) -> ma.Cohort:
    return ma.load_cohort(write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR]))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_dataset_is_the_commands(cohort: ma.Cohort, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    report = cohort.export_nnunet(dataset_id=501, name="SynLiver", out=str(tmp_path / "ours"))
    words = ["--dataset-id", "501", "--name", "SynLiver", "--out", tmp_path / "theirs"]
    outcome = run_cli("export", "nnunet", cohort.folder, *words, "--json")
    assert outcome.code == 0, outcome.stderr
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    assert json.loads(outcome.stdout)["labels"] == report.labels == {"background": 0, "hepatic tumor": 1}


def test_several_cohorts_are_one_dataset(cohort: ma.Cohort, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", [KIDNEY_TUMOR])
    told: list[tuple[str, int, int]] = []
    report = ma.export_monai([cohort, str(other)], tmp_path / "monai", progress=lambda *words: told.append(words))
    assert report.num_synthetic == 3
    assert ("cases", 2, 3) in told


def test_dicom_is_a_method_too(cohort: ma.Cohort, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    assert cohort.export_dicom(tmp_path / "dicom").num_cases == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "X", "ratio": 1.0}, "--ratio can only be used with --like"),
        ({"name": "X", "dry_run": True}, "--dry-run can only be used with --like"),
        ({"like": "real", "copy": True}, "--copy can only be used without --like"),
        ({}, "--name: required without --like"),
    ],
)
def test_options_without_a_meaning_are_refused(
    cohort: ma.Cohort, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        cohort.export_nnunet(dataset_id=501, out=tmp_path / "raw", **options)
    assert not (tmp_path / "raw").exists()
