from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from maisi_aug.evaluation.scores.statistics import (
    Interval,
    bootstrap_mean,
    find_interval,
    find_ratio_interval,
    interval_of_mean,
)
from tests.evaluation.scores.test_rank_tests import FIRST, SECOND


def width(interval: Interval | None) -> float:
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_bootstrap_equals_scipys_up_to_the_correction_for_few_patients(rng: np.random.Generator) -> None:
    """SciPy's plain bootstrap has (n - 1)/n of the variance: its deviations are stretched before they are compared."""
    draws = bootstrap_mean(FIRST[None], SECOND[None], rng=rng, num_resamples=40_000)
    by_scipy = stats.bootstrap(
        (FIRST, SECOND),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        n_resamples=40_000,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    stretch = np.sqrt(10 / 9)
    mean = (FIRST - SECOND).mean()
    assert draws.std() == pytest.approx(by_scipy.standard_error * stretch, rel=0.02)
    expected = mean + stretch * (np.array(by_scipy.confidence_interval) - mean)
    np.testing.assert_allclose(np.quantile(draws, [0.025, 0.975]), expected, atol=0.002)


def test_interval_is_close_to_students_and_never_inside_it(rng: np.random.Generator) -> None:
    difference = FIRST - SECOND
    found = interval_of_mean(FIRST[None], SECOND[None], rng=rng)
    low, high = stats.t.interval(0.95, 9, difference.mean(), stats.sem(difference))
    assert found.mean == pytest.approx(difference.mean())
    assert low - 0.01 <= (found.low or 0) <= low + 1e-9
    assert high - 1e-9 <= (found.high or 0) <= high + 0.01


@pytest.mark.parametrize(
    ("num_patients", "num_seeds", "seed_spread"),
    [(12, (1, 1), 0.0), (12, (3, 3), 0.03), (3, (1, 1), 0.0), (5, (1, 1), 0.0), (30, (2, 2), 0.05), (30, (1, 3), 0.03)],
)
def test_interval_covers_the_truth_as_often_as_it_says(
    num_patients: int, num_seeds: tuple[int, int], seed_spread: float
) -> None:
    """A true gain of 0.03 with spread over patients, over seeds and over both; 300 test sets."""
    rng = np.random.default_rng(11)
    truth, hits = 0.03, 0
    for _ in range(300):
        patients = rng.normal(0.6, 0.2, num_patients)
        arms = [
            patients
            + rng.normal(0, 0.1, num_patients)
            + rng.normal(0, seed_spread, (num, 1))
            + rng.normal(0, 0.05 if num > 1 else 0.0, (num, num_patients))
            for num in num_seeds
        ]
        found = interval_of_mean(arms[0] + truth, arms[1], rng=rng, num_resamples=500)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.905 <= hits / 300 <= 0.99


def test_seeds_that_differ_widen_the_interval(rng: np.random.Generator) -> None:
    same, apart = np.tile(FIRST, (3, 1)), FIRST + np.array([[-0.1], [0.0], [0.1]])
    narrow, wide = (interval_of_mean(arm, np.tile(SECOND, (3, 1)), rng=rng) for arm in (same, apart))
    assert wide.mean == pytest.approx(narrow.mean)
    assert width(wide) > 2 * width(narrow)


def test_arm_of_one_seed_borrows_the_spread_of_the_other(rng: np.random.Generator) -> None:
    apart = FIRST + np.array([[-0.1], [0.0], [0.1]])
    known = interval_of_mean(apart, np.tile(SECOND, (3, 1)), rng=rng)
    borrowed = interval_of_mean(apart, SECOND[None], rng=rng)
    alone = interval_of_mean(FIRST[None], SECOND[None], rng=rng)
    assert width(borrowed) > 1.5 * width(known) > width(alone)


def test_share_of_lesions_found_is_resampled_by_patient(rng: np.random.Generator) -> None:
    counts, totals = np.array([[9.0, 0.0, 1.0, 2.0]]), np.array([[10.0, 1.0, 1.0, 4.0]])
    found = find_ratio_interval(counts, totals, rng=rng)
    assert found is not None
    assert found.mean == pytest.approx(12 / 16)
    assert 0 <= (found.low or 0) < 0.6
    assert 0.85 < (found.high or 0) <= 1
    assert find_ratio_interval(np.zeros((1, 3)), np.zeros((1, 3)), rng=rng) is None


def test_share_of_one_patients_lesions_has_no_interval(rng: np.random.Generator) -> None:
    found = find_ratio_interval(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), rng=rng)
    assert found == Interval(0.5, None, None)


def test_shares_of_two_arms_differ_by_patients_and_seeds(rng: np.random.Generator) -> None:
    totals = np.full((3, 20), 2.0)
    low, high = rng.binomial(2, 0.3, (3, 20)).astype(float), rng.binomial(2, 0.7, (3, 20)).astype(float)
    found = find_ratio_interval(high, totals, low, totals, rng=rng)
    assert found is not None
    assert found.mean == pytest.approx((high.sum() - low.sum()) / 120)
    assert found.low is not None
    assert 0 < found.low < found.mean
    paired = find_ratio_interval(high, totals, high, totals, rng=rng)
    assert paired is not None
    assert paired.mean == 0
    uneven = np.clip(high + np.array([[-1], [0], [1]]), 0, 2)
    assert width(find_ratio_interval(uneven, totals, low, totals, rng=rng)) > width(found)


def test_one_patient_has_no_interval(rng: np.random.Generator) -> None:
    assert find_interval(np.array([[0.4], [0.6]]), rng=rng) == Interval(0.5, None, None)


def test_interval_of_scores_stays_between_none_and_all(rng: np.random.Generator) -> None:
    found = find_interval(np.array([[0.0, 0.0, 0.9, 0.0]]), rng=rng)
    assert found.low == 0.0
    assert 0.5 < (found.high or 0) <= 1.0
