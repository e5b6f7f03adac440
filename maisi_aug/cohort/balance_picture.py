"""The balance of a dataset as a picture: what is there, what the plan adds, and how even the sizes become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from maisi_aug.cohort.balance import LabelBalance
from maisi_aug.pictures.slices import BACKGROUND, DIM_TEXT, MARK, TEXT, Rgb, write_text

REAL: Rgb = (122, 134, 150)
GRID: Rgb = (44, 50, 58)
MARGIN_PX = 24
HEADER_PX = 66
LEGEND_PX = 30
PANEL_PX = (330, 250)
AXIS_PX, TITLE_PX, CAPTION_PX = 44, 26, 36


@dataclass(frozen=True)
class _Panel:
    """One histogram.

    Attributes:
        title: Title of the chart.
        names: Names of the bars.
        real: Counts in the real dataset.
        planned: Cases that the plan adds.
        is_open: Whether the plan may fill a bar.
    """

    title: str
    names: Sequence[str]
    real: Sequence[int]
    planned: Sequence[int]
    is_open: Sequence[bool]


def draw_balance(balances: Sequence[LabelBalance], *, dataset: str) -> Image.Image:
    """Draw one row of histograms per label: cases by number of lesions, then lesion sizes for each such number.

    Args:
        balances: Existing and planned cases of each label.
        dataset: Name of the real dataset.
    """
    rows = [_panels_of(balance) for balance in balances]
    num_columns = max(map(len, rows))
    row_height = HEADER_PX + PANEL_PX[1]
    width = MARGIN_PX + num_columns * (PANEL_PX[0] + MARGIN_PX)
    picture = Image.new("RGB", (width, MARGIN_PX + LEGEND_PX + len(rows) * (row_height + MARGIN_PX)), BACKGROUND)
    _draw_legend(picture, dataset)
    for number, (balance, panels) in enumerate(zip(balances, rows, strict=True)):
        top = MARGIN_PX + LEGEND_PX + number * (row_height + MARGIN_PX)
        write_text(picture, (MARGIN_PX, top), balance.target.label, size_px=20)
        write_text(picture, (MARGIN_PX, top + 27), _describe(balance), size_px=14, colour=DIM_TEXT)
        for place, panel in enumerate(panels):
            _draw_panel(picture, (MARGIN_PX + place * (PANEL_PX[0] + MARGIN_PX), top + HEADER_PX), panel)
    return picture


def _describe(balance: LabelBalance) -> str:
    num_real = sum(balance.real_cases)
    num_lesions = sum(map(sum, balance.real_lesions))
    before, after = balance.evenness(planned=False), balance.evenness(planned=True)
    return (
        f"{num_real} real cases, {balance.real_cases[0]} of them without it, {num_lesions} lesions "
        f"({balance.source}); {balance.num_planned} planned; evenness {before:.2f} before, {after:.2f} after"
    )


def _panels_of(balance: LabelBalance) -> list[_Panel]:
    last = len(balance.real_cases) - 1
    numbers = [*map(str, range(last)), f"{last}+"]
    panels = [
        _Panel("cases by lesions per case", numbers, balance.real_cases, balance.planned_cases, [False] + [True] * last)
    ]
    names = [name.replace(" and more", "+").replace("under ", "<").replace(" mm", "") for name in balance.bins.names]
    names[0], names[-1] = f"<{balance.bins.edges_mm[0]:g}", f"{balance.bins.edges_mm[-1]:g}+"
    is_open = [place in balance.open_bins for place in range(len(names))]
    for row, (real, planned) in enumerate(zip(balance.real_lesions, balance.planned_lesions, strict=True)):
        plural = "1 lesion" if row == 0 and last > 1 else f"{numbers[row + 1]} lesions"
        panels.append(_Panel(f"sizes in cases with {plural}", names, real, planned, is_open))
    return panels


def _draw_legend(picture: Image.Image, dataset: str) -> None:
    draw, x = ImageDraw.Draw(picture), MARGIN_PX
    for colour, text in (
        (REAL, f"real: {dataset}"),
        (MARK, "planned"),
        (None, "outlined: existing lesions, not planned for"),
    ):
        box = (x, MARGIN_PX + 2, x + 14, MARGIN_PX + 16)
        draw.rectangle(box, fill=colour, outline=DIM_TEXT if colour is None else None)
        write_text(picture, (x + 22, MARGIN_PX), text, size_px=15)
        x += 22 + round(draw.textlength(text, font_size=15)) + 34


def _draw_panel(picture: Image.Image, corner: tuple[int, int], panel: _Panel) -> None:
    """Stacked bars with the numbers of real and planned ones; the scale is the panel's own."""
    draw = ImageDraw.Draw(picture)
    left, top = corner
    right, bottom = left + PANEL_PX[0], top + PANEL_PX[1] - CAPTION_PX
    write_text(picture, (left, top), panel.title, size_px=14)
    top += TITLE_PX
    highest = max(1, *(a + b for a, b in zip(panel.real, panel.planned, strict=True)))
    scale = (bottom - top - 16) / highest
    step = _step_of(highest)
    for level in range(0, highest + 1, step):
        y = round(bottom - level * scale)
        draw.line((left + AXIS_PX, y, right, y), fill=GRID)
        write_text(picture, (left + AXIS_PX - 6, y), str(level), size_px=11, colour=DIM_TEXT, anchor="rm")
    pitch = (right - left - AXIS_PX) / len(panel.names)
    for place, name in enumerate(panel.names):
        x0, x1 = left + AXIS_PX + (place + 0.14) * pitch, left + AXIS_PX + (place + 0.86) * pitch
        real_top = bottom - panel.real[place] * scale
        top_of_bar = real_top - panel.planned[place] * scale
        if panel.is_open[place]:
            draw.rectangle((x0, real_top, x1, bottom), fill=REAL)
        else:
            draw.rectangle((x0, real_top, x1, bottom), outline=REAL)
        if panel.planned[place]:
            draw.rectangle((x0, top_of_bar, x1, real_top), fill=MARK)
        middle = (x0 + x1) / 2
        total = panel.real[place] + panel.planned[place]
        write_text(picture, (middle, top_of_bar - 3), str(total), size_px=11, colour=TEXT, anchor="mb")
        write_text(picture, (middle, bottom + 5), name, size_px=11, colour=DIM_TEXT, anchor="mt")
    unit = "lesions per case" if panel.title.startswith("cases") else "equivalent diameter, mm"
    write_text(picture, ((left + AXIS_PX + right) / 2, bottom + 20), unit, size_px=11, colour=DIM_TEXT, anchor="mt")


def _step_of(highest: int) -> int:
    """A round distance between the lines of an axis, so that there are three to eight of them."""
    step = 1
    while highest / step > 6:
        step = step * 2 if str(step)[0] in "15" else step // 2 * 5
    return step
