"""Progress of a run on stderr: a bar on a terminal, a line per case in a log, nothing when asked to be quiet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import monotonic
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from maisi_aug.api.bars import PlainConsole, can_draw, open_bars, tell_warnings
from maisi_aug.api.listener import RunListener
from maisi_aug.cohort.folder import LostCase
from maisi_aug.cohort.manifest import AttemptRecord, Manifest
from maisi_aug.system.progress import ReportStage


class CohortProgress(RunListener):
    """Shows how a cohort comes along, with cases per minute and the time that is left."""

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
        self._num_cases = self._num_settled = self._num_new = 0
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
        """Say it."""
        self._console.print(f"Note: {sentence}", highlight=False, markup=False, soft_wrap=True)

    def measures(self, done: int, total: int) -> None:
        """Another file of the size or the HU reference has been measured."""
        self._close_opening()
        self._count("measuring the reference", done, total)

    def tries(self, done: int, total: int) -> None:
        """Another label map of a plan has been tried."""
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
        """Show the bar, or say what there is to do."""
        self._close_opening()
        self._num_cases, self._num_settled = num_cases, len(manifest.settled_indices)
        self._task = self._bar.add_task("cases", total=num_cases, completed=self._num_settled, pace="")
        if self._num_settled:
            self._console.print(f"{self._num_settled} of {num_cases} cases are there already.", highlight=False)

    def _close_opening(self) -> None:
        """Take the bar away that is there before anything can be counted."""
        if self._opening is not None:
            self._bar.remove_task(self._opening)
            self._opening = None

    def finds_lost(self, lost: Sequence[LostCase]) -> None:
        """Say which cases are drawn again, and why."""
        case = lost[0]
        fault = f"{case.missing[0]} is missing" if case.missing else f"{case.altered[0]} was altered"
        others = f", and so on for {len(lost) - 1} more" if len(lost) > 1 else ""
        cases = "1 case is" if len(lost) == 1 else f"{len(lost)} cases are"
        self._console.print(f"{cases} drawn again: {fault}{others}.", highlight=False, markup=False)

    def enters(self, stage: str) -> None:
        """Name what is going on."""
        if self._task is not None:
            self._bar.update(self._task, description=stage)

    def steps(self, case_id: str, done: int, total: int) -> None:
        """Count the sampler's steps; the pace is that of images, weights not included."""
        if self._first_at is None:
            self._first_at = monotonic()
        if self._task is not None:
            self._bar.update(self._task, description=f"{case_id}, step {done} of {total}")

    def generates(self, number: int, done: int, total: int) -> None:
        """Count the steps of a label map as long as no image is being sampled beside it."""
        if self._task is not None and self._first_at is None:
            self._bar.update(self._task, description=f"label map {number}, step {done} of {total}")

    def records(self, record: AttemptRecord) -> None:
        """Move the bar, or write a line."""
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
            self._console.print(
                line + ("" if self._has_bar or not pace else f", {pace}"), highlight=False, markup=False
            )

    def _pace(self) -> str:
        if self._first_at is None or not self._num_new:
            return ""
        minutes = max(monotonic() - self._first_at, 1e-3) / 60
        left = minutes / self._num_new * (self._num_cases - self._num_settled)
        return f"{self._num_new / minutes:.1f} cases/min, {_clock(left * 60)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def count_stages(*, is_quiet: bool, tells_warnings: bool = True) -> Iterator[ReportStage]:
    """A bar per stage of some work on a terminal; in a log, a line when a stage is done."""
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
