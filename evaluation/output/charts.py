"""Charts of the measurements as SVG: rows of dots against ranges and intervals, and scatter about the identity.

Written by hand, because the two forms that the measurements need are 200 lines, while a plotting library would be the
largest dependency of the package and start slower than most measurements run. SVG stays sharp at any size, shows in
Markdown, and goes into the self-contained HTML report as it is, where its words can be searched and read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from maisi_aug.system.printed_text import clean_html

BLUE: Final = "#1f5fa8"
ORANGE: Final = "#c04f00"
GREY: Final = "#6b7280"
BAND: Final = "#d7dce2"
INK: Final = "#1b1f24"
FAINT: Final = "#e8ebee"
PALETTE: Final = (BLUE, ORANGE, "#2a7f4f", "#8a3ea0", "#a8861f", "#b3304a", "#27818c", "#5c5f66")
"""Colours that are distinguishable with common colour blindness, with a contrast of at least 4.5 to 1 on white."""

WIDTH: Final = 760
ROW: Final = 22
TOP: Final = 58
BOTTOM: Final = 46
RIGHT: Final = 24
CHARACTER: Final = 6.6
"""Average width in px of a character of 12 px text."""
MIN_TICKS = 3


@dataclass(frozen=True, slots=True)
class DotRow:
    """One row of a dot chart.

    Attributes:
        name: Label at the left.
        dots: Values, drawn as small dots.
        centre: A value drawn as a large dot.
        interval: Ends of a line through the centre.
        band: Ends of a pale bar behind everything, such as a reference range.
        is_marked: Whether the row is an outlier, drawn in orange.
        note: Text at the right end of the row; may be empty.
    """

    name: str
    dots: Sequence[float] = ()
    centre: float | None = None
    interval: tuple[float, float] | None = None
    band: tuple[float, float] | None = None
    is_marked: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class ScatterSeries:
    """Points of one colour in a scatter chart.

    Attributes:
        name: Name in the legend.
        points: ``(x, y)``.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class CurveSeries:
    """Points of one colour, and a line.

    Attributes:
        name: Name in the legend.
        points: ``(x, y)``.
        line: ``(x, y)`` along a line; empty for none.
        intervals: ``(low, high)`` of each point; empty for none, None for a point without.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: Sequence[tuple[float, float]] = ()
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        place: Callable[[float], float] = math.log10 if self.is_log else float
        span = place(self.high) - place(self.low)
        share = (place(min(max(value, self.low), self.high)) - place(self.low)) / span
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round numbers along the scale."""
        if self.is_log:
            steps = [factor * 10.0**power for power in range(-6, 7) for factor in (1, 2, 5)]
            found = [step for step in steps if self.low * 0.999 <= step <= self.high * 1.001]
            if len(found) >= MIN_TICKS:  # values close together have few of these between them
                return found
        step = _round_step((self.high - self.low) / 6)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw_dot_chart(
    title: str, rows: Sequence[DotRow], *, axis: str, subtitle: str = "", limits: tuple[float, float] | None = None
) -> str:
    """Draw a dot chart: rows of dots over a common axis.

    Args:
        title: Title of the chart.
        rows: Rows of the chart; at least one.
        axis: Name of the values, with unit.
        subtitle: Text below the title, such as how it was measured.
        limits: Ends of the axis, at which values beyond are drawn; None to derive them from the values.

    Returns:
        A complete SVG document.
    """
    left = 20 + CHARACTER * max(len(row.name) for row in rows)
    right = RIGHT + CHARACTER * max(len(row.note) for row in rows)
    height = TOP + ROW * len(rows) + BOTTOM
    low, high = limits or _limits_of([value for row in rows for value in _values_of(row)])
    scale = _Scale(low, high, left, WIDTH - right)
    parts = _frame(title, subtitle, height)
    parts += _draw_vertical_axis_lines(scale, TOP - 4, height - BOTTOM, axis)
    for number, row in enumerate(rows):
        parts += _draw_row(row, scale, TOP + ROW * number + ROW / 2, left)
    return _document(parts, title, height)


def draw_scatter(
    title: str, series: Sequence[ScatterSeries], *, axes: tuple[str, str], subtitle: str = "", is_log: bool = False
) -> str:
    """Draw a scatter chart with the identity line and equal axes.

    Args:
        title: Title of the chart.
        series: Series with at least one point in total; with positive values on logarithmic axes.
        axes: Names of x and y, with units.
        subtitle: Text below the title.
        is_log: Whether both axes are logarithmic.

    Returns:
        A complete SVG document.
    """
    values = [value for one in series for point in one.points for value in point]
    low, high = _log_limits_of(values) if is_log else _limits_of(values)
    side, left, top = 440, 78, TOP + 4
    height = top + side + BOTTOM + 4
    x, y = _Scale(low, high, left, left + side, is_log), _Scale(low, high, top + side, top, is_log)
    parts = _frame(title, subtitle, height)
    parts += _draw_vertical_axis_lines(x, top, top + side, axes[0])
    for tick in y.ticks():
        parts.append(_line(left, y(tick), left + side, y(tick), FAINT))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", anchor="end", colour=GREY))
    parts.append(_text(20, top + side / 2, axes[1], anchor="middle", turned=True))
    parts.append(_line(x(low), y(low), x(high), y(high), GREY, width=1.5, dashed=True))
    for number, one in enumerate(series):
        colour = PALETTE[number % len(PALETTE)]
        parts += [_dot(x(a), y(b), 4.0, colour, opacity=0.65) for a, b in one.points]
        place = top + 14 + 20 * number
        parts.append(_dot(left + side + 24, place, 5.0, colour))
        parts.append(_text(left + side + 36, place + 4, f"{one.name} ({len(one.points)})"))
    place = top + 14 + 20 * len(series)
    parts.append(_line(left + side + 16, place, left + side + 32, place, GREY, width=1.5, dashed=True))
    parts.append(_text(left + side + 36, place + 4, "as requested"))
    return _document(parts, title, height)


