"""Progress bars on stderr that every command draws alike; none where there is no terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

OWN_WARNINGS = r".*: expected "
"""How the sentences begin that our own readers and checks warn with."""


@contextmanager
def tell_warnings(console: Console) -> Iterator[None]:
    """Print what our own modules warn of, each sentence once; the boundary silences all warnings of libraries."""
    told: set[str] = set()

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            console.print(f"Note: {message}", markup=False, highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=OWN_WARNINGS)
        warnings.showwarning = tell
        yield


@contextmanager
def open_bars(*, is_shown: bool = True, is_transient: bool = False, is_telling: bool = True) -> Iterator[Progress]:
    """Bars with their counts, the time they took and the time that is left, to be used as a context.

    Args:
        is_shown: Draw them where there is a terminal.
        is_transient: Take them away when the work is done.
        is_telling: Print what our own modules warn of, too, whether bars are shown or not.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bars = Progress(
        TextColumn("{task.description}"),
        *columns,
        console=console,
        transient=is_transient,
        disable=not (is_shown and console.is_terminal),
    )
    with bars, tell_warnings(console) if is_telling else nullcontext():
        yield bars


@contextmanager
def show_stages(first: str, *, is_quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """One bar that names the stage of some work, gone when the work is done.

    Args:
        first: What it says before the first report.
        is_quiet: Show nothing.
    """
    with open_bars(is_shown=not is_quiet, is_transient=True) as bars:
        task = bars.add_task(first, total=None)
        yield lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)


@contextmanager
def count_up(name: str, *, is_quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that is counted, gone when the work is done."""
    with open_bars(is_shown=not is_quiet, is_transient=True) as bars:
        yield add_phase(bars, name)


def add_phase(bars: Progress, name: str) -> Callable[[int, int], None]:
    """A further bar for work whose total is told with its first report."""
    task = bars.add_task(name, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)


def add_training(bars: Progress, name: str, num_steps: int) -> Callable[[int, dict[str, float]], None]:
    """A further bar for the steps of a training, which names the loss."""
    task = bars.add_task(name, total=num_steps)

    def report_step(step: int, figures: dict[str, float]) -> None:
        bars.update(task, completed=step, description=f"{name}, loss {figures['loss']:.4f}")

    return report_step
