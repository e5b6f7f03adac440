"""Batches drawn ahead: reading and decompressing the next cases while the GPU works on these."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from maisi_aug.training.processes import WHOLE, Share

Batch = TypeVar("Batch")
Draw = Callable[[int, Share], Batch]


class Ahead(Generic[Batch]):
    """Draws the same share of the next step in a thread; what a step gets does not depend on it.

    Args:
        is_on: False draws when asked, as on a CPU, whose cores are busy with the networks.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if is_on else None
        self._pending: dict[tuple[Draw[Batch], int, Share], Future[Batch]] = {}

    def __call__(self, draw: Draw[Batch], step: int, share: Share = WHOLE) -> Batch:
        """A share of a step's batch, which ``draw`` gives from its arguments alone."""
        if self._pool is None:
            return draw(step, share)
        pending = self._pending.pop((draw, step, share), None)
        self._pending[draw, step + 1, share] = self._pool.submit(draw, step + 1, share)
        return pending.result() if pending is not None else draw(step, share)
