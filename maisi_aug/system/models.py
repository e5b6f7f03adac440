"""The base of all configurations and files that pydantic validates, and one way to say all that is wrong with one.

How the command line offers a field stands at the field, as an ``Option``; the field itself says the rest: type,
default, limits.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from maisi_aug.errors import EarlierSpelling, MaisiAugError, did_you_mean
from maisi_aug.system.content import ContentError

PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
MAX_SHOWN = 60
SHORTER = {
    "^Value error, |^Input should be | after validation, not .*": "",
    "^(List|Tuple|Set) should have ": "a list of ",
    "^String should have ": "a text of ",
    "^String should match pattern ": "a text like ",
}
"""Replacements that turn pydantic's messages into continuations of "expected"."""


class StrictModel(BaseModel):
    """Frozen pydantic model that refuses unknown keys.

    ``class Settings(StrictModel, strict=True)`` also refuses values of another type, such as ``"3"`` for an integer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Option:
    """Marks a field of a model as an option of the commands that the model configures.

    A field ``count: Annotated[PositiveInt, Option("-n", panel="Run")] = 4`` is given as ``--count`` or ``-n``. Its help
    is the docstring below it, which pydantic keeps for classes with ``use_attribute_docstrings=True``.

    Attributes:
        flags: Spellings of the option; ``--name-of-the-field`` is added if none is long. ``--x/--no-x`` is a switch
            with a negative.
        panel: Heading in the help.
        metavar: Placeholder of the value in the help.
        takes: Type of the typed value if it differs from the field's: ``str``, ``list[str]`` or ``Path``; validators of
            the model convert it.
        complete: Name of the shell completion in ``cli.shared.completion``: ``"bundles"`` for ``complete_bundles``.
        is_everyday: Whether ``--help`` shows the option; otherwise only ``--help-all`` does, for commands that have
            both.
        in_python: Description of the field as a keyword of a function, if its help describes what is typed.
        python_type: Type of that keyword, if it is wider than the field's.
    """

    flags: tuple[str, ...]
    panel: str | None
    metavar: str | None
    takes: Any
    complete: str | None
    is_everyday: bool
    in_python: str | None
    python_type: str | None

    def __init__(
        self,
        *flags: str,
        panel: str | None = None,
        metavar: str | None = None,
        takes: Any = None,
        complete: str | None = None,
        everyday: bool = False,
        in_python: str | None = None,
        python_type: str | None = None,
    ) -> None:
        values = (flags, panel, metavar, takes, complete, everyday, in_python, python_type)
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def spell_flags(self, field: str) -> tuple[str, ...]:
        """Return the spellings of a field's option, the long one first."""
        is_named = any(flag.startswith("--") for flag in self.flags)
        return self.flags if is_named else (f"--{field.replace('_', '-')}", *self.flags)


def _to_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(_to_text)]
"""A path as it stands in a file; ``Path`` is taken as well."""


def warn_of_spelling(old: str, new: str) -> None:
    """Warn that an option or key is spelt as in an earlier release, and state the current spelling.

    Args:
        old: Spelling that was used.
        new: Spelling to use.
    """
    sentence = f"{old} is an earlier spelling that the next release removes. Write {new}."
    warnings.warn(sentence, EarlierSpelling, stacklevel=3)


def texts_of(values: Sequence[object], example: str) -> list[str]:
    """Check that all values are texts, and return them unchanged.

    Args:
        values: Values of a field.
        example: Example of a right value.

    Raises:
        ValueError: A value is not text; the message contains ``example``.
    """
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"expected texts such as {example}, found {value!r:.60}")
    return [str(value) for value in values]


def split_rule(text: str, example: str) -> tuple[str, str]:
    """Split ``LABEL=NAME`` of ``--map`` into the label in the user's files and its name in the vocabulary.

    Args:
        text: Rule as the user typed it.
        example: Example of a right rule.

    Returns:
        Label and name, without surrounding spaces.

    Raises:
        ValueError: One side is missing; the message contains ``example``.
    """
    label, _, name = (part.strip() for part in text.partition("="))
    if not label or not name:
        raise ValueError(f"--map: expected LABEL=NAME such as '{example}', found '{text}'")
    return label, name


@contextmanager
def explain_problems(
    model: type[BaseModel],
    subject: str,
    error: type[MaisiAugError],
    *,
    kind: str = "file",
    one_line: bool = False,
    if_missing: str = "Add it.",
    advice: str = "",
) -> Iterator[None]:
    """Context that turns a pydantic error into one sentence, or a list if there are several problems.

    Args:
        model: Model that is validated inside the block.
        subject: Subject of the message, such as the path of a file.
        error: Class of the error to raise.
        kind: Name of the kind of input, used if there are several problems.
        one_line: Join several problems on one line, for messages that are part of others.
        if_missing: Advice if a value is missing.
        advice: Last sentence of the message.

    Raises:
        MaisiAugError: Of the class ``error``; the message lists every problem with its place.
    """
    try:
        yield
    except ValidationError as found:
        own = [_own_error(details) for details in found.errors()]
        if len(own) == 1 and isinstance(own[0], error):
            raise own[0] from None
        problems = list_problems(found, model, if_missing=if_missing)
        if len(problems) == 1 or one_line:
            raise error(" ".join(filter(None, (f"{subject}:", *problems, advice)))) from None
        opening = f"{subject}: this {kind} has {len(problems)} problems:"
        raise error("\n".join((opening, *(f"  {one}" for one in (*problems, advice) if one)))) from None


