"""`maisi-aug export dicom`: CT series and segmentations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.bars import show_stages


def dicom(
    cohort: Annotated[Path, typer.Argument(help="Folder that synthesize wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Label to export, by name or id; may repeat. Without it: those the cohort was asked for."),
    ] = None,
    include_anatomy: Annotated[
        bool, typer.Option("--include-anatomy", help="Export every organ label as well.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a DICOM CT series and a DICOM segmentation per case, marked as synthetic, of a made-up patient.

    Needs the extra `dicom`. The same cohort exported again has the same UIDs.

    Example: maisi-aug export dicom cohort --out dicom
    """
    from maisi_aug.integrations.dicom import export_dicom

    with show_stages("reading the cohort") as notify:
        report = export_dicom(cohort, out, labels=labels or (), include_anatomy=include_anatomy, notify=notify)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo(
            f"{report.path}: {report.num_cases} CT series ({report.num_slices} slices), {report.num_segmentations} "
            f"segmentations of {', '.join(report.segments) or 'nothing'}."
        )
    for note in report.notes:
        typer.echo(f"Note: {note}", err=True)
