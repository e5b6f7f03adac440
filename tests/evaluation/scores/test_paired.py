"""Paired differences: their intervals cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.evaluation.scores.paired import compare_means, compare_shares, compare_spreads

NUM_TRIALS = 1500


def test_mean_has_students_interval() -> None:
    found = compare_means(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    # t of 5 degrees at 95% is 2.01505; the standard error is 1.870829 / sqrt(6) = 0.763763
    assert (found.value, found.low, found.high) == pytest.approx((3.5, 1.960978, 5.039022), abs=1e-5)
    with pytest.raises(ValueError, match="at least 6 cases, found 5"):
        compare_means(np.arange(5.0))


def test_shares_that_agree_in_all_cases_still_leave_doubt() -> None:
    flags = np.ones(40, dtype=bool)
    found = compare_shares(flags, flags)
    # (b, c) = (0.5, 0.5) of 42: 1.644854 * sqrt(1) / 42
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -0.039163, 0.039163), abs=1e-5)
    three_lost = compare_shares(flags, np.arange(40) >= 3)
    assert three_lost.value == pytest.approx(-3 / 42)
    assert three_lost.low < -0.10
    assert compare_shares(np.arange(40) >= 3, flags).high > 0.10


def test_equal_spreads_are_found_in_nine_of_ten_intervals(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(NUM_TRIALS):
        before = rng.normal(0.0, 30.0, 44)
        found = compare_spreads(before, 1.2 * before + rng.normal(0.0, 10.0, 44))
        truth = float(np.log(np.hypot(36.0, 10.0) / 30.0))
        covered += found.low < truth < found.high
    assert 0.85 < covered / NUM_TRIALS < 0.94


def test_spread_sees_what_means_do_not(rng: np.random.Generator) -> None:
    before = rng.normal(-50.0, 20.0, 44)
    flat = before.mean() + 0.5 * (before - before.mean())
    assert compare_means(flat - before).value == pytest.approx(0.0, abs=1e-9)
    assert compare_spreads(before, flat).high < -0.5
