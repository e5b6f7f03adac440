"""The process that owns the device: makes fresh cases and hands them out over a local socket.

Started by :class:`maisi_aug.integrations.fresh.cases.FreshCases`; it reads its task from standard input, and ends when
that is closed, so that it never outlives the training, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from maisi_aug.integrations.fresh.buffer import CaseBuffer
from maisi_aug.integrations.fresh.schedule import UseSchedule


def main() -> int:
    """Run the process that draws training cases, until standard input is closed; return the exit code."""
    task = json.loads(sys.stdin.readline())
    schedule = UseSchedule(task["num_items"], task["reuse"], task["window"], task["seed"])
    buffer = CaseBuffer(schedule, task["capacity"])
    listener = Listener(task["address"], "AF_UNIX", authkey=bytes.fromhex(task["authkey"]))
    threading.Thread(target=_end_with_training, args=(task["address"],), daemon=True).start()
    maker = _Maker(task, schedule)
    threading.Thread(target=_accept, args=(listener, buffer, maker), daemon=True).start()
    try:
        buffer.make_all(maker)
    except Exception:
        # Clients get the error when they ask; the process stays for that until the training ends.
        threading.Event().wait()
    return 0


WAITING_SECONDS = 0.5
"""Seconds between progress reports to a client that waits for a case."""


class _Maker:
    """Loads the networks when the first case is requested, so that a failure is reported like any other.

    Attributes:
        state: Current activity, in words.
    """

    def __init__(self, task: dict[str, object], schedule: UseSchedule) -> None:
        self._task, self._schedule = task, schedule
        self._maker: object = None
        self.state, self._place = "loading the networks", ""

    def __call__(self, epoch: int, number: int) -> object:
        from maisi_aug.integrations.fresh.maker import FreshMaker

        if self._maker is None:
            self._maker = FreshMaker.open(
                self._task["configuration"],  # type: ignore[arg-type]
                device=str(self._task["device"]),
                num_cases=self._schedule.num_cases,
                seed=self._schedule.seed,
                numbers=self._task["numbers"],  # type: ignore[arg-type]
                report_step=self._note,
            )
        assert isinstance(self._maker, FreshMaker)
        self._place = f"case {number + 1} of epoch {epoch + 1}"
        self.state = f"{self._place}: drawing the label map"
        return self._maker.make(epoch, number)

    def _note(self, case_id: str, done: int, total: int) -> None:
        self.state = f"{self._place}: step {done} of {total}"


def _end_with_training(address: str) -> None:
    sys.stdin.read()  # returns when the other end is closed, by whatever
    if not address.startswith("\0"):  # an address of Linux that is not a file
        Path(address).unlink(missing_ok=True)
    os._exit(0)  # the main thread may be in the middle of a network


def _accept(listener: Listener, buffer: CaseBuffer, maker: _Maker) -> None:
    while True:
        try:
            connection = listener.accept()
        except (OSError, EOFError):
            continue  # a client that was ended while it said hello
        threading.Thread(target=_serve, args=(connection, buffer, maker), daemon=True).start()


def _serve(connection: Connection, buffer: CaseBuffer, maker: _Maker) -> None:
    """Answer one client: ``(epoch, item)`` with ``("case", pair)`` or ``("failed", kind, message)``.

    Before that come any number of ``("waiting", what is being done)``, while the case is not there yet.
    """
    with ThreadPoolExecutor(1, "take") as pool:
        try:
            while True:
                epoch, item = connection.recv()
                asked = pool.submit(buffer.take, epoch, item)
                while not wait([asked], WAITING_SECONDS).done:
                    connection.send(("waiting", maker.state))
                error = asked.exception()
                answer: tuple[object, ...]
                answer = ("case", asked.result()) if error is None else ("failed", type(error).__name__, str(error))
                connection.send(answer)
        except (OSError, EOFError):
            connection.close()  # the client is gone


if __name__ == "__main__":
    sys.exit(main())
