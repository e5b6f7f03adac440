"""`maisi-aug insert`: lesions drawn into the user's own CTs, of which all else stays as it was."""

from __future__ import annotations

import json

import typer

from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import AsJson, Device, NewCohort, Quiet
from maisi_aug.insertion.request import InsertConfig


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("insert")(with_options(insert))


def insert(
    config: InsertConfig, out: NewCohort, device: Device = "auto", as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Draw lesions of given sizes into your own CTs; every voxel away from a lesion stays as it was.

    Example: maisi-aug insert --into CTS --labels "lung nodule:6-20mm" -n 20 --out cohort
    """
    from maisi_aug.cli.shared.progress import CohortProgress
    from maisi_aug.cli.synthesize import describe_summary
    from maisi_aug.insertion.cohort import insert_cohort
    from maisi_aug.insertion.config import resolve_insertion

    with CohortProgress(is_quiet=quiet) as progress:
        cohort = resolve_insertion(config)
        for note in cohort.backgrounds.notes if not quiet else ():
            typer.echo(f"Note: {note}", err=True)
        summary = insert_cohort(cohort, out, device=device, listener=progress)
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)
