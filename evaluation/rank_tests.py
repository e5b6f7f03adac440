"""Wilcoxon's signed-rank test without approximation, and Holm's correction.

Dice of tumours is often 0 in both arms, so that a test set of 24 patients may hold five differences. SciPy then falls
back on the normal approximation (``scipy.stats.wilcoxon``, from 14 pairs with zeros or ties on), which calls five equal
signs p = 0.043 where two to the power of five sign patterns allow no less than 0.0625.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SAME: Final = 1e-12
"""Equal means of equal scores may differ in their last bits, which a rank test would take for a difference."""

Array = NDArray[np.float64]


def wilcoxon_p(arm: Array, other: Array) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired scores ``(N,)``, exact; 1 when none differs.

    Pairs that do not differ are left out; equal differences share their ranks.
    """
    differences = arm - other
    differences = differences[np.abs(differences) > SAME]
    if not len(differences):
        return 1.0
    ranks = stats.rankdata(np.abs(differences).round(12))
    doubled = np.rint(2 * ranks).astype(np.int64)  # ties have half ranks
    positive = int(doubled[differences > 0].sum())
    below = _cumulate(tuple(sorted(doubled.tolist())))
    tail = min(positive, int(doubled.sum()) - positive)  # the distribution is symmetric
    return min(1.0, 2 * float(below[tail]))


def least_p(num_patients: int) -> float:
    """The smallest p that Wilcoxon's test can give of so many pairs."""
    return float(min(1.0, 2.0 ** (1 - num_patients)))


def critical_sum(num_patients: int, alpha: float) -> int:
    """The largest of the two rank sums at which so many pairs without ties have a two-sided p below ``alpha``.

    Returns:
        The sum; -1 when not even 0 is enough.
    """
    below = _cumulate(tuple(range(1, num_patients + 1)))
    return int(np.searchsorted(2 * below, alpha, side="left")) - 1


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm, Scandinavian Journal of Statistics 1979)."""
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


@lru_cache(maxsize=256)
def _cumulate(ranks: tuple[int, ...]) -> Array:
    """For every sum the probability that the ranks of positive signs add up to it or less, when signs are coins."""
    chances = np.zeros(sum(ranks) + 1)
    chances[0] = 1.0
    top = 0
    for rank in ranks:
        top += rank
        chances[: top + 1] = (chances[: top + 1] + np.r_[np.zeros(rank), chances[: top + 1 - rank]]) / 2
    cumulated: Array = np.cumsum(chances)
    return cumulated
