"""Workers outside of this process: what their driver does, wherever they are, and what each of them runs.

A worker sends messages, a kind and its content: ``worked`` (the next item can be worked on), ``done`` (number of the
item, result), ``told`` (name of an event, details), ``warned`` (message, category) and ``failed`` (an error).
"""

from __future__ import annotations

import pickle
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Final, Generic, NamedTuple, Protocol

from maisi_aug.errors import MaisiAugError, WorkerError
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
"""Seconds to wait, after Ctrl-C or an error, for workers to finish writing."""

Message = tuple[str, Any]
Send = Callable[[str, Any], None]


class Ending(NamedTuple):
    """How a worker ended.

    Attributes:
        how: Description of the end, as the rest of a sentence about the worker.
        may_be_items: Whether its item may be the cause; False if a whole machine was lost.
    """

    how: str
    may_be_items: bool = True


class Hand(Protocol[Item]):
    """Protocol of a worker as the driver sees it, wherever it runs.

    Attributes:
        scratch: Folder that contains its files.
        watch: Callback for its events.
        items: Number -> item that was handed out and is not settled, in that order.
        num_at_hand: Number of items that it has, waiting or in work.
    """

    scratch: Path
    watch: Watch
    items: dict[int, Item]
    num_at_hand: int

    @property
    def name(self) -> str:
        """Name of the worker, which it keeps when it is restarted."""
        ...

    @property
    def place(self) -> str:
        """Place where the worker runs, for messages."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether the worker may still send messages."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether items can be handed out to the worker."""
        ...

    def hand_out(self, key: int, item: Item) -> None:
        """Send the worker an item with its number.

        Args:
            key: Number of the item, under which its result is reported.
            item: Item of work.
        """
        ...

    def bury(self) -> Ending:
        """Remove a worker that was killed, so that it can be restarted, and return how it ended."""
        ...

    def ask_to_stop(self) -> None:
        """Ask the worker to finish writing, and to end."""
        ...

    def kill(self) -> None:
        """End the worker immediately."""
        ...


AnyHand = Any
"""The driver's own kind of :class:`Hand`."""
Listen = Callable[[Sequence[AnyHand], float], Iterable[tuple[AnyHand, Message | None]]]
"""Waits up to a number of seconds for messages of workers; yields None for a worker that was killed."""


@dataclass
class Crew(Generic[Item, Result]):
    """Driver of several workers: hands out items and processes results.

    Attributes:
        waiting: Items that have not been handed out yet.
        workers: The workers.
        settle: Called with every result.
        listen: Function that waits for messages of workers.
        num_ahead: Number of items that a worker has at a time.
    """

    waiting: deque[Item]
    workers: Sequence[AnyHand]
    settle: Settle[Item, Result]
    listen: Listen
    num_ahead: int = NUM_AHEAD
    _keys: Iterator[int] = field(default_factory=count)
    _losses: dict[int, int] = field(default_factory=dict)
    _again: deque[tuple[int, Item]] = field(default_factory=deque)
    _is_stopping: bool = False

    def work_off(self) -> None:
        """Hand out items until none is left, then end all workers.

        Raises:
            MaisiAugError: An error of a worker or of ``settle``, or an item whose workers were killed too often.
        """
        with ended_like_interrupted():
            try:
                while self.waiting or self._again or any(worker.items for worker in self.workers):
                    self._hand_out()
                    self._listen(POLL_SECONDS)
            except BaseException:
                self._stop()
                raise
            finally:
                for worker in self.workers:
                    worker.kill()

    def _hand_out(self) -> None:
        while self.waiting or self._again:
            ready = [worker for worker in self.workers if worker.is_ready and worker.num_at_hand < self.num_ahead]
            if not ready:
                return
            worker = min(ready, key=lambda one: one.num_at_hand)
            key, item = self._again.popleft() if self._again else (next(self._keys), self.waiting.popleft())
            worker.items[key] = item
            worker.num_at_hand += 1
            worker.hand_out(key, item)

    def _listen(self, seconds: float) -> None:
        for worker, message in self.listen(self.workers, seconds):
            if message is None:
                self._lose(worker)
            else:
                self._hear(worker, *message)

    def _hear(self, worker: AnyHand, kind: str, content: Any) -> None:
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

    def _lose(self, worker: AnyHand) -> None:
        """Have the items of a worker that was ended wait again, before all others."""
        ending, lost = worker.bury(), list(worker.items.items())
        worker.items.clear()
        worker.num_at_hand = 0
        if self._is_stopping:
            return
        worker.watch(worker.name, "loses", (ending.how,))
        self._again.extendleft(reversed(lost))
        for key, _ in lost if ending.may_be_items else ():
            self._losses[key] = self._losses.get(key, 0) + 1
            if self._losses[key] >= MAX_LOSSES:
                raise WorkerError(
                    f"{worker.name} on {worker.place}: {MAX_LOSSES} processes in a row did not finish their work; "
                    f"the last {ending.how}. Choose fewer workers, or smaller images."
                )

    def _stop(self) -> None:
        """Have workers finish what they write, and settle it."""
        self._is_stopping = True
        for worker in self.workers:
            worker.ask_to_stop()
        ends_at = monotonic() + STOP_SECONDS
        while monotonic() < ends_at and any(worker.is_open for worker in self.workers):
            with suppress(MaisiAugError):  # one is on its way already
                self._listen(min(POLL_SECONDS, max(0.0, ends_at - monotonic())))


@dataclass(frozen=True)
class Post:
    """Name, device and scratch folder of a worker that runs outside of its driver's process.

    Attributes:
        name: Name of the worker.
        device: Device to compute on.
        scratch: Folder of its own.
    """

    name: str
    device: str
    scratch: Path


def serve(
    spec: WorkerSpec[Item, Result], post: Post, take: Callable[[bool], tuple[int, Item] | None], send: Send
) -> None:
    """Run a worker outside of its driver's process: work on incoming items, and send events, warnings and errors.

    Args:
        spec: Specification from which the worker is opened.
        post: Name, device and scratch folder of the worker.
        take: Function that returns the next item with its number, see :func:`~maisi_aug.system.engine.work.work_off`.
        send: Function that sends a message, given its kind and content; may be called from any thread.
    """

    def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        send("warned", (str(message), category))

    place = WorkerPlace(post.name, post.device, post.scratch, lambda event, *details: send("told", (event, details)))
    warnings.simplefilter("always")
    warnings.showwarning = show_warning
    try:
        work_off(
            _Numbered[Item, Result](spec.open(place)),
            take,
            lambda numbered, result: send("done", (numbered[0], result)),
            after_work=lambda numbered: send("worked", None),
        )
    except KeyboardInterrupt:
        pass
    except Exception as error:
        with suppress(OSError):
            send("failed", _to_sendable(error))


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


def _to_sendable(error: Exception) -> Exception:
    """The error with its traceback as a note, or what it says where it cannot be sent."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever pickle meets in an error of a library
        copy = None
    return error if type(copy) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
