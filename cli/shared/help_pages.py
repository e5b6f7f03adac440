"""Help that fits on a screen: everyday options under ``--help``, all of them under ``--help-all``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

HELP_FLAGS = ["-h", "--help"]
ALL_FLAG = "--help-all"
_SHOWS_ALL = "maisi_aug.shows_all_options"

EVERYDAY_OPTIONS: dict[str, tuple[str, ...]] = {
    "synthesize": ("--recipe", "--out", "--device", "--dry-run", "--json"),
    "insert": ("--out", "--device", "--json"),
    "plan": ("--recipe", "--balance-against"),
    "prepare": ("--out", "--dry-run"),
    "finetune-controlnet": ("--out", "--device", "--max-minutes", "--json"),
    "export nnunet": ("--json",),
    "benchmark run": ("--out", "--device", "--max-minutes", "--json"),
    "evaluate fid": ("--spacing", "--resampling", "--shape", "--extractor", "--weights", "--device", "--out", "--json"),
    "evaluate reconstruction": ("--bundle", "--lpips-weights", "--device", "--out", "--json"),
}
"""Options that ``--help`` shows of commands with more than fit on a screen, in addition to fields of their
configuration that say so themselves; all others are shown by ``--help-all``. Arguments and required options are
always shown, and commands that are not listed here are shown whole.
"""

VALUE_NAMES = {"path": "PATH", "Path": "PATH", "file": "FILE", "str": "TEXT", "int": "INT", "float": "FLOAT"}
"""What help calls a value by the type that typer shows."""


def fit_help(command: Any, path: Sequence[str]) -> Any:
    """Prepare the help of a command, or of a group and its commands, so that it fits on one screen.

    Args:
        command: Command as typer built it; a group is modified in place.
        path: Words that call the command, without the program's name.

    Returns:
        The command whose help shows everyday options only, if it has options that are not.
    """
    command.help = unbreak(command.help)
    name_values(command)
    if isinstance(command, TyperGroup):
        for name, child in list(command.commands.items()):
            command.commands[name] = fit_help(child, [*path, name])
        return command
    of_fields: frozenset[str] = getattr(command.callback, "everyday_flags", frozenset())
    everyday = of_fields.union(EVERYDAY_OPTIONS.get(" ".join(path), ()))
    return PagedCommand(command, everyday) if everyday else command


def name_values(command: Any) -> None:
    """Name the values of a command's parameters in capitals, instead of by the Python types that typer shows.

    Options without a name for their value get one by their type: ``PATH``, ``TEXT``, ``INT``, ``FLOAT``, or the
    choices. Switches take no value, and arguments have names that say what they are: neither shows a type.

    Args:
        command: Command or group as typer built it; modified in place.
    """
    context = typer.Context(command, help_option_names=HELP_FLAGS)
    for parameter in command.get_params(context):  # with --help, which typer keeps for later contexts
        if parameter.param_type_name == "argument" or parameter.is_flag:
            parameter.display_type_rich = _show_no_type
        elif parameter.metavar is None:
            kind = parameter.display_type(context).strip("<>").removesuffix(" range")
            kind = kind.removeprefix("list[").removesuffix("]")
            parameter.metavar = VALUE_NAMES.get(kind, kind)


def _show_no_type(ctx: Any) -> None:
    """Stand in for typer's method that returns the type to show."""


def unbreak(text: str | None) -> str | None:
    """Join the lines of each paragraph of a help text, because typer would keep the line breaks of later paragraphs."""
    if text is None:
        return None
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n") if part.strip())


class PagedCommand(TyperCommand):
    """Command that shows advanced options only with ``--help-all``; all options are accepted as usual."""

    def __init__(self, command: TyperCommand, everyday: frozenset[str]) -> None:
        self.__dict__.update(vars(command))
        self.advanced: list[Any] = [
            option
            for option in command.params
            if option.param_type_name == "option"
            and not option.required
            and not getattr(option, "hidden", False)  # what is hidden already is an earlier spelling
            and everyday.isdisjoint(option.opts)
        ]
        self.params = [*command.params, _build_flag(len(self.advanced))]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of the command, with its advanced options only after ``--help-all``."""
        hidden = [] if ctx.meta.get(_SHOWS_ALL) else [option for option in self.advanced if not option.hidden]
        for option in hidden:
            option.hidden = True
        try:
            super().format_help(ctx, formatter)
        finally:
            for option in hidden:
                option.hidden = False


def _build_flag(num_advanced: int) -> Any:
    """The option ``--help-all``, built by typer as it builds all others."""

    def command(
        shows_all: bool = typer.Option(
            False, ALL_FLAG, is_eager=True, callback=_show_all, help=f"Show {num_advanced} more options."
        ),
    ) -> None:
        """Do nothing; only the option is used."""

    scratch = typer.Typer(add_completion=False)
    scratch.command()(command)
    option: Any = get_command(scratch).params[0]
    option.expose_value = False  # no function takes it
    option.display_type_rich = _show_no_type
    return option


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_SHOWS_ALL] = True
        typer.echo(ctx.get_help(), nl=False)
        ctx.exit()
