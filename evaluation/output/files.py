"""Shared output of measurements: Markdown tables, JSON files and the end of a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maisi_aug.errors import CohortError, MaisiAugError
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import clean_message
from maisi_aug.system.whole_files import write_json_whole, write_text_whole

Cell = str | int | float | bool | None


def to_markdown(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, num_digits: int = 2) -> str:
    """Format a Markdown table with its first column aligned left, and numbers aligned right.

    Args:
        header: Names of the columns.
        rows: Rows with one cell per column; None becomes a dash, floats get ``num_digits`` decimals.
        num_digits: Number of decimals of floats.
    """
    lines = [list(header), ["---", *("---:" for _ in header[1:])]]
    lines += [[_to_text(cell, num_digits) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(share: float | None) -> str:
    """Format a fraction as a whole percentage, or a dash for None."""
    return "-" if share is None else f"{100 * share:.0f}%"


def share_of(flags: Iterable[bool]) -> float | None:
    """Return the fraction of flags that are True; None without flags."""
    found = list(flags)
    return sum(found) / len(found) if found else None


def require_own_folder(folder: Path, name: str) -> None:
    """Raise before a measurement if its results would replace a file that is not an earlier result.

    Args:
        folder: Folder for the results, which may be missing.
        name: Name of the measurement.

    Raises:
        CohortError: ``folder`` is a file, or holds a ``NAME.json`` of something else.
    """
    if folder.exists() and not folder.is_dir():
        raise CohortError(f"{folder}: this is a file, not a folder. Choose another --out.")
    path = folder / f"{name}.json"
    if not path.is_file():
        return
    try:
        content = read_json(path)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("measurement") != name:
        raise CohortError(
            f"{path}: already exists and is not an earlier result of this measurement. Choose another --out."
        )


def save_results(
    folder: Path, name: str, document: Mapping[str, Any], report: str, charts: Mapping[str, str] = {}
) -> tuple[Path, ...]:
    """Write the results of a measurement: ``NAME.json``, ``NAME.md`` and its charts, which the Markdown shows.

    Args:
        folder: Folder, created if missing.
        name: Name of the measurement.
        document: Figures as JSON types.
        report: Report as Markdown.
        charts: File name -> SVG text.

    Returns:
        Paths of the written files.

    Raises:
        VolumeError: A file cannot be written.
    """
    pictures = "".join(f"\n![{Path(file).stem.replace('_', ' ')}]({file})\n" for file in charts)
    for file, content in charts.items():
        write_text_whole(folder / file, content)
    write_text_whole(folder / f"{name}.md", report + pictures)
    write_json_whole(folder / f"{name}.json", document)
    return tuple(folder / file for file in (*charts, f"{name}.md", f"{name}.json"))


def run_command(body: Callable[[], None]) -> int:
    """Run the body of a module's command line; an error that the user caused becomes a sentence on stderr.

    Returns:
        The exit code.
    """
    try:
        body()
    except MaisiAugError as error:
        print(clean_message(f"Error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped on request; the same command continues from there.", file=sys.stderr)
        return 130  # as shells have it: 128 and the number of the signal
    return 0


def _to_text(cell: Cell, num_digits: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.{num_digits}f}" if isinstance(cell, float) else str(cell)
