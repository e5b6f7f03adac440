"""What the measurements share: Markdown tables, JSON files and the way a command ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from maisi_aug.errors import MaisiAugError
from maisi_aug.whole_files import write_text_whole

Cell = str | int | float | bool | None


def to_markdown(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, num_digits: int = 2) -> str:
    """A Markdown table; the first column reads from the left, the others are numbers that line up at the right.

    Args:
        header: Names of the columns.
        rows: A cell per column; None becomes a dash, floats get ``num_digits`` decimals.
        num_digits: Decimals of floats.
    """
    lines = [list(header), ["---", *("---:" for _ in header[1:])]]
    lines += [[_to_text(cell, num_digits) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(share: float | None) -> str:
    """A share as a whole percentage, or a dash."""
    return "-" if share is None else f"{100 * share:.0f}%"


def share_of(flags: Iterable[bool]) -> float | None:
    """Share of flags that are set; None without any."""
    found = list(flags)
    return sum(found) / len(found) if found else None


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    Raises:
        VolumeError: When the file cannot be written.
    """
    write_text_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def run_command(body: Callable[[], None]) -> int:
    """Run a command: a user's error becomes a sentence on stderr.

    Returns:
        The exit code.
    """
    try:
        body()
    except MaisiAugError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped on request; the same command goes on from there.", file=sys.stderr)
        return 1
    return 0


def _to_text(cell: Cell, num_digits: int) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.{num_digits}f}" if isinstance(cell, float) else str(cell)
