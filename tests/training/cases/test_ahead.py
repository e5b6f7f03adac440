from __future__ import annotations

import threading

import pytest

from maisi_aug.training.cases.data import Ahead
from maisi_aug.training.loop.processes import Share


class Counting:
    """Draws that say for what, and in which thread."""

    def __init__(self) -> None:
        self.threads: dict[tuple[int, int], str] = {}

    def __call__(self, step: int, share: Share) -> tuple[int, int]:
        if step == 13:
            raise ValueError("no case thirteen")
        assert (step, share.index) not in self.threads
        self.threads[step, share.index] = threading.current_thread().name
        return step, share.index


def test_next_batches_are_drawn_in_a_thread_and_once() -> None:
    counting = Counting()
    ahead = Ahead[tuple[int, int]](is_on=True)
    shares = [Share(0, 2), Share(1, 2)]
    drawn = [ahead(counting, step, share) for step in (4, 5, 6) for share in shares]
    assert drawn == [(step, share) for step in (4, 5, 6) for share in (0, 1)]
    here = threading.current_thread().name
    assert {step for (step, _), name in counting.threads.items() if name == here} == {4}


def test_batches_out_of_order_are_right_all_the_same() -> None:
    ahead = Ahead[int](is_on=True)

    def draw(step: int, share: Share) -> int:
        return 10 * step + share.index

    assert [ahead(draw, step) for step in (3, 9, 4, 4)] == [30, 90, 40, 40]
    assert ahead(lambda step, share: -step, 5) == -5, "another source of batches"


def test_what_goes_wrong_ahead_is_raised_at_its_step() -> None:
    ahead, counting = Ahead[tuple[int, int]](is_on=True), Counting()
    assert ahead(counting, 12) == (12, 0)
    with pytest.raises(ValueError, match="no case thirteen"):
        ahead(counting, 13)


def test_nothing_is_drawn_ahead_on_a_cpu() -> None:
    counting = Counting()
    assert Ahead[tuple[int, int]](is_on=False)(counting, 1) == (1, 0)
    assert list(counting.threads) == [(1, 0)]
