from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from maisi_aug.errors import RequestError
from maisi_aug.integrations.fresh.schedule import UseSchedule


def test_no_case_is_used_more_often_than_the_cap() -> None:
    for num_items, reuse, window in ((100, 4, 5), (7, 3, 2), (5, 1, 3), (3, 8, 4)):
        cases = UseSchedule(num_items, reuse, window, seed=1).cases_of(2)
        assert len(cases) == num_items
        assert max(Counter(cases).values()) <= reuse
        assert len(set(cases)) <= UseSchedule(num_items, reuse, window, 1).num_cases


def test_cases_are_numbered_by_first_use_and_few_are_in_use_at_a_time() -> None:
    schedule = UseSchedule(200, 4, 5, seed=3)
    cases = schedule.cases_of(0)
    assert list(dict.fromkeys(cases)) == list(range(max(cases) + 1))
    first = {case: place for place, case in reversed(list(enumerate(cases)))}
    last = {case: place for place, case in enumerate(cases)}
    for place in range(len(cases)):
        assert sum(first[case] <= place <= last[case] for case in first) <= 5
    assert schedule.uses_of(0) == tuple(cases.count(case) for case in range(max(cases) + 1))


def test_uses_of_a_case_are_apart() -> None:
    cases = UseSchedule(400, 4, 8, seed=0).cases_of(0)
    assert sum(a == b for a, b in pairwise(cases)) < 100


def test_same_seed_and_epoch_give_the_same_schedule_and_others_another() -> None:
    schedule = UseSchedule(50, 3, 4, seed=7)
    assert schedule.cases_of(1) == UseSchedule(50, 3, 4, seed=7).cases_of(1)
    assert schedule.cases_of(1) != schedule.cases_of(2)
    assert schedule.cases_of(1) != UseSchedule(50, 3, 4, seed=8).cases_of(1)


@pytest.mark.parametrize(("numbers", "name"), [((0, 1, 1), "num_items"), ((1, 0, 1), "reuse"), ((1, 1, 0), "buffer")])
def test_numbers_must_be_positive(numbers: tuple[int, int, int], name: str) -> None:
    with pytest.raises(RequestError, match=f"{name}: must be 1 or more, found 0"):
        UseSchedule(*numbers, seed=0)
