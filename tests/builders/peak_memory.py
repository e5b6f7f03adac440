"""By how much the memory of this process grows while something is computed; Linux alone tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def measure_growth(compute: Callable[[], object], *, warm_up: Callable[[], object]) -> int:
    """Return the bytes by which resident memory was larger at its highest than before.

    Args:
        compute: What is measured.
        warm_up: The same at a small size, called first: libraries set up once what stays.
    """
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS:")
    compute()
    return _resident("VmHWM:") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
