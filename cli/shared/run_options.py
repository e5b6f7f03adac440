"""Options that several commands share and that no configuration has: grids, folder, device, output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from maisi_aug.volumes.grid_words import read_shape, read_spacing

RUN = "Run"
"""Panel of the help that lists them."""

NewCohort = Annotated[Path, typer.Option("--out", "-o", help="Folder for the cohort; an unfinished one is continued.")]
NewRun = Annotated[Path, typer.Option("--out", "-o", help="Folder for the run; an unfinished one is continued.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Device to compute on: auto, cpu, cuda, cuda:N, mps or xpu.",
        rich_help_panel=RUN,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE,...",
        help="Several devices, such as cuda:0,cuda:1; each runs its own process.",
        rich_help_panel=RUN,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make only every N-th case, starting with the I-th; other jobs make the rest. Join them with: maisi-aug "
        "cohort merge.",
        rich_help_panel=RUN,
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Check the bytes of finished cases against the manifest and draw altered ones again; missing files are "
        "always drawn again.",
        rich_help_panel=RUN,
    ),
]
RedrawRejected = Annotated[
    bool,
    typer.Option(
        "--redraw-rejected",
        help="Try again for cases that were rejected in maisi-aug view.",
        rich_help_panel=RUN,
    ),
]
TrainingDevice = Annotated[
    str, typer.Option("--device", help="Device: auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(min=0.0, help="Time limit; the same command continues later.", rich_help_panel=RUN),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write logs for TensorBoard.", rich_help_panel=RUN)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=RUN)]
JsonLines = Annotated[
    bool,
    typer.Option("--json-lines", help="Report progress on stderr as one JSON object per line.", rich_help_panel=RUN),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.", rich_help_panel=RUN)]


def parse_shape(text: str | None) -> Any:
    """Parse the value of ``--shape`` as voxels along I, J, K.

    Raises:
        typer.BadParameter: The value is not a shape.
    """
    return _parse("--shape", read_shape, text)


def parse_spacing(text: str | None) -> Any:
    """Parse the value of ``--spacing`` as millimetres along I, J, K.

    Raises:
        typer.BadParameter: The value is not a spacing.
    """
    return _parse("--spacing", read_spacing, text)


def _parse(flag: str, read: Callable[[object], object], text: str | None) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{flag}: {error}.") from None
