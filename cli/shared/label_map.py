"""`--map LABEL=NAME`, one direction for all commands: what the user's files call a label, and its name here.

Earlier spellings, which some commands had the other way round or under another flag, work for one more release; each is
answered with a note on stderr that says how to write it now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer


def tell_old_spelling(old: str, new: str) -> None:
    """Say on stderr how an earlier spelling is written now."""
    typer.echo(f"Note: {old} is an earlier spelling, which the next release drops. Write {new}.", err=True)


def split_rule(text: str, example: str) -> tuple[str, str]:
    """``LABEL=NAME`` as its two sides.

    Raises:
        typer.BadParameter: A side is missing.
    """
    label, _, name = (part.strip() for part in text.partition("="))
    if not label or not name:
        raise typer.BadParameter(f"--map: expected LABEL=NAME such as '{example}', found '{text}'.")
    return label, name


def add_old_rules(rules: Iterable[str] | None, old: Sequence[str] | None, flag: str) -> list[str]:
    """The rules of `--map`, and those of an earlier flag that has NAME=LABEL, turned round and told.

    Args:
        rules: ``LABEL=NAME`` each.
        old: ``NAME=LABEL`` each.
        flag: The earlier flag.
    """
    turned = []
    for text in old or ():
        name, equals, label = (part.strip() for part in text.rpartition("="))
        turned.append(f"{label}={name}" if equals else text)
        tell_old_spelling(f"{flag} '{text}'", f"--map '{turned[-1]}'")
    return [*(rules or ()), *turned]
