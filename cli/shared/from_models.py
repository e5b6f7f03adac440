"""Options of commands from the fields of configurations: a new knob is one field of its model, and nothing here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from maisi_aug.cli.shared import completion
from maisi_aug.system.models import Option, list_problems

Model = TypeVar("Model", bound=BaseModel)

Given = dict[str, Any]
"""Values of the options that were given, by field; ``section.field`` for fields of a section."""
_PLAIN = (bool, int, float, str, Path)


class ModelOption(NamedTuple):
    """A command line option, and the field of a configuration that it sets.

    Attributes:
        path: Path of the field: ``name``, or ``section.name``.
        field: pydantic's description of the field: type, default, limits and help text.
        option: Description of the option on the command line.
    """

    path: str
    field: FieldInfo
    option: Option

    @property
    def name(self) -> str:
        """Name of the function parameter that receives the option's value."""
        return self.path.replace(".", "_")

    @property
    def flags(self) -> tuple[str, ...]:
        """Spellings of the option, the long one first."""
        return self.option.spell_flags(self.path.rpartition(".")[2])

    @property
    def flag(self) -> str:
        """Spelling of the option in messages: the long one; for a switch, the one that turns it on."""
        return self.flags[0].partition("/")[0]

    def to_parameter(self, *, is_required: bool) -> inspect.Parameter:
        """Return the function parameter from which typer builds the option."""
        taken, limits = _what_is_typed(self.field, self.option)
        default = None if is_required or get_origin(taken) is list else self.field.get_default()
        default = default if isinstance(default, _PLAIN) else None
        info = typer.Option(
            *self.flags,
            help=(self.field.description or "").replace("[", r"\["),  # typer reads markup
            rich_help_panel=self.option.panel,
            metavar=self.option.metavar,
            autocompletion=getattr(completion, f"complete_{self.option.complete}") if self.option.complete else None,
            show_default=default != "",
            **limits,
        )
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if is_required else default,
            annotation=Annotated[taken | None if default is None and not is_required else taken, info],
        )

    def to_value(self, typed: Any) -> Any:
        """Convert the typed value for the configuration: lists become tuples, because strict models refuse lists."""
        return tuple(typed) if isinstance(typed, list) and self.option.takes is None else typed

    def read(self, typed: Any) -> Any:
        """Validate the typed value by itself, and return the value of the field.

        Raises:
            typer.BadParameter: The value is invalid.
        """
        kind: Any = Annotated[self.field.annotation, *self.field.metadata]
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        try:
            value = adapter.validate_python(self.to_value(typed))
        except ValidationError as error:
            problem = list_problems(error, BaseModel)[0]
            raise typer.BadParameter(f"{self.flag}{'' if problem[0] == '[' else ': '}{problem}") from None
        return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def list_options(model: type[BaseModel], section: str = "") -> Iterator[ModelOption]:
    """Yield the options that a configuration defines, including those of its sections, in the order of the fields."""
    for name, field in model.model_fields.items():
        option = next((one for one in field.metadata if isinstance(one, Option)), None)
        if option is not None:
            yield ModelOption(section + name, field, option)
        elif inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from list_options(field.annotation, f"{section}{name}.")


def with_options(
    function: Callable[..., None], *, without: Collection[str] = (), **fixed: object
) -> Callable[..., None]:
    """Wrap a command's function for typer, with an option for every field of the configurations in its parameters.

    A parameter whose type is a model receives the model, built from the given options. A parameter of the type
    ``Annotated[Given, Model]`` receives the given values by field, for configurations that also come from a recipe,
    which may contain required fields. Other parameters are unchanged.

    Args:
        function: Function of the command.
        without: Parameters that are not options of this command.
        fixed: Arguments of the function that this command sets itself.
    """
    hints = get_type_hints(function, include_extras=True)
    models = {name: model for name in hints if (model := _model_of(hints[name])) is not None}
    options = {name: tuple(list_options(model)) for name, model in models.items()}
    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for name, parameter in inspect.signature(function).parameters.items():
        kept = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        is_whole = hints[name] is models.get(name)
        parameters += [
            one.to_parameter(is_required=is_whole and one.field.is_required()) for one in options.get(name, ())
        ] or [kept]
    parameters = [parameter for parameter in parameters if parameter.name not in {*without, *fixed}]

    @wraps(function)
    def command(context: typer.Context, **values: Any) -> None:
        for name, model in models.items():
            typed = {one: values.pop(one.name) for one in options[name] if one.name in values}
            given = {one: value for one, value in typed.items() if completion.is_given(context, one.name)}
            if hints[name] is model:
                values[name] = build_model(model, {one.path: one.to_value(value) for one, value in given.items()})
            else:
                values[name] = {one.path: one.read(value) for one, value in given.items()}
        function(**values, **fixed)

    # What typer reads.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    everyday = frozenset(one.flag for each in options.values() for one in each if one.option.is_everyday)
    command.everyday_flags = everyday  # type: ignore[attr-defined]
    return command


def build_model(model: type[Model], given: Mapping[str, Any]) -> Model:
    """Build a configuration from the options that were given.

    Raises:
        typer.BadParameter: Values are invalid; the message lists all problems by option.
    """
    values: Given = {}
    for path, value in given.items():
        section, _, field = path.rpartition(".")
        (values.setdefault(section, {}) if section else values)[field] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        flags = {one.path: one.flag for one in list_options(model)}
        places = re.compile("|".join(rf"^{re.escape(path)}\b" for path in sorted(flags, key=len, reverse=True)))
        problems = list_problems(error, model, if_missing="Give it.")
        spelt = (places.sub(lambda place: flags[place[0]], problem) for problem in problems)
        raise typer.BadParameter(" ".join(spelt)) from None


def _model_of(hint: Any) -> type[BaseModel] | None:
    """The configuration that a parameter stands for; None for a parameter of the command's own."""
    model = hint.__metadata__[0] if get_origin(hint) is Annotated and hint.__origin__ == Given else hint
    return model if inspect.isclass(model) and issubclass(model, BaseModel) else None


def _what_is_typed(field: FieldInfo, option: Option) -> tuple[Any, dict[str, Any]]:
    """The type that typer reads, and the limits that it shows and keeps."""
    taken, metadata = _unwrap(field.annotation)
    if option.takes is not None:
        return option.takes, {}
    if get_origin(taken) is tuple:
        taken = list[_unwrap(get_args(taken)[0])[0]]  # type: ignore[misc]
    assert taken in _PLAIN or get_origin(taken) in {list, Literal}, (
        f"{taken}: needs Option(takes=...) to say what is typed"
    )
    limits = {}
    for one in (*metadata, *field.metadata):
        for limit, name, step in (("ge", "min", 0), ("gt", "min", 1), ("le", "max", 0), ("lt", "max", -1)):
            value = getattr(one, limit, None)
            if value is not None and taken in {int, float} and (taken is int or step == 0):
                limits[name] = value + step
    return taken, limits


def _unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without ``None`` and metadata, and the metadata."""
    metadata: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            metadata += [one for each in annotation.__metadata__ for one in (each, *getattr(each, "metadata", ()))]
            annotation = annotation.__origin__
        elif get_origin(annotation) in {Union, UnionType}:
            members = [one for one in get_args(annotation) if one is not NoneType]
            if len(members) != 1:
                return annotation, metadata
            (annotation,) = members
        else:
            return annotation, metadata
