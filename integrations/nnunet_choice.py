"""Which cases of a cohort go into a training set: as many as asked, the requests in its proportions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from math import isfinite

from maisi_aug.errors import ExportError
from maisi_aug.manifest import AttemptRecord


def choose_cases(
    cases: Sequence[AttemptRecord], *, num_real: int, ratio: float | None = None, max_per_label: int | None = None
) -> tuple[AttemptRecord, ...]:
    """Choose cases so that every request keeps its share.

    Each next case is one of the request that is furthest behind its share of the cohort (Webster, 1832: the least of
    ``(taken + 1/2) / cases``; ties go to the earlier request), in the order of the plan. So a part of a balanced cohort
    is balanced too, a request with twice the cases gets twice as many, and the same arguments choose the same cases.

    Args:
        cases: Accepted cases in the order of the plan.
        num_real: Cases of the real dataset.
        ratio: Synthetic cases per real case; all that there are when not given.
        max_per_label: How many cases that were asked for one label may be chosen, at most.

    Returns:
        The chosen cases in the order of the plan; fewer than the ratio says where there are not enough.

    Raises:
        ExportError: A number is out of range, or no case is left.
    """
    if ratio is not None and not (isfinite(ratio) and ratio > 0):
        raise ExportError(f"--ratio: expected a number above 0, found {ratio:g}. Give 1 for as many as real cases.")
    if max_per_label is not None and max_per_label < 1:
        raise ExportError(f"--max-per-label: expected at least 1, found {max_per_label}. Leave it out for no cap.")
    limit = len(cases) if ratio is None else count_wanted(ratio, num_real)
    sizes = Counter(case.request for case in cases)
    queues: dict[str, deque[AttemptRecord]] = {}
    for case in cases:
        queues.setdefault(case.request, deque()).append(case)
    chosen: list[AttemptRecord] = []
    counts: Counter[int] = Counter()
    taken = Counter[str]()
    while queues and len(chosen) < limit:
        request = min(queues, key=lambda request: (2 * taken[request] + 1) / sizes[request])
        case_taken = _take_next(queues[request], counts, max_per_label)
        if case_taken is None:
            del queues[request]
            continue
        chosen.append(case_taken)
        taken[request] += 1
        counts.update(case_taken.requested_ids)
    return tuple(sorted(chosen, key=lambda case: case.case_index))


def count_wanted(ratio: float, num_real: int) -> int:
    """How many cases a ratio asks for."""
    return max(1, round(ratio * num_real))


def _take_next(queue: deque[AttemptRecord], counts: Counter[int], max_per_label: int | None) -> AttemptRecord | None:
    """The first case of a queue that stays under the cap; those before it are dropped."""
    while queue:
        case = queue.popleft()
        if max_per_label is None or all(counts[label_id] < max_per_label for label_id in case.requested_ids):
            return case
    return None
