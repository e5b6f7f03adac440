from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from maisi_aug.evaluation.scores.statistics import adjust_holm, critical_sum, least_p, wilcoxon_p

# Dice of ten patients under two trainings.
FIRST = np.array([0.71, 0.64, 0.82, 0.55, 0.90, 0.47, 0.78, 0.66, 0.73, 0.81])
SECOND = np.array([0.66, 0.65, 0.74, 0.41, 0.88, 0.30, 0.79, 0.59, 0.70, 0.72])


def enumerate_p(differences: np.ndarray) -> float:
    """Two-sided p by all sign patterns of the differences that are none."""
    differences = differences[differences != 0]
    ranks = stats.rankdata(np.abs(differences))
    sums = np.array([ranks @ np.array(signs) for signs in product((0, 1), repeat=len(ranks))])
    found = ranks[differences > 0].sum()
    return float(np.mean(np.abs(sums - ranks.sum() / 2) >= abs(found - ranks.sum() / 2) - 1e-9))


def test_wilcoxon_without_ties_equals_scipys(rng: np.random.Generator) -> None:
    for num in (6, 17, 40):
        arm, other = rng.normal(0.1, 0.3, num), rng.normal(0, 0.3, num)
        assert wilcoxon_p(arm, other) == pytest.approx(stats.wilcoxon(arm, other, method="exact").pvalue)


def test_wilcoxon_with_ties_equals_the_enumeration_of_all_signs() -> None:
    differences = np.array([0.02, 0.02, -0.01, 0.03, 0.05, 0.05, -0.05, 0.0, 0.0, 0.08])
    assert wilcoxon_p(differences, np.zeros(10)) == pytest.approx(enumerate_p(differences))
    assert wilcoxon_p(np.round(FIRST, 1), np.round(SECOND, 1)) == pytest.approx(
        enumerate_p(np.round(np.round(FIRST, 1) - np.round(SECOND, 1), 9))
    )


@pytest.mark.parametrize(("num_differing", "p"), [(1, 1.0), (2, 0.5), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_patients_without_a_difference_prove_nothing(num_differing: int, p: float) -> None:
    arm = np.zeros(24)
    arm[:num_differing] = np.linspace(0.01, 0.3, num_differing)
    assert wilcoxon_p(arm, np.zeros(24)) == pytest.approx(p)
    assert least_p(num_differing) == p


def test_wilcoxon_of_equal_scores_is_one() -> None:
    assert wilcoxon_p(FIRST, FIRST.copy()) == 1.0
    assert wilcoxon_p(FIRST, FIRST + 1e-16) == 1.0


@pytest.mark.parametrize(("num", "alpha"), [(12, 0.05), (12, 0.005), (6, 0.05), (5, 0.05)])
def test_critical_sum_parts_the_sure_from_the_rest(num: int, alpha: float) -> None:
    def p_of(negative_sum: int) -> float:
        sums = np.array([np.arange(1, num + 1) @ np.array(signs) for signs in product((0, 1), repeat=num)])
        return float(2 * np.mean(sums <= negative_sum))

    found = critical_sum(num, alpha)
    assert p_of(found + 1) >= alpha
    assert found < 0 or p_of(found) < alpha


def test_holm_steps_down() -> None:
    # By hand: 4 x 0.005, then 3 x 0.01, 2 x 0.03, and 0.04, which may not be below the one before it.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_holm([]) == []
