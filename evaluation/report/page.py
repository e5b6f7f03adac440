"""The report's page: one file of HTML that needs nothing else, no script and no network.

Its parts are plain strings of HTML, built by small functions that escape what they are given. Rows of intervals are
laid out by the browser, so that they stay readable on a phone; charts from :mod:`maisi_aug.evaluation.output.charts`
take the page's colours and scroll within themselves where a screen is narrow.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from PIL import Image

from maisi_aug import __version__
from maisi_aug.evaluation.output import charts
from maisi_aug.system.printed_text import clean_html, clean_lines

STYLE_NAME: Final = "report_style.css"
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
JPEG_QUALITY: Final = 88
CASE_MARK: Final = "data-case"
_CASE_PICTURE: Final = re.compile(rf'(<figure {CASE_MARK}="([\w.-]+)">)(<img [^>]*>)')
_MINUS: Final = "\u2212"
_COLOURS: Final = {
    "#ffffff": "var(--surface)",
    charts.INK: "var(--ink)",
    charts.GREY: "var(--soft)",
    charts.BAND: "var(--band)",
    charts.FAINT: "var(--faint)",
    charts.BLUE: "var(--blue)",
    charts.ORANGE: "var(--orange)",
    **{colour: f"var(--chart-{number})" for number, colour in enumerate(charts.PALETTE[2:], start=3)},
}


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a report page.

    Attributes:
        title: Heading, also shown in the list of contents.
        body: Content as HTML.
    """

    title: str
    body: str

    @property
    def anchor(self) -> str:
        """HTML id of the section, the target of links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """One row of an interval chart: a value with its interval.

    Attributes:
        name: Label at the left.
        value: Value, drawn as a large dot; None for a row without figures.
        low: Lower end of the interval; None without one.
        high: Upper end of the interval; None without one.
        ticks: Values drawn as small marks, such as single trainings.
        text: Text at the right; the value if empty.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    ticks: Sequence[float] = ()
    text: str = ""


def build_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Build a report page as HTML without external resources.

    Args:
        title: Heading, as plain text.
        lead: Sentence below the heading, as plain text.
        sections: Sections in order; those without a body are left out.
    """
    shown = [section for section in sections if section.body]
    style = Path(__file__).with_name(STYLE_NAME).read_text(encoding="utf-8")
    contents = "".join(f'<li><a href="#{part.anchor}">{clean_html(part.title)}</a></li>' for part in shown)
    body = "\n".join(
        f'<section aria-labelledby="{part.anchor}">\n<h2 id="{part.anchor}">{clean_html(part.title)}</h2>\n'
        f"{part.body}\n</section>"
        for part in shown
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>{clean_html(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<div class="page">
<header>
<h1>{clean_html(title)}</h1>
<p class="lead">{clean_html(lead)}</p>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main id="main">
{body}
</main>
<footer>Written by maisi-aug {clean_html(__version__)}. This page needs no network.</footer>
</div>
</body>
</html>
"""


def paragraph(text: str, *, kind: str = "") -> str:
    """Format plain text as an HTML paragraph.

    Args:
        text: Plain text, which is escaped.
        kind: CSS class of the paragraph; none when empty.
    """
    return f'<p class="{kind}">{clean_html(text)}</p>' if kind else f"<p>{clean_html(text)}</p>"


def heading(text: str) -> str:
    """Format plain text as a heading below that of a section."""
    return f"<h3>{clean_html(text)}</h3>"


def bullets(lines: Iterable[str]) -> str:
    """Format plain sentences as an HTML list."""
    return "<ul>" + "".join(f"<li>{clean_html(line)}</li>" for line in lines) + "</ul>"


def warn(text: str, *, is_failure: bool = False) -> str:
    """Format a plain sentence as a warning, or a failure.

    Args:
        text: Plain sentence, which is escaped.
        is_failure: Whether to mark it as a failure.
    """
    return f'<p class="warning{" failure" if is_failure else ""}">{clean_html(text)}</p>'


