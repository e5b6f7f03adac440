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
    """A console for plain text: no markup, no emoji codes, and escaped control characters."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Clean text before its width is measured, so that columns stay in line."""
        return super().render_str(clean_lines(text), **settings)

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Clean text from other sources, such as the descriptions of bars."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean_lines(segment.text))

    @property
    def file(self) -> IO[str]:
        """The underlying stream, without the wrapper that Rich puts around it while a bar is shown."""
        found = super().file
        while (behind := getattr(found, "rich_proxied_file", None)) is not None:
            found = behind
        return found

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def on_broken_pipe(self) -> None:
        """Continue: the underlying stream drops text without a reader."""


def can_draw(console: Console) -> bool:
    """Whether bars can be drawn: on a terminal, or in a notebook that has widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def tell_warnings(console: Console) -> Iterator[None]:
    """Print the package's own warnings, each sentence once; the boundary silences those of libraries."""
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
    """Open bars with counts, elapsed time and remaining time, to be used as a context.

    Args:
        is_shown: Draw them where there is a terminal, and print lines in their place where there is none.
        is_transient: Take them away when the work is done.
        is_telling: Print what our own modules warn of as well, whether bars are shown or not.
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
    """Show one bar that names the stage of some work and disappears when the work is done.

    Args:
        first: Text before the first report.
        is_quiet: Show nothing.
    """
    with open_bars(is_shown=not is_quiet, is_transient=True) as bars:
        task = bars.add_task(first, total=None)
        yield lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)


@contextmanager
def count_up(name: str, *, is_quiet: bool) -> Iterator[Report]:
    """Show a bar for counted work that disappears when the work is done."""
    with open_bars(is_shown=not is_quiet, is_transient=True) as bars:
        yield add_phase(bars, name)


@contextmanager
def show_loading(*, is_quiet: bool = False) -> Iterator[None]:
    """Show a bar from the first second on while slow libraries are imported, and remove it afterwards."""
    is_main = os.environ.get("RANK", "0") == "0"  # of torchrun, which is not asked before torch is there
    with open_bars(is_shown=is_main and not is_quiet, is_transient=True, is_telling=False) as bars:
        bars.add_task("loading libraries", total=None)
        yield


def add_phase(bars: Progress, name: str) -> Report:
    """Add a bar for work whose total is known from its first report; in a log, print a line now and then."""
    task = bars.add_task(name, total=None)
    log = _Log(bars)

    def report(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)
        log.tell(f"{name}: {done} of {total}")

    return report


def add_training(bars: Progress, name: str, num_steps: int) -> ReportStep:
    """Add a bar for the steps of a training that shows the loss; in a log, print a line now and then."""
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
