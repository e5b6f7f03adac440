"""Means over patients and trainings with their intervals, for one arm and for the difference of two.

Scores of an arm are an ``(S, N)`` array: S trainings that differ in their seed, N patients. The patients are the same
in both arms, the seeds are independent draws of each. Both are random factors, because a gain has to hold for another
patient *and* for another training:

- The estimate is the mean over seeds and patients of one arm minus that of the other.
- The interval comes from a two-level bootstrap: patients are drawn with replacement, the same ones for both arms, and
  so are the seeds of each arm. The mean of a seed also differs from that of another by chance on single patients, which
  the patients' part holds already: that share is taken off the seeds' part by analysis of variance. An arm of one seed
  borrows the other's spread of seeds.
- Few of a kind make a plain bootstrap too narrow three times over. It loses (n - 1)/n of the variance, which is given
  back by stretching the drawn weights. It has a normal's tails, which is why the percentiles are taken as far out as
  Student's t would (Hesterberg, "What Teachers Should Know About the Bootstrap", American Statistician 2015, section
  4.3), with Satterthwaite's degrees of freedom. And no draw lies outside what was measured: of three patients, the
  interval would hold the truth in 84% of all cases. So it reaches at least as far as Student's own.
- With one seed in both arms the seeds' part cannot be known: the interval then speaks of these trainings alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SAME: Final = 1e-12
"""Equal means of equal scores may differ in their last bits, which a rank test would take for a difference."""

Array = NDArray[np.float64]


def wilcoxon_p(arm: Array, other: Array) -> float:
    """Return the exact two-sided p-value of Wilcoxon's signed-rank test on paired scores.

    Pairs that do not differ are left out; equal differences share their ranks.

    Args:
        arm: ``(N,)`` scores, one per patient.
        other: ``(N,)`` scores to compare with, of the same patients in the same order.

    Returns:
        Value in (0, 1]; 1 if no pair differs.
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
    """Return the smallest p-value that Wilcoxon's signed-rank test can reach with a number of pairs."""
    return float(min(1.0, 2.0 ** (1 - num_patients)))


def critical_sum(num_patients: int, alpha: float) -> int:
    """Return the largest rank sum of Wilcoxon's test with a two-sided p-value below a level, for pairs without ties.

    Args:
        num_patients: Number of pairs, all of which differ.
        alpha: Level of the test, such as 0.05.

    Returns:
        The rank sum; -1 if even 0 is not sufficient.
    """
    below = _cumulate(tuple(range(1, num_patients + 1)))
    return int(np.searchsorted(2 * below, alpha, side="left")) - 1


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down adjustment (Holm, Scandinavian Journal of Statistics 1979)."""
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


ALPHA: Final = 0.05
NUM_RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95% interval, whose ends are None for a single patient."""

    mean: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return mean and interval as a JSON-able dict."""
        return {"mean": self.mean, "low": self.low, "high": self.high}

    def cut(self, least: float, most: float) -> Interval:
        """Return the interval with its ends clipped to the possible range; unchanged if it has no ends.

        Args:
            least: Smallest possible value.
            most: Largest possible value.
        """
        if self.low is None or self.high is None:
            return self
        return Interval(self.mean, max(least, self.low), min(most, self.high))


@dataclass(frozen=True, slots=True)
class Spread:
    """Sources of the variance of a mean, or of a difference of two means: patients and seeds.

    Attributes:
        patients: Variance due to patients.
        num_patients: Number of patients.
        seeds: Variance due to seeds of each arm, with its degrees of freedom.
    """

    patients: float
    num_patients: int
    seeds: tuple[tuple[float, int], ...]

    @property
    def variance(self) -> float:
        """Variance of the mean."""
        return self.patients + sum(part for part, _ in self.seeds)

    @property
    def degrees(self) -> float:
        """Satterthwaite's degrees of freedom of the variance."""
        parts = [(self.patients, self.num_patients - 1), *self.seeds]
        if not self.variance:
            return float(self.num_patients - 1)
        return float(self.variance**2 / sum(part**2 / degrees for part, degrees in parts))


