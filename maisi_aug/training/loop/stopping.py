"""Early end of runs: after the current step with a checkpoint, or between two cases that are prepared."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from maisi_aug.system.progress import Report, ReportPhase

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStopped(KeyboardInterrupt):
    """A run was asked to stop, by SIGTERM or SIGINT, and has written its checkpoint."""


class StopRequest:
    """Context that notes the first SIGTERM or SIGINT instead of stopping; a second one has its normal effect."""

    def __init__(self) -> None:
        self.has_come = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others may set no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class TimeIsUp(Exception):  # noqa: N818  not an error: finished work is kept, and the next run continues
    """The time limit of a run was reached while its cases were being prepared.

    Args:
        phase: Name of the phase.
        done: Number of finished cases.
        total: Number of all cases.
    """

    def __init__(self, phase: str, done: int, total: int) -> None:
        super().__init__(phase, done, total)
        self.phase, self.done, self.total = phase, done, total

    def __str__(self) -> str:
        return f"{self.phase[0].lower()}{self.phase[1:]}, {self.done} of {self.total}"


class TimeLimit:
    """Wall-clock limit of a run, including the time before its first step.

    Args:
        max_minutes: Limit from now on; None for no limit.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._ends_at = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    @property
    def minutes_left(self) -> float | None:
        """Minutes that are left, at least 0; None without a limit."""
        return None if self._ends_at is None else max(0.0, (self._ends_at - time.monotonic()) / 60)

    def limit(self, report_phase: ReportPhase, *, uninterrupted: tuple[str, ...] = ()) -> ReportPhase:
        """Return a function for progress reports that end a phase when the time is up, after the current case.

        Args:
            report_phase: Function that starts the progress report of a phase, given its name.
            uninterrupted: Prefixes of the names of phases whose work is only kept if it is completed.

        Returns:
            Function like ``report_phase``, whose reports raise :class:`TimeIsUp`.
        """

        def begin(name: str) -> Report:
            report = report_phase(name)
            if name.startswith(uninterrupted):
                return report

            def note(done: int, total: int) -> None:
                report(done, total)
                if done < total and self.minutes_left == 0.0:
                    raise TimeIsUp(name, done, total)

            return note

        return begin
