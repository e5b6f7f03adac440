from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from maisi_aug.evaluation.output.charts import BAND, DotRow, ScatterSeries, draw_dot_chart, draw_scatter

SVG = "{http://www.w3.org/2000/svg}"


def elements(chart: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(chart).iter(SVG + name))


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name])


def words(chart: str) -> list[str]:
    return [element.text or "" for element in elements(chart, "text")]


def test_dots_lie_where_their_values_are() -> None:
    chart = draw_dot_chart("Title", [DotRow("a", [0.0, 5.0, 10.0])], axis="HU", limits=(0.0, 10.0))
    left, middle, right = (number(dot, "cx") for dot in elements(chart, "circle"))
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    ticks = {element.text: number(element, "x") for element in elements(chart, "text")}
    assert [left, right] == pytest.approx([ticks["0"], ticks["10"]], abs=0.1)


def test_values_beyond_the_axis_are_drawn_at_its_end() -> None:
    chart = draw_dot_chart("Title", [DotRow("a", [10.0, 99.0])], axis="HU", limits=(0.0, 10.0))
    inside, beyond = elements(chart, "circle")
    assert number(inside, "cx") == number(beyond, "cx")


def test_row_shows_band_interval_centre_and_note() -> None:
    rows = [DotRow("liver", [50.0], 55.0, (40.0, 70.0), (20.0, 160.0), is_marked=True, note="100%"), DotRow("spleen")]
    chart = draw_dot_chart("HU by label", rows, axis="HU", subtitle="4 cases")
    band = next(box for box in elements(chart, "rect") if box.attrib["fill"] == BAND)
    interval = next(line for line in elements(chart, "line") if line.attrib["stroke-width"] == "2.5")
    centre = max(elements(chart, "circle"), key=lambda dot: number(dot, "r"))
    start, width = number(band, "x"), number(band, "width")
    assert start < number(interval, "x1") < number(centre, "cx") < number(interval, "x2") < start + width
    assert {"HU by label", "4 cases", "liver", "spleen", "100%", "HU"} <= set(words(chart))
    assert elements(chart, "title")[0].text == "HU by label"


def test_words_are_escaped() -> None:
    chart = draw_dot_chart("a < b & c", [DotRow('"x"', [1.0])], axis="<HU>")
    assert {"a < b & c", '"x"', "<HU>"} <= set(words(chart))


@pytest.mark.parametrize("is_log", [False, True])
def test_points_as_requested_lie_on_the_dashed_line(is_log: bool) -> None:
    series = [ScatterSeries("hepatic tumor", [(8.0, 8.0), (40.0, 40.0)]), ScatterSeries("lung tumor", [(20.0, 10.0)])]
    chart = draw_scatter("Sizes", series, axes=("requested", "realised"), is_log=is_log)
    line = next(line for line in elements(chart, "line") if "stroke-dasharray" in line.attrib)
    x1, y1, x2, y2 = (number(line, name) for name in ("x1", "y1", "x2", "y2"))
    points = [dot for dot in elements(chart, "circle") if dot.attrib["r"] == "4"]
    heights = [number(dot, "cy") - (y1 + (number(dot, "cx") - x1) * (y2 - y1) / (x2 - x1)) for dot in points]
    assert heights[:2] == pytest.approx([0.0, 0.0], abs=0.2)
    assert heights[2] > 10  # realised too small: below the line, and down is larger in SVG
    assert {"hepatic tumor (2)", "lung tumor (1)", "as requested"} <= set(words(chart))


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1.0, 1e-6], [1e5, 2e5]])
def test_any_values_have_an_axis(values: list[float]) -> None:
    chart = draw_dot_chart("Title", [DotRow("a", values)], axis="x")
    places = [number(dot, "cx") for dot in elements(chart, "circle")]
    assert all(0 < place < 760 for place in places)
    assert 2 <= len([line for line in elements(chart, "line") if line.attrib["stroke"] == "#e8ebee"]) <= 12


@pytest.mark.parametrize("value", [0.0, 1e-4, 0.42, 3.0, 5.0, 9.99, 20.0, 137.0, -60.0])
def test_chart_with_one_value_has_more_than_one_tick(value: float) -> None:
    chart = draw_dot_chart("One", [DotRow("a", [value])], axis="HU")
    ticks = {text.text for text in elements(chart, "text") if text.attrib["text-anchor"] == "middle"} - {"HU"}
    assert len(ticks) >= 2
    if value > 0:
        chart = draw_scatter("One", [ScatterSeries("a", [(value, value)])], axes=("x", "y"), is_log=True)
        ticks = {text.text for text in elements(chart, "text") if text.attrib["text-anchor"] == "middle"} - {"x", "y"}
        assert len(ticks) >= 2
        assert len({float(tick or "nan") for tick in ticks}) == len(ticks)
