"""Grids as people write them, on the command line, in recipes and in Python: ``128x96x80``, ``3.2mm``, lists."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, Strict

from maisi_aug.system.content import spells_number
from maisi_aug.system.models import PositiveFinite

MAX_SPACING_MM = 100.0
MAX_SIDE = 8192
"""Largest number of voxels along a side of any grid; the limits of bundles are lower."""


def read_shape(value: object) -> object:
    """Parse a shape, such as ``128x96x80`` or one side for all three, as voxels along I, J, K.

    Values that are not text are returned unchanged.

    Raises:
        ValueError: The text is not a shape.
    """
    if not isinstance(value, str):
        return value
    parts = _split(value, "128x96x80")
    if not all(spells_number(part) and int(part) > 0 for part in parts):
        raise ValueError(f"expected three sides in voxels such as 128x96x80, found '{value}'")
    return tuple(map(int, parts))


def read_spacing(value: object) -> object:
    """Parse a spacing, such as ``3.2`` or ``1.5x1.5x3mm``, as millimetres along I, J, K.

    Values that are not text are returned unchanged.

    Raises:
        ValueError: The text is not a spacing.
    """
    if not isinstance(value, str):
        return value
    try:
        sides = tuple(map(float, _split(value.lower().strip().removesuffix("mm"), "1.5x1.5x3")))
    except ValueError:
        raise ValueError(f"expected millimetres such as 3.2 or 1.5x1.5x3, found '{value}'") from None
    if not all(0 < side < MAX_SPACING_MM for side in sides):
        raise ValueError(f"expected millimetres between 0 and {MAX_SPACING_MM:g}, found '{value}'")
    return sides


def _split(text: str, example: str) -> list[str]:
    parts = text.lower().replace(",", "x").replace(" ", "").split("x")
    parts = parts * 3 if len(parts) == 1 else parts
    if len(parts) != 3:
        raise ValueError(f"expected one or three numbers such as {example}, found '{text}'")
    return parts


_Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]
ShapeField = Annotated[tuple[_Side, _Side, _Side], Strict(False), BeforeValidator(read_shape)]
"""Voxels along I, J, K."""
SpacingField = Annotated[
    tuple[PositiveFinite, PositiveFinite, PositiveFinite], Strict(False), BeforeValidator(read_spacing)
]
"""Voxel sides in mm along I, J, K."""
