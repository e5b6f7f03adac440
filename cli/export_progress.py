"""The progress bar of the exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maisi_aug.integrations.whole_folder import Notify


@contextmanager
def show_stages() -> Iterator[Notify]:
    """A progress bar on stderr, gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading the cohort", total=None)
        yield lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)
