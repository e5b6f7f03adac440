from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.core import TyperGroup

from maisi_aug.cli.app import VERBS, load_verb
from maisi_aug.cli.shared.help_pages import EVERYDAY_OPTIONS, fit_help, unbreak

COLUMNS, MAX_LINES = 100, 42


def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from walk(child, (*path, name))


COMMANDS = {" ".join(path): command for name in VERBS for path, command in walk(load_verb(name), (name,))}


def options_of(command: Any) -> set[str]:
    return {flag for param in command.params if param.param_type_name == "option" for flag in param.opts}


@pytest.fixture
def show(run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a command line prints on a screen of 100 columns."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))

    def call(*words: str) -> str:
        outcome = run_cli(*words)
        assert (outcome.code, outcome.stderr) == (0, "")
        return str(outcome.stdout)

    return call


def test_there_are_as_many_commands_as_expected() -> None:
    assert len(COMMANDS) >= 40
    assert set(EVERYDAY_OPTIONS) <= set(COMMANDS)
    assert len(EVERYDAY_OPTIONS) == 8


@pytest.mark.parametrize("path", ["", *COMMANDS])
def test_help_of_every_command_is_one_screen(path: str, show: Callable[..., str]) -> None:
    lines = show(*path.split(), "--help").splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("path", list(COMMANDS))
def test_help_breaks_no_line_that_the_screen_does_not_break(path: str) -> None:
    for paragraph in (COMMANDS[path].help or "").split("\n\n"):
        assert "\n" not in paragraph


@pytest.mark.parametrize("path", list(EVERYDAY_OPTIONS))
def test_advanced_options_are_under_help_all_and_taken_like_any_other(path: str, show: Callable[..., str]) -> None:
    command = COMMANDS[path]
    assert set(EVERYDAY_OPTIONS[path]) <= options_of(command), "an everyday option that the command does not have"
    short, full = show(*path.split(), "--help"), show(*path.split(), "--help-all")
    advanced = {flag for option in command.advanced for flag in option.opts if flag.startswith("--")}
    assert len(command.advanced) >= 4
    for flag in advanced:
        assert f" {flag} " not in short.replace("\u2502", " ")
        assert flag in full
    for flag in set(EVERYDAY_OPTIONS[path]):
        assert flag in short
    assert f"Show {len(command.advanced)} more options." in short
    assert not any(option.hidden for option in command.advanced), "hidden options would not be completed"
    assert show(*path.split(), "--help") == short


def test_advanced_option_is_taken(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("synthesize", "--labels", "liver", "-n", "1", "--guidance-scale", "2", "--dry-run", "--json")
    assert outcome.code == 0
    assert "--guidance-scale" not in EVERYDAY_OPTIONS["synthesize"]


def test_paragraphs_become_lines_and_stay_apart() -> None:
    assert unbreak("One\n  two.\n\n  Three\n  four.\n") == "One two.\n\nThree four."
    assert unbreak(None) is None


def test_command_with_few_options_stays_as_it_is() -> None:
    command = load_verb("labels")
    assert fit_help(command, ["labels"]) is command
    assert "--help-all" not in options_of(command)
