"""How many cores this process may use."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Cores that this process may run on: those that the system allows it where that can be told, else all."""
    # Not on macOS and Windows.
    allowed = getattr(os, "sched_getaffinity", None)
    return max(1, len(allowed(0)) if allowed is not None else os.cpu_count() or 1)
