"""`maisi-aug plan`: the cases that `synthesize` would make, by the same flags, and nothing made."""

from __future__ import annotations

import typer

from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.synthesize import synthesize

# What only a run needs.
RUN_FLAGS = frozenset({"out", "max_attempts", "device", "compile_with", "resume", "verify", "redraw_rejected"})


def register(app: typer.Typer) -> None:
    """Add the command ``plan`` to the application."""
    app.command("plan", help=HELP)(with_options(synthesize, without=RUN_FLAGS, dry_run=True))


HELP = (
    "Show the cases that synthesize would make with the same options, with their lesions and sizes.\n\nWith "
    "--balance-against, plan the cases that a real dataset lacks, by number of lesions per case and by lesion "
    "size;\nsynthesize with the same options makes them.\n\nExample: maisi-aug plan --balance-against "
    'Dataset003_Liver --labels "liver tumor" -n 500\n'
)
