from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from maisi_aug import __version__
from maisi_aug.cli import app as cli_app


def test_help_lists_every_verb_with_its_summary(run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    outcome = run_cli("--help")
    assert outcome.code == 0
    assert len(cli_app.VERBS) == 20
    for name, verb in cli_app.VERBS.items():
        assert name in outcome.stdout
        assert verb.summary in outcome.stdout


@pytest.mark.parametrize("name", list(cli_app.VERBS))
def test_every_verb_registers_under_its_own_name(name: str) -> None:
    command = cli_app.load_verb(name)
    assert command.name == name
    assert command.help


def test_help_imports_no_verb(run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_app, "load_verb", lambda name: pytest.fail(f"{name} was imported"))
    assert run_cli("--help").code == 0


def test_version(run_cli: Callable[..., Any]) -> None:
    assert run_cli("--version") == (0, f"maisi-aug {__version__}\n", "")


def test_misspelt_verb_offers_the_closest(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("synthesise")
    assert outcome.code == 2
    assert outcome.stderr == (
        "Error: No such command 'synthesise'. Did you mean 'synthesize'? Try 'maisi-aug --help'.\n"
    )


def test_unknown_option_is_one_sentence(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("--colour")
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert outcome.stderr == "Error: No such option: --colour. Try 'maisi-aug --help'.\n"


def test_no_arguments_show_the_help(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli()
    assert outcome.code == 2
    assert "Usage: maisi-aug" in outcome.stdout
    assert outcome.stderr == ""


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Put a function in the place of the verb `labels`."""

    def plug(function: Callable[..., None]) -> None:
        def register(app: typer.Typer) -> None:
            app.command("labels")(function)

        monkeypatch.setitem(sys.modules, "plugged_in_verb", SimpleNamespace(register=register))
        monkeypatch.setitem(cli_app.VERBS, "labels", cli_app.Verb("plugged_in_verb", "For a test."))

    return plug


@pytest.mark.parametrize("words", [("--debug", "labels", "--colour"), ("labels", "--colour", "--debug")])
def test_debug_shows_the_traceback_before_and_after_the_verb(
    words: tuple[str, ...], run_cli: Callable[..., Any], plug_in: Callable[..., None]
) -> None:
    plug_in(lambda: None)
    outcome = run_cli(*words)
    assert outcome.code == 2
    assert outcome.stderr.startswith("Traceback")
    assert "No such option: --colour" in outcome.stderr.splitlines()[-1]


def test_debug_after_two_dashes_is_a_value(run_cli: Callable[..., Any], plug_in: Callable[..., None]) -> None:
    def repeat(word: str) -> None:
        typer.echo(word)

    plug_in(repeat)
    assert run_cli("labels", "--", "--debug") == (0, "--debug\n", "")


KEPT = "Stopped on request; finished work is kept, and the same command continues from there.\n"
NOTHING_WRITTEN = "Stopped on request; nothing was written.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["synthesize", "--out", "cohort"], KEPT),
        (["phantom", "--out", "phantoms"], KEPT),
        (["train", "vae", "--out", "run"], KEPT),
        (["bundles", "pull", "rflow-ct"], KEPT),
        (["synthesize", "--dry-run"], NOTHING_WRITTEN),
        (["bundles", "list"], NOTHING_WRITTEN),
        (["labels", "--find", "synthesize"], NOTHING_WRITTEN),
        (["recipes", "validate", "liver"], NOTHING_WRITTEN),
        (["export", "nnunet", "cohort", "--dataset-id", "501", "--name", "Syn"], NOTHING_WRITTEN),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_interrupted_verb_says_whether_the_same_command_goes_on(
    words: list[str], message: str, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_app, "load_verb", interrupt)
    assert run_cli(*words) == (130, "", message)


def test_resumable_commands_are_commands() -> None:
    assert {path[0] for path in cli_app.RESUMABLE} <= set(cli_app.VERBS)


def test_interrupted_function_of_a_verb_is_a_clean_stop(
    run_cli: Callable[..., Any], plug_in: Callable[..., None]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    plug_in(interrupted)
    assert run_cli("labels") == (130, "", NOTHING_WRITTEN)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_code_of_a_verb_is_kept(code: int, run_cli: Callable[..., Any], plug_in: Callable[..., None]) -> None:
    def leaving() -> None:
        raise typer.Exit(code)

    plug_in(leaving)
    assert run_cli("labels") == (code, "", "")


def test_module_is_the_same_command(repository: Path) -> None:
    command = [sys.executable, "-m", "maisi_aug", "labels", "--find", "spleen", "--json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert [row["name"] for row in json.loads(done.stdout)] == ["spleen"]
