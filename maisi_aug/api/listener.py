"""Listeners that are notified of a run's progress."""

from __future__ import annotations

from maisi_aug.generate.driver import Listener
from maisi_aug.system.progress import ReportStage


class RunListener(Listener):
    """A listener that also hears what happens before a run; does nothing unless a method is overridden."""

    def measures(self, done: int, total: int) -> None:
        """Report that another file of the size or HU reference has been measured."""

    def tries(self, done: int, total: int) -> None:
        """Report that another label map of a plan has been tried."""

    def advises(self, sentence: str) -> None:
        """Report a sentence on the bundle or the images that the user should know."""


Progress = bool | ReportStage | RunListener
"""Values of ``progress=``."""
