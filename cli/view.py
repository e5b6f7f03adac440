"""`maisi-aug view`: look at cases in the browser, decide on them, or hold a test with blinded readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.shared.run_options import RUN

READERS = "Reader test"
"""Name of a panel in the help."""


def register(app: typer.Typer) -> None:
    """Add the command ``view`` to the application."""
    app.command("view")(view)


def view(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="COHORT",
            help="A cohort (finished or still growing), prepared folder, nnU-Net dataset or mask bank.",
        ),
    ],
    beside: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to show next to each case: the CT before insertion, the real cohort, or a reference.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of predicted label maps CASE.nii.gz, with label numbers as in the cases or in their "
            "dataset.json.",
        ),
    ] = None,
    reviewer: Annotated[str, typer.Option(help="Your name, stored with your decisions.")] = "",
    blind: Annotated[
        bool,
        typer.Option(
            "--blind",
            help="Reader test: mix synthetic images with real ones from --beside, unlabelled.",
            rich_help_panel=READERS,
        ),
    ] = False,
    num_images: Annotated[
        int,
        typer.Option(
            min=2, max=10_000, help="Number of images in --blind, half of each kind.", rich_help_panel=READERS
        ),
    ] = 40,
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed for the order of --blind; the same seed continues a test.", rich_help_panel=READERS
        ),
    ] = 0,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also show this report of the cohort; its pictures link to their cases."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0 for any free port.", rich_help_panel=RUN)
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address without opening a browser.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Look at a cohort in the browser: scroll, window, accept and reject. Ctrl-C stops.

    The page is served to this machine alone and loads nothing from the network. Rejected cases are left out of exports,
    datasets, evaluate and report; synthesize --redraw-rejected draws them again. Needs the extra 'view'.

    Example: maisi-aug view cohort --reviewer anna
    """
    from maisi_aug.cli.shared.streams import tell
    from maisi_aug.evaluation.review.serving import ViewOptions, serve

    if blind and beside is None:
        raise typer.BadParameter("--blind can only be used with --beside, the folder of real images.")
    if blind and report is not None:
        raise typer.BadParameter("--report can only be used without --blind, since it shows which cases are synthetic.")
    options = ViewOptions(
        path=path,
        beside=beside,
        predictions=predictions,
        reviewer=reviewer.strip(),
        is_blind=blind,
        num_images=num_images,
        seed=seed,
        port=port,
        report=report,
    )
    tell("Ctrl-C stops.")
    serve(options, tell=typer.echo, opens_browser=not no_browser)
