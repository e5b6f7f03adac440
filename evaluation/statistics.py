"""Two arms compared patient by patient: interval, test, verdict, and what the test set could have shown.

Scores of an arm are an ``(S, N)`` array: S trainings that differ in their seed, N patients. The patients are the same
in both arms, the seeds are independent draws of each. Both are random factors, because a gain has to hold for another
patient *and* for another training:

- The estimate is the mean over seeds and patients of one arm minus that of the other.
- The interval comes from a two-level bootstrap: patients are drawn with replacement, the same ones for both arms, and
  so are the seeds of each arm. The mean of a seed also differs from that of another by chance on single patients, which
  the patients' part holds already: that share is taken off the seeds' part by analysis of variance. Few of a kind make
  a plain bootstrap too narrow twice over. It loses (n - 1)/n of the variance, which is given back by stretching the
  drawn weights, and it has a normal's tails, which is why the percentiles are taken as far out as Student's t would
  (Hesterberg, "What Teachers Should Know About the Bootstrap", American Statistician 2015, section 4.3), with
  Satterthwaite's degrees of freedom.
- With one seed per arm the seeds' part cannot be known: the interval then speaks of these trainings alone.
- The test is Wilcoxon's signed-rank test on each patient's difference of means over seeds, with Holm's correction over
  the labels.
- The smallest gain that could have been shown is ``max(t(1 - alpha/2) * standard error, margin) + t(power) * standard
  error``, at the same degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.errors import BenchmarkError

ALPHA: Final = 0.05
POWER: Final = 0.8
DEFAULT_MARGIN: Final = 0.01
NUM_RESAMPLES: Final = 10_000
MIN_PATIENTS: Final = 6  # with five, the smallest two-sided p of Wilcoxon's test is 2/32 = 0.0625

Array = NDArray[np.float64]


class Verdict(StrEnum):
    """What a comparison has shown."""

    GAIN = "gain"
    NO_GAIN = "no gain"
    UNDECIDED = "undecided at this size"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The interval as JSON types."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm against another on one label.

    Attributes:
        difference: Mean difference of the score, the arm's minus the other's, with its interval.
        p_value: Of Wilcoxon's signed-rank test.
        p_holm: The same after Holm's correction over the labels; equal to ``p_value`` until that was done.
        smallest_gain: Least true gain that a test set of this size and spread shows four times in five.
        num_patients: Patients compared.
        num_seeds: Trainings of each arm.
        margin: Gains up to here do not matter.
    """

    difference: Interval
    p_value: float
    p_holm: float
    smallest_gain: float
    num_patients: int
    num_seeds: tuple[int, int]
    margin: float = DEFAULT_MARGIN

    @property
    def verdict(self) -> Verdict:
        """Gain: interval and test above zero, mean above the margin. No gain: interval below it. Else undecided."""
        if self.difference.low > 0 and self.p_holm < ALPHA and self.difference.mean > self.margin:
            return Verdict.GAIN
        return Verdict.NO_GAIN if self.difference.high < self.margin else Verdict.UNDECIDED

    @property
    def is_loss(self) -> bool:
        """Whether the arm is worse: interval and test are both below zero."""
        return self.difference.high < 0 and self.p_holm < ALPHA

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        return {
            "difference": self.difference.to_json(),
            "p_value": self.p_value,
            "p_holm": self.p_holm,
            "smallest_gain": self.smallest_gain,
            "num_patients": self.num_patients,
            "num_seeds": list(self.num_seeds),
            "margin": self.margin,
            "verdict": self.verdict.value,
            "is_loss": self.is_loss,
        }


@dataclass(frozen=True, slots=True)
class _Spread:
    """Variance of a mean (difference) and its degrees of freedom."""

    variance: float
    degrees: float


def compare_arms(
    arm: Array,
    other: Array,
    *,
    rng: np.random.Generator,
    margin: float = DEFAULT_MARGIN,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison:
    """Compare two arms on the same patients.

    Args:
        arm: ``(S, N)`` scores of the arm.
        other: ``(T, N)`` scores of what it is held against.
        rng: Source of all randomness.
        margin: Gains up to here do not matter.
        num_resamples: Draws of the bootstrap.

    Returns:
        The comparison, without a correction over labels.

    Raises:
        BenchmarkError: Fewer than two patients, or not the same number in both arms.
    """
    _require_pairs(arm, other)
    draws = bootstrap_mean(arm, rng=rng, other=other, num_resamples=num_resamples)
    spread = _find_spread([arm, other])
    difference = _take_interval(draws, float(arm.mean() - other.mean()), spread)
    p_value = wilcoxon_p(arm.mean(axis=0), other.mean(axis=0))
    return Comparison(
        difference=difference,
        p_value=p_value,
        p_holm=p_value,
        smallest_gain=_smallest_gain(spread, margin),
        num_patients=arm.shape[1],
        num_seeds=(arm.shape[0], other.shape[0]),
        margin=margin,
    )


def find_interval(scores: Array, *, rng: np.random.Generator) -> Interval:
    """Mean of one arm over seeds and patients with its interval; a single patient has none but the mean itself.

    Args:
        scores: ``(S, N)`` between 0 and 1; the interval is cut to that.
        rng: Source of all randomness.
    """
    mean = float(scores.mean())
    if scores.shape[1] < 2:
        return Interval(mean, mean, mean)
    spread = _find_spread([scores])
    found = _take_interval(bootstrap_mean(scores, rng=rng), mean, spread)
    return Interval(mean, max(0.0, found.low), min(1.0, found.high))


def find_ratio_interval(counts: Array, totals: Array, *, rng: np.random.Generator) -> Interval | None:
    """A share of counts that are pooled over patients, such as the share of lesions found, with its interval.

    Lesions of a patient resemble one another, so that patients are drawn, not lesions.

    Args:
        counts: ``(N,)`` per patient.
        totals: ``(N,)`` what they are a share of.
        rng: Source of all randomness.

    Returns:
        None when the totals are zero.
    """
    if not totals.sum():
        return None
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=NUM_RESAMPLES)
    drawn_totals = weights @ totals
    shares = (weights @ counts)[drawn_totals > 0] / drawn_totals[drawn_totals > 0]
    low, high = np.quantile(shares, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(counts.sum() / totals.sum()), float(low), float(high))