def facts(pairs: Mapping[str, object]) -> str:
    """Format a few figures in large type, by their names."""
    items = (
        f"<div><dt>{clean_html(name)}</dt><dd>{clean_html(str(value))}</dd></div>" for name, value in pairs.items()
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, words: Sequence[int] = ()) -> str:
    """Format an HTML table that scrolls by itself on narrow screens.

    Args:
        header: Names of the columns.
        rows: HTML cells; the first one is the row's name.
        caption: Caption for screen readers.
        words: Columns that hold text, aligned at the left.
    """
    names = "".join(
        f'<th scope="col"{_words(number, words)}>{clean_html(name)}</th>' for number, name in enumerate(header)
    )
    lines = "".join(
        "<tr>" + "".join(f"<td{_words(number, words)}>{cell}</td>" for number, cell in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{clean_html(caption)}"><table>'
        f"<thead><tr>{names}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>"
    )


def _words(number: int, words: Sequence[int]) -> str:
    return ' class="words"' if number in words else ""


def intervals(rows: Sequence[IntervalRow], *, low: float, high: float, unit: str, has_zero: bool = False) -> str:
    """Draw rows of intervals over a common axis as SVG.

    Args:
        rows: Rows of the chart; at least one.
        low: Left end of the axis.
        high: Right end.
        unit: Unit of the values.
        has_zero: Whether to draw a line at zero.
    """
    body = "".join(_interval_row(row, low, high, has_zero) for row in rows)
    ends = f"<span>{number(low)}</span><span>{clean_html(unit)}</span><span>{number(high)}</span>"
    return f'<div class="rows">{body}<div class="axis"><span></span><span class="ends">{ends}</span></div></div>'


def _interval_row(row: IntervalRow, low: float, high: float, has_zero: bool) -> str:
    def place(value: float) -> float:
        return 100 * min(max((value - low) / (high - low), 0.0), 1.0)

    marks = [f'<span class="zero" style="left:{place(0):.2f}%"></span>'] if has_zero else []
    if row.value is not None:
        if row.low is not None and row.high is not None:
            start, stop = place(row.low), place(row.high)
            marks.append(f'<span class="span" style="left:{start:.2f}%;width:{stop - start:.2f}%"></span>')
        marks += [f'<span class="tick" style="left:{place(tick):.2f}%"></span>' for tick in row.ticks]
        marks.append(f'<span class="dot" style="left:{place(row.value):.2f}%"></span>')
    said = row.text or (number(row.value) if row.value is not None else "none")
    spoken = "no figures" if row.value is None else number(row.value)
    if row.low is not None and row.high is not None:
        spoken += f", {number(row.low)} to {number(row.high)}"
    return (
        f'<div class="row"><span class="name">{break_after_plus(row.name)}</span><span class="track" role="img" '
        f'aria-label="{spoken}">{"".join(marks)}</span><span class="value">{clean_html(said)}</span></div>'
    )


def break_after_plus(text: str) -> str:
    """Return a name such as ``real+synthetic:1`` that a narrow screen breaks after its plus sign."""
    return clean_html(text).replace("+", "+<wbr>")


def verdict(text: str) -> str:
    """Format a verdict in its colour; the text alone is sufficient, too."""
    kind = "gain" if text == "gain" else "loss" if "loss" in text else "none" if text == "no gain" else "undecided"
    return f'<span class="verdict {kind}">{clean_html(text)}</span>'


def number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """Format a number with a true minus sign, and without a sign if it rounds to zero.

    Args:
        value: Number to write.
        digits: Digits after the point.
        signed: Whether positive numbers get a plus sign.
    """
    return f"{value:{'+' if signed else ''}z.{digits}f}".replace("-", _MINUS)


def figures(text: str) -> str:
    """Replace hyphens in front of digits by true minus signs in a text."""
    return clean_html(text.replace("-", _MINUS))


def chart(svg: str, *, caption: str) -> str:
    """Embed an SVG chart in the page's colours, with a caption.

    Args:
        svg: Chart as SVG text, whose colours become variables of the page.
        caption: Plain text, which is escaped.
    """
    drawn = re.sub(r"#[0-9a-f]{6}", lambda match: _COLOURS.get(match[0], match[0]), svg)
    return (
        f'<figure><div class="chart" role="region" tabindex="0" aria-label="{clean_html(caption)}">{drawn}</div>'
        f"<figcaption>{clean_html(caption)}</figcaption></figure>"
    )


def picture(image: Image.Image, *, alt: str, caption: str, case: str = "") -> str:
    """Embed a picture in the page.

    Args:
        image: Picture to embed.
        alt: Text alternative of the picture.
        caption: Text below it.
        case: Key of the case that it shows, for :func:`link_cases`.
    """
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
    content = base64.b64encode(buffer.getvalue()).decode()
    mark = f' {CASE_MARK}="{clean_html(case)}"' if case else ""
    return (
        f'<figure{mark}><img src="data:image/jpeg;base64,{content}" width="{image.width}" height="{image.height}" '
        f'loading="lazy" alt="{clean_html(alt)}"><figcaption>{clean_html(caption)}</figcaption></figure>'
    )


def link_cases(html: str) -> str:
    """Add links from pictures to their cases, for the viewer's server, whose page at ``./`` shows the cases.

    A report that is opened as a file has no such links, because no server may be running.
    """
    return _CASE_PICTURE.sub(r'\1<a href="./#case=\2">\3</a>', html)


def gallery(figures: Iterable[str]) -> str:
    """Arrange pictures side by side, as far as the screen allows."""
    return f'<div class="gallery">{"".join(figures)}</div>'


def fold(title: str, body: str) -> str:
    """Format content that is collapsed until it is opened.

    Args:
        title: Plain text that is always shown, and escaped.
        body: HTML that is shown once it is opened.
    """
    return f"<details><summary>{clean_html(title)}</summary>\n{body}\n</details>"


def code(text: str) -> str:
    """Format a block of code or commands."""
    return f'<pre tabindex="0"><code>{escape(clean_lines(text))}</code></pre>'
