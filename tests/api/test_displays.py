"""Progress shows where somebody looks, and nowhere else unless it is asked for."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from maisi_aug.api import bars
from maisi_aug.api.displays import listen_to_run, listen_to_stages, show_training
from maisi_aug.api.progress import CohortProgress, follow_run
from maisi_aug.cohort.manifest import Manifest
from maisi_aug.generate.driver import Listener
from tests.cohort.test_manifest import build_record

NOTHING_DONE = Manifest(())


def test_logs_stay_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with listen_to_run(True) as listener, listen_to_stages(True) as report, show_training(True) as display:
        listener.starts(3, NOTHING_DONE)
        listener.advises("something")
        report("cases", 1, 1)
        display.say("a sentence")
        display.add_phase("looking")(1, 1)
        display.add_training("training", 1)(1, {"loss": 0.5})
    assert capsys.readouterr() == ("", "")


def test_terminals_show_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with listen_to_run(True) as listener:
        assert isinstance(listener, CohortProgress)
        listener.starts(3, NOTHING_DONE)
        listener.advises("something")
    assert "0/3" in (shown := capsys.readouterr().err)
    assert "Note: something" in shown
    with listen_to_run(False) as listener:
        assert type(listener) is Listener


def test_notebooks_show_bars_where_they_have_widgets_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_jupyter=True)
    monkeypatch.setattr(bars, "find_spec", lambda name: None)
    assert not bars.can_draw(console)
    monkeypatch.setattr(bars, "find_spec", lambda name: name == "ipywidgets")
    assert bars.can_draw(console)
    assert not bars.can_draw(Console(force_terminal=False))


def test_functions_are_called_with_stage_done_and_total() -> None:
    told: list[tuple[str, int, int]] = []

    def report(*words: object) -> None:
        told.append(words)  # type: ignore[arg-type]

    with listen_to_run(report) as listener, listen_to_stages(report) as notify, show_training(report) as display:
        listener.measures(1, 4)
        listener.tries(2, 3)
        listener.starts(3, NOTHING_DONE)
        listener.steps("case_0001", 1, 30)
        notify("copying", 0, 2)
        with display.count_stages() as count:
            count("preparing", 1, 9)
        display.add_phase("looking")(5, 6)
        display.add_training("training", 8)(7, {"loss": 0.5})
    assert told == [
        ("measuring the reference", 1, 4),
        ("trying label maps", 2, 3),
        ("cases", 0, 3),
        ("case_0001", 1, 30),
        ("copying", 0, 2),
        ("preparing", 1, 9),
        ("looking", 5, 6),
        ("training", 7, 8),
    ]


def test_warnings_stay_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with pytest.warns(UserWarning, match="shape: expected"), listen_to_run(True):
        warnings.warn("shape: expected another one", stacklevel=1)


def test_every_worker_has_a_line_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with CohortProgress(is_quiet=False) as listener:
        listener.starts(3, NOTHING_DONE)
        listener.opens("worker 1")
        listener.works("worker 1", "enters", ("loading the networks",))
        assert "worker 1" not in capsys.readouterr().err
        listener.opens("worker 2")
        listener.works("worker 2", "steps", ("case_0002", 3, 30))
        listener.loses("worker 1", "was killed, probably for lack of memory")
    shown = capsys.readouterr().err
    assert "worker 1: loading the networks" in shown
    assert "worker 2: case_0002" in shown
    assert "Note: worker 1 was killed, probably for lack of memory. Its unfinished cases are drawn again." in shown


def test_line_of_a_case_ends_with_its_reason_and_the_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with CohortProgress(is_quiet=False) as listener:
        listener.starts(2, NOTHING_DONE)
        listener.steps("case_0001", 1, 1)
        listener.records(replace(build_record(0, status="rejected"), reason="The lesion is too small."))
        listener.records(build_record(1))
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("["))
    pace = r"[0-9.]+ cases/min, .* left"
    assert re.fullmatch(rf"\[1/2\] .* rejected \(attempt 1\): The lesion is too small. \({pace}\)", first)
    assert re.fullmatch(rf"\[2/2\] .* accepted \(attempt 1\), {pace}", second)


def test_schedulers_read_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with follow_run(is_quiet=True, as_lines=True) as listener:
        listener.starts(2, NOTHING_DONE)
        listener.opens("worker 2")
        listener.advises("something")
        listener.records(build_record(0, status="retried"))
        listener.records(build_record(0))
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [row["event"] for row in rows] == ["starts", "opens", "advises", "records", "records"]
    assert rows[1]["worker"] == "worker 2"
    assert [(row["status"], row["num_settled"], row["num_retried"], row["reason"]) for row in rows[3:]] == [
        ("retried", 0, 1, "hepatic tumor: too small"),
        ("accepted", 1, 1, ""),
    ]
    assert rows[-1]["num_cases"] == 2
    assert rows[-1]["cases_a_minute"] > 0
