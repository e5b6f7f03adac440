"""Progress reports of long work, for bars, notebooks and logs."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called with the number of steps done and their total."""

ReportStage = Callable[[str, int, int], None]
"""Called with the name of the stage or case, the number of steps done and their total; ``partial(report, "encoding")``
is a :data:`Report` of one stage."""

ReportPhase = Callable[[str], Report]
"""Begins a stage of the given name and returns its :data:`Report`."""

ReportStep = Callable[[int, dict[str, float]], None]
"""Called with the number of the finished training step and its figures, such as ``loss``."""

Say = Callable[[str], None]
"""Called with a sentence that describes the current step."""


def report_nothing(*_: object) -> None:
    """Ignore progress: a :data:`Report` and :data:`ReportStage` that does nothing."""
