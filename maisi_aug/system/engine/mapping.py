"""A function over many items, in this process or in others, with the results in the order of the items."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic

from maisi_aug.system.engine.cores import count_cores
from maisi_aug.system.engine.processes import Processes
from maisi_aug.system.engine.work import (
    NUM_AHEAD,
    Calls,
    Engine,
    InProcess,
    Item,
    Result,
    Watch,
    WorkerPlace,
    ended_like_interrupted,
    ignore_events,
)
from maisi_aug.system.progress import Report, ReportStage

Warned = list[tuple[str, type[Warning]]]
OpenFunction = Callable[[WorkerPlace], Callable[[Item], Result]]
"""Loads what a function needs, such as networks, and returns it; can be sent to other processes."""


def run_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], stage: str, report: ReportStage, num_workers: int | None
) -> list[Result]:
    """Apply a function to items in up to one process per core; return the results in the order of the items.

    Args:
        function: Function of one item, defined in a module, because it is sent to other processes.
        items: Items to process.
        stage: Name of the work in reports.
        report: Progress callback, called with (the stage, the items done, the items in all).
        num_workers: Number of processes; None for one per core.

    Raises:
        WorkerError: Processes were killed repeatedly.
    """
    num_workers = min(num_workers or count_cores(), len(items))
    engine: Engine = InProcess() if num_workers < 2 else Processes(["cpu"] * num_workers)
    return map_items(partial(_need_nothing, function), items, engine, partial(report, stage))


def map_items(
    open_function: OpenFunction[Item, Result],
    items: Sequence[Item],
    engine: Engine,
    report: Report,
    *,
    reads: tuple[Path, ...] = (),
    num_ahead: int = NUM_AHEAD,
    on_result: Callable[[Item, Result], None] = lambda item, result: None,
    watch: Watch = ignore_events,
) -> list[Result]:
    """Apply a function to items in the workers of an engine; return the results in the order of the items.

    Warnings of the function are raised again in this process, in the order of the items. SIGTERM is treated like
    Ctrl-C. If a worker is killed, its item is given to another one.

    Args:
        open_function: Called once in each worker; returns the function.
        items: Items to work on.
        engine: Runs the workers.
        report: Progress callback, called with (the items done, the items in all).
        reads: Paths that must exist where a worker runs.
        num_ahead: Number of items that a worker has at a time; 1 for long ones, so that none waits for a busy worker.
        on_result: Called with every item and its result, as they come.
        watch: Callback for events of workers.

    Raises:
        WorkerError: Workers were killed repeatedly.
    """
    done: dict[int, tuple[Result, Warned]] = {}
    numbers = iter(range(len(items)))
    next_number = next(numbers, None)

    def settle(numbered: tuple[int, Item], result: tuple[Result, Warned], scratch: Path) -> tuple[()]:
        nonlocal next_number
        done[numbered[0]] = result
        while next_number in done:
            for message, category in done[next_number][1]:
                warnings.warn(message, category, stacklevel=2)
            next_number = next(numbers, None)
        on_result(numbered[1], result[0])
        report(len(done), len(items))
        return ()

    with ended_like_interrupted(), TemporaryDirectory(prefix="maisi-aug-") as scratch:
        report(0, len(items))
        spec = _Mapped(open_function, reads, num_ahead)
        engine.run(spec, enumerate(items), settle, scratch=Path(scratch), watch=watch)
    return [done[number][0] for number in range(len(items))]


def _need_nothing(function: Callable[[Item], Result], place: WorkerPlace) -> Callable[[Item], Result]:
    return function


@dataclass(frozen=True)
class _Mapped(Generic[Item, Result]):
    """Opens workers that call a function with what comes with a number."""

    open_function: OpenFunction[Item, Result]
    reads: tuple[Path, ...]
    num_ahead: int

    def open(self, place: WorkerPlace) -> Calls[tuple[int, Item], tuple[Result, Warned]]:
        return Calls(_OfSecond(self.open_function(place)))


@dataclass(frozen=True)
class _OfSecond(Generic[Item, Result]):
    """The function of what comes with a number, and what it warns of."""

    function: Callable[[Item], Result]

    def __call__(self, numbered: tuple[int, Item]) -> tuple[Result, Warned]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = self.function(numbered[1])
        return result, [(str(warning.message), warning.category) for warning in caught]
