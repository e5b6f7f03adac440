"""Assignment of fresh cases to the items of an epoch, by the seed and the epoch alone, never by timing.

The rule. An epoch of ``num_items`` items uses ``ceil(num_items / reuse)`` cases, each at most ``reuse`` times. At any
moment at most ``window`` cases are in use; every item takes one of them at random, and a case that is used up makes
room for the next. Cases are numbered in the order of their first use, so that they can be made in that order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from maisi_aug.errors import RequestError
from maisi_aug.system.seeds import numpy_generator


@dataclass(frozen=True, slots=True)
class UseSchedule:
    """Schedule that assigns cases to the items of all epochs.

    Attributes:
        num_items: Number of items per epoch.
        reuse: Largest number of items that show the same case.
        window: Largest number of cases in use at a time.
        seed: Seed of the schedule.
    """

    num_items: int
    reuse: int
    window: int
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("num_items", self.num_items), ("reuse", self.reuse), ("buffer", self.window)):
            if value < 1:
                raise RequestError(f"{name}: must be 1 or more, found {value}. Choose another number.")

    @property
    def num_cases(self) -> int:
        """Number of cases per epoch."""
        return -(-self.num_items // self.reuse)

    def cases_of(self, epoch: int) -> tuple[int, ...]:
        """Return the number of the case for every item of an epoch, counted from 0 in the order of first use."""
        return _draw(self, epoch)

    def uses_of(self, epoch: int) -> tuple[int, ...]:
        """Return the number of items that show each case of an epoch."""
        return _count(self, epoch)


@lru_cache(maxsize=4)
def _count(schedule: UseSchedule, epoch: int) -> tuple[int, ...]:
    counts = Counter(schedule.cases_of(epoch))
    return tuple(counts[number] for number in range(len(counts)))


@lru_cache(maxsize=4)
def _draw(schedule: UseSchedule, epoch: int) -> tuple[int, ...]:
    rng = numpy_generator(schedule.seed, f"uses/{epoch}")
    left: dict[int, int] = {}
    numbers: dict[int, int] = {}
    entered = 0
    cases = []
    for _ in range(schedule.num_items):
        while len(left) < schedule.window and entered < schedule.num_cases:
            left[entered] = schedule.reuse
            entered += 1
        chosen = list(left)[int(rng.integers(len(left)))]
        left[chosen] -= 1
        if not left[chosen]:
            del left[chosen]
        cases.append(numbers.setdefault(chosen, len(numbers)))
    return tuple(cases)
