"""How what takes time says how far it is, to whoever wants to know: a bar, a notebook, a log, nobody."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called with the steps done and their number."""

ReportStage = Callable[[str, int, int], None]
"""Called with what is being done, a stage or a case, the steps done and their number; ``partial(report, "encoding")``
is a :data:`Report` of one stage."""


def report_nothing(*_: object) -> None:
    """A :data:`Report` and a :data:`ReportStage` for nobody."""
