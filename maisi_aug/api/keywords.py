"""Fields of a configuration as keywords of a function: plain Python values, shown by ``help``, a misspelt one named."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from maisi_aug.api.field_help import describe_fields, spell_type
from maisi_aug.errors import MaisiAugError, RecipeError, did_you_mean
from maisi_aug.system.models import Option, explain_problems

P = ParamSpec("P")
R = TypeVar("R")
Model = TypeVar("Model", bound=BaseModel)
FIELDS_HEADING = "Fields, given as keyword arguments (where not given or None, the default applies):"


def takes_fields_of(model: type[BaseModel], *, but: Sequence[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that documents a function's ``**fields`` by the fields of a model, with types and descriptions.

    ``help`` and the completion of notebooks read signature and docstring, so that a new field of the model needs no
    other mention.

    Args:
        model: Model that the function builds from its ``**fields``.
        but: Fields that callers cannot give, because the function sets them itself.
    """

    def show(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [part for part in signature.parameters.values() if part.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {part.name for part in own}.union(but)
        fields = {name: field for name, field in model.model_fields.items() if name not in names}
        shown = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f"{spell_type(field)} | None"
            )
            for name, field in fields.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        described = list(describe_fields(fields, model))
        if described:
            own_text = inspect.cleandoc(function.__doc__ or "")
            function.__doc__ = f"{own_text}\n\n{FIELDS_HEADING}\n" + indent("\n".join(described), "    ")
        return function

    return show


def require_known(function: Callable[..., object], fields: Mapping[str, Any]) -> None:
    """Raise if a keyword argument is not a field of a function that :func:`takes_fields_of` has documented.

    Args:
        function: Function whose signature shows its keywords.
        fields: Keyword -> value, as the caller gave them.

    Raises:
        RecipeError: The message names the closest fields.
    """
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    subject = function.__qualname__.removesuffix(".__call__")
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known) or f" The keywords are {', '.join(known)}."
            raise RecipeError(f"{subject}: unknown keyword '{name}'.{hint}")


def build_model(model: type[Model], values: Mapping[str, Any], *, source: str, error: type[MaisiAugError]) -> Model:
    """Build a configuration from the keyword arguments of a Python call.

    Args:
        model: Class of the configuration.
        values: Field -> value.
        source: Name of the function, for messages.
        error: Class of the error to raise.

    Raises:
        MaisiAugError: Of the class ``error``; the message lists all problems.
    """
    with explain_problems(model, source, error, kind="request", if_missing="Give it."):
        return model.model_validate(to_fields(model, values))


def to_fields(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keyword arguments to the types of a model's fields, and leave out those that are None.

    Paths become text, and NumPy numbers Python numbers. A field that holds a sequence of texts also takes a single
    text, or a mapping, which becomes ``key=value`` texts.

    Args:
        model: Model whose fields the keywords are.
        values: Keyword -> value; not modified.

    Returns:
        Field -> plain value, to be validated by the model.
    """
    fields = {}
    for name, value in values.items():
        if value is None:
            continue
        plain = to_plain(value)
        if name in model.model_fields and _holds_texts(model.model_fields[name]):
            if isinstance(plain, dict):
                plain = tuple(f"{key}={item}" for key, item in plain.items())
            elif isinstance(plain, str):
                plain = (plain,)
        fields[name] = plain
    return fields


def to_plain(value: Any) -> Any:
    """Replace paths by text and NumPy numbers by Python numbers, also inside sequences and mappings."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(
        value, "tolist"
    ):  # NumPy's scalars and arrays; not imported, as the options of commands would wait for it
        return to_plain(value.tolist())
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_plain(item) for item in value)
    return value


def _holds_texts(field: FieldInfo) -> bool:
    """Whether a field is any number of texts, and does not read a single one itself, such as a list of names."""
    reads = any(
        isinstance(one, BeforeValidator) or (isinstance(one, Option) and one.takes in (str, Path))
        for one in field.metadata
    )
    return not reads and any(_is_texts(kind) for kind in (field.annotation, *get_args(field.annotation)))


def _is_texts(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _is_texts(get_args(kind)[0])
    arguments = get_args(kind)
    is_open = get_origin(kind) is tuple and arguments[-1:] == (Ellipsis,)
    return is_open and (arguments[0] in (str, Path) or get_args(arguments[0])[:1] == (str,))
