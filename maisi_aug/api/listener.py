"""Who is told how a run comes along."""

from __future__ import annotations

from maisi_aug.generate.driver import Listener
from maisi_aug.system.progress import ReportStage


class RunListener(Listener):
    """A listener that also hears what happens before a run; does nothing unless a method is overridden."""

    def measures(self, done: int, total: int) -> None:
        """Another file of the size or the HU reference has been measured."""

    def tries(self, done: int, total: int) -> None:
        """Another label map of a plan has been tried."""

    def advises(self, sentence: str) -> None:
        """The user should know something of the bundle or of the images."""


Progress = bool | ReportStage | RunListener
"""What ``progress=`` takes."""