def read_yaml(path: Path, subject: str, error: type[MaisiAugError]) -> Any:
    """Read a YAML file, and turn faults into an error with a subject.

    Args:
        path: Path of the file.
        subject: Subject of the message.
        error: Class of the error to raise.

    Raises:
        MaisiAugError: Of the class ``error``; the file cannot be read or is not YAML.
    """
    from maisi_aug.system import yaml_content  # not for the options of commands, which are fields of models

    try:
        return yaml_content.read_yaml(path)
    except (OSError, ContentError) as problem:
        place = "" if path.name in subject else f" in {path.name}"
        raise error(f"{subject}: cannot be read as YAML{place}: {problem}.") from problem


def list_problems(error: ValidationError, model: type[BaseModel], *, if_missing: str = "Add it.") -> list[str]:
    """List the problems of a pydantic error, one sentence each, as ``path: expected ..., found ...``.

    Messages of the model's validators are kept, after the path unless they name a field themselves or are errors of the
    package, which are complete.

    Args:
        error: Error that ``model`` raised.
        model: Model whose field names are suggested for misspelt keys.
        if_missing: Advice if a value is missing.
    """
    problems: dict[object, str] = {}
    for details in error.errors(include_url=False):
        path, keys = _follow(details["loc"], model)
        problem = _describe(details, path, keys, if_missing)
        # Of the members of a union, each of which has a complaint, the first one's counts.
        problems.setdefault(path or problem, problem)
    return list(problems.values())


def _describe(details: ErrorDetails, path: str, keys: list[str], if_missing: str) -> str:
    if (own := _own_error(details)) is not None:
        return str(own)
    message = details["msg"]
    for words, shorter in SHORTER.items():
        message = re.sub(words, shorter, message)
    place = f"{path}: " if path else ""
    match details["type"]:
        case "extra_forbidden":
            key = str(details["loc"][-1])
            hint = did_you_mean(key, keys) or f" Known keys: {', '.join(keys)}."
            return f"{place}unknown key '{key}'.{hint}"
        case "json_invalid":
            return f"{place}not valid JSON: {message.removeprefix('Invalid JSON: ')}."
        case "missing":
            return f"{place}a value is required. {if_missing}"
        case "value_error":
            names_place = message.partition(":")[0].partition(" ")[0].startswith(path)
            return f"{'' if names_place else place}{message}{'' if message.endswith(('.', '?')) else '.'}"
        case "tuple_type":
            message = "a list"
        case "model_type" | "dict_type" | "model_attributes_type":
            message = "a mapping of fields"
    found = repr(details["input"])
    return f"{place}expected {message}, found {found if len(found) <= MAX_SHOWN else found[: MAX_SHOWN - 3] + '...'}."


def _own_error(details: ErrorDetails) -> MaisiAugError | None:
    """Return the error of a validator whose message is complete."""
    error = details.get("ctx", {}).get("error")
    return error if isinstance(error, MaisiAugError) else None


def _follow(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, list[str]]:
    """``labels[1].size`` from ``("labels", 1, "function-after", "size")``, and the keys that are known there.

    Before the fields of a member of a union, pydantic names the member: no part of the file.
    """
    kinds: list[Any] = [model]
    path, keys = "", list(model.model_fields)
    is_member_next = False
    for part in location:
        if is_member_next:
            is_member_next = False
            kinds = [kind for kind in kinds if part == getattr(kind, "__name__", None) or _says(kind, part)] or kinds
            continue
        fields = {name: field for kind in kinds for name, field in _fields(kind).items()}
        keys = list(fields)
        if part == "[key]":  # the key of a mapping is wrong, not its value
            break
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
        kinds = list(_members(fields[part].annotation)) if part in fields else [*_values(kinds)]
        is_member_next = len(kinds) > 1
    return path.removeprefix("."), keys


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a model by the names that files give them; none of another type."""
    is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
    return {field.alias or name: field for name, field in kind.model_fields.items()} if is_model else {}


def _says(kind: Any, tag: str | int) -> bool:
    """Whether a model has the tag that tells the members of a union apart."""
    return any(tag in get_args(field.annotation) for field in _fields(kind).values())


def _values(kinds: list[Any]) -> Iterator[Any]:
    """The types of what lies in lists, tuples and mappings."""
    for kind in kinds:
        arguments = [one for one in get_args(kind) if one is not Ellipsis]
        yield from _members(arguments[-1]) if arguments and get_origin(kind) is not None else ()


def _members(annotation: Any) -> Iterator[Any]:
    """The types that a value may have besides None, of an annotation that may be a union or have metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in {None, dict, Mapping, list, tuple} or not get_args(annotation):
        yield from () if annotation in {None, NoneType} else (annotation,)
    elif origin is Literal:
        yield annotation
    else:
        for one in get_args(annotation):
            yield from _members(one)
