"""`maisi-aug export monai`: a data list with folds, for Auto3DSeg and for one's own MONAI code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.bars import show_stages


def monai(
    cohort: Annotated[Path, typer.Argument(help="Folder that synthesize wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")],
    like: Annotated[
        Path | None,
        typer.Option(help="nnU-Net raw dataset of real cases: they make up the folds, and its labels the numbers."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LABEL",
            help="A label of the cohort and what the real dataset calls it, or 'background'; may repeat.",
        ),
    ] = None,
    absent: Annotated[
        list[str] | None,
        typer.Option(help="A label of the real dataset that no synthetic case truly holds; may repeat."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Label to export, by name or id; may repeat. Without it: those the cohort was asked for."),
    ] = None,
    include_anatomy: Annotated[
        bool, typer.Option("--include-anatomy", help="Export every organ label as well.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write images, label maps, a MONAI data list with folds, and a task file that Auto3DSeg runs on.

    With --like the synthetic cases are trained on in every fold and validated on in none.

    Example: maisi-aug export monai cohort --like nnUNet_raw/Dataset003_Liver --label "hepatic tumor=cancer" --out monai
    """
    from maisi_aug.integrations.monai_data_list import TASK_NAME, export_monai

    with show_stages("reading the cohort") as notify:
        report = export_monai(
            cohort,
            out,
            like=like,
            label=label or (),
            absent=absent or (),
            labels=labels or (),
            include_anatomy=include_anatomy,
            notify=notify,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        cases = f"{report.num_synthetic} synthetic and {report.num_real} real cases"
        typer.echo(f"{report.path}: {cases}, {report.num_folds} folds ({report.folds_source}).")
        typer.echo("\n".join(f"  {number:>3}  {name}" for name, number in report.labels.items()))
        task = report.path / TASK_NAME
        typer.echo(f"Next, with pip install fire: python -m monai.apps.auto3dseg AutoRunner run --input='{task}'")
    for note in report.notes:
        typer.echo(f"Note: {note}", err=True)
