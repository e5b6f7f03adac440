"""The grids that a bundle's networks have seen: data of the bundle, what a grid lacks, and the nearest good one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from maisi_aug.system.models import PositiveFinite, StrictModel
from maisi_aug.volumes.grid import Grid, spell_grid

_Sides = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
_Span = tuple[PositiveFinite, PositiveFinite]
TOLERANCE_MM = 1e-3
"""Spacings that differ by less are the same: files keep them in float32."""
SPACING_TOLERANCE = 1e-3
"""Voxel sides of two descriptions of a grid that differ by no more of their length are the same: they are rounded."""
EXTENT_TOLERANCE_MM = 1.0
"""Fields of view that differ by less are the same: spacings are rounded, and there are hundreds of voxels."""
AXES = "IJK"


class GridSpec(StrictModel):
    """Shape and spacing of a grid in ``bundle.yaml``: the bundle's default, or a recommended one."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[PositiveFinite, PositiveFinite, PositiveFinite]

    def is_like(self, other: GridSpec) -> bool:
        """Whether another grid has the same shape and spacing."""
        return self.shape == other.shape and np.allclose(self.spacing_mm, other.spacing_mm, rtol=SPACING_TOLERANCE)


class LeastExtent(StrictModel):
    """Least field of view along I and J, in millimetres, depending on the part of the body that an image shows."""

    head: PositiveFinite
    body: PositiveFinite


