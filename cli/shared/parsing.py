"""Grids among the options of commands that have no configuration of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from maisi_aug.volumes.grid_words import read_shape, read_spacing


def parse_shape(text: str | None) -> Any:
    """``--shape`` as voxels along I, J, K.

    Raises:
        typer.BadParameter: It is no shape.
    """
    return _parse("--shape", read_shape, text)


def parse_spacing(text: str | None) -> Any:
    """``--spacing`` as millimetres along I, J, K.

    Raises:
        typer.BadParameter: It is no spacing.
    """
    return _parse("--spacing", read_spacing, text)


def _parse(flag: str, read: Callable[[object], object], text: str | None) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{flag}: {error}.") from None