def find_interval(scores: Array, *, rng: np.random.Generator) -> Interval:
    """Return the mean score of one arm over seeds and patients, with its interval; a single patient has no interval.

    Args:
        scores: ``(S, N)`` scores in [0, 1] by seed and patient; the interval is clipped to that range.
        rng: Source of all randomness.
    """
    if scores.shape[1] < 2:
        return Interval(float(scores.mean()), None, None)
    return interval_of_mean(scores, rng=rng).cut(0.0, 1.0)


def interval_of_mean(
    scores: Array, other: Array | None = None, *, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """Return the mean of an arm, or the difference of the means of two arms, with its interval.

    Args:
        scores: ``(S, N)`` scores by seed and patient, of at least two patients.
        other: ``(T, N)`` scores of the arm to subtract, for the same patients; None for one arm.
        rng: Source of all randomness.
        num_resamples: Number of bootstrap draws.
    """
    mean = float(scores.mean() - (0.0 if other is None else other.mean()))
    draws = bootstrap_mean(scores, other, rng=rng, num_resamples=num_resamples)
    spread = find_spread(scores, other)
    reach = float(stats.t.ppf(1 - ALPHA / 2, spread.degrees) * np.sqrt(spread.variance))
    low, high = _percentiles(draws, spread.degrees)
    return Interval(mean, min(low, mean - reach), max(high, mean + reach))


def find_ratio_interval(
    counts: Array,
    totals: Array,
    other_counts: Array | None = None,
    other_totals: Array | None = None,
    *,
    rng: np.random.Generator,
) -> Interval | None:
    """Return a fraction of counts pooled over patients, or the difference of two fractions, with its interval.

    Lesions of a patient resemble one another, so patients are drawn, not lesions. Seeds are drawn as for other
    intervals, but without a correction for chance on single patients; an arm with one seed is not resampled.

    Args:
        counts: ``(S, N)`` numerators by seed and patient.
        totals: ``(S, N)`` denominators by seed and patient.
        other_counts: ``(T, N)`` numerators of the arm to subtract; None for one arm.
        other_totals: ``(T, N)`` denominators of the arm to subtract; None for one arm.
        rng: Source of all randomness.

    Returns:
        The interval, without ends if a single patient has any counts; None if the totals of an arm are zero.
    """
    arms = [(counts, totals)]
    if other_counts is not None and other_totals is not None:
        arms.append((other_counts, other_totals))
    if any(not arm_totals.any() for _, arm_totals in arms):
        return None
    counted = np.any([arm_totals.any(axis=0) for _, arm_totals in arms], axis=0)
    shares = [float(arm_counts.sum() / arm_totals.sum()) for arm_counts, arm_totals in arms]
    mean = shares[0] - (shares[1] if len(shares) > 1 else 0.0)
    num = int(counted.sum())
    if num < 2:
        return Interval(mean, None, None)
    patients = _draw_counts(num, rng)
    drawn = [
        _draw_share(arm_counts[:, counted], arm_totals[:, counted], patients, rng) for arm_counts, arm_totals in arms
    ]
    draws = drawn[0] - (drawn[1] if len(drawn) > 1 else 0.0)
    draws = mean + np.sqrt(num / (num - 1)) * (draws[np.isfinite(draws)] - mean)
    low, high = _percentiles(draws, num - 1)
    return Interval(mean, min(low, mean), max(high, mean)).cut(0.0 if len(arms) == 1 else -1.0, 1.0)


def bootstrap_mean(
    scores: Array, other: Array | None = None, *, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> Array:
    """Return bootstrap means of an arm, or differences of the means of two arms, over drawn patients and seeds.

    Args:
        scores: ``(S, N)`` scores by seed and patient.
        other: ``(T, N)`` scores of the arm to subtract, with the same drawn patients; None for one arm.
        rng: Source of all randomness.
        num_resamples: Number of bootstrap draws.

    Returns:
        ``(num_resamples,)`` means, whose variance is already corrected for few seeds or patients.
    """
    arms = [scores] if other is None else [scores, other]
    drawn = _draw_weights(scores.shape[1], num_resamples, rng) @ _patient_scores(arms)
    for arm, sign in zip(arms, (1, -1), strict=False):
        effects = _seed_effects(_lender(arm, arms))
        if len(arm) > 1:
            drawn += sign * _draw_weights(len(effects), num_resamples, rng) @ effects
        elif len(effects) > 1:  # one seed, which lies anywhere among those of the other arm
            drawn += sign * np.sqrt(len(effects) / (len(effects) - 1)) * rng.choice(effects, num_resamples)
    return drawn


def find_spread(scores: Array, other: Array | None = None) -> Spread:
    """Split the variance of a mean, or of a difference of two, into that of patients and that of each arm's seeds.

    Args:
        scores: ``(S, N)`` scores by seed and patient.
        other: ``(T, N)`` scores of the arm to subtract; None for one arm.
    """
    arms = [scores] if other is None else [scores, other]
    differences = _patient_scores(arms)
    seeds: dict[int, tuple[float, int]] = {}
    for arm in arms:
        lender = _lender(arm, arms)
        if len(lender) > 1:
            # What is borrowed is no further knowledge: it counts together with the lender's own part.
            before = seeds.get(id(lender), (0.0, 0))[0]
            variance = float(_seed_effects(lender).var(ddof=1))
            seeds[id(lender)] = (before + variance / len(arm), len(lender) - 1)
    num = len(differences)
    return Spread(float(differences.var(ddof=1)) / num, num, tuple(seeds.values()))


def _lender(arm: Array, arms: Sequence[Array]) -> Array:
    """Whose seeds tell how far those of an arm spread: its own where it has several, else another's."""
    return arm if len(arm) > 1 else max(arms, key=len)


def _percentiles(draws: Array, degrees: float) -> tuple[float, float]:
    """As far out as Student's t."""
    tail = float(stats.norm.cdf(stats.t.ppf(ALPHA / 2, degrees)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _draw_counts(num: int, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> Array:
    """Draw how often each item is resampled, of shape ``(num_resamples, num)``."""
    drawn: Array = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples).astype(np.float64)
    return drawn


def _draw_weights(num: int, num_resamples: int, rng: np.random.Generator) -> Array:
    """Weights ``(num_resamples, num)`` that sum to 1; one of a kind always weighs all of it."""
    if num == 1:
        return np.ones((num_resamples, 1))
    weights = _draw_counts(num, rng, num_resamples) / num
    stretched: Array = 1 / num + np.sqrt(num / (num - 1)) * (weights - 1 / num)
    return stretched


def _draw_share(counts: Array, totals: Array, patients: Array, rng: np.random.Generator) -> Array:
    """Pooled shares under drawn patients and drawn seeds; not finite where none of the totals was drawn."""
    seeds = _draw_counts(len(counts), rng)
    drawn_counts = np.einsum("rs,sn,rn->r", seeds, counts, patients, optimize=True)
    drawn_totals = np.einsum("rs,sn,rn->r", seeds, totals, patients, optimize=True)
    shares: Array = np.full(len(patients), np.nan)
    np.divide(drawn_counts, drawn_totals, out=shares, where=drawn_totals > 0)
    return shares


def _patient_scores(arms: Sequence[Array]) -> Array:
    """Each patient's mean over seeds, or difference of two arms' means."""
    scores: Array = arms[0].mean(axis=0)
    return scores - arms[1].mean(axis=0) if len(arms) > 1 else scores


def _seed_effects(arm: Array) -> Array:
    """Return the effect of each seed on the mean of an arm, shrunk to the variance that is due to seeds."""
    means = arm.mean(axis=1)
    effects: Array = means - means.mean()
    if len(arm) < 2 or not effects.any():
        return np.zeros(len(arm))
    residuals = arm - means[:, None] - arm.mean(axis=0) + means.mean()
    residual_variance = float((residuals**2).sum()) / max(1, (len(arm) - 1) * (arm.shape[1] - 1))
    found = float(means.var(ddof=1))
    shrunk: Array = effects * np.sqrt(max(0.0, found - residual_variance / arm.shape[1]) / found)
    return shrunk
