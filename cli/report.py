"""`maisi-aug report`: a benchmark or a cohort as one page to open in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command ``report`` to the application."""
    app.command("report")(report)


def report(
    path: Annotated[Path, typer.Argument(metavar="BENCH|COHORT", help="Folder of a benchmark or of a cohort.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file to write; its .json and .md are written next to it.")
    ] = Path("report.html"),
    fid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="fid.json of 'evaluate fid --out' to include.")
    ] = None,
    detection_curve: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="detection_curve.json of 'evaluate detection-curve --out' to include."),
    ] = None,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Output folder of an 'evaluate ... --out', for a cohort's scorecard; may repeat."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Also print the figures as JSON.")] = False,
) -> None:
    """Write a page with verdicts, charts, slices, provenance and licences that needs no network and no other file.

    A cohort's page has a scorecard, to which --evidence adds measurements.

    Example: maisi-aug report bench --out report.html
    """
    from maisi_aug.api import benchmarking
    from maisi_aug.api.bars import show_stages

    with show_stages("measuring") as notify:
        written = benchmarking.report(
            path, out, fid=fid, detection_curve=detection_curve, evidence=evidence or (), progress=notify
        )
    if as_json:
        typer.echo(json.dumps(written.figures, indent=1))
        return
    for file in written.files:
        typer.echo(file)
