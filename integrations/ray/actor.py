"""Worker on a node of a Ray cluster; it lives as long as its driver has work.

The driver hands items in and listens for messages, which wait here until it does; what it is sent in one answer stays
small, for volumes go to a disk that both see or, where there is none, in pieces.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, NamedTuple

from maisi_aug import __version__
from maisi_aug.errors import MaisiAugError, WorkerError
from maisi_aug.system.engine.cores import count_cores
from maisi_aug.system.engine.crew import Message, Post, serve
from maisi_aug.system.engine.work import Worker, WorkerPlace, WorkerSpec
from maisi_aug.system.lean_monai import import_monai_lean

PIECE_BYTES: Final = 8 << 20
LISTEN_SECONDS: Final = 10.0
"""Seconds to wait for a message in one call."""
NEWS_SECONDS: Final = 0.5
"""Seconds over which events that nobody waits for are collected."""
FOLDER_PREFIX: Final = "maisi-aug-ray-"
_NEWS: Final = ("told", "warned")


class Assignment(NamedTuple):
    """What a Ray actor needs to become a worker.

    Attributes:
        name: Name of the worker.
        device: Device to compute on.
        scratch: Folder of its own, as the driver sees it.
        home: Folder that the driver works in, where relative paths begin.
        token: File that the driver wrote, and its content; an actor that can read it shares the driver's disk.
    """

    name: str
    device: str
    scratch: Path
    home: Path
    token: tuple[Path, str]


class Hello(NamedTuple):
    """First message of a Ray actor to the driver.

    Attributes:
        host: Name of the actor's machine.
        node_id: Id of the machine, for Ray.
        version: Version of maisi-aug on that machine.
        sees_folders: Whether the machine shares the driver's disk.
        num_cores: Number of cores that are available to the actor.
    """

    host: str
    node_id: str
    version: str
    sees_folders: bool
    num_cores: int


class Piece(NamedTuple):
    """Part of a file that a Ray actor sends to the driver.

    Attributes:
        path: Path of the file, below the worker's folder.
        offset: Offset in bytes.
        content: Bytes of the part.
    """

    path: str
    offset: int
    content: bytes


class RemoteWorker:
    """Ray actor that runs a worker and exchanges messages with the driver, which calls its methods in threads."""

    def __init__(self, assignment: Assignment, spec: bytes) -> None:
        """Store the arguments; no work is done before the driver listens.

        Args:
            assignment: Name, device and place of the worker.
            spec: Pickled; opens the worker.
        """
        self._assignment, self._spec = assignment, spec
        self._inbox: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        self._outbox: list[Message] = []
        self._is_urgent = False
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._own_folder: Path | None = None

    def listen(self) -> list[Message]:
        """Return new messages of the worker, waiting for a limited time; the first call starts the work."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        ends_at = monotonic() + LISTEN_SECONDS
        with self._changed:
            while not self._is_urgent and (left := ends_at - monotonic()) > 0:
                self._changed.wait(left)
                if self._outbox:
                    ends_at = min(ends_at, monotonic() + NEWS_SECONDS)
            messages, self._outbox, self._is_urgent = self._outbox, [], False
            self._changed.notify_all()
        return messages

    def hand_in(self, key: int, item: Any) -> None:
        """Give the worker another item; returns at once.

        Args:
            key: Number of the item, under which its result is reported.
            item: Picklable item of work.
        """
        self._inbox.put((key, item))

    def stop(self) -> None:
        """Ask the worker to begin no further item; finished results are still sent, and finally ``closed``."""
        self._is_stopping = True
        self._inbox.put(None)

    def leave_nothing(self) -> None:
        """Delete the worker's files on a disk that the driver cannot see."""
        self._is_stopping = True
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def _work(self) -> None:
        from ray import get_runtime_context

        import_monai_lean()
        with suppress(OSError):
            os.chdir(self._assignment.home)
        path, content = self._assignment.token
        try:
            sees_folders = path.read_text(encoding="utf-8") == content
        except OSError:
            sees_folders = False
        self._own_folder = None if sees_folders else Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        scratch = self._own_folder or self._assignment.scratch
        scratch.mkdir(exist_ok=True)
        node_id = get_runtime_context().get_node_id()
        self._send("hello", Hello(socket.gethostname(), node_id, __version__, sees_folders, count_cores()))
        post = Post(self._assignment.name, self._assignment.device, scratch)
        try:
            serve(_Sent(self._spec), post, self._take, self._send if sees_folders else _Streaming(self, scratch))
        finally:
            self.leave_nothing()
            self._send("closed", None)

    def _take(self, may_wait: bool) -> tuple[int, Any] | None:
        try:
            item = self._inbox.get(block=may_wait)
        except Empty:
            return None
        if item is None or self._is_stopping:
            raise KeyboardInterrupt
        return item

    def _send(self, kind: str, content: Any) -> None:
        """Put a message where the driver finds it; a worker that is to stop stops where it tells how it goes."""
        if self._is_stopping and kind == "told":
            raise KeyboardInterrupt
        with self._changed:
            self._outbox.append((kind, content))
            self._is_urgent = self._is_urgent or kind not in _NEWS
            self._changed.notify_all()

    def send_piece(self, piece: Piece) -> None:
        """Send a part of a file, after the driver has taken the previous one."""
        with self._changed:
            self._changed.wait_for(lambda: all(kind != "piece" for kind, _ in self._outbox))
        self._send("piece", piece)


@dataclass(frozen=True)
class _Sent:
    """What opens a worker, opened where it was sent to; errors name the machine."""

    pickled: bytes

    def open(self, place: WorkerPlace) -> Worker[Any, Any]:
        try:
            spec: WorkerSpec[Any, Any] = pickle.loads(self.pickled)
            if missing := next((path for path in getattr(spec, "reads", ()) if not path.exists()), None):
                raise WorkerError(
                    f"{missing} exists on the driver's machine, but not here. Put it on a disk shared by all nodes, "
                    "or at the same path on each."
                )
            return spec.open(place)
        except MaisiAugError as error:
            raise type(error)(f"{place.name} on {socket.gethostname()}: {error}") from error


@dataclass(frozen=True)
class _Streaming:
    """Sends what a result names in ``paths`` before the result."""

    worker: RemoteWorker
    scratch: Path

    def __call__(self, kind: str, content: Any) -> None:
        for path in getattr(content[1], "paths", ()) if kind == "done" else ():
            for piece in _cut(self.scratch, path):
                self.worker.send_piece(piece)
            (self.scratch / path).unlink()
        self.worker._send(kind, content)


def _cut(folder: Path, path: str) -> Iterator[Piece]:
    with (folder / path).open("rb") as file:
        offset, content = 0, file.read(PIECE_BYTES)
        while True:
            yield Piece(path, offset, content)
            offset += len(content)
            content = file.read(PIECE_BYTES)
            if not content:
                return
