"""The engine of one machine: a process for each device, started anew when it is ended from outside."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Generic, cast

from maisi_aug.system.engine.cores import count_threads, environment_of
from maisi_aug.system.engine.crew import Crew, Ending, Message, Post, serve
from maisi_aug.system.engine.work import Item, Result, Settle, Watch, WorkerSpec, num_ahead_of
from maisi_aug.system.lean_monai import import_monai_lean


@dataclass(frozen=True)
class Processes:
    """Engine with one worker process per device.

    Workers on CPUs share the available cores; results on a CPU may depend on the number of threads.

    Attributes:
        devices: Devices; one may occur several times.
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
        """Run the items in the worker processes; see :meth:`Engine.run <maisi_aug.system.engine.work.Engine.run>`."""
        waiting = deque(items)
        names = enumerate(self.devices[: len(waiting)], start=1)
        threads = count_threads(len(self.devices))
        workers = [
            _Process[Item, Result](spec, number, device, scratch / str(number), threads, watch)
            for number, device in names
        ]
        Crew(waiting, workers, settle, _listen, num_ahead_of(spec)).work_off()


@dataclass
class _Process(Generic[Item, Result]):
    """A worker as the driver sees it.

    Attributes:
        items: Handed out and not settled, by number, in that order.
        num_at_hand: Number of items that wait or are being worked on.
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

    @property
    def place(self) -> str:
        return self.device

    @property
    def is_open(self) -> bool:
        return self.connection is not None

    @property
    def is_ready(self) -> bool:
        return True  # one that is not open is opened when it is needed

    def start(self) -> None:
        """Start or restart the process."""
        context = multiprocessing.get_context("spawn")  # a forked child of a process that has used OpenMP can hang
        self.scratch.mkdir(exist_ok=True)
        ours, theirs = context.Pipe()
        arguments = (theirs, self.spec, Post(self.name, self.device, self.scratch))
        with environment_of(self.num_threads), _no_interrupts():
            self._process = context.Process(target=_work_in_child, args=arguments, name=self.name)
            self._process.start()
        theirs.close()
        self.connection = ours
        self.watch(self.name, "opens", ())

    def hand_out(self, key: int, item: Item) -> None:
        if self.connection is None:
            self.start()
        assert self.connection is not None
        with suppress(OSError):  # it was ended this moment, which the next look at it tells
            self.connection.send((key, item))

    def bury(self) -> Ending:
        """Forget a process that has ended, and return how it ended."""
        process, connection = self._process, self.connection
        self._process = self.connection = None
        if connection is not None:
            connection.close()
        code = 0
        if process is not None and process.pid is not None:  # else Ctrl-C came while it was started
            process.join()
            code = process.exitcode or 0
        if -code == getattr(signal, "SIGKILL", None):  # Windows has none
            return Ending("was killed, probably for lack of memory")
        return Ending(f"was ended by signal {-code}" if code < 0 else f"ended with code {code}")

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
        self.bury()


def _listen(
    workers: Sequence[_Process[Item, Result]], seconds: float
) -> Iterator[tuple[_Process[Item, Result], Message | None]]:
    by_connection = {worker.connection: worker for worker in workers if worker.connection is not None}
    for ready in wait(list(by_connection), seconds):
        ready = cast(Connection, ready)  # on Windows of a class of its own
        try:
            message = ready.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            message = None
        yield by_connection[ready], message


def _work_in_child(connection: Connection, spec: WorkerSpec[Item, Result], post: Post) -> None:
    """The process of a worker: Ctrl-C is left to the driver, and with it the worker ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt_once)
    threading.Thread(target=_follow_parent, daemon=True).start()
    import_monai_lean()
    is_sending = threading.Lock()  # threads of the worker tell, too

    def send(kind: str, content: Any) -> None:
        with is_sending:
            connection.send((kind, content))

    def take(may_wait: bool) -> tuple[int, Item] | None:
        return connection.recv() if may_wait or connection.poll() else None

    serve(spec, post, take, send)
    connection.close()
    sys.stdout.flush()
    os._exit(0)  # threads of libraries, which a worker that was interrupted leaves, do not hold it up


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C at a terminal reaches processes that are just starting as well, which inherit that it is held back."""
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
