"""`maisi-aug phantom`: procedural CT phantoms with exact label maps."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.shared.run_options import AsJson, Quiet, parse_shape, parse_spacing


class Region(StrEnum):
    """Body region that `--region` selects."""

    any = "any"
    chest = "chest"
    abdomen = "abdomen"
    pelvis = "pelvis"


def register(app: typer.Typer) -> None:
    """Add the command ``phantom`` to the application."""
    app.command("phantom")(phantom)


def phantom(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Output folder; phantoms are added to existing ones of the same settings."),
    ],
    num_phantoms: Annotated[
        int, typer.Option("--num-phantoms", "-n", min=1, help="Total number of phantoms in the folder.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the set.")] = 0,
    region: Annotated[Region, typer.Option(help="Part of the trunk to show.")] = Region.any,
    shape: Annotated[str, typer.Option(metavar="IxJxK", help="Voxels along I, J, K.")] = "128x96x80",
    spacing: Annotated[str, typer.Option(metavar="MM|IxJxK", help="Voxel spacing in mm.")] = "3.2",
    lesions: Annotated[bool, typer.Option(help="Plant lesions of all six kinds.")] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write procedural chest-abdomen-pelvis CTs with exact label maps, pictures and an index.

    Example: maisi-aug phantom -n 10 --out phantoms
    """
    from maisi_aug.api.bars import count_up
    from maisi_aug.generate.phantoms import INDEX_NAME, PhantomSettings, write_phantoms

    settings = PhantomSettings(seed, region.value, parse_shape(shape), parse_spacing(spacing), lesions)
    with count_up("phantoms", is_quiet=quiet) as report:
        index = write_phantoms(out, settings, num_phantoms, report=report)
    if as_json:
        typer.echo(json.dumps(index, indent=1))
        return
    typer.echo(f"{out}: {len(index['phantoms'])} phantoms, listed in {INDEX_NAME}.")
    typer.echo(f"Pictures: {out / 'contact_sheet.png'}")
