"""Fields of a configuration as keywords of a function: plain Python values, shown by ``help``, a misspelt one named."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from pydantic import BaseModel

from maisi_aug.errors import RecipeError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def takes_fields_of(model: type[BaseModel], *, but: Sequence[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show the fields of a model, with their types and defaults, in place of a function's ``**fields``.

    ``help`` and the completion of notebooks read the signature, so that a new field needs no second mention.

    Args:
        model: What the function builds from its ``**fields``.
        but: Fields that the function decides itself.
    """

    def show(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [part for part in signature.parameters.values() if part.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {part.name for part in own}.union(but)
        fields = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.annotation)
            for name, field in model.model_fields.items()
            if name not in names
        ]
        function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
        return function

    return show


def require_known(function: Callable[..., object], fields: Mapping[str, Any]) -> None:
    """Raise for a keyword that a function with shown fields does not take.

    Raises:
        RecipeError: Naming the closest ones.
    """
    known = list(inspect.signature(function).parameters)
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known) or f" The keywords are {', '.join(known)}."
            raise RecipeError(f"{function.__name__}: expected a known keyword, found '{name}'.{hint}")


def to_plain(value: Any) -> Any:
    """Paths as text and NumPy's numbers as Python's, inside of lists and mappings too: what configurations hold."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_plain(item) for item in value]
    return value


def to_texts(value: str | Sequence[str]) -> list[str]:
    """One text or several as several."""
    return [value] if isinstance(value, str) else [str(to_plain(text)) for text in value]
