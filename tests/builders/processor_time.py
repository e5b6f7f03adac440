"""How long a piece of work takes on a machine that may be busy with other things."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

NUM_TRIES = 8


def is_done_within(seconds: float, work: Callable[[], object]) -> bool:
    """Whether one of several tries takes less processor time than that.

    The clock of the wall counts others' work, too; that of the processor counts the caches that they empty, but not in
    all of the tries.
    """
    for _ in range(NUM_TRIES):
        started = process_time()
        work()
        if process_time() - started < seconds:
            return True
    return False
