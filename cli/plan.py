"""`maisi-aug plan`: the cases that `synthesize` would make, by the same flags, and nothing made."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import typer

from maisi_aug.cli.synthesize import synthesize

# What only a run needs.
RUN_FLAGS = frozenset({"out", "max_attempts", "device", "compile_with", "dry_run", "resume"})


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    parameters = inspect.signature(synthesize).parameters.items()
    hints = get_type_hints(synthesize, include_extras=True)
    kept = [flag.replace(annotation=hints[name]) for name, flag in parameters if name not in RUN_FLAGS]

    def command(**flags: Any) -> None:
        synthesize(**flags, dry_run=True)

    # typer reads both, so that a flag of synthesize needs no second definition here.
    command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    command.__annotations__ = {flag.name: flag.annotation for flag in kept}
    app.command("plan", help=HELP)(command)


HELP = """Show which cases synthesize would make by the same flags, with their lesions and sizes; make nothing.

With --balance-against it measures the lesions of a real dataset, by number per case and by size, and plans the cases
that it lacks; synthesize with the same flags makes them.

Example: maisi-aug plan --balance-against nnUNet_raw/Dataset003_Liver --labels "liver tumor" -n 500
"""
