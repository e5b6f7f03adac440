from __future__ import annotations

import re
import shlex
import subprocess
import sys
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
    assert len(EVERYDAY_OPTIONS) == 9


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


LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, TyperGroup)}


@pytest.mark.parametrize("path", list(LEAVES))
def test_help_of_every_command_has_an_example_that_typer_takes(path: str) -> None:
    examples = re.findall(r"(?<![\w'])maisi-aug ([^\n]+)", (LEAVES[path].help or "").partition("Example")[2])
    assert examples
    for example in examples:
        words = shlex.split(example.removesuffix(')"'))
        verb = next(" ".join(words[:length]) for length in (1, 2) if " ".join(words[:length]) in LEAVES)
        LEAVES[verb].make_context(verb, words[len(verb.split()) :])


@pytest.mark.parametrize("path", list(LEAVES))
def test_same_things_have_the_same_names(path: str) -> None:
    for parameter in LEAVES[path].params:
        flags = set(parameter.opts)
        assert ("--out" in flags) <= ("-o" in flags)
        assert ("--quiet" in flags) <= ("-q" in flags)
        if "--shape" in flags:
            assert parameter.metavar == "IxJxK"
        if "--spacing" in flags:
            assert parameter.metavar in ("MM|IxJxK", "MM")
        if parameter.param_type_name == "argument":
            assert re.sub(r"IxJxK", "", parameter.metavar or "").upper() == (parameter.metavar or "-"), (
                "arguments are capitals"
            )


@pytest.mark.parametrize("path", list(LEAVES))
def test_long_help_is_in_panels(path: str) -> None:
    shown = [
        parameter for parameter in LEAVES[path].params if not parameter.hidden and parameter.param_type_name == "option"
    ]
    panels = {parameter.rich_help_panel for parameter in shown}
    assert len(shown) <= 8 or len(panels) >= 2


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


def test_help_names_values_in_capitals_and_shows_no_python_type(show: Callable[..., str]) -> None:
    assert len(LEAVES) >= 40
    for path in LEAVES:
        flag = "--help-all" if path in EVERYDAY_OPTIONS else "--help"
        assert re.findall(r"<[a-z]+\b[^>]*>|\.\.\.\}\.\.\.|\[\[", show(*path.split(), flag)) == [], path
    shown = " ".join(show("export", "nnunet", "--help").replace("\u2502", " ").split())
    assert "Usage: maisi-aug export nnunet [OPTIONS] {COHORT}..." in shown
    assert "* COHORT Folder of a cohort, or several. [required]" in shown
    assert "* --dataset-id INT [1<=x<=999] Unused dataset number. [required]" in shown
    assert "--name TEXT Dataset name" in shown
    assert "--out -o PATH Folder for raw datasets" in shown
    assert "--json Print the report as JSON." in shown
    assert "--painter auto|procedural|network" in " ".join(show("insert", "--help-all").replace("\u2502", " ").split())


def test_help_of_every_command_is_shown_without_numpy() -> None:
    program = (
        "import sys\n"
        "from maisi_aug.cli.app import run\n"
        f"for path in {list(COMMANDS)!r}:\n"
        "    run([*path.split(), '--help'])\n"
        "    assert 'numpy' not in sys.modules, path\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: maisi-aug") == len(COMMANDS)
