"""The console that tables are printed on, the same for every command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Rich assumes 80 columns where there is no terminal, which would fold every row of a piped table.
PIPED_WIDTH = 160


def open_table_console() -> Console:
    """Standard output as wide as the terminal; where there is none, wide enough for every table."""
    from maisi_aug.api.bars import PlainConsole

    return PlainConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)
