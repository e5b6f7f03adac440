"""Whether two ways of drawing the same cases are equal within a margin: paired differences and their 90% intervals.

Two one-sided tests of 5% each (Schuirmann, "A comparison of the two one-sided tests procedure and the power approach",
1987) hold where the 90% interval lies within the margin. A table of which every quantity must hold needs no correction
for their number (Berger and Hsu, "Bioequivalence trials, intersection-union tests and equivalence confidence sets",
1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.evaluation.scores.equivalence import MIN_CASES, jackknife_log_deviations
from maisi_aug.evaluation.scores.statistics import ALPHA

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of paired differences and its 90% interval."""

    value: float
    low: float
    high: float


def compare_means(differences: Array) -> PairedDifference:
    """Student's interval of the mean of differences ``(N,)``, one of each case.

    Raises:
        ValueError: For fewer than six cases.
    """
    if len(differences) < MIN_CASES:
        raise ValueError(f"Paired comparison: expected at least {MIN_CASES} cases, found {len(differences)}.")
    value, error = float(differences.mean()), float(differences.std(ddof=1)) / np.sqrt(len(differences))
    reach = float(stats.t.ppf(1 - ALPHA, len(differences) - 1)) * error
    return PairedDifference(value, value - reach, value + reach)


def compare_shares(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> PairedDifference:
    """Return the difference of two shares of the same cases, with its interval, which always has a width.

    Half a case is added to every kind of pair (Agresti and Min, "Simple improved confidence intervals for comparing
    matched proportions", 2005).

    Args:
        before: ``(N,)`` whether the case counts, in the first condition.
        after: ``(N,)`` the same in the second condition, in the same order.

    Returns:
        Share after minus share before, with the lower and upper end of its 90% interval.
    """
    gained, lost = int((after & ~before).sum()) + 0.5, int((before & ~after).sum()) + 0.5
    num = len(before) + 2
    value = (gained - lost) / num
    reach = float(stats.norm.ppf(1 - ALPHA)) * np.sqrt(gained + lost - (gained - lost) ** 2 / num) / num
    return PairedDifference(value, value - float(reach), value + float(reach))


def compare_spreads(before: Array, after: Array) -> PairedDifference:
    """Return the log ratio of two standard deviations of the same cases, with its interval, by a paired jackknife.

    Args:
        before: ``(N,)`` values of the first condition.
        after: ``(N,)`` values of the second condition, in the same order.

    Returns:
        Natural logarithm of the standard deviation after over that before, with its interval.
    """
    return compare_means(jackknife_log_deviations(after) - jackknife_log_deviations(before))
