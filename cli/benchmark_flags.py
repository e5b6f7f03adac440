"""Flags of `maisi-aug benchmark` as values: sources, labels, mappings and arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer


def parse_sources(words: Sequence[str]) -> dict[str, Path]:
    """``[NAME=]FOLDER`` as folders by name; without a name it is "synthetic".

    Raises:
        typer.BadParameter: A name that occurs twice, or is not one word.
    """
    sources: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum():
            name, path = "synthetic", word
        if name in sources:
            raise typer.BadParameter(
                f"--synthetic {word}: expected a name of its own, found '{name}' twice. Write NAME=FOLDER."
            )
        sources[name] = Path(path)
    return sources


def parse_label_ids(words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``NAME=ID+ID`` as ids by name, and ``NAME`` alone as no ids.

    Raises:
        typer.BadParameter: A word without a name or with something else than ids.
    """
    labels: dict[str, tuple[int, ...]] = {}
    for word in words:
        name, equals, ids = word.partition("=")
        parts = [part.strip() for part in ids.split("+")] if equals else []
        if not name.strip() or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"--label {word}: expected NAME, NAME=ID or NAME=ID+ID, found '{ids}'.")
        labels[name.strip()] = tuple(map(int, parts))
    return labels


def parse_mapping(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``NAME=LABEL+LABEL`` as names or ids by the real label's name.

    Raises:
        typer.BadParameter: A word without a name or without labels.
    """
    mapping: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, _, labels = word.partition("=")
        parts = [part.strip() for part in labels.split("+")]
        if not name or not all(parts):
            raise typer.BadParameter(f"--map {word}: expected NAME=LABEL or NAME=LABEL+LABEL, found '{labels}'.")
        mapping[name.strip()] = tuple(parts)
    return mapping


def parse_arms(text: str) -> tuple[str, ...]:
    """Arms joined by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_list(path: Path | None) -> tuple[str, ...]:
    """The lines of a text file, empty ones left out.

    Raises:
        typer.BadParameter: The file cannot be read, or holds nothing.
    """
    if path is None:
        return ()
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--test-list: expected a text file, found: {error}.") from None
    if not lines:
        raise typer.BadParameter(f"--test-list {path}: expected a patient in every line, found none.")
    return lines
