"""How the command line asks for a field of a configuration. The field itself says the rest: type, default, limits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from maisi_aug.errors import EarlierSpelling


@dataclass(frozen=True)
class Option:
    """Makes a field an option of the commands that are configured by its model.

    A field ``count: Annotated[PositiveInt, Option("-n", panel="Run")] = 4`` is asked for as ``--count`` or ``-n``. Its
    help is the docstring below it, which pydantic keeps for classes with ``use_attribute_docstrings=True``.

    Attributes:
        flags: Spellings; without a long one among them ``--name-of-the-field`` comes first. ``--x/--no-x`` is a switch
            with a negative.
        panel: Heading in the help.
        metavar: What the help shows for the value.
        takes: What is typed, where that is not what the field holds: ``str``, ``list[str]``, ``Path``; validators of
            the model read it.
        complete: What a shell offers, by a name of ``cli.shared.completion``: ``"bundles"`` for ``complete_bundles``.
        is_everyday: Whether ``--help`` shows it; else only ``--help-all`` does, for commands that have both.
    """

    flags: tuple[str, ...]
    panel: str | None
    metavar: str | None
    takes: Any
    complete: str | None
    is_everyday: bool

    def __init__(
        self,
        *flags: str,
        panel: str | None = None,
        metavar: str | None = None,
        takes: Any = None,
        complete: str | None = None,
        everyday: bool = False,
    ) -> None:
        values = (flags, panel, metavar, takes, complete, everyday)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def spell_flags(self, field: str) -> tuple[str, ...]:
        """The spellings of a field's option, the long one first."""
        is_named = any(flag.startswith("--") for flag in self.flags)
        return self.flags if is_named else (f"--{field.replace('_', '-')}", *self.flags)


def _to_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(_to_text)]
"""A path as it stands in a file; ``Path`` is taken, too."""


def warn_of_spelling(old: str, new: str) -> None:
    """Say how an earlier spelling is written now."""
    sentence = f"{old} is an earlier spelling, which the next release drops. Write {new}."
    warnings.warn(sentence, EarlierSpelling, stacklevel=3)


def texts_of(values: Sequence[object], example: str) -> list[str]:
    """Values that are texts as they are typed.

    Raises:
        ValueError: One is no text; ``example`` says what was expected.
    """
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"expected texts such as {example}, found {value!r:.60}")
    return [str(value) for value in values]


def split_rule(text: str, example: str) -> tuple[str, str]:
    """``LABEL=NAME`` of ``--map`` as its two sides: what the user's files call a label, and its name here.

    Raises:
        ValueError: A side is missing.
    """
    label, _, name = (part.strip() for part in text.partition("="))
    if not label or not name:
        raise ValueError(f"--map: expected LABEL=NAME such as '{example}', found '{text}'")
    return label, name
