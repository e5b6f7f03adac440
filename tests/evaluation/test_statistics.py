from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.statistics import (
    ALPHA,
    Comparison,
    Interval,
    Verdict,
    adjust_holm,
    bootstrap_mean,
    compare_arms,
    correct_over_labels,
    find_interval,
    find_ratio_interval,
    wilcoxon_p,
)

# Dice of ten patients under two trainings.
FIRST = np.array([0.71, 0.64, 0.82, 0.55, 0.90, 0.47, 0.78, 0.66, 0.73, 0.81])
SECOND = np.array([0.66, 0.65, 0.74, 0.41, 0.88, 0.30, 0.79, 0.59, 0.70, 0.72])


def test_bootstrap_equals_scipys_up_to_the_correction_for_few_patients(rng: np.random.Generator) -> None:
    """SciPy's plain bootstrap has (n - 1)/n of the variance: its deviations are stretched before they are compared."""
    draws = bootstrap_mean(FIRST[None], rng=rng, other=SECOND[None], num_resamples=40_000)
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


def test_interval_is_close_to_students(rng: np.random.Generator) -> None:
    difference = FIRST - SECOND
    found = compare_arms(FIRST[None], SECOND[None], rng=rng).difference
    by_t = stats.t.interval(0.95, 9, difference.mean(), stats.sem(difference))
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(by_t[0], abs=0.01)
    assert found.high == pytest.approx(by_t[1], abs=0.01)


def test_wilcoxon_equals_scipys_and_the_enumeration_of_all_signs() -> None:
    differences = FIRST - SECOND
    ranks = stats.rankdata(np.abs(differences))
    sums = [float(ranks @ np.array(signs)) for signs in product((0, 1), repeat=len(ranks))]
    centre, found = ranks.sum() / 2, float(ranks[differences > 0].sum())
    exact = np.mean([abs(value - centre) >= abs(found - centre) - 1e-9 for value in sums])
    assert wilcoxon_p(FIRST, SECOND) == pytest.approx(stats.wilcoxon(FIRST, SECOND).pvalue)
    assert stats.wilcoxon(np.round(differences * 1000) / 1000, method="exact").pvalue == pytest.approx(exact, rel=0.1)


def test_wilcoxon_of_equal_scores_is_one() -> None:
    assert wilcoxon_p(FIRST, FIRST.copy()) == 1.0
    assert wilcoxon_p(FIRST, FIRST + 1e-16) == 1.0


def test_holm_steps_down() -> None:
    # By hand: 4 x 0.005, then 3 x 0.01, 2 x 0.03, and 0.04, which may not be below the one before it.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(("num_seeds", "seed_spread"), [(1, 0.0), (3, 0.03)])
def test_interval_covers_the_truth_as_often_as_it_says(num_seeds: int, seed_spread: float) -> None:
    """A true gain of 0.03 with spread over patients, over seeds and over both; 200 test sets of 12 patients."""
    rng = np.random.default_rng(11)
    truth, num_patients, num_sets, hits = 0.03, 12, 200, 0
    for _ in range(num_sets):
        patients = rng.normal(0.6, 0.2, num_patients)
        arms = [
            patients
            + rng.normal(0, 0.1, num_patients)
            + rng.normal(0, seed_spread, (num_seeds, 1))
            + rng.normal(0, 0.05, (num_seeds, num_patients))
            for _ in range(2)
        ]
        found = compare_arms(arms[0] + truth, arms[1], rng=rng, num_resamples=1000).difference
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / num_sets <= 0.985


def test_smallest_gain_is_shown_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    num_patients, spread = 24, 0.1
    expected = (stats.t.ppf(0.975, 23) + stats.t.ppf(0.8, 23)) * spread / np.sqrt(num_patients)
    gains = []
    for _ in range(100):
        other = rng.normal(0.6, 0.15, (1, num_patients))
        arm = other + expected + rng.normal(0, spread, num_patients)
        found = compare_arms(arm, other, rng=rng, num_resamples=500)
        gains.append((found.verdict is Verdict.GAIN, found.smallest_gain))
    assert np.mean([gain for _, gain in gains]) == pytest.approx(expected, rel=0.05)
    assert 0.68 <= np.mean([is_gain for is_gain, _ in gains]) <= 0.9


