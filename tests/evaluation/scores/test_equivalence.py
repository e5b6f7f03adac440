from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from maisi_aug.evaluation.scores.equivalence import Estimate, can_compare, compare_sets

NUM_RUNS = 2000


def count_verdicts(
    rng: np.random.Generator, nums: tuple[int, int], *, shift: float = 0.0, scale: float = 1.0, num_runs: int = NUM_RUNS
) -> dict[str, float]:
    """Share of each verdict, of real values of deviation 1 and synthetic ones that differ by so much."""
    found = {"equivalent": 0, "different": 0, "cannot tell": 0}
    for _ in range(num_runs):
        pair = rng.normal(size=nums[0]), shift + scale * rng.normal(size=nums[1])
        found[compare_sets({"x": pair})["x"].verdict] += 1
    return {verdict: count / num_runs for verdict, count in found.items()}


@pytest.mark.parametrize("nums", [(12, 12), (20, 40), (80, 80)])
def test_alike_sets_are_called_different_in_at_most_one_of_twenty(
    rng: np.random.Generator, nums: tuple[int, int]
) -> None:
    assert count_verdicts(rng, nums)["different"] < 0.065  # 5%, and three standard errors of 2,000 runs


@pytest.mark.parametrize(
    ("shift", "scale"),
    [pytest.param(0.5, 1.0, id="at the margin of the mean"), pytest.param(0.0, 2.0, id="at the margin of the spread")],
)
@pytest.mark.parametrize("nums", [(20, 20), (80, 80)])
def test_sets_that_differ_by_a_margin_are_called_equivalent_in_at_most_one_of_twenty(
    rng: np.random.Generator, nums: tuple[int, int], shift: float, scale: float
) -> None:
    assert count_verdicts(rng, nums, shift=shift, scale=scale)["equivalent"] < 0.065


def test_enough_cases_show_what_is_there(rng: np.random.Generator) -> None:
    needed = compare_sets({"x": (rng.normal(size=20), rng.normal(size=20))})["x"].num_needed
    assert count_verdicts(rng, (needed, needed), num_runs=300)["equivalent"] > 0.85
    assert count_verdicts(rng, (60, 60), shift=1.0, num_runs=300)["different"] > 0.95
    assert count_verdicts(rng, (60, 60), scale=0.1, num_runs=300)["different"] > 0.95  # all of one size


def test_table_of_alike_quantities_has_one_error_rate(rng: np.random.Generator) -> None:
    wrong = 0
    for _ in range(300):
        pairs = {str(n): (rng.normal(size=15), rng.normal(size=15)) for n in range(12)}
        wrong += any(row.verdict == "different" for row in compare_sets(pairs).values())
    assert wrong / 300 < 0.09


def test_estimate_is_welchs(rng: np.random.Generator) -> None:
    real, synthetic = rng.normal(size=9), 0.7 + 2 * rng.normal(size=14)
    found = compare_sets({"x": (real, synthetic)})["x"].mean
    expected = stats.ttest_ind(synthetic, real, equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.9)
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_within_is_both_one_sided_tests() -> None:
    assert Estimate(0.1, 0.1, 1e6, 0.265).is_within
    assert not Estimate(0.1, 0.1, 1e6, 0.264).is_within
    assert not Estimate(0.1, 0.1, 1e6, 0.265, margin_error=0.05).is_within


def test_what_cannot_be_compared_is_seen() -> None:
    spread = np.arange(8.0)
    assert can_compare(spread, spread)
    assert not can_compare(spread[:5], spread)
    assert not can_compare(spread, np.ones(8))
    assert not can_compare(np.r_[np.ones(7), 2.0], spread)  # without one of them there is no spread
