from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from maisi_aug.cli.app import VERBS, load_verb
from tests.docs.pages import (
    NEEDS,
    REPOSITORY,
    Block,
    find_not_printed,
    list_blocks,
    list_commands,
    list_flags,
    list_pages,
)

PAGES = list_pages()
BLOCKS = [block for page in PAGES for block in list_blocks(page)]
COMMANDS = [(block, words) for block in BLOCKS if block.is_shell for words in list_commands(block.text)]
GUIDES = sorted({block.page for block in BLOCKS if not block.need})
STAND_IN = "recipes/guides/stand_in.md"
"""The page that makes the data of those that link to it."""
FOREIGN_FLAGS = {
    "--array",
    "--baseline",
    "--config",
    "--dist",
    "--input",
    "--maps",
    "--own-precision",
    "--own-steps",
    "--scaling",
    "--source",
    "--strict",
    "--segmenter",
    "--folder",
    "--width",
    "--test",
}
"""Flags of other programs, and of the scripts of tests and studies, that pages mention."""


def options_of(command: Any) -> Iterator[str]:
    """Every spelling of every option of a command and its commands."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            yield from options_of(child)


def test_pages_and_blocks_are_found() -> None:
    assert {"README.md", "cli/README.md", "integrations/README.md", "evaluation/README.md"} <= set(PAGES)
    assert len(GUIDES) >= 6
    assert len(COMMANDS) >= 80
    assert {block.need for block in BLOCKS} <= NEEDS | {""}


@pytest.mark.parametrize(
    ("block", "words"),
    COMMANDS,
    ids=[f"{block.page}-{block.number}-{' '.join(words)[:50]}" for block, words in COMMANDS],
)
def test_command_of_a_page_is_one_that_there_is(block: Block, words: list[str]) -> None:
    """Typer takes it: verb, options, values of options and the number of arguments; nothing is run."""
    words = [word for word in words if word != "--debug"]
    if words[0].startswith("-"):
        assert words[0] in {"--help", "--version", "--install-completion"}
        return
    command, name, rest = load_verb(words[0]), words[0], words[1:]
    while isinstance(command, TyperGroup):
        name, rest = rest[0], rest[1:]
        command = command.commands[name]
    command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_a_page_mentions_exist(page: str) -> None:
    known = {flag for verb in VERBS for flag in options_of(load_verb(verb))} | FOREIGN_FLAGS
    known |= {"--help", "--help-all", "--version", "--debug", "--install-completion"}
    assert {flag for flag in list_flags(page) if flag not in known} == set()


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if not block.is_shell], ids=lambda block: f"{block.page}-{block.number}"
)
def test_python_of_a_page_compiles(block: Block) -> None:
    compile(block.text, block.page, "exec")


def test_output_of_a_page_is_compared_by_its_words() -> None:
    retried = "[1/2] case_0002 retried (attempt 1): too\ndark.\n"
    shown = f"[1/2] case_0001 accepted (attempt 1)\n{retried}...\n│ liver │ 12.5 mL │\n"
    printed = "[1/2] case_0001 accepted (attempt 3)\n┃ liver   ┃   7 mL ┃\n"
    assert find_not_printed(shown, printed) == []
    assert find_not_printed("Every file is whole.\n", "Every file\nis intact.\n") == ["Every file is whole."]


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_blocks_of_a_guide_run(page: str, tmp_path: Path) -> None:
    """One after the other in one folder, as a reader would paste them; each succeeds and prints what the page shows."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{write_program(tmp_path)}:{os.environ['PATH']}",
    }
    place = tmp_path / "place"
    place.mkdir()
    needs_data = f"]({Path(STAND_IN).name})" in (REPOSITORY / page).read_text(encoding="utf-8")
    for block in [*(list_blocks(STAND_IN) if needs_data else ()), *list_blocks(page)]:
        if not block.need:
            words = ["bash", "-euo", "pipefail", "-c"] if block.is_shell else [sys.executable, "-c"]
            done = subprocess.run(
                [*words, block.text],
                cwd=place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=1200,
            )
            assert done.returncode == 0, f"{block.text}\n{done.stdout}"
            assert find_not_printed(block.shown, done.stdout) == [], f"{block.text}\n{done.stdout}"


def write_program(folder: Path) -> Path:
    """A folder with ``maisi-aug`` and ``python`` as the ones that run the tests."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("maisi-aug", "-m maisi_aug"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    return programs
