"""The command `maisi-aug`: a table of verbs, each imported only when it is run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from maisi_aug import __version__
from maisi_aug.cli.shared.boundary import LESS_MEMORY, guard, silence_third_parties
from maisi_aug.cli.shared.help_pages import HELP_FLAGS, fit_help, name_values, unbreak
from maisi_aug.cli.shared.streams import open_closed_streams
from maisi_aug.system.lean_monai import import_monai_lean

PROGRAM = "maisi-aug"
DEBUG_FLAG = "--debug"
DRY_RUN_FLAG = "--dry-run"


class Verb(NamedTuple):
    """Entry of a command in the table of commands: its module, and its line in the help."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "synthesize": Verb("maisi_aug.cli.synthesize", "Generate a label-balanced cohort of CT images and label maps."),
    "insert": Verb("maisi_aug.cli.insert", "Draw lesions into your own CTs; everything else in them stays unchanged."),
    "cohort": Verb("maisi_aug.cli.cohort", "Manage cohorts that are made in parts: status, merge, verify."),
    "cluster": Verb("maisi_aug.cli.cluster", "Make a cohort with many jobs on a cluster: submit."),
    "plan": Verb("maisi_aug.cli.plan", "Show which cases synthesize would make, or balance a real dataset with them."),
    "phantom": Verb("maisi_aug.cli.phantom", "Write procedural CT phantoms with exact label maps."),
    "prepare": Verb("maisi_aug.cli.prepare", "Prepare your own CTs and label maps for training."),
    "train": Verb(
        "maisi_aug.cli.train", "Train the networks of a bundle: vae, diffusion, controlnet, mask-vae, mask-diffusion."
    ),
    "finetune-controlnet": Verb("maisi_aug.cli.finetune", "Teach a ControlNet new labels from prepared CTs."),
    "export": Verb("maisi_aug.cli.export", "Export a cohort: nnunet, monai, dicom."),
    "nnunet-trainer-path": Verb("maisi_aug.cli.nnunet", "Print the folder of maisi-aug's nnU-Net trainers."),
    "nnunet-compact-plans": Verb("maisi_aug.cli.nnunet", "Derive nnU-Net plans that a CPU can train."),
    "benchmark": Verb("maisi_aug.cli.benchmark", "Measure whether synthetic cases help: arms, intervals, verdicts."),
    "view": Verb("maisi_aug.cli.view", "View a cohort in the browser and accept or reject its cases."),
    "report": Verb("maisi_aug.cli.report", "Write a benchmark or a cohort as a single web page."),
    "evaluate": Verb("maisi_aug.cli.evaluate", "Measure a cohort: fid, hu, lesions, agreement, reviewers."),
    "labels": Verb("maisi_aug.cli.labels", "List the labels to request, with ids, host organs and lesion sizes."),
    "bundles": Verb("maisi_aug.cli.bundles", "List, show, fetch, share, convert and verify bundles of weights."),
    "migrate": Verb("maisi_aug.cli.migrate", "Translate configurations of NVIDIA's scripts into commands."),
    "recipes": Verb("maisi_aug.cli.recipes", "List, show, copy and validate recipes for cohorts and training."),
}

# Commands that keep finished work when stopped; every other command writes its result only when it completes.
RESUMABLE = (
    ("synthesize",),
    ("insert",),
    ("cohort", "merge"),
    ("phantom",),
    ("prepare",),
    ("train",),
    ("finetune-controlnet",),
    ("bundles", "pull"),
    ("bundles", "prove-steps"),
    ("benchmark",),
)


def load_verb(name: str) -> Any:
    """Import the module of a command by name, and build the command.

    The module has a function ``register(app: typer.Typer) -> None``, which adds one command or group named ``name``.
    """
    scratch = typer.Typer(rich_markup_mode="rich")
    importlib.import_module(VERBS[name].module).register(scratch)
    return fit_help(get_group(scratch).commands[name], [name])


class LazyGroup(TyperGroup):
    """Group of all commands that imports a command only to run it or to show its help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, verb in VERBS.items():
            self.add_command(TyperCommand(name, help=verb.summary), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command on the command line, and import the real one."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name in VERBS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C becomes ``typer.Abort``, for which the error boundary prints a message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None


app = typer.Typer(
    name=PROGRAM,
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_FLAGS},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG_FLAG, help="Show the traceback of an error; can be given before or after the command.")
    ] = False,
) -> None:
    """Label-balanced synthetic CT cohorts through MAISI's ControlNet, with lesions of the size you request.

    Start with: maisi-aug synthesize --labels "hepatic tumor:0.3" -n 4 --out cohort
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line of ``maisi-aug`` in this process.

    Args:
        arguments: Arguments after the program's name; ``--debug`` may stand anywhere before ``--``.

    Returns:
        The exit code: 0, 1 (the run failed or some cases were rejected), 2 (usage or recipe) or 130 (Ctrl-C).
    """
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = DEBUG_FLAG in arguments[:end]
    kept = [word for word in arguments[:end] if word != DEBUG_FLAG] + arguments[end:]
    command = get_command(app)
    command.help = unbreak(command.help)
    name_values(command)
    return guard(
        lambda: command.main(args=kept, prog_name=PROGRAM, standalone_mode=False),
        debug=debug,
        is_resumable=_is_resumable(kept),
        memory_options=lambda: _memory_options(kept),
    )


def _is_resumable(words: Sequence[str]) -> bool:
    """Whether the same command line continues where it was stopped."""
    names = tuple(word for word in words if not word.startswith("-"))
    return DRY_RUN_FLAG not in words and any(names[: len(path)] == path for path in RESUMABLE)


def _memory_options(words: Sequence[str]) -> list[str]:
    """List the options of a command that reduce its memory."""
    names = [word for word in words if not word.startswith("-")]
    command = load_verb(names[0]) if names and names[0] in VERBS else None
    for name in names[1:2]:
        command = getattr(command, "commands", {}).get(name, command)
    options = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
    return [advice for option, advice in LESS_MEMORY.items() if option in options]


def main() -> None:
    """Entry point of the installed command ``maisi-aug``."""
    open_closed_streams()
    import_monai_lean()
    if DEBUG_FLAG not in sys.argv:
        silence_third_parties()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