def draw_curve_chart(title: str, series: Sequence[CurveSeries], *, axes: tuple[str, str]) -> str:
    """Draw points and lines over a logarithmic axis of positive numbers, such as learning curves.

    Args:
        title: Title of the chart.
        series: Series with at least one point in total.
        axes: Names of x and y, with units.

    Returns:
        A complete SVG document.
    """
    drawn = [point for one in series for point in (*one.points, *one.line)]
    ends = [end for one in series for interval in one.intervals for end in interval or ()]
    low, high = _limits_of([*(y for _, y in drawn), *ends])
    width, side, left, top = 440, 300, 78, TOP + 4
    height = top + side + BOTTOM + 4
    x = _Scale(*_log_limits_of([x for x, _ in drawn]), left, left + width, is_log=True)
    y = _Scale(low, high, top + side, top)
    parts = _frame(title, "", height)
    parts += _draw_vertical_axis_lines(x, top, top + side, axes[0])
    for tick in y.ticks():
        parts.append(_line(left, y(tick), left + width, y(tick), FAINT))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", anchor="end", colour=GREY))
    parts.append(_text(20, top + side / 2, axes[1], anchor="middle", turned=True))
    for number, one in enumerate(series):
        colour = PALETTE[number % len(PALETTE)]
        for (x1, y1), (x2, y2) in pairwise(one.line):
            parts.append(_line(x(x1), y(y1), x(x2), y(y2), colour, width=1.5))
        for (place, _), interval in zip(one.points, one.intervals, strict=False):
            if interval is not None:
                parts.append(_line(x(place), y(interval[0]), x(place), y(interval[1]), colour, width=2.0))
        parts += [_dot(x(a), y(b), 5.0, colour, outlined=True) for a, b in one.points]
        place = top + 14 + 20 * number
        parts.append(_dot(left + width + 24, place, 5.0, colour))
        parts.append(_text(left + width + 36, place + 4, one.name))
    return _document(parts, title, height)


def _draw_row(row: DotRow, scale: _Scale, y: float, left: float) -> list[str]:
    colour = ORANGE if row.is_marked else BLUE
    parts = [_text(left - 10, y + 4, row.name, anchor="end", colour=ORANGE if row.is_marked else INK)]
    if row.band is not None:
        start, stop = scale(row.band[0]), scale(row.band[1])
        parts.append(
            f'<rect x="{start:.1f}" y="{y - 7:.1f}" width="{max(stop - start, 1):.1f}" height="14" fill="{BAND}"/>'
        )
    parts += [_dot(scale(value), y, 3.0, colour, opacity=0.45) for value in row.dots]
    if row.interval is not None:
        ends = scale(row.interval[0]), scale(row.interval[1])
        parts.append(_line(ends[0], y, ends[1], y, colour, width=2.5))
        parts += [_line(end, y - 5, end, y + 5, colour, width=2) for end in ends]
    if row.centre is not None:
        parts.append(_dot(scale(row.centre), y, 5.5, colour, outlined=True))
    if row.note:
        parts.append(_text(WIDTH - RIGHT / 2, y + 4, row.note, anchor="end", colour=GREY))
    return parts


def _draw_vertical_axis_lines(scale: _Scale, top: float, bottom: float, axis: str) -> list[str]:
    parts = []
    for tick in scale.ticks():
        parts.append(_line(scale(tick), top, scale(tick), bottom, FAINT))
        parts.append(_text(scale(tick), bottom + 16, f"{tick:g}", anchor="middle", colour=GREY))
    parts.append(_text((scale.start + scale.stop) / 2, bottom + 36, axis, anchor="middle"))
    return parts


def _frame(title: str, subtitle: str, height: float) -> list[str]:
    return [
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        _text(16, 24, title, size=15, weight="600"),
        _text(16, 43, _fit(subtitle), colour=GREY),
    ]


def _fit(text: str) -> str:
    limit = int((WIDTH - 32) / CHARACTER * 1.1)
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def _document(parts: Sequence[str], title: str, height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" font-family="system-ui, Helvetica, Arial, sans-serif">'
    )
    return "\n".join([head, f"<title>{clean_html(title)}</title>", *parts, "</svg>"]) + "\n"


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    colour: str = INK,
    size: int = 12,
    weight: str = "400",
    turned: bool = False,
) -> str:
    rotation = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}"{rotation}>{clean_html(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashes}/>'
    )


def _dot(x: float, y: float, radius: float, colour: str, *, opacity: float = 1.0, outlined: bool = False) -> str:
    edge = ' stroke="#ffffff" stroke-width="1.5"' if outlined else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}" fill-opacity="{opacity:g}"{edge}/>'


def _values_of(row: DotRow) -> list[float]:
    centre = [] if row.centre is None else [row.centre]
    return [*row.dots, *centre, *(row.interval or ()), *(row.band or ())]


def _limits_of(values: Sequence[float]) -> tuple[float, float]:
    """Round ends around the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    step = _round_step((high - low) / 6 or abs(high) or 1.0)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return low, high if high > low else low + step


def _log_limits_of(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.25, max(values) * 1.25


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... and their fractions."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
