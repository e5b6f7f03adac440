"""The pages of the documentation and the commands and Python in them.

A block of a page runs in the page's folder, one after the other, unless the line that opens it says what it needs:
```` ```sh gpu ````, ``download``, ``data`` (files of the reader's own), ``cluster``, ``setup`` (installs or changes the
reader's shell), ``browser`` or ``long`` (minutes of work). Such blocks are parsed and not run. A ``text`` block right
after a block shows what it prints.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDS = {"gpu", "download", "data", "cluster", "setup", "browser", "long"}
_BLOCK = re.compile(
    r"^```(?P<language>sh|bash|python)(?: (?P<need>\w+))?\n(?P<text>.*?)^```$"
    r"(?:\n\n```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_RETRIED = re.compile(r"^\[[^\n]* retried .*?(?=^\[|^\.\.\.$|\Z)", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


class Block(NamedTuple):
    """A block of code: page, place there from 0, language, what it needs (or nothing), text, output shown."""

    page: str
    number: int
    language: str
    need: str
    text: str
    shown: str

    @property
    def is_shell(self) -> bool:
        return self.language != "python"


def list_pages() -> list[str]:
    """The Markdown that people read, by path from the repository."""
    patterns = (
        "README.md",
        "[a-z]*/README.md",
        "maisi_aug/*/README.md",
        "maisi_aug/bundles/*/README.md",
        "recipes/guides/*.md",
        "cli/tour.md",
        "evaluation/measured.md",
    )
    found = {path.relative_to(REPOSITORY).as_posix() for pattern in patterns for path in REPOSITORY.glob(pattern)}
    linked = ("maisi_aug/cli/", "maisi_aug/evaluation/", "maisi_aug/integrations/", "maisi_aug/recipes/")
    return sorted(page for page in found if not page.startswith((*linked, "build/")))


def list_blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found = _BLOCK.finditer((REPOSITORY / page).read_text(encoding="utf-8"))
    return [
        Block(page, number, one["language"], one["need"] or "", one["text"], one["shown"] or "")
        for number, one in enumerate(found)
    ]


def list_commands(text: str) -> Iterator[list[str]]:
    """The commands ``maisi-aug ...`` of a block as their words, without what follows ``#``, ``&&``, ``|`` or ``>``."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        for start in (place for place, word in enumerate(words) if word == "maisi-aug"):
            end = next((n for n in range(start, len(words)) if words[n] in ("&&", "|", ">", "||", ";")), len(words))
            yield words[start + 1 : end]


def find_not_printed(shown: str, printed: str) -> list[str]:
    """The lines of a page's output that a command has not printed.

    Numbers, line breaks and the widths of tables may differ, and so may the attempts that failed: these depend on the
    processor.
    """
    plain = _plain(printed)
    lines = [line for line in _RETRIED.sub("", shown).splitlines() if line != "..."]
    return [line for line in lines if _plain(line) not in plain]


def _plain(text: str) -> str:
    """The words of a text, with a mark for every number and without the rules of tables."""
    return " ".join(_NUMBER.sub("0", re.sub(r"[\u2500-\u257f]", " ", text)).split())


def list_flags(page: str) -> set[str]:
    """Every ``--flag`` that a page mentions."""
    return set(_FLAG.findall((REPOSITORY / page).read_text(encoding="utf-8")))