def correct_over_labels(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one pair of arms, one for each label, with Holm's p-values."""
    adjusted = adjust_holm([comparison.p_value for comparison in comparisons])
    return [replace(comparison, p_holm=p) for comparison, p in zip(comparisons, adjusted, strict=True)]


def bootstrap_mean(
    scores: Array, *, rng: np.random.Generator, other: Array | None = None, num_resamples: int = NUM_RESAMPLES
) -> Array:
    """Means of an arm, or differences of means of two, over drawn patients and seeds.

    Args:
        scores: ``(S, N)``.
        rng: Source of all randomness.
        other: ``(T, N)`` to subtract; the patients drawn are the same.
        num_resamples: How often to draw.

    Returns:
        ``(num_resamples,)``, with a variance that needs no correction for few seeds or patients.
    """
    arms = [scores] if other is None else [scores, other]
    drawn = _draw_weights(scores.shape[1], num_resamples, rng) @ _patient_scores(arms)
    for arm, sign in zip(arms, (1, -1), strict=False):
        drawn += sign * _draw_weights(len(arm), num_resamples, rng) @ _seed_effects(arm)
    return drawn


def wilcoxon_p(arm: Array, other: Array) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired scores ``(N,)``; 1 when none differs."""
    differences = arm - other
    # Equal means of equal scores may differ in their last bit, which a rank test would take for a difference.
    differences[np.abs(differences) < 1e-12] = 0.0
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm, Scandinavian Journal of Statistics 1979)."""
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def _draw_weights(num: int, num_resamples: int, rng: np.random.Generator) -> Array:
    """Weights ``(num_resamples, num)`` that sum to 1; one of a kind always weighs all of it."""
    if num == 1:
        return np.ones((num_resamples, 1))
    weights = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples) / num
    stretched: Array = 1 / num + np.sqrt(num / (num - 1)) * (weights - 1 / num)
    return stretched


def _patient_scores(arms: Sequence[Array]) -> Array:
    """Each patient's mean over seeds, or difference of two arms' means."""
    scores: Array = arms[0].mean(axis=0)
    return scores - arms[1].mean(axis=0) if len(arms) > 1 else scores


def _seed_effects(arm: Array) -> Array:
    """What each seed adds to the mean of an arm, shrunk to the variance that seeds have beside that of patients."""
    means = arm.mean(axis=1)
    effects: Array = means - means.mean()
    if len(arm) < 2 or not effects.any():
        return np.zeros(len(arm))
    residuals = arm - means[:, None] - arm.mean(axis=0) + means.mean()
    residual_variance = float((residuals**2).sum()) / max(1, (len(arm) - 1) * (arm.shape[1] - 1))
    found = float(means.var(ddof=1))
    shrunk: Array = effects * np.sqrt(max(0.0, found - residual_variance / arm.shape[1]) / found)
    return shrunk


def _find_spread(arms: Sequence[Array]) -> _Spread:
    """Patients' part and every arm's seeds' part of the variance, with Satterthwaite's degrees of freedom."""
    factors = [_patient_scores(arms), *(_seed_effects(arm) for arm in arms if len(arm) > 1)]
    parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in factors]
    variance = sum(part for part, _ in parts)
    if not variance:
        return _Spread(0.0, float(parts[0][1]))
    return _Spread(variance, variance**2 / sum(part**2 / degrees for part, degrees in parts))


def _take_interval(draws: Array, mean: float, spread: _Spread) -> Interval:
    """Percentiles as far out as Student's t."""
    tail = float(stats.norm.cdf(stats.t.ppf(ALPHA / 2, spread.degrees)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _smallest_gain(spread: _Spread, margin: float) -> float:
    error = np.sqrt(spread.variance)
    least_mean = max(stats.t.ppf(1 - ALPHA / 2, spread.degrees) * error, margin)
    return float(least_mean + stats.t.ppf(POWER, spread.degrees) * error)


def _require_pairs(arm: Array, other: Array) -> None:
    if arm.shape[1] != other.shape[1]:
        raise BenchmarkError(
            f"Comparison: expected both arms on the same patients, found {arm.shape[1]} and {other.shape[1]}. "
            "Compare the patients that both have."
        )
    if arm.shape[1] < 2:
        raise BenchmarkError(
            f"Comparison: expected two patients or more, found {arm.shape[1]}. A single one has no spread to judge by."
        )
