"""Consoles for tables, bars and notes, and progress bars on stderr that everything draws alike.

There are no bars where there is neither a terminal nor a notebook.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from time import monotonic
from typing import IO, TYPE_CHECKING, Any
from weakref import WeakSet

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from maisi_aug.errors import MaisiAugWarning
from maisi_aug.system.printed_text import clean_lines, clean_message
from maisi_aug.system.progress import Report, ReportStage, ReportStep

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_SECONDS = 60.0
"""Seconds between progress lines when there is no terminal for a bar."""
_LOGGED: WeakSet[Progress] = WeakSet()
"""Bars that are replaced by printed lines, because there is no terminal."""


class PlainConsole(Console):
    """Rich console for plain text: no markup, no emoji codes, and control characters escaped."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Escape control characters of a text before Rich measures its width, so that columns stay aligned."""
        return super().render_str(clean_lines(text), **settings)

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Escape control characters in everything else that is rendered, such as the descriptions of progress bars."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean_lines(segment.text))

    @property
    def file(self) -> IO[str]:
        """The underlying stream, without the wrapper that Rich puts around it while a progress bar is shown."""
        found = super().file
        while (behind := getattr(found, "rich_proxied_file", None)) is not None:
            found = behind
        return found

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def on_broken_pipe(self) -> None:
        """Ignore a closed pipe instead of exiting, because the underlying stream drops text that nobody reads."""


def can_draw(console: Console) -> bool:
    """Whether progress bars can be drawn on a console: a terminal, or a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def tell_warnings(console: Console) -> Iterator[None]:
    """Context in which the warnings of this package are printed on a console, each sentence once.

    Warnings of other libraries are silenced elsewhere, by the error boundary of the command line.
    """
    told: set[str] = set()

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            console.print(clean_message(f"Note: {message}"), highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", MaisiAugWarning)
        warnings.showwarning = tell
        yield


@contextmanager
def open_bars(*, is_shown: bool = True, is_transient: bool = False, is_telling: bool = True) -> Iterator[Progress]:
    """Context with progress bars that show counts, elapsed and remaining time.

    Args:
        is_shown: Draw the bars on a terminal, or print a line now and then where there is no terminal.
        is_transient: Remove the bars when the work is done.
        is_telling: Also print the warnings of this package, whether bars are shown or not.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = PlainConsole(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console,
        transient=is_transient,
        disable=not (is_shown and can_draw(console)),
    )
    if is_shown and not can_draw(console):
        _LOGGED.add(bars)
    with bars, tell_warnings(console) if is_telling else nullcontext():
        yield bars


@contextmanager
def show_stages(first: str, *, is_quiet: bool = False) -> Iterator[ReportStage]:
    """Context with one progress bar that names the current stage and disappears when the work is done.

    Args:
        first: Text shown until the first report.
        is_quiet: Show nothing.

    Yields:
        A function to call with (stage, done, total).
    """
    with open_bars(is_shown=not is_quiet, is_transient=True) as bars:
        task = bars.add_task(first, total=None)
        yield lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)


@contextmanager
def count_up(name: str, *, is_quiet: bool) -> Iterator[Report]:
    """Context with one progress bar for counted work, which disappears when the work is done.

    Args:
        name: Words in front of the bar.
        is_quiet: Whether to show nothing.

    Yields:
        A function to call with (done, total).
    """
    with open_bars(is_shown=not is_quiet, is_transient=True) as bars:
        yield add_phase(bars, name)


@contextmanager
def show_loading(*, is_quiet: bool = False) -> Iterator[None]:
    """Context that shows a bar while slow libraries are imported, if this takes longer than a second."""
    is_main = os.environ.get("RANK", "0") == "0"  # of torchrun, which is not asked before torch is there
    with open_bars(is_shown=is_main and not is_quiet, is_transient=True, is_telling=False) as bars:
        bars.add_task("loading libraries", total=None)
        yield


def add_phase(bars: Progress, name: str) -> Report:
    """Add a bar for work whose total the first report states; where there is no terminal, print lines instead.

    Args:
        bars: Open progress display.
        name: Words in front of the bar.

    Returns:
        A function to call with (done, total).
    """
    task = bars.add_task(name, total=None)
    log = _Log(bars)

    def report(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)
        log.tell(f"{name}: {done} of {total}")

    return report


def add_training(bars: Progress, name: str, num_steps: int) -> ReportStep:
    """Add a bar for optimiser steps that shows the loss; where there is no terminal, print lines instead.

    Args:
        bars: Open progress display.
        name: Words in front of the bar.
        num_steps: Number of steps of the whole training.

    Returns:
        A function to call with (step, figures such as ``loss``).
    """
    task = bars.add_task(name, total=num_steps)
    log = _Log(bars)

    def report_step(step: int, figures: dict[str, float]) -> None:
        bars.update(task, completed=step, description=f"{name}, loss {figures['loss']:.4f}")
        log.tell(f"{name}: step {step} of {num_steps}, loss {figures['loss']:.4f}")

    return report_step


class _Log:
    """Lines in place of a bar that is not drawn because there is no terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._next_at = monotonic() + LOG_SECONDS

    def tell(self, line: str) -> None:
        """Print a line, unless another one was printed a short while ago."""
        if self._bars in _LOGGED and monotonic() >= self._next_at:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._next_at = monotonic() + LOG_SECONDS