class GridLimits(StrictModel):
    """Limits of the grids that a bundle's networks were trained on.

    Attributes:
        sides: Numbers of voxels along I, J and K seen in training; other numbers cause a warning.
        spacing_mm: Least and largest voxel side along I, J and K in mm.
        refuses_other_spacing: Whether another spacing is refused; otherwise it causes a warning.
        needs_square_slices: Whether slices must be square: the same number of voxels, of the same side, along I and J.
        extent_mm: Least and largest field of view along I and J in mm; others are refused. None for any.
        least_extent_mm: Field of view along I and J in mm below which there is a warning; None for any.
        recommended: Body region -> recommended grid, which need not meet ``least_extent_mm``.
        source: Source of the figures.
    """

    sides: tuple[_Sides, _Sides, _Sides]
    spacing_mm: tuple[_Span, _Span, _Span]
    refuses_other_spacing: bool = False
    needs_square_slices: bool = False
    extent_mm: tuple[_Span, _Span] | None = None
    least_extent_mm: LeastExtent | None = None
    recommended: dict[str, GridSpec] = Field(default={})
    source: str = ""

    @model_validator(mode="after")
    def _require_order(self) -> Self:
        spans = (*self.spacing_mm, *(self.extent_mm or ()))
        pairs = [pair for sides in self.sides for pair in pairwise(sides)]
        if any(least > most for least, most in spans) or any(one >= other for one, other in pairs):
            raise ValueError("sides must ascend, and the smallest spacing or extent must come before the largest")
        if self.needs_square_slices and len({(self.sides[i], self.spacing_mm[i]) for i in (0, 1)}) > 1:
            raise ValueError("square slices need equal sides and spacing along I and J")
        return self

    def is_recommended(self, grid: Grid) -> bool:
        """Whether a grid is one of the recommended ones."""
        return any(
            grid.shape == spec.shape and np.allclose(grid.spacing_mm, spec.spacing_mm, rtol=0, atol=TOLERANCE_MM)
            for spec in self.recommended.values()
        )

    def admits(self, grid: Grid) -> bool:
        """Whether a grid is within the limits; a field of view that is only enough for the head is accepted."""
        return not find_shortfalls(grid, self, shows_head_alone=True)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One way in which a grid lies outside of a bundle's limits.

    Attributes:
        expected: What the grid should have, worded to follow "expected".
        is_refused: Whether the networks cannot work with the grid; otherwise images may be of poor quality.
    """

    expected: str
    is_refused: bool


def find_shortfalls(grid: Grid, limits: GridLimits, *, shows_head_alone: bool = False) -> list[Shortfall]:
    """Return the ways in which a grid differs from those that the networks were trained on; empty if there are none.

    Args:
        grid: Grid whose shape and spacing are checked.
        limits: Limits of the bundle.
        shows_head_alone: Whether the images show nothing but the head, which needs less field of view.
    """
    if limits.is_recommended(grid):
        return []
    return [
        *_check_slices(grid, limits),
        *_check_sides(grid, limits),
        *_check_spacing(grid, limits),
        *_check_extent(grid, limits, shows_head_alone),
    ]


def spell_shortfalls(
    grid: Grid, limits: GridLimits, subject: str, *, shows_head_alone: bool = False
) -> tuple[str, bool] | None:
    """Describe how a grid differs from a bundle's limits: ``SUBJECT: expected ..., found ...``, the most severe first.

    Args:
        grid: Grid whose shape and spacing are checked.
        limits: Limits of the bundle.
        subject: Subject of the sentence.
        shows_head_alone: Whether the images show nothing but the head, which needs less field of view.

    Returns:
        The sentence without its full stop, and whether the networks cannot work with the grid; None if it is within the
        limits.
    """
    shortfalls = find_shortfalls(grid, limits, shows_head_alone=shows_head_alone)
    if not shortfalls:
        return None
    shortfalls.sort(key=lambda shortfall: not shortfall.is_refused)
    expected = join_words([shortfall.expected for shortfall in shortfalls])
    sentence = f"{subject}: expected {expected}, found {spell_grid(grid.shape, grid.spacing_mm)}"
    return sentence, shortfalls[0].is_refused


def _check_slices(grid: Grid, limits: GridLimits) -> list[Shortfall]:
    if not limits.needs_square_slices:
        return []
    found = []
    if grid.shape[0] != grid.shape[1]:
        found.append(Shortfall("as many voxels along I as along J", is_refused=True))
    if abs(grid.spacing_mm[0] - grid.spacing_mm[1]) > TOLERANCE_MM:
        found.append(Shortfall("the same spacing along I as along J", is_refused=True))
    return found


def _check_sides(grid: Grid, limits: GridLimits) -> list[Shortfall]:
    wrong: dict[tuple[int, ...], list[str]] = {}
    for axis, side, sides in zip(AXES, grid.shape, limits.sides, strict=True):
        if side not in sides:
            wrong.setdefault(sides, []).append(axis)
    return [
        Shortfall(f"{_spell_sides(sides)} voxels along {join_words(axes)}", is_refused=False)
        for sides, axes in wrong.items()
    ]


def _check_spacing(grid: Grid, limits: GridLimits) -> list[Shortfall]:
    wrong: dict[tuple[float, float], list[str]] = {}
    for axis, step, span in zip(AXES, grid.spacing_mm, limits.spacing_mm, strict=True):
        if not span[0] - TOLERANCE_MM <= step <= span[1] + TOLERANCE_MM:
            wrong.setdefault(span, []).append(axis)
    return [
        Shortfall(f"a spacing of {_spell_span(span)} mm along {join_words(axes)}", limits.refuses_other_spacing)
        for span, axes in wrong.items()
    ]


def _check_extent(grid: Grid, limits: GridLimits, shows_head_alone: bool) -> list[Shortfall]:
    found = [
        Shortfall(f"a field of view of {_spell_span(span)} mm along {axis}", is_refused=True)
        for axis, extent, span in zip(AXES, grid.extent_mm, limits.extent_mm or (), strict=False)
        if not span[0] - EXTENT_TOLERANCE_MM <= extent <= span[1] + EXTENT_TOLERANCE_MM
    ]
    least_mm = _least_extent_mm(limits, shows_head_alone)
    if min(grid.extent_mm[:2]) < least_mm - EXTENT_TOLERANCE_MM:
        found.append(Shortfall(f"a field of view of at least {least_mm:g} mm along I and J", is_refused=False))
    return found


def _least_extent_mm(limits: GridLimits, shows_head_alone: bool) -> float:
    least = limits.least_extent_mm
    return 0.0 if least is None else least.head if shows_head_alone else least.body


def spell_flags(grid: Grid) -> str:
    """Describe a grid as ``--shape`` and ``--spacing`` with its field of view in mm."""
    shape, spacing = ("x".join(f"{part:g}" for part in parts) for parts in (grid.shape, grid.spacing_mm))
    extent = "x".join(f"{side:.0f}" for side in grid.extent_mm)
    return f"--shape {shape} --spacing {spacing} ({extent} mm)"


def spell_nearest(
    grid: Grid, limits: GridLimits, factor: int, *, shows_head_alone: bool = False, shape_follows: bool = False
) -> str:
    """Describe the options that lead from a grid to the nearest one within a bundle's limits.

    Args:
        grid: Requested grid.
        limits: Limits of the bundle.
        factor: Number of which every side must be a multiple.
        shows_head_alone: Whether the images show nothing but the head, which needs less field of view.
        shape_follows: Whether the number of voxels follows from field of view and spacing, as with given label maps.
            Where the spacing alone then makes a good grid, no shape is named, which would crop other maps.
    """
    if shape_follows:
        steps = [_clip(step, span) for step, span in zip(grid.spacing_mm, limits.spacing_mm, strict=True)]
        i, j, k = (
            max(factor, round(extent / step / factor) * factor)
            for extent, step in zip(grid.extent_mm, steps, strict=True)
        )
        there = Grid.from_spacing((i, j, k), (steps[0], steps[1], steps[2]))
        if spell_shortfalls(there, limits, "", shows_head_alone=shows_head_alone) is None:
            return f"--spacing {'x'.join(f'{step:g}' for step in steps)}"
    return spell_flags(nearest_grid(grid, limits, shows_head_alone=shows_head_alone))


def nearest_grid(grid: Grid, limits: GridLimits, *, shows_head_alone: bool = False) -> Grid:
    """Return the grid within a bundle's limits that is nearest to a requested one.

    Nearest means that the numbers of voxels, the spacing and the field of view change by the smallest factors, where
    the factor of the field of view counts twice.

    Args:
        grid: Requested grid.
        limits: Limits of the bundle.
        shows_head_alone: Whether the images show nothing but the head, which needs less field of view.
    """
    least_mm = _least_extent_mm(limits, shows_head_alone)
    spans = [(max(low, least_mm), high) for low, high in limits.extent_mm or ((0.0, math.inf),) * 2]
    wanted = [(float(side), step) for side, step in zip(grid.shape, grid.spacing_mm, strict=True)]
    if limits.needs_square_slices:
        (side_i, step_i), (side_j, step_j), _ = wanted
        wanted[:2] = [(math.sqrt(side_i * side_j), math.sqrt(step_i * step_j))] * 2
    (i, di), (j, dj), (k, dk) = (
        _nearest_axis(*wanted[axis], limits.sides[axis], limits.spacing_mm[axis], [*spans, (0.0, math.inf)][axis])
        for axis in range(3)
    )
    return Grid.from_spacing((i, j, k), (di, dj, dk))


def _nearest_axis(
    side: float, step: float, sides: Sequence[int], steps_mm: tuple[float, float], extents_mm: tuple[float, float]
) -> tuple[int, float]:
    """Voxels and spacing along one axis."""
    extent = _clip(side * step, extents_mm)

    def change(pair: tuple[int, float]) -> float:
        factors = (pair[0] / side, pair[1] / step, pair[0] * pair[1] / extent)
        return sum(weight * abs(math.log(factor)) for weight, factor in zip((1, 1, 2), factors, strict=True))

    # To the micrometre, and up, so that the field of view is not a hair too small.
    fitting = ((count, _clip(math.ceil(extent / count * 1000 - 1e-6) / 1000, steps_mm)) for count in sides)
    kept = ((count, _clip(step, steps_mm)) for count in sides)
    least, most = extents_mm[0] - EXTENT_TOLERANCE_MM, extents_mm[1] + EXTENT_TOLERANCE_MM
    options = [pair for pair in (*fitting, *kept) if least <= pair[0] * pair[1] <= most]
    return min(options or [(sides[-1], steps_mm[1])], key=change)


def _clip(value: float, span: tuple[float, float]) -> float:
    return min(max(value, span[0]), span[1])


def spell_limits(limits: GridLimits) -> str:
    """Describe the limits of a bundle's grids in a few words, for listings."""
    is_alike = limits.sides[0] == limits.sides[1] and limits.spacing_mm[0] == limits.spacing_mm[1]
    axes = (("I and J", 0), ("K", 2)) if is_alike else (("I", 0), ("J", 1), ("K", 2))
    parts = [
        f"{_spell_sides(limits.sides[axis])} voxels of {_spell_span(limits.spacing_mm[axis])} mm along {name}"
        for name, axis in axes
    ]
    return "; ".join(parts)


def join_words(words: Sequence[str]) -> str:
    """Join words as ``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _spell_sides(sides: Sequence[int]) -> str:
    *most, last = map(str, sides)
    return f"{', '.join(most)} or {last}" if most else last


def _spell_span(span: tuple[float, float]) -> str:
    return f"{span[0]:g}" if span[0] == span[1] else f"{span[0]:g} to {span[1]:g}"
