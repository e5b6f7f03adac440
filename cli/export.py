"""`maisi-aug export`: hand a cohort on to a training framework."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.export_dicom import dicom
from maisi_aug.cli.export_monai import monai

if TYPE_CHECKING:
    from maisi_aug.integrations.nnunet import ExportReport, Notify

export_app = typer.Typer(no_args_is_help=True, help="Hand a cohort on to a training framework.")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.add_typer(export_app, name="export")


@export_app.callback()
def export() -> None:
    """Hand a cohort on to a training framework."""


@export_app.command()
def nnunet(
    cohort: Annotated[Path, typer.Argument(help="Folder that synthesize wrote.")],
    dataset_id: Annotated[int, typer.Option(min=1, max=999, help="Number of the dataset, not in use.")],
    name: Annotated[str, typer.Option(help="Name of the dataset: letters, digits, '_' and '-'.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for raw datasets; the environment variable nnUNet_raw when not given.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Label to export, by name or id; may repeat. Without it: those that the cohort was asked for."
        ),
    ] = None,
    include_anatomy: Annotated[
        bool, typer.Option("--include-anatomy", help="Export every organ label as well.")
    ] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images instead of hard-linking them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write the accepted cases as an nnU-Net v2 raw dataset that passes nnU-Net's own integrity check.

    Labels are numbered 1, 2, ... in the order of their ids; the mapping is saved in the dataset's folder.

    Example: maisi-aug export nnunet cohort --dataset-id 501 --name SynLiver --out nnUNet_raw
    """
    from maisi_aug.integrations.nnunet import export_nnunet

    with _progress() as notify:
        report = export_nnunet(
            cohort,
            dataset_id=dataset_id,
            name=name,
            out=out,
            labels=labels or (),
            include_anatomy=include_anatomy,
            copy=copy,
            notify=notify,
        )
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else _describe(report))
    for note in report.notes:
        typer.echo(f"Note: {note}", err=True)


@contextmanager
def _progress() -> Iterator[Notify]:
    """A progress bar on stderr, gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading the cohort", total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)


def _describe(report: ExportReport) -> str:
    lines = [f"{report.path}: {report.num_cases} cases, accepted by nnU-Net's integrity check."]
    lines += [
        f"  {number:>3}  {name}" + (f" (vocabulary id {report.vocabulary_ids[name]})" if number else "")
        for name, number in report.labels.items()
    ]
    return "\n".join(lines)


export_app.command("dicom")(dicom)
export_app.command("monai")(monai)
