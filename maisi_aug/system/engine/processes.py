"""The engine of one machine: a process for each device, started anew when it is ended from outside."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Final, Generic

from maisi_aug.errors import MaisiAugError, WorkerError
from maisi_aug.system.engine.cores import count_threads, environment_of
from maisi_aug.system.engine.work import (
    MAX_LOSSES,
    NUM_AHEAD,
    Item,
    Result,
    Settle,
    Watch,
    Worker,
    WorkerPlace,
    WorkerSpec,
    ended_like_interrupted,
    work_off,
)

POLL_SECONDS: Final = 1.0
STOP_SECONDS: Final = 60.0
"""Longest wait, after Ctrl-C or an error, for what workers are writing."""


@dataclass(frozen=True)
class Processes:
    """A worker for each device, in a process of its own.

    Workers on CPUs share the cores that are there; what an item becomes on a CPU may depend on the number of threads.

    Attributes:
        devices: One may occur several times.
    """

    devices: Sequence[str]

    def run(
        self,
        spec: WorkerSpec[Item, Result],
        items: Iterable[Item],
        settle: Settle[Item, Result],
        *,
        scratch: Path,
        watch: Watch,
    ) -> None:
        """As :class:`~maisi_aug.system.engine.work.Engine` says."""
        waiting = deque(items)
        names = enumerate(self.devices[: len(waiting)], start=1)
        threads = count_threads(len(self.devices))
        workers = [
            _Process[Item, Result](spec, number, device, scratch / str(number), threads, watch)
            for number, device in names
        ]
        crew = _Crew(waiting, workers, settle)
        with ended_like_interrupted():
            try:
                crew.work_off()
            except BaseException:
                crew.stop()
                raise
            finally:
                crew.end()


@dataclass
class _Process(Generic[Item, Result]):
    """A worker, seen from the driver.

    Attributes:
        items: Handed out and not settled, by number, in that order.
        num_at_hand: Of them, those that are not worked on yet or are being worked on.
    """

    spec: WorkerSpec[Item, Result]
    number: int
    device: str
    scratch: Path
    num_threads: int
    watch: Watch
    items: dict[int, Item] = field(default_factory=dict)
    num_at_hand: int = 0
    connection: Connection | None = None
    _process: SpawnProcess | None = None

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    def start(self) -> None:
        """Start the process; a folder that an earlier one has left half a file in is not used again."""
        context = multiprocessing.get_context("spawn")  # a forked child of a process that has used OpenMP can hang
        self.scratch.mkdir(exist_ok=True)
        ours, theirs = context.Pipe()
        arguments = (theirs, self.spec, self.name, self.device, self.scratch)
        with environment_of(self.num_threads), _no_interrupts():
            self._process = context.Process(target=_work_in_child, args=arguments, name=self.name)
            self._process.start()
        theirs.close()
        self.connection = ours
        self.watch(self.name, "opens", ())

    def hand_out(self, key: int, item: Item) -> None:
        self.items[key] = item
        self.num_at_hand += 1
        if self.connection is None:
            self.start()
        assert self.connection is not None
        with suppress(OSError):  # it was ended this moment, which the next look at it tells
            self.connection.send((key, item))

    def bury(self) -> str:
        """Forget a process that has ended, and say how."""
        assert self._process is not None
        assert self.connection is not None
        self._process.join()
        code = self._process.exitcode or 0
        self.connection.close()
        self.connection, self._process, self.num_at_hand = None, None, 0
        if -code == signal.SIGKILL:
            return "was killed, mostly for lack of memory"
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self.bury()


@dataclass
class _Crew(Generic[Item, Result]):
    """The driver: hands out items and settles what comes back."""

    waiting: deque[Item]
    workers: Sequence[_Process[Item, Result]]
    settle: Settle[Item, Result]
    _keys: Iterator[int] = field(default_factory=count)
    _losses: dict[int, int] = field(default_factory=dict)
    _again: deque[tuple[int, Item]] = field(default_factory=deque)
    _is_stopping: bool = False

    def work_off(self) -> None:
        while self.waiting or self._again or any(worker.items for worker in self.workers):
            self._hand_out()
            self._listen(POLL_SECONDS)

    def _hand_out(self) -> None:
        while self.waiting or self._again:
            worker = min(self.workers, key=lambda one: one.num_at_hand)
            if worker.num_at_hand >= NUM_AHEAD:
                return
            key, item = self._again.popleft() if self._again else (next(self._keys), self.waiting.popleft())
            worker.hand_out(key, item)

    def _listen(self, seconds: float) -> None:
        by_connection = {worker.connection: worker for worker in self.workers if worker.connection is not None}
        for ready in wait(list(by_connection), seconds):
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            try:
                message = ready.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                self._lose(worker)
            else:
                self._hear(worker, *message)

    def _hear(self, worker: _Process[Item, Result], kind: str, content: Any) -> None:
        if kind == "worked":
            worker.num_at_hand -= 1
        elif kind == "told":
            event, details = content
            worker.watch(worker.name, event, details)
        elif kind == "warned":
            message, category = content
            warnings.warn(message, category, stacklevel=2)
        elif kind == "failed":
            raise content
        else:
            key, result = content
            item = worker.items.pop(key)
            self._losses.pop(key, None)
            self.waiting.extendleft(reversed([*self.settle(item, result, worker.scratch)]))

    def _lose(self, worker: _Process[Item, Result]) -> None:
        """Have the items of a worker that was ended wait again, before all others."""
        how, lost = worker.bury(), list(worker.items.items())
        worker.items.clear()
        if self._is_stopping:
            return
        worker.watch(worker.name, "loses", (how,))
        self._again.extendleft(reversed(lost))
        for key, _ in lost:
            self._losses[key] = self._losses.get(key, 0) + 1
            if self._losses[key] >= MAX_LOSSES:
                raise WorkerError(
                    f"{worker.name} on {worker.device}: expected a process that finishes its work, found {MAX_LOSSES} "
                    f"in a row that did not; the last {how}. Choose fewer workers, or smaller images."
                )

    def stop(self) -> None:
        """Have workers finish what they write, and settle it."""
        self._is_stopping = True
        for worker in self.workers:
            worker.ask_to_stop()
        ends_at = monotonic() + STOP_SECONDS
        while monotonic() < ends_at and any(worker.connection is not None for worker in self.workers):
            try:
                self._listen(min(POLL_SECONDS, max(0.0, ends_at - monotonic())))
            except MaisiAugError:  # one is on its way already
                continue

    def end(self) -> None:
        """End what is left, which has nothing to do any more or does not stop."""
        for worker in self.workers:
            worker.kill()


def _work_in_child(
    connection: Connection, spec: WorkerSpec[Item, Result], name: str, device: str, scratch: Path
) -> None:
    """The process of a worker: Ctrl-C is left to the driver, and with it the worker ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt_once)
    threading.Thread(target=_follow_parent, daemon=True).start()
    is_sending = threading.Lock()  # threads of the worker tell, too

    def send(kind: str, content: Any = None) -> None:
        with is_sending:
            connection.send((kind, content))

    def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        send("warned", (str(message), category))

    def take(may_wait: bool) -> tuple[int, Item] | None:
        return connection.recv() if may_wait or connection.poll() else None

    place = WorkerPlace(name, device, scratch, lambda event, *details: send("told", (event, details)))
    warnings.simplefilter("always")
    warnings.showwarning = show_warning
    try:
        worker = _Numbered[Item, Result](spec.open(place))
        work_off(
            worker,
            take,
            lambda numbered, result: send("done", (numbered[0], result)),
            after_work=lambda numbered: send("worked"),
        )
    except KeyboardInterrupt:
        pass
    except Exception as error:
        with suppress(OSError):
            send("failed", _to_sendable(error))
    connection.close()
    sys.stdout.flush()
    os._exit(0)  # threads of libraries, which a worker that was interrupted leaves, do not hold it up


@dataclass(frozen=True)
class _Numbered(Generic[Item, Result]):
    """A worker whose items have numbers."""

    worker: Worker[Item, Result]

    def look_ahead(self, numbered: tuple[int, Item]) -> None:
        self.worker.look_ahead(numbered[1])

    def work(self, numbered: tuple[int, Item]) -> Future[Result]:
        return self.worker.work(numbered[1])

    def close(self) -> None:
        self.worker.close()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C at a terminal reaches processes that are just starting, too, which inherit that it is held back."""
    hold = getattr(signal, "pthread_sigmask", None)
    if hold is None:
        yield
        return
    before = hold(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        hold(signal.SIG_SETMASK, before)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _to_sendable(error: Exception) -> Exception:
    """The error with its traceback as a note, or what it says where it cannot be sent."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever pickle meets in an error of a library
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
