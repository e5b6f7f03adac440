from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cohort.review import Choice, Decision, append_decision, now
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.review.reviewers import find_kappa, measure_reviewers, to_report
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort

ANNA = "aaaaaarrrr"
BEN = "aaaaararrr"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    for reviewer, letters in (("anna", ANNA), ("ben", BEN)):
        for case, letter in enumerate(letters, start=1):
            choice: Choice = "accept" if letter == "a" else "reject"
            reason = "artefact" if letter == "r" else ""
            append_decision(folder, Decision(f"case_{case:04d}", 0, choice, reason, reviewer, now()))
    return folder


def test_kappa_is_what_the_table_of_both_says() -> None:
    # 5 both accept, 3 both reject, 1 and 1 differ: observed 0.8, by chance 0.6 * 0.6 + 0.4 * 0.4 = 0.52.
    votes = np.array([[a == "r", b == "r"] for a, b in zip(ANNA, BEN, strict=True)])
    assert find_kappa(votes) == pytest.approx((0.8 - 0.52) / (1 - 0.52))


@pytest.mark.parametrize("votes", [[], [[True, True]] * 3, [[False, False]]])
def test_kappa_is_not_defined_where_chance_agrees_on_everything(votes: list[list[bool]]) -> None:
    assert find_kappa(np.array(votes, dtype=bool).reshape(-1, 2)) is None


def test_kappa_below_chance_is_negative() -> None:
    assert find_kappa(np.array([[True, False], [False, True]])) == pytest.approx(-1.0)


def test_disagreements_are_listed_with_who_rejected(cohort: Path) -> None:
    document = measure_reviewers(cohort)
    (pair,) = document["pairs"]
    assert (pair["num_both"], pair["agreement"]) == (10, 0.8)
    assert pair["low"] < pair["kappa"] < pair["high"]
    assert [(row["case"], row["rejected_by"]) for row in pair["disagreements"]] == [
        ("case_0006", "ben"),
        ("case_0007", "anna"),
    ]
    report = to_report(document)
    assert "10 cases decided by both; the same decision on 80%; kappa 0.58" in report
    assert "case_0007, attempt 1: rejected by anna alone: artefact" in report


def test_command_prints_the_agreement(cohort: Path, run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("evaluate", "reviewers", cohort, "--json", "--out", cohort.parent / "out")
    assert outcome.code == 0
    assert json.loads(outcome.stdout)["pairs"][0]["num_both"] == 10
    assert (cohort.parent / "out" / "reviewers.md").is_file()


def test_readers_are_scored_in_the_report(tmp_path: Path) -> None:
    for number in range(10):
        reading = {"case_id": "c", "truth": "real", "answer": "real", "confidence": 4, "seconds": 3.0}
        line = json.dumps({**reading, "reviewer": "", "seed": 0, "number": number})
        with (tmp_path / "reader_test.jsonl").open("a") as file:
            file.write(line + "\n")
    report = to_report(measure_reviewers(tmp_path))
    assert "(no name): 10 of 10 right, 100% (69% to 100%; chance 50%, p = 0.002): can tell; 3 s per image." in report


def test_folder_that_nobody_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has no decisions or readings"):
        measure_reviewers(tmp_path)
