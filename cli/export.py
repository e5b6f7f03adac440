"""`maisi-aug export`: hand a cohort on to a training framework."""

from __future__ import annotations

import typer

from maisi_aug.cli.export_dicom import dicom
from maisi_aug.cli.export_monai import monai
from maisi_aug.cli.export_nnunet import nnunet

export_app = typer.Typer(no_args_is_help=True, help="Hand a cohort on to a training framework.")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.add_typer(export_app, name="export")


@export_app.callback()
def export() -> None:
    """Hand a cohort on to a training framework."""


export_app.command("nnunet")(nnunet)
export_app.command("dicom")(dicom)
export_app.command("monai")(monai)
