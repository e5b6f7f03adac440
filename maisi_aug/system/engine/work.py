"""Workers and engines, the loop that every worker runs, and the engine that works in this process.

To write another engine: run :func:`work_off` where the worker is, with a ``take`` and a ``give`` that reach the driver;
call ``settle`` in the driver for every result, once for each item, and put what it returns before all else that waits;
hand out anew what a lost worker had, at most :data:`MAX_LOSSES` times for an item; send what workers tell to ``watch``.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from maisi_aug.errors import MaisiAugError

Item = TypeVar("Item")
Result = TypeVar("Result")
ItemIn = TypeVar("ItemIn", contravariant=True)

NUM_AHEAD = 2
"""Number of items handed to a worker at a time, including the current one, so that it can prepare the next."""
NUM_BEHIND = 2
"""Number of results that may still be being written while the next item is processed."""
MAX_LOSSES = 3
"""Largest number of times that an item is handed out again after its worker was killed."""

Tell = Callable[..., None]
"""Called with the name of an event and what belongs to it, values that can be sent to another process."""


@dataclass(frozen=True)
class WorkerPlace:
    """Name, device and scratch folder of a worker, and how it reports.

    Attributes:
        name: Name of the worker, the same after it was restarted.
        device: Device to compute on: ``auto``, ``cpu``, ``cuda:1``, ...
        scratch: Folder of its own, for files that the driver moves to their final place when a result is settled.
        tell: Function that sends an event to the driver.
    """

    name: str
    device: str
    scratch: Path
    tell: Tell


class Worker(Protocol[ItemIn, Result]):
    """Protocol of workers, which process one item after another with resources, such as networks, opened once."""

    def look_ahead(self, item: ItemIn) -> None:
        """Begin work on an item in the background before its turn; called once for each item."""
        ...

    def work(self, item: ItemIn) -> Future[Result]:
        """Do the main work on an item, and return a future of the remaining work, such as writing."""
        ...

    def close(self) -> None:
        """Finish writing, without beginning new work."""
        ...


class WorkerSpec(Protocol[ItemIn, Result]):
    """Protocol of picklable specifications from which a worker is opened, in this process or elsewhere.

    Optional attributes: ``reads``, paths that must exist where the worker runs; ``num_ahead``, the number of items that
    a worker has at a time. Results with files in the worker's folder have ``paths``, relative to it.
    """

    def open(self, place: WorkerPlace) -> Worker[ItemIn, Result]:
        """Load what the worker needs, and return the worker."""
        ...


def num_ahead_of(spec: WorkerSpec[Item, Result]) -> int:
    """Return the number of items handed to a worker at a time, including the current one."""
    return int(getattr(spec, "num_ahead", NUM_AHEAD))


Settle = Callable[[Item, Result, Path], Iterable[Item]]
"""Called in the driver with an item, what became of it, and the folder that its files are in (the worker's scratch).
Writes down what is done, and returns the items to continue with: another attempt, for instance. May be called once more
with an item that was handed out twice, which it compares and drops."""


class Watch(Protocol):
    """Callback for the events of workers.

    Engines report ``opens`` (no details; a worker begins to load) and ``loses`` (a sentence; a worker was killed, and
    its items wait again). All other events are reported by workers.
    """

    def __call__(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        """Report an event of a worker.

        Args:
            worker: Name of the worker, such as ``worker 1``.
            event: Name of the event, such as ``opens``.
            details: Further values of the event.
        """
        ...


class Engine(Protocol):
    """Protocol of engines, which run a list of work items on workers."""

    @property
    def devices(self) -> Sequence[str]:
        """Devices of the workers, as far as they are known in this process."""
        ...

    def run(
        self,
        spec: WorkerSpec[Item, Result],
        items: Iterable[Item],
        settle: Settle[Item, Result],
        *,
        scratch: Path,
        watch: Watch,
    ) -> None:
        """Work until no item is left; items are begun in their order.

        Ctrl-C and SIGTERM stop all workers; what they have finished by then is settled.

        Args:
            spec: Specification from which workers are opened.
            items: Items to begin with.
            settle: Called in this thread with every result.
            scratch: Existing folder, in which workers have theirs.
            watch: Callback for events, called in this thread.

        Raises:
            MaisiAugError: An error of a worker or of ``settle``, or an item whose workers were killed too often.
        """
        ...


def ignore_events(worker: str, event: str, details: tuple[Any, ...]) -> None:
    """Ignore events: a :class:`Watch` that does nothing."""


def work_off(
    worker: Worker[Item, Result],
    take: Callable[[bool], Item | None],
    give: Callable[[Item, Result], None],
    *,
    after_work: Callable[[Item], None] = lambda item: None,
) -> None:
    """Run a worker's loop: prepare the next item while one is processed and earlier results are written.

    Args:
        worker: Open worker, which is closed at the end.
        take: Function that returns the next item. Called with True it may wait, and None means that no item is left;
            otherwise None means that there is none at the moment.
        give: Called with every item and its result, after an error or Ctrl-C with those that are finished.
        after_work: Called when the next item can be worked on.
    """
    at_hand: deque[Item] = deque()
    behind: deque[tuple[Item, Future[Result]]] = deque()
    try:
        while True:
            while len(at_hand) < NUM_AHEAD and (item := take(not at_hand and not behind)) is not None:
                worker.look_ahead(item)
                at_hand.append(item)
            if not at_hand and not behind:
                return
            if behind and (behind[0][1].done() or len(behind) >= NUM_BEHIND or not at_hand):
                item, result = behind[0][0], behind[0][1].result()
                behind.popleft()
                give(item, result)
                continue  # which may have made another attempt wait, to be looked at first
            item = at_hand.popleft()
            behind.append((item, worker.work(item)))
            after_work(item)
    finally:
        worker.close()
        for item, future in behind:
            if future.done() and not future.cancelled() and future.exception() is None:
                with suppress(MaisiAugError):  # one is on its way already
                    give(item, future.result())


@dataclass(frozen=True)
class InProcess:
    """Engine with a single worker, in this process.

    Attributes:
        device: Device to compute on.
    """

    device: str = "auto"

    @property
    def devices(self) -> Sequence[str]:
        """The one device of the worker, as a sequence."""
        return (self.device,)

    def run(
        self,
        spec: WorkerSpec[Item, Result],
        items: Iterable[Item],
        settle: Settle[Item, Result],
        *,
        scratch: Path,
        watch: Watch,
    ) -> None:
        """Run the items in this process, as :meth:`Engine.run` defines."""
        name, waiting = "worker 1", deque(items)
        folder = scratch / "1"
        folder.mkdir(exist_ok=True)
        watch(name, "opens", ())
        place = WorkerPlace(name, self.device, folder, lambda event, *details: watch(name, event, details))

        def give(item: Item, result: Result) -> None:
            waiting.extendleft(reversed([*settle(item, result, folder)]))

        with ended_like_interrupted():
            work_off(spec.open(place), lambda may_wait: waiting.popleft() if waiting else None, give)


@dataclass(frozen=True)
class Calls(Generic[Item, Result]):
    """Worker that applies a function to each item.

    Attributes:
        function: Function of one item, with the resources that it needs.
    """

    function: Callable[[Item], Result]

    def look_ahead(self, item: Item) -> None:
        """Do nothing, because nothing is prepared ahead."""

    def work(self, item: Item) -> Future[Result]:
        """Apply the function to an item, and return a finished future with the result."""
        return finished(self.function(item))

    def close(self) -> None:
        """Do nothing, because no resource needs to be closed."""


def finished(result: Result) -> Future[Result]:
    """Return a future that already has its result."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


@contextmanager
def ended_like_interrupted() -> Iterator[None]:
    """Context that turns SIGTERM into KeyboardInterrupt, if in the main thread, which receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
