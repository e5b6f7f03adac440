from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from maisi_aug.integrations.fresh.buffer import CaseBuffer
from maisi_aug.integrations.fresh.schedule import UseSchedule

SCHEDULE = UseSchedule(num_items=24, reuse=3, window=3, seed=2)


@contextmanager
def running(buffer: CaseBuffer, made: list[tuple[int, int]]) -> Iterator[None]:
    """A thread that makes cases; a case is its own key."""

    def make(epoch: int, number: int) -> tuple[int, int]:
        made.append((epoch, number))
        return epoch, number

    thread = threading.Thread(target=buffer.make_all, args=(make,))
    thread.start()
    try:
        yield
    finally:
        buffer.close()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("capacity", [1, 2, 6, 50])
def test_what_one_gets_does_not_depend_on_the_buffer(capacity: int) -> None:
    with running(buffer := CaseBuffer(SCHEDULE, capacity), []):
        for epoch in (0, 1, 0, 5):
            expected = [(epoch, number) for number in SCHEDULE.cases_of(epoch)]
            assert [buffer.take(epoch, item) for item in range(24)] == expected


def test_every_case_is_made_once_where_the_window_fits() -> None:
    made: list[tuple[int, int]] = []
    with running(buffer := CaseBuffer(SCHEDULE, 6), made):
        for epoch in (0, 1):
            for item in range(24):
                buffer.take(epoch, item)
    assert len(made) == len(set(made))
    assert set(made) >= {(epoch, number) for epoch in (0, 1) for number in range(len(SCHEDULE.uses_of(epoch)))}


def test_next_epoch_is_begun_ahead_but_no_further_than_the_buffer() -> None:
    made: list[tuple[int, int]] = []
    with running(buffer := CaseBuffer(SCHEDULE, 4), made):
        for item in range(24):
            buffer.take(0, item)
        buffer.take(1, 0)
    ahead = [key for key in made if key[0] == 1]
    assert 1 <= len(ahead) <= 5
    assert ahead == [(1, number) for number in range(len(ahead))]


def test_items_in_any_order_from_several_threads_end() -> None:
    with running(buffer := CaseBuffer(SCHEDULE, 2), []):
        results: dict[int, object] = {}
        items = [[23, 0, 11, 5], [22, 1, 10, 6], [21, 2, 9, 7]]
        threads = [
            threading.Thread(target=lambda part=part: results.update({i: buffer.take(0, i) for i in part}))
            for part in items
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert results == {i: (0, SCHEDULE.cases_of(0)[i]) for part in items for i in part}


def test_failure_reaches_everyone_who_waits() -> None:
    buffer = CaseBuffer(SCHEDULE, 4)

    def make(epoch: int, number: int) -> int:
        raise ValueError(f"no case {number}")

    with pytest.raises(ValueError, match="no case 0"):
        buffer.make_all(make)
    with pytest.raises(ValueError, match="no case 0"):
        buffer.take(0, 3)


def test_closed_buffer_lets_nobody_wait() -> None:
    buffer = CaseBuffer(SCHEDULE, 4)
    buffer.close()
    with pytest.raises(EOFError, match="the buffer was closed"):
        buffer.take(0, 0)
