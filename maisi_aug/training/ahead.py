"""Batches drawn ahead: reading and decompressing the next cases while the GPU works on these."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from maisi_aug.training.processes import WHOLE, Share

Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """Draws the same share of the next step in a thread; what a step gets does not depend on it.

    Args:
        draw: Gives a share of a step's batch from its arguments alone.
        is_on: False draws when asked, as on a CPU, whose cores are busy with the networks.
    """

    def __init__(self, draw: Callable[[int, Share], Batch], *, is_on: bool) -> None:
        self._draw = draw
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if is_on else None
        self._pending: dict[tuple[int, Share], Future[Batch]] = {}

    def __call__(self, step: int, share: Share = WHOLE) -> Batch:
        """A share of a step's batch."""
        if self._pool is None:
            return self._draw(step, share)
        pending = self._pending.pop((step, share), None)
        self._pending[step + 1, share] = self._pool.submit(self._draw, step + 1, share)
        return pending.result() if pending is not None else self._draw(step, share)
