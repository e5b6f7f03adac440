from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.core import TyperGroup

from maisi_aug.cli.app import load_verb
from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.studies import few_cases
from maisi_aug.evaluation.studies.few_cases import (
    TEST_IDS,
    Sizes,
    Step,
    draw_patients,
    list_patients,
    list_steps,
    main,
    run_step,
)

OTHERS = [f"pt_{number}" for number in range(201, 212)]
SIZES = Sizes(ratio=3, finetune_steps=10, arm_steps=20)


@pytest.fixture
def cts(tmp_path: Path) -> Path:
    folder = tmp_path / "openkbp"
    folder.mkdir()
    for patient in (*TEST_IDS, *OTHERS):
        (folder / f"{patient}_ct.nii.gz").touch()
    return folder


def test_draws_differ_and_the_smaller_one_is_among_the_larger(cts: Path) -> None:
    patients = list_patients(cts)
    for draw in range(5):
        few, more = (set(draw_patients(patients, count, draw)) for count in (4, 8))
        assert len(few) == 4
        assert few < more < set(OTHERS)
    assert len({tuple(draw_patients(patients, 4, draw)) for draw in range(5)}) > 3


def test_every_step_is_a_command_that_is_taken(cts: Path, tmp_path: Path) -> None:
    steps = list(list_steps(cts, tmp_path / "out", [4, 8], 2, SIZES))
    assert len(steps) == 4 + 2 * 2 * 5
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        command, words = load_verb(step.words[0]), list(step.words[1:])
        if isinstance(command, TyperGroup):
            command = command.commands[words.pop(0)]
        command.make_context(step.name, words)


def test_base_and_fine_tuning_see_no_test_patient(cts: Path, tmp_path: Path) -> None:
    for step in list_steps(cts, tmp_path / "out", [4], 1, SIZES):
        if step.words[0] == "prepare":
            excluded = {step.words[n + 1] for n, word in enumerate(step.words) if word == "--exclude"}
            assert set(TEST_IDS) <= excluded or step.name.endswith("prepare-real")
            assert ("--labels" in step.words) == (step.name != "base/prepare")
            if step.name == "labelled4-draw0/prepare":
                assert len(set(OTHERS) - excluded) == 4


def test_step_is_run_once_and_a_failing_one_is_named(tmp_path: Path) -> None:
    assert run_step(Step("base/labels", ("labels", "--json")), tmp_path)
    assert '"liver"' in (tmp_path / "logs" / "base-labels.log").read_text()
    assert not run_step(Step("base/labels", ("labels", "--json")), tmp_path)
    with pytest.raises(BenchmarkError, match="Step base/train: exit code 2. See .*base-train.log"):
        run_step(Step("base/train", ("train", "nothing")), tmp_path)
    assert len((tmp_path / "costs.jsonl").read_text().splitlines()) == 2


def test_report_says_what_is_finished(
    cts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(cts), "--out", str(tmp_path / "out"), "--report-only"]) == 0
    assert "No draw is finished yet." in capsys.readouterr().out
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "found 0; 14 test patients missing" in capsys.readouterr().err


def test_synthetic_cases_are_compared_with_every_other_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A gain of 0.1 in every patient and draw over all arms but one is what the comparison says."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, (5, 14))
    arms = few_cases.list_arms(3)

    class Scores:
        def __init__(self, gain: float) -> None:
            self.runs = dict.fromkeys(range(5))
            self.gain = gain

        def collect(self, label: str, metric: str) -> tuple[tuple[str, ...], np.ndarray]:
            return TEST_IDS, base + self.gain

    gains = dict(zip(arms, (0.0, 0.0, 0.1, 0.1), strict=True))
    monkeypatch.setattr(few_cases, "collect_scores", lambda *given: {arm: Scores(gain) for arm, gain in gains.items()})
    (row,) = few_cases.compare_counts(tmp_path, [4], 5, 3)
    found = {(r["baseline"], r["label"]): r for r in row["comparisons"]}
    assert len(found) == 9
    assert found["real", "mandible"]["difference"]["mean"] == pytest.approx(0.1)
    assert found["real", "mandible"]["verdict"] == "gain"
    assert found["warped:3", "mandible"]["verdict"] != "gain"
    report = few_cases.to_report({"num_unlabelled": 11, "counts": [row], "costs": []})
    assert "## 4 labelled, 5 draws" in report
    assert "| mandible | warped:3 |" in report
