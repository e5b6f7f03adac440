from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.integrations.nnunet.request import choose_cases
from tests.builders.tiny_cohort import HEPATIC_TUMOR, KIDNEY_TUMOR, build_record


def build_cases(requests: Sequence[tuple[str, int, int]]) -> list[AttemptRecord]:
    """Cases of each request, as many as it says, one request after the other."""
    cases: list[AttemptRecord] = []
    for request, label_id, count in requests:
        for _ in range(count):
            cases.append(build_record(Path(), len(cases), {}, requested=[label_id], request=request))
    return cases


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ((90, 10), 10, (9, 1)),
        ((10, 90), 20, (2, 18)),
        ((6, 3, 3), 4, (2, 1, 1)),
        ((5, 5), 4, (2, 2)),
        ((3, 1), 9, (3, 1)),
    ],
)
def test_requests_keep_their_shares(sizes: tuple[int, ...], limit: int, expected: tuple[int, ...]) -> None:
    cases = build_cases([(f"hepatic tumor:{number}", HEPATIC_TUMOR, size) for number, size in enumerate(sizes)])
    chosen = choose_cases(cases, num_real=limit, ratio=1)
    counts = Counter(case.request for case in chosen)
    assert tuple(counts[f"hepatic tumor:{number}"] for number in range(len(sizes))) == expected
    assert chosen == choose_cases(cases, num_real=limit, ratio=1)
    assert [case.case_index for case in chosen] == sorted(case.case_index for case in chosen)


def test_request_that_the_cap_ends_leaves_its_place_to_others() -> None:
    cases = build_cases([("a", HEPATIC_TUMOR, 8), ("b", KIDNEY_TUMOR, 4)])
    chosen = choose_cases(cases, num_real=6, ratio=1, max_per_label=3)
    assert Counter(case.request for case in chosen) == {"a": 3, "b": 3}
