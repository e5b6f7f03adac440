"""A function over many items, in processes of their own where there are cores for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic

from maisi_aug.system.engine.cores import count_cores
from maisi_aug.system.engine.processes import Processes
from maisi_aug.system.engine.work import Calls, Engine, InProcess, Item, Result, ended_like_interrupted, ignore_events
from maisi_aug.system.progress import ReportStage

Warned = list[tuple[str, type[Warning]]]


def run_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], stage: str, report: ReportStage, num_workers: int | None
) -> list[Result]:
    """Return the results in the order of the items, from up to one process per core.

    What the function warns of is warned of in this process, in the order of the items. A request to end it (SIGTERM) is
    taken as Ctrl-C is. The item that a process was ended at from outside is given to another one.

    Args:
        function: What is done with an item; a function of a module, because it is sent to other processes.
        items: What to work on.
        stage: What to call the work in reports.
        report: Called with the stage, the items done and the items in all.
        num_workers: Processes; None for one per core.

    Raises:
        WorkerError: When processes were ended from outside again and again.
    """
    num_workers = min(num_workers or count_cores(), len(items))
    engine: Engine = InProcess() if num_workers < 2 else Processes(["cpu"] * num_workers)
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
        report(stage, len(done), len(items))
        return ()

    with ended_like_interrupted(), TemporaryDirectory(prefix="maisi-aug-") as scratch:
        report(stage, 0, len(items))
        spec = Calls(_OfSecond(function))
        engine.run(spec, enumerate(items), settle, scratch=Path(scratch), watch=ignore_events)
    return [done[number][0] for number in range(len(items))]


@dataclass(frozen=True)
class _OfSecond(Generic[Item, Result]):
    """The function of what comes with a number, and what it warns of."""

    function: Callable[[Item], Result]

    def __call__(self, numbered: tuple[int, Item]) -> tuple[Result, Warned]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = self.function(numbered[1])
        return result, [(str(warning.message), warning.category) for warning in caught]
