"""The time of a run: what comes before the first step counts, and ends after the case that it is at."""

from __future__ import annotations

import time

import pytest

from maisi_aug.training.loop.processes import ALONE
from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit


def no_phase(told: list[tuple[str, int, int]]):  # type: ignore[no-untyped-def]
    return lambda name: lambda done, total: told.append((name, done, total))


def test_time_that_is_left_never_falls_below_zero_and_none_is_no_limit() -> None:
    assert TimeLimit(None).minutes_left is None
    assert TimeLimit(0.0).minutes_left == 0.0
    limit = TimeLimit(10.0)
    time.sleep(0.01)
    assert limit.minutes_left is not None
    assert 9.9 < limit.minutes_left < 10.0


def test_phase_ends_after_the_case_that_it_is_at() -> None:
    told: list[tuple[str, int, int]] = []
    report = TimeLimit(0.0).limit(no_phase(told))("Building phantoms")
    with pytest.raises(TimeIsUp) as stop:
        report(3, 8)
    assert told == [("Building phantoms", 3, 8)]
    assert (stop.value.phase, stop.value.done, stop.value.total) == ("Building phantoms", 3, 8)


def test_phase_that_is_done_is_followed_by_a_step() -> None:
    TimeLimit(0.0).limit(no_phase([]))("Building phantoms")(8, 8)


def test_phase_goes_on_while_there_is_time_and_where_it_is_kept_as_a_whole() -> None:
    for limit in (TimeLimit(None), TimeLimit(1.0)):
        limit.limit(no_phase([]))("Building phantoms")(1, 8)
    TimeLimit(0.0).limit(no_phase([]), uninterrupted=("Measuring",))("Measuring training maps")(1, 8)


def test_time_that_is_up_in_the_main_process_leaves_its_block() -> None:
    with pytest.raises(TimeIsUp), ALONE.main_first():
        raise TimeIsUp("Building phantoms", 1, 2)
