"""Progress of long work for whoever wants it: a bar, a notebook, a log, nobody."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called with the steps done and their number."""

ReportStage = Callable[[str, int, int], None]
"""Called with what is being done, a stage or a case, the steps done and their number; ``partial(report, "encoding")``
is a :data:`Report` of one stage."""

ReportPhase = Callable[[str], Report]
"""Begins a stage of the given name and returns its :data:`Report`."""

ReportStep = Callable[[int, dict[str, float]], None]
"""Called with the step of a training that was done, and its figures, such as ``loss``."""

Say = Callable[[str], None]
"""Called with a sentence on what is being done."""


def report_nothing(*_: object) -> None:
    """Ignore progress: a :data:`Report` and a :data:`ReportStage` for nobody."""
