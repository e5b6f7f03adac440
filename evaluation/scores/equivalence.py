"""Whether two sets of numbers are alike for what they are used for: equivalent, different, or undecided.

Two one-sided tests (Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987): the
means are equivalent when the 90% interval of their difference lies within the margin. Welch's interval is taken, since
the sets need not spread alike, and its variance has a second part, because the margin is a multiple of the real set's
standard deviation, which is measured too. Equal means are not enough: lesions that are all of the same size have the
right mean. So the logarithm of the ratio of the standard deviations must pass the same test, by its jackknife
(Miller, "Jackknifing variances", 1968).

Errors: sets whose means differ by the margin, or whose spreads do by theirs, are called equivalent in at most 5%; sets
that do not differ are called different in at most 5%, over all quantities of a table (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.evaluation.scores.statistics import ALPHA, adjust_holm

MIN_CASES: Final = 6
DEFAULT_MARGIN: Final = 0.5
"""Margin in standard deviations of the real set: a "medium" difference in Cohen's terms, hardly visible in single
cases.
"""
SPREAD_MARGIN: Final = float(np.log(2.0))
"""Standard deviations may differ by a factor of two."""
TINY: Final = 1e-9

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated difference with its standard error, and the margin of equivalence.

    Attributes:
        value: Estimated difference.
        error: Standard error of the difference.
        degrees: Degrees of freedom.
        margin: Largest irrelevant difference.
        margin_error: Standard error of the margin.
    """

    value: float
    error: float
    degrees: float
    margin: float
    margin_error: float = 0.0

    @property
    def is_within(self) -> bool:
        """Whether both one-sided tests at 5% reject that the difference is as large as the margin."""
        error = float(np.hypot(self.error, self.margin_error))
        return abs(self.value) + float(stats.t.ppf(1 - ALPHA, self.degrees)) * error < self.margin

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the difference is zero."""
        return float(2 * stats.t.sf(abs(self.value) / max(self.error, TINY), self.degrees))

    def interval(self, level: float = 1 - 2 * ALPHA) -> tuple[float, float]:
        """Return the lower and upper end of the confidence interval of the difference, by Student's t.

        Args:
            level: Confidence in (0, 1); the default of 0.9 is the interval of the two one-sided tests.
        """
        reach = float(stats.t.ppf((1 + level) / 2, self.degrees)) * self.error
        return self.value - reach, self.value + reach


@dataclass(frozen=True, slots=True)
class SetComparison:
    """Comparison of one quantity between a synthetic and a real set.

    Attributes:
        mean: Difference of the means, synthetic minus real.
        spread: Difference of the logarithms of the standard deviations.
        verdict: ``equivalent``, ``different`` or ``cannot tell``.
        p_holm: Holm-adjusted p-value of either difference, corrected for two of them and over the table.
        num_needed: Number of cases of each set with which equivalence is shown nine times in ten if nothing differs.
    """

    mean: Estimate
    spread: Estimate
    verdict: str
    p_holm: float
    num_needed: int

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON-able dict."""
        low, high = self.mean.interval()
        ends = self.spread.interval()
        return {
            "difference": self.mean.value,
            "difference_interval": [low, high],
            "margin": self.mean.margin,
            "spread_ratio": float(np.exp(self.spread.value)),
            "spread_ratio_interval": [float(np.exp(end)) for end in ends],
            "spread_margin": float(np.exp(self.spread.margin)),
            "p_holm": self.p_holm,
            "verdict": self.verdict,
            "num_needed": self.num_needed,
        }


def compare_sets(
    pairs: Mapping[str, tuple[Array, Array]], *, margin: float = DEFAULT_MARGIN
) -> dict[str, SetComparison]:
    """Compare several quantities between a synthetic and a real set.

    Args:
        pairs: Name -> ``(N,)`` real and ``(M,)`` synthetic values, one per case; at least six cases, and not all equal.
        margin: Margin of the mean, in standard deviations of the real values.

    Returns:
        Name -> comparison, with p-values that are adjusted for the number of quantities (Holm).
    """
    estimates = {name: (_compare_means(*pair, margin), _compare_spreads(*pair)) for name, pair in pairs.items()}
    p_values = [min(1.0, 2 * min(mean.p_value, spread.p_value)) for mean, spread in estimates.values()]
    adjusted = dict(zip(estimates, adjust_holm(p_values), strict=True))
    found = {}
    for name, (mean, spread) in estimates.items():
        is_alike = mean.is_within and spread.is_within
        verdict = "equivalent" if is_alike else "different" if adjusted[name] < ALPHA else "cannot tell"
        found[name] = SetComparison(mean, spread, verdict, adjusted[name], _find_num_needed(margin))
    return found


def can_compare(real: Array, synthetic: Array) -> bool:
    """Whether two sets have enough values to be compared, which vary even without any single case.

    Args:
        real: ``(N,)`` values, one per case.
        synthetic: ``(M,)`` values, one per case.
    """
    return all(
        len(values) >= MIN_CASES
        and np.sort(values)[-2] - np.sort(values)[0] > TINY
        and np.sort(values)[-1] - np.sort(values)[1] > TINY
        for values in (real, synthetic)
    )


def _compare_means(real: Array, synthetic: Array, margin: float) -> Estimate:
    parts = [float(values.var(ddof=1)) / len(values) for values in (synthetic, real)]
    variance = sum(parts)
    degrees = variance**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (synthetic, real), strict=True)
    )
    deviation = float(real.std(ddof=1))
    margin_error = margin * deviation / np.sqrt(2 * (len(real) - 1))
    return Estimate(
        float(synthetic.mean() - real.mean()),
        float(np.sqrt(variance)),
        degrees,
        margin * deviation,
        float(margin_error),
    )


def _compare_spreads(real: Array, synthetic: Array) -> Estimate:
    (value, error), (other, other_error) = (_jackknife_log_deviation(values) for values in (synthetic, real))
    degrees = min(len(real), len(synthetic)) - 1  # of the shorter set, which is on the safe side
    return Estimate(value - other, float(np.hypot(error, other_error)), degrees, SPREAD_MARGIN)


def _jackknife_log_deviation(values: Array) -> tuple[float, float]:
    """Logarithm of the standard deviation, without its bias of few, and its standard error."""
    pseudo = jackknife_log_deviations(values)
    return float(pseudo.mean()), float(pseudo.std(ddof=1) / np.sqrt(len(pseudo)))


def jackknife_log_deviations(values: Array) -> Array:
    """Return the jackknife's pseudo-values ``(N,)`` of the logarithm of the standard deviation of ``values``."""
    num = len(values)
    squares = (values - values.mean()) ** 2
    total = squares.sum()
    left = total - num / (num - 1) * squares
    whole = 0.5 * np.log(total / (num - 1))
    return np.asarray(num * whole - (num - 1) * 0.5 * np.log(left / (num - 2)))


def _find_num_needed(margin: float) -> int:
    """By the normal approximation, for the means."""
    reach = float(stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(0.95))
    return int(np.ceil((2 + margin**2 / 2) * (reach / margin) ** 2))
