"""Progress shows where somebody looks, and nowhere else unless it is asked for."""

from __future__ import annotations

import warnings

import pytest
from rich.console import Console

from maisi_aug.api import bars
from maisi_aug.api.displays import listen_to_run, listen_to_stages, show_training
from maisi_aug.api.listener import RunListener
from maisi_aug.api.progress import CohortProgress
from maisi_aug.cohort.manifest import Manifest

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
        assert type(listener) is RunListener


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
