"""Meaning of ``progress=`` in the functions for Python.

True for bars on a terminal or in a notebook, False for nothing, or something to call with
``(stage, done, total)``. Warnings stay warnings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from types import TracebackType
from typing import Self

from rich.progress import Progress as Bars

from maisi_aug.api.bars import PlainConsole, add_phase, add_training, open_bars, show_loading
from maisi_aug.api.progress import CohortProgress, count_stages
from maisi_aug.cohort.manifest import AttemptRecord, Manifest
from maisi_aug.generate.driver import Listener
from maisi_aug.system.progress import Report, ReportStage, ReportStep, report_nothing

Progress = bool | ReportStage | Listener
"""Values of ``progress=``."""


class _Forward(Listener):
    """Tells a function how a run goes."""

    def __init__(self, report: ReportStage) -> None:
        self._report = report
        self._num_cases = self._num_settled = 0

    def measures(self, done: int, total: int) -> None:
        self._report("measuring the reference", done, total)

    def tries(self, done: int, total: int) -> None:
        self._report("trying label maps", done, total)

    def starts(self, num_cases: int, manifest: Manifest) -> None:
        self._num_cases, self._num_settled = num_cases, len(manifest.settled_indices)
        self._report("cases", self._num_settled, num_cases)

    def steps(self, case_id: str, done: int, total: int) -> None:
        self._report(case_id, done, total)

    def records(self, record: AttemptRecord) -> None:
        self._num_settled += record.status != "retried"
        self._report("cases", self._num_settled, self._num_cases)


def listen_to_run(progress: Progress) -> AbstractContextManager[Listener]:
    """Return a context with the progress listener of a run that was started from Python.

    Warnings are issued as Python warnings, not printed.

    Args:
        progress: True for bars, False for none, or a function called with ``(stage, done, total)``.
    """
    if isinstance(progress, Listener):
        return nullcontext(progress)
    if not isinstance(progress, bool):
        return nullcontext(_Forward(progress))
    if progress and _is_watched():
        return CohortProgress(is_quiet=False, tells_warnings=False)
    return nullcontext(Listener())


def listen_to_stages(progress: Progress) -> AbstractContextManager[ReportStage]:
    """Return a context whose value reports progress by stages: to a bar, to the caller's function, or nowhere.

    Args:
        progress: True for bars, False for none, or a function called with ``(stage, done, total)``.
    """
    if isinstance(progress, Listener):
        return nullcontext(report_nothing)
    if not isinstance(progress, bool):
        return nullcontext(progress)
    if progress and _is_watched():
        return count_stages(is_quiet=False, tells_warnings=False)
    return nullcontext(report_nothing)


class TrainingDisplay:
    """Progress display of a training: messages, a bar for each phase of preparation, and one for optimiser steps."""

    def __init__(
        self, *, is_shown: bool = True, tells_warnings: bool = True, report: ReportStage | None = None
    ) -> None:
        """Begin without bars; they are there inside a ``with`` block.

        Args:
            is_shown: Draw bars, or print lines in their place where there is no terminal.
            tells_warnings: Print what our own modules warn of.
            report: Called instead.
        """
        self._is_shown, self._tells_warnings, self._report = is_shown and report is None, tells_warnings, report
        self._console = PlainConsole(stderr=True, quiet=not self._is_shown)
        self._bars: Bars | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        tells = self._is_shown and self._tells_warnings
        self._bars = self._open.enter_context(open_bars(is_shown=self._is_shown, is_telling=tells))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._bars = None

    def say(self, sentence: str) -> None:
        """Print a message, above the progress bars if there are any."""
        console = self._console if self._bars is None or not self._is_shown else self._bars.console
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def show_loading(self) -> AbstractContextManager[None]:
        """Return a context that shows a message while slow libraries are imported."""
        return show_loading(is_quiet=not self._is_shown)

    def count_stages(self) -> AbstractContextManager[ReportStage]:
        """Return a context whose value reports the stages of the work before training, with (stage, done, total)."""
        if self._report is not None:
            return nullcontext(self._report)
        return count_stages(is_quiet=not self._is_shown, tells_warnings=self._is_shown and self._tells_warnings)

    def add_phase(self, name: str) -> Report:
        """Add a bar for one phase of the work, whose total the first report states.

        Returns:
            A function to call with (done, total).
        """
        if self._report is not None:
            return partial(self._report, name)
        assert self._bars is not None
        return add_phase(self._bars, name)

    def add_training(self, name: str, num_steps: int) -> ReportStep:
        """Add a bar for the optimiser steps of a training.

        Args:
            name: Words in front of the bar.
            num_steps: Number of steps of the whole training.

        Returns:
            A function to call with (step, figures such as ``loss``).
        """
        if (report := self._report) is not None:
            return lambda step, figures: report(name, step, num_steps)
        assert self._bars is not None
        return add_training(self._bars, name, num_steps)


def show_training(progress: Progress) -> TrainingDisplay:
    """Return the progress display of a training that was started from Python.

    Warnings are issued as Python warnings, not printed.
    """
    if isinstance(progress, bool):
        return TrainingDisplay(is_shown=progress and _is_watched(), tells_warnings=False)
    report = report_nothing if isinstance(progress, Listener) else progress
    return TrainingDisplay(tells_warnings=False, report=report)


def _is_watched() -> bool:
    """Whether output goes to a terminal or a notebook, and not to a log."""
    console = PlainConsole(stderr=True)
    return console.is_terminal or console.is_jupyter
