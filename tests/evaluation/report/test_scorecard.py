from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.benchmark.run import open_benchmark
from maisi_aug.evaluation.report.build import build_report
from maisi_aug.evaluation.report.scorecard import MEASUREMENTS
from tests.builders.made_cases import write_cohort, write_folder
from tests.builders.tiny_benchmark import build_config

RunCli = Callable[..., Any]
CRITERIA = ("Congruence", "Coverage", "Constraint", "Completeness", "Compliance", "Comprehension", "Consistency")


def test_scorecard_names_what_was_not_measured(tmp_path: Path) -> None:
    report = build_report(write_cohort(tmp_path / "cohort", [1, 2]))
    entries = report.document["scorecard"]
    assert [entry["criterion"].partition(":")[0] for entry in entries] == list(CRITERIA)
    assert entries[0]["missing"] == ("evaluate distribution", "evaluate equivalence", "evaluate blind-pack")
    assert entries[2]["found"][0] == "2 of 2 cases passed every gate."
    assert "Further evidence: maisi-aug evaluate memorization." in report.html
    assert "# Scorecard" in report.markdown


def test_evidence_fills_the_scorecard_and_is_shown(run_cli: RunCli, tmp_path: Path) -> None:
    real, cohort = write_folder(tmp_path / "real", range(1, 11)), write_cohort(tmp_path / "cohort", range(30, 40))
    for command in ("distribution", "equivalence"):
        words = ["evaluate", command, real, cohort, "--spacing", "6", "--out", tmp_path / command, "--quiet"]
        assert run_cli(*words).code == 0
    page = tmp_path / "report.html"
    words = ["report", cohort, "--out", page]
    for command in ("distribution", "equivalence"):
        words += ["--evidence", tmp_path / command]
    outcome = run_cli(*words)
    assert outcome.code == 0, outcome.stderr
    document = json.loads(page.with_suffix(".json").read_text())
    entries = {entry["criterion"].partition(":")[0]: entry for entry in document["scorecard"]}
    assert entries["Congruence"]["missing"] == ["evaluate blind-pack"]
    assert "regions no farther apart than real cases" in entries["Congruence"]["found"][0]
    assert any("recall" in line for line in entries["Coverage"]["found"])
    html = page.read_text()
    for command in ("distribution", "equivalence"):
        assert f'<h2 id="{MEASUREMENTS[command].title.lower().replace(" ", "-")}">' in html
    assert "Fréchet radiomics distance" in html
    assert not any("measured on" in note for note in document["notes"])
    other = build_report(write_cohort(tmp_path / "other", [1, 2]), evidence=[tmp_path / "equivalence"])
    (note,) = [note for note in other.document["notes"] if "measured on" in note]
    assert note.startswith(f"Equivalence: measured on {cohort}, this report is of {tmp_path / 'other'}.")
    assert "measured on" in other.html


def test_evidence_that_is_none_leaves_the_rest_of_the_report(tmp_path: Path) -> None:
    cohort, folder = write_cohort(tmp_path / "cohort", [1, 2]), tmp_path / "evidence"
    folder.mkdir()
    (folder / "equivalence.json").write_text(json.dumps({"measurement": "equivalence", "rows": 3}))
    report = build_report(cohort, evidence=[folder, tmp_path / "nowhere"])
    notes = report.document["notes"]
    assert any("equivalence.json: not equivalence as" in note for note in notes)
    assert any("nowhere: has no results of 'maisi-aug evaluate ... --out' that can be shown" in note for note in notes)
    assert "Scorecard" in report.html
    open_benchmark(tmp_path / "bench", build_config(tmp_path))
    with pytest.raises(EvaluationError, match="--evidence can only be used with a cohort"):
        build_report(tmp_path / "bench", evidence=[folder])


def test_every_measurement_can_be_shown() -> None:
    from importlib import import_module

    assert len(MEASUREMENTS) == 7
    for measurement in MEASUREMENTS.values():
        module = import_module(f"maisi_aug.evaluation.{measurement.module}")
        assert module.REPORT_NAME in MEASUREMENTS
        assert callable(module.to_report)
        assert hasattr(module, "draw_chart") == measurement.has_chart
