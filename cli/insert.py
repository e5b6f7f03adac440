"""`maisi-aug insert`: lesions drawn into the user's own CTs, of which all else stays as it was."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.prepare import OrganLabels
from maisi_aug.cli.shared.completion import complete_bundles, complete_labels

if TYPE_CHECKING:
    from maisi_aug.insertion.config import InsertConfig

_WHAT, _INTO, _RUN = "What to insert", "Into what", "Run"


class PainterChoice(StrEnum):
    """What `--painter` takes."""

    procedural = "procedural"
    network = "network"


class TextureChoice(StrEnum):
    """What `--texture` takes."""

    solid = "solid"
    part_solid = "part-solid"
    ground_glass = "ground-glass"


class PlaceChoice(StrEnum):
    """What `--place` takes."""

    free = "free"
    surface = "surface"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("insert")(insert)


def insert(
    into: Annotated[
        Path,
        typer.Option(help="A CT, a folder of CTs, or an nnU-Net dataset.", rich_help_panel=_INTO),
    ],
    labels: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:SIZE][@SHARE]",
            autocompletion=complete_labels,
            help="Lesion with a size: 6-20mm, 4mL, 0.3 (percentile), 8-12mmx2; may repeat; join with + for one case.",
            rich_help_panel=_WHAT,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the cohort; one that was begun is gone on with.")
    ],
    into_labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of label files named after the CTs: real lesions, which stay, and hosts.",
            rich_help_panel=_INTO,
        ),
    ] = None,
    into_organs: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of organ labels, such as TotalSegmentator's; may repeat.", rich_help_panel=_INTO),
    ] = None,
    organ_labels: Annotated[
        OrganLabels,
        typer.Option(help="What the ids of organ label maps mean.", rich_help_panel=_INTO),
    ] = OrganLabels.auto,
    map_labels: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="LABEL=NAME", help="What a label means, as for prepare; may repeat.", rich_help_panel=_INTO
        ),
    ] = None,
    num_cases: Annotated[
        int, typer.Option("--num-cases", "-n", min=1, help="Cases; the CTs take turns.", rich_help_panel=_WHAT)
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Cohort seed.", rich_help_panel=_WHAT)] = 0,
    texture: Annotated[
        TextureChoice | None,
        typer.Option(help="Of lesions in the lung (default: mixed as in patients).", rich_help_panel=_WHAT),
    ] = None,
    place: Annotated[
        PlaceChoice | None,
        typer.Option(
            help="Inside of the host, or at its surface: juxta-pleural (default: mixed).", rich_help_panel=_WHAT
        ),
    ] = None,
    twins: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR=VALUE,...",
            help="For each of the -n places a case per value, all else equal: size=6mm,10mm,20mm, texture=, place=, or "
            "contrast=100,300 (HU). 'evaluate detection-curve' reads them.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    painter: Annotated[
        PainterChoice,
        typer.Option(
            help="procedural needs no weights; network draws with the bundle's networks.", rich_help_panel=_WHAT
        ),
    ] = PainterChoice.procedural,
    bundle: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="Weights of --painter network.",
            rich_help_panel=_WHAT,
        ),
    ] = "phantom-ct",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps (default: the bundle's).", rich_help_panel=_WHAT)
    ] = None,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="Attempts per case; may be raised later.", rich_help_panel=_RUN)
    ] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_RUN)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=_RUN)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_RUN)] = False,
) -> None:
    """Draw lesions of given sizes into your own CTs; every voxel away from a lesion stays as it was.

    Example: maisi-aug insert --into CTS --labels "lung nodule:6-20mm" -n 20 --out cohort
    """
    from maisi_aug.insertion.config import InsertConfig

    config = InsertConfig(
        into=str(into),
        into_labels=None if into_labels is None else str(into_labels),
        into_organs=tuple(map(str, into_organs or ())),
        organ_labels=organ_labels.value,
        map=tuple(map_labels or ()),
        labels=tuple(labels),
        num_cases=num_cases,
        seed=seed,
        painter=painter.value,
        bundle=bundle,
        num_inference_steps=steps,
        texture=None if texture is None else texture.value,
        place=None if place is None else place.value,
        twins=twins,
        max_attempts=max_attempts,
    )
    _run(config, out, device=device, as_json=as_json, is_quiet=quiet)


def _run(config: InsertConfig, out: Path, *, device: str, as_json: bool, is_quiet: bool) -> None:
    from maisi_aug.cli.shared.progress import CohortProgress
    from maisi_aug.cli.synthesize import describe_summary
    from maisi_aug.insertion.cohort import insert_cohort
    from maisi_aug.insertion.config import resolve_insertion

    with CohortProgress(is_quiet=is_quiet) as progress:
        cohort = resolve_insertion(config)
        for note in cohort.backgrounds.notes if not is_quiet else ():
            typer.echo(f"Note: {note}", err=True)
        summary = insert_cohort(cohort, out, device=device, listener=progress)
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)
