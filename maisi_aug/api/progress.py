"""Progress of a run on stderr: a bar on a terminal, a line per case in a log, nothing when asked to be quiet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from time import monotonic
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from maisi_aug.api.bars import PlainConsole, can_draw, open_bars, tell_warnings
from maisi_aug.cohort.folder import LostCase
from maisi_aug.cohort.manifest import AttemptRecord, Manifest
from maisi_aug.generate.driver import Listener
from maisi_aug.system.progress import ReportStage


class CohortProgress(Listener):
    """Progress of a cohort on a terminal or in a log: cases per minute, failed attempts and remaining time.

    If several workers draw, each has a line of its own.
    """

    def __init__(self, *, is_quiet: bool, tells_warnings: bool = True) -> None:
        self._console = PlainConsole(stderr=True, quiet=is_quiet)
        self._tells_warnings = tells_warnings
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
        )
        self._has_bar = can_draw(self._console) and not is_quiet
        self._bar = Progress(*columns, console=self._console, disable=not self._has_bar)
        self._warnings = ExitStack()
        self._task: TaskID | None = None
        self._opening: TaskID | None = None
        self._lines: dict[str, TaskID] = {}
        self._num_cases = self._num_settled = self._num_new = self._num_retried = 0
        self._first_at: float | None = None

    def __enter__(self) -> Self:
        if self._tells_warnings:
            self._warnings.enter_context(tell_warnings(self._console))
        self._bar.start()
        self._opening = self._bar.add_task("opening the cohort", total=None, pace="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._warnings.close()

    def advises(self, sentence: str) -> None:
        """Print a sentence of advice."""
        self._console.print(f"Note: {sentence}", highlight=False, markup=False, soft_wrap=True)

    def measures(self, done: int, total: int) -> None:
        """Show that another file of the size or HU reference has been measured: ``done`` of ``total``."""
        self._close_opening()
        self._count("measuring the reference", done, total)

    def tries(self, done: int, total: int) -> None:
        """Show that another label map of a plan has been tried: ``done`` of ``total``."""
        self._close_opening()
        self._count("trying label maps", done, total)

    def _count(self, work: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(work, total=total, pace="")
        self._bar.update(self._task, completed=done)
        if done == total:
            self._bar.remove_task(self._task)
            self._task = None

    def starts(self, num_cases: int, manifest: Manifest) -> None:
        """Show the bar, or where there is no terminal, print how many cases there are and how many are finished."""
        self._close_opening()
        self._num_cases, self._num_settled = num_cases, len(manifest.settled_indices)
        self._task = self._bar.add_task("cases", total=num_cases, completed=self._num_settled, pace="")
        if self._num_settled:
            self._console.print(f"{self._num_settled} of {num_cases} cases are already done.", highlight=False)

    def _close_opening(self) -> None:
        """Take the bar away that is there before anything can be counted."""
        if self._opening is not None:
            self._bar.remove_task(self._opening)
            self._opening = None

    def finds_lost(self, lost: Sequence[LostCase]) -> None:
        """Report which finished cases have lost or altered files and are drawn again."""
        case = lost[0]
        fault = f"{case.missing[0]} is missing" if case.missing else f"{case.altered[0]} was altered"
        others = f", and so on for {len(lost) - 1} more" if len(lost) > 1 else ""
        cases = "1 case is" if len(lost) == 1 else f"{len(lost)} cases are"
        self._console.print(f"{cases} drawn again: {fault}{others}.", highlight=False, markup=False)

    def enters(self, stage: str) -> None:
        """Show the stage that the current case has entered."""
        if self._task is not None and len(self._lines) < 2:
            self._bar.update(self._task, description=stage)

    def steps(self, case_id: str, done: int, total: int) -> None:
        """Count the sampler's steps of a case; the pace excludes the loading of weights."""
        if self._first_at is None:
            self._first_at = monotonic()
        if self._task is not None and len(self._lines) < 2:
            self._bar.update(self._task, description=f"{case_id}, step {done} of {total}")

    def generates(self, number: int, done: int, total: int) -> None:
        """Count the sampling steps of a generated label map, unless an image is being sampled at the same time."""
        if self._task is not None and self._first_at is None:
            self._bar.update(self._task, description=f"label map {number}, step {done} of {total}")

    def opens(self, worker: str) -> None:
        """Register a worker, whose line is shown as soon as there are two workers."""
        if worker not in self._lines:
            self._lines[worker] = self._bar.add_task(worker, total=None, visible=False, pace="")
        if len(self._lines) > 1:
            for line in self._lines.values():
                self._bar.update(line, visible=True)
            if self._task is not None:
                self._bar.update(self._task, description="cases")

    def works(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        """Show what a worker is doing.

        Args:
            worker: Name of the worker.
            event: Name of the method of this class that describes the event.
            details: Arguments of that method.
        """
        if worker not in self._lines:
            return
        match event, details:
            case "steps", (case_id, done, total):
                self._bar.update(self._lines[worker], description=f"{worker}: {case_id}", completed=done, total=total)
            case "enters", (stage,):
                self._bar.update(self._lines[worker], description=f"{worker}: {stage}", completed=0, total=None)

    def loses(self, worker: str, how: str) -> None:
        """Report that a worker was killed, and how."""
        line = f"Note: {worker} {how}. Its unfinished cases are drawn again."
        self._console.print(line, highlight=False, markup=False)

    def records(self, record: AttemptRecord) -> None:
        """Advance the bar by a recorded attempt, or where there is no terminal, print a line for it."""
        self._num_retried += record.status == "retried"
        if record.status != "retried":
            self._num_settled += 1
            self._num_new += 1
        pace = self._pace()
        if self._task is not None:
            self._bar.update(self._task, completed=self._num_settled, pace=pace)
        reason = f": {record.reason}" if record.reason else ""
        if not self._has_bar or record.reason:
            counts = f"[{self._num_settled}/{self._num_cases}] "
            line = f"{counts}{record.case_id} {record.status} (attempt {record.attempt + 1}){reason}"
            if pace and not self._has_bar:
                line += f" ({pace})" if reason else f", {pace}"
            self._console.print(line, highlight=False, markup=False)

    def _pace(self) -> str:
        if self._first_at is None or not self._num_new:
            return ""
        minutes = max(monotonic() - self._first_at, 1e-3) / 60
        left = minutes / self._num_new * (self._num_cases - self._num_settled)
        retried = f"{self._num_retried} retried, " if self._num_retried else ""
        return f"{self._num_new / minutes:.1f} cases/min, {retried}{_clock(left * 60)} left"


class ProgressLines(Listener):
    """Reports the progress of a cohort on stderr, one JSON object per line, for schedulers and dashboards.

    Each has ``event`` and ``seconds`` since the beginning. ``starts`` and ``records`` count the cases; ``records``
    names the case, its status and reason, and how many cases are made in a minute; ``opens`` and ``loses`` name a
    worker.
    """

    def __init__(self) -> None:
        self._began_at = monotonic()
        self._num_cases = self._num_settled = self._num_new = self._num_retried = 0

    def starts(self, num_cases: int, manifest: Manifest) -> None:
        """Write how many cases are finished and planned."""
        self._num_cases, self._num_settled = num_cases, len(manifest.settled_indices)
        self._print("starts", num_cases=num_cases, num_settled=self._num_settled)

    def finds_lost(self, lost: Sequence[LostCase]) -> None:
        """Write which finished cases have lost or altered files and are drawn again."""
        self._print("finds_lost", case_ids=[case.record.case_id for case in lost])

    def enters(self, stage: str) -> None:
        """Write the stage that the current case has entered."""
        self._print("enters", stage=stage)

    def opens(self, worker: str) -> None:
        """Write that a worker loads the networks."""
        self._print("opens", worker=worker)

    def loses(self, worker: str, how: str) -> None:
        """Write that a worker was killed, and how."""
        self._print("loses", worker=worker, reason=how)

    def advises(self, sentence: str) -> None:
        """Write a sentence of advice."""
        self._print("advises", note=sentence)

    def records(self, record: AttemptRecord) -> None:
        """Write the outcome of an attempt, and the counts of cases so far."""
        self._num_retried += record.status == "retried"
        self._num_settled += record.status != "retried"
        self._num_new += record.status != "retried"
        minutes = max(monotonic() - self._began_at, 1e-3) / 60
        self._print(
            "records",
            case_id=record.case_id,
            attempt=record.attempt + 1,
            status=record.status,
            reason=record.reason,
            num_settled=self._num_settled,
            num_cases=self._num_cases,
            num_retried=self._num_retried,
            cases_a_minute=round(self._num_new / minutes, 2),
        )

    def _print(self, event: str, **content: object) -> None:
        row = {"event": event, "seconds": round(monotonic() - self._began_at, 2), **content}
        sys.stderr.write(f"{json.dumps(row)}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def follow_run(*, is_quiet: bool, as_lines: bool) -> AbstractContextManager[Listener]:
    """Return the listener for a command's output: a bar or a line per case, JSON lines, or nothing.

    Args:
        is_quiet: Whether to show nothing but messages.
        as_lines: Whether to print a line of JSON per event, for other programs.
    """
    return nullcontext(ProgressLines()) if as_lines else CohortProgress(is_quiet=is_quiet)


@contextmanager
def count_stages(*, is_quiet: bool, tells_warnings: bool = True) -> Iterator[ReportStage]:
    """Context whose value reports progress by stages: bars on a terminal, a line per finished stage in a log.

    Args:
        is_quiet: Show nothing.
        tells_warnings: Also print the warnings of this package.
    """
    console = PlainConsole(stderr=True, quiet=is_quiet)
    has_bar = can_draw(console) and not is_quiet
    tasks: dict[str, TaskID] = {}
    begun: dict[str, float] = {}
    with open_bars(is_shown=has_bar, is_telling=tells_warnings) as bar:

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage], begun[stage] = bar.add_task(stage, total=total), monotonic()
            bar.update(tasks[stage], completed=done)
            if done == total and not has_bar:
                console.print(f"{stage}: {total} in {_clock(monotonic() - begun[stage])}", highlight=False)

        yield report
