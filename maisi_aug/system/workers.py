"""Work on many cases in processes of their own, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from maisi_aug.errors import PreparationError
from maisi_aug.system.progress import ReportStage


def count_cores() -> int:
    """Cores that this process may run on: those that the system allows it where that can be told, else all."""
    # Not on macOS and Windows.
    allowed = getattr(os, "sched_getaffinity", None)
    return max(1, len(allowed(0)) if allowed is not None else os.cpu_count() or 1)


Item = TypeVar("Item")
Result = TypeVar("Result")
Warned = list[tuple[str, type[Warning]]]

POLL_SECONDS = 1.0


def run_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], stage: str, report: ReportStage, num_workers: int | None
) -> list[Result]:
    """Results in the order of the items, from as many processes as there are cores and items.

    What the work warns of is warned of in this process. A request to end it (SIGTERM) is taken as Ctrl-C is.

    Args:
        work: What is done with an item; a function of a module, for it is sent to other processes.
        items: What to work on.
        stage: What to call the work in reports.
        report: Called with the stage, the items done and the items in all.
        num_workers: Processes; None for one per core.

    Raises:
        PreparationError: When a process was ended from outside.
    """
    workers = min(num_workers or count_cores(), len(items))
    results = []
    with _ended_like_interrupted(), _mapped(work, items, workers) as finished:
        report(stage, 0, len(items))
        for result in finished:
            results.append(result)
            report(stage, len(results), len(items))
    return results


@contextmanager
def _mapped(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Iterator[Result]]:
    if workers < 2:
        yield map(work, items)
        return
    # Spawned, not forked: a forked child of a process that has used OpenMP can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    others = set(multiprocessing.active_children())
    try:
        yield _warn_again(_await([pool.submit(_record_warnings, work, item) for item in items]))
    except BrokenProcessPool as error:
        raise PreparationError(
            "Workers: expected every process to finish, found one that was ended from outside, mostly for lack of "
            "memory. Give the command again with fewer --workers."
        ) from error
    except KeyboardInterrupt:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # files appear whole or not at all
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the process that started this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into Ctrl-C's error, where this is the main thread, the only one that gets signals."""
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


def _record_warnings(work: Callable[[Item], Result], item: Item) -> tuple[Result, Warned]:
    """Work in a process of its own, with what it warns of: only the main process knows whom to tell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work(item)
    return result, [(str(warning.message), warning.category) for warning in caught]


def _await(futures: Sequence[Future[Result]]) -> Iterator[Result]:
    """Results in the order of the futures; a signal that comes as a wait begins is seen when the next one does."""
    for future in futures:
        while not future.done():
            wait([future], timeout=POLL_SECONDS)
        yield future.result()


def _warn_again(finished: Iterator[tuple[Result, Warned]]) -> Iterator[Result]:
    for result, warned in finished:
        for message, category in warned:
            warnings.warn(message, category, stacklevel=2)
        yield result