def test_no_gain_below_the_margin_is_called_one_that_could_be_shown(rng: np.random.Generator) -> None:
    arm = SECOND + 0.002 + 1e-4 * rng.standard_normal(len(SECOND))
    found = compare_arms(arm[None], SECOND[None], rng=rng, margin=0.01)
    assert found.difference.low > 0
    assert found.verdict is Verdict.NO_GAIN
    assert 0.01 < found.smallest_gain < 0.011


def test_seeds_that_differ_widen_the_interval(rng: np.random.Generator) -> None:
    same, apart = np.tile(FIRST, (3, 1)), FIRST + np.array([[-0.1], [0.0], [0.1]])
    narrow, wide = (compare_arms(arm, np.tile(SECOND, (3, 1)), rng=rng) for arm in (same, apart))
    assert wide.difference.mean == pytest.approx(narrow.difference.mean)
    assert wide.difference.high - wide.difference.low > 2 * (narrow.difference.high - narrow.difference.low)
    assert wide.smallest_gain > 2 * narrow.smallest_gain


COMPARISON = Comparison(Interval(0.03, 0.01, 0.05), 0.01, 0.02, 0.04, 20, (3, 3), margin=0.01)


@pytest.mark.parametrize(
    ("interval", "p_holm", "verdict", "is_loss"),
    [
        (Interval(0.03, 0.01, 0.05), 0.02, Verdict.GAIN, False),
        (Interval(0.005, 0.001, 0.011), 0.04, Verdict.UNDECIDED, False),
        (Interval(0.005, 0.001, 0.009), 0.04, Verdict.NO_GAIN, False),
        (Interval(0.03, 0.01, 0.05), 0.07, Verdict.UNDECIDED, False),
        (Interval(0.03, -0.01, 0.05), 0.02, Verdict.UNDECIDED, False),
        (Interval(0.0, -0.005, 0.005), 0.9, Verdict.NO_GAIN, False),
        (Interval(-0.03, -0.05, -0.01), 0.02, Verdict.NO_GAIN, True),
        (Interval(-0.03, -0.05, -0.01), 0.2, Verdict.NO_GAIN, False),
    ],
)
def test_verdict_needs_interval_and_test(interval: Interval, p_holm: float, verdict: Verdict, is_loss: bool) -> None:
    found = replace(COMPARISON, difference=interval, p_holm=p_holm)
    assert (found.verdict, found.is_loss) == (verdict, is_loss)
    assert found.to_json()["verdict"] == verdict.value


def test_holm_reaches_the_verdicts_of_a_family() -> None:
    family = [replace(COMPARISON, p_value=p, p_holm=p) for p in (0.03, 0.04, 0.2)]
    assert [found.verdict for found in family[:2]] == [Verdict.GAIN] * 2
    assert [found.p_holm for found in correct_over_labels(family)] == pytest.approx([0.09, 0.09, 0.2])
    assert [found.verdict for found in correct_over_labels(family)] == [Verdict.UNDECIDED] * 3


def test_no_gain_is_said_of_equal_arms(rng: np.random.Generator) -> None:
    patients = rng.normal(0.7, 0.1, 30)
    found = compare_arms(*(patients + rng.normal(0, 0.01, (3, 30)) for _ in range(2)), rng=rng)
    assert found.verdict is Verdict.NO_GAIN
    assert found.p_holm > ALPHA


def test_share_of_lesions_found_is_resampled_by_patient(rng: np.random.Generator) -> None:
    counts, totals = np.array([9.0, 0.0, 1.0, 2.0]), np.array([10.0, 1.0, 1.0, 4.0])
    found = find_ratio_interval(counts, totals, rng=rng)
    assert found is not None
    assert found.mean == pytest.approx(12 / 16)
    assert 0 <= found.low < 0.6
    assert 0.85 < found.high <= 1
    assert find_ratio_interval(np.zeros(3), np.zeros(3), rng=rng) is None


def test_interval_of_one_patient_is_its_score(rng: np.random.Generator) -> None:
    assert find_interval(np.array([[0.4], [0.6]]), rng=rng) == Interval(0.5, 0.5, 0.5)


def test_what_cannot_be_compared_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(BenchmarkError, match="expected both arms on the same patients, found 10 and 9"):
        compare_arms(FIRST[None], SECOND[None, :9], rng=rng)
    with pytest.raises(BenchmarkError, match="expected two patients or more, found 1"):
        compare_arms(FIRST[None, :1], SECOND[None, :1], rng=rng)
