"""Fields of a configuration as text for ``help``: type, description in the words of Python, default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from maisi_aug.system.models import Option

MOST_CHOICES = 8
"""Values of a text that the type lists; of a text with more, the description says where they are listed."""
_COMMANDS = {
    "maisi-aug prepare": "prepare",
    "maisi-aug bundles prove-steps": "prove_steps",
    "maisi-aug bundles show": "show_bundle",
    "evaluate hu": "evaluate.hu",
    "evaluate detection-curve": "evaluate.detection_curve",
    "finetune-controlnet": "finetune_controlnet",
}
"""Command that a help text names -> function of the front door that does the same."""


def spell_type(field: FieldInfo) -> str:
    """Return the type of a field as a Python user writes it: without limits, validators, ``Annotated`` and None."""
    option = _option_of(field)
    if option is not None and option.python_type is not None:
        return option.python_type
    forms = _list_forms(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
    if "Sequence[str]" in forms and _takes_rules(option):
        forms.append("dict[str, str]")
    return _join([form for form in forms if form != "None"])


def describe_fields(fields: Mapping[str, FieldInfo], model: type[BaseModel], width: int = 108) -> Iterator[str]:
    """Yield the lines that explain fields, in the form of Google's ``Args`` with types.

    Args:
        fields: Field -> its description by pydantic; those without a docstring are left out.
        model: Model that has them; its flags are replaced by the names of fields.
        width: Largest number of characters of a line.
    """
    for name, field in fields.items():
        if not field.description:
            continue
        text = f"{name} ({spell_type(field)}): {describe_field(field, model)}"
        yield from fill(
            text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        ).splitlines()
        if (section := _section_of(field)) is not None:
            yield from (f"    {line}" for line in describe_fields(section.model_fields, section, width - 4))


def describe_field(field: FieldInfo, model: type[BaseModel]) -> str:
    """Return the description of a field in the words of Python, with its default.

    Flags become names of arguments, and commands functions; ``may repeat`` becomes "one or a sequence". Where that does
    not do, the field's ``Option`` has its own text, ``in_python``.

    Args:
        field: Field with a docstring.
        model: Model that has it.
    """
    option = _option_of(field)
    own = None if option is None else option.in_python
    text = " ".join((field.description if own is None else own).split())  # type: ignore[union-attr]
    text = _replace_flags(text, model)
    for command, function in _COMMANDS.items():
        text = re.sub(rf"'{command}'|\b{command}\b", f":func:`{function}`", text)
    several = f"; texts {option.metavar}, or a dict" if _takes_rules(option) else "; one, or a sequence of several"
    text = text.replace("; may repeat", several)
    default = _spell_default(field)
    if default and "(default" not in text:
        text = f"{text.removesuffix('.')} (default: {default})."
    return text if _section_of(field) is None else f"{text} Its keys:"


def _replace_flags(text: str, model: type[BaseModel]) -> str:
    """Replace the spellings of options, such as ``--steps auto``, by the names of fields and their values."""
    names: dict[str, str] = {}
    choices: set[str] = set()
    for name, field in model.model_fields.items():
        section = _section_of(field)
        for key, one in {name: field, **({} if section is None else section.model_fields)}.items():
            if (option := _option_of(one)) is not None:
                spelt = option.spell_flags(key)
                names.update((flag.partition("/")[0], key) for flag in spelt)
                choices.update(_choices_of(one.annotation))

    def spell(found: re.Match[str]) -> str:
        flag, value = found[1], found[2]
        name = names.get(flag, flag.lstrip("-").replace("-", "_") if flag.startswith("--") else flag)
        if value is None:
            return f"``{name}``"
        return f'``{name}="{value}"``' if value in choices else f"``{name}`` {value}"

    short = "|".join(re.escape(flag) for flag in names if not flag.startswith("--"))
    flags = rf"(?<![\w-])(--[a-z][a-z0-9-]*{f'|{short}' if short else ''})(?![\w-])(?: ([a-z][a-z-]*))?"
    return re.sub(r"\bOUT/(\w+)", r"the folder ``\1`` of ``out``", re.sub(flags, spell, text))


def _spell_default(field: FieldInfo) -> str:
    """The default; empty if there is none, or if it only says that the field is not given."""
    value = field.get_default()
    if value is PydanticUndefined or value is None or value in ("", (), {}) or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def _option_of(field: FieldInfo) -> Option | None:
    return next((one for one in field.metadata if isinstance(one, Option)), None)


def _takes_rules(option: Option | None) -> TypeGuard[Option]:
    """Whether a field is any number of texts ``KEY=VALUE``, for which keywords also take a dict."""
    return option is not None and "=" in (option.metavar or "") and option.takes is None


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _spell(kind: Any) -> str:
    return _join(_list_forms(kind))


def _join(forms: list[str]) -> str:
    return " | ".join(dict.fromkeys(forms))


def _list_forms(kind: Any) -> list[str]:
    """The types that a value may have, such as ``["str", "Sequence[str]"]``."""
    reads_text = False
    if get_origin(kind) is Annotated:
        readers = [one for one in kind.__metadata__ if isinstance(one, BeforeValidator)]
        kind, reads_text = kind.__origin__, bool(readers)
        if kind is str and readers:
            return ["str", "Path"]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:  # metadata of the field around a type with its own
        return _list_forms(kind)
    if origin in (Union, UnionType):
        return [form for one in arguments for form in _list_forms(one)]
    if origin is Literal:
        few = len(arguments) <= MOST_CHOICES
        return [f"Literal[{', '.join(map(repr, arguments))}]" if few else "str"]
    if origin is tuple and arguments[-1] is Ellipsis:
        item = ["str"] if get_origin(arguments[0]) is Literal else _list_forms(arguments[0])
        return [*(item if "str" in item else []), f"Sequence[{_join(item)}]"]
    if origin is tuple:
        return [*(["str"] if reads_text else []), f"tuple[{', '.join(map(_spell, arguments))}]"]
    if origin is dict:
        return [f"dict[{', '.join(map(_spell, arguments))}]"]
    if kind is Path:
        return ["str", "Path"]
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return ["dict"]
    return ["None" if kind is NoneType else kind.__name__]


def _choices_of(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from (value for value in get_args(kind) if isinstance(value, str))
    else:
        for one in get_args(kind):
            yield from _choices_of(one)
