"""Two arms compared patient by patient: interval, test, verdict, and what the test set could have shown.

The interval is that of ``statistics``. The test is Wilcoxon's signed-rank test on each patient's difference of means
over seeds, exact, with Holm's correction over the labels. A verdict needs something to go by: six patients, for with
five the smallest two-sided p is 2/32 = 0.0625; two trainings of one of the arms, for a single one of each cannot tell
an arm from a seed; and a label that one of the arms finds at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.scores.statistics import (
    ALPHA,
    NUM_RESAMPLES,
    Interval,
    Spread,
    adjust_holm,
    critical_sum,
    find_spread,
    interval_of_mean,
    least_p,
    wilcoxon_p,
)

POWER: Final = 0.8
NUM_DRAWS: Final = 1000
NUM_HALVINGS: Final = 12
MOST_ERRORS: Final = 40.0
"""Upper end of the search for the smallest gain, in standard errors."""

Array = NDArray[np.float64]


def smallest_gain(spread: Spread, *, margin: float, num_labels: int = 1) -> float | None:
    """Return the smallest true gain of one label that is detected four times in five, if no other label gains.

    Differences of patients and effects of seeds are simulated as normal variables with the measured spread, and judged
    as the verdict judges: Student's interval above zero, Wilcoxon's test below alpha divided by the number of labels
    (Holm's first step), and a mean above the margin.

    Args:
        spread: Spread of the difference of two arms.
        margin: Largest irrelevant gain.
        num_labels: Labels over which the test is corrected.

    Returns:
        The gain; None if there are too few patients to show any gain.
    """
    alpha = ALPHA / num_labels
    if least_p(spread.num_patients) >= alpha:
        return None
    if not spread.variance:
        return margin
    low, high = 0.0, margin + MOST_ERRORS * float(np.sqrt(spread.variance))
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        if _share_shown(middle, spread, margin, alpha) < POWER:
            low = middle
        else:
            high = middle
    return high


def _share_shown(gain: float, spread: Spread, margin: float, alpha: float) -> float:
    """Return the share of true gains that are recognised."""
    patients, seeds = _draw_normals(spread.num_patients, len(spread.seeds))
    shift = sum(np.sqrt(part) * drawn for (part, _), drawn in zip(spread.seeds, seeds, strict=True))
    differences = gain + np.sqrt(spread.patients * spread.num_patients) * patients + np.reshape(shift, (-1, 1))
    means = differences.mean(axis=1)
    error = np.sqrt(differences.var(axis=1, ddof=1) / spread.num_patients + spread.variance - spread.patients)
    is_above = means - stats.t.ppf(1 - ALPHA / 2, spread.degrees) * error > 0
    ranks = np.argsort(np.argsort(np.abs(differences), axis=1), axis=1) + 1
    negative = (ranks * (differences < 0)).sum(axis=1)
    is_sure = negative <= critical_sum(spread.num_patients, alpha)
    return float(np.mean(is_above & is_sure & (means > margin)))


@lru_cache(maxsize=8)
def _draw_normals(num_patients: int, num_seed_parts: int) -> tuple[Array, Array]:
    """The same draws every time, so that the share of them changes with the gain alone."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((NUM_DRAWS, num_patients)), rng.standard_normal((num_seed_parts, NUM_DRAWS))


DEFAULT_MARGIN: Final = 0.01
MIN_PATIENTS: Final = 6
MOST: Final = 1.0
"""Largest possible score; the smallest is 0."""
FOUND: Final = 0.01
"""Smallest mean score at which an arm counts as finding a label."""


class Verdict(StrEnum):
    """Verdict of a comparison: gain, no gain or undecided."""

    GAIN = "gain"
    NO_GAIN = "no gain"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of one arm with another on one label.

    Attributes:
        difference: Mean difference of the score, arm minus other, with its interval; None if no patient has the label.
        p_value: P-value of Wilcoxon's signed-rank test; None below two patients.
        p_holm: P-value after Holm's correction over the labels.
        smallest_gain: Smallest true gain that is detected four times in five with this test set; None if none could be.
        num_patients: Number of patients compared.
        num_seeds: Number of finished trainings of each arm.
        margin: Largest irrelevant gain.
        is_found: Whether either arm finds the label at all.
    """

    difference: Interval | None
    p_value: float | None
    p_holm: float | None
    smallest_gain: float | None
    num_patients: int
    num_seeds: tuple[int, int]
    margin: float = DEFAULT_MARGIN
    is_found: bool = True

    @property
    def obstacle(self) -> str:
        """Reason why nothing can be decided, whatever the figures are; empty if there is none."""
        if self.num_patients < MIN_PATIENTS:
            return f"{self.num_patients or 'no'} test patient{'s' if self.num_patients != 1 else ''} with the label"
        if max(self.num_seeds) < 2:
            return "one training of each arm"
        return "" if self.is_found else "neither arm finds it"

    @property
    def verdict(self) -> Verdict:
        """Gain if interval and test are above zero and the mean above the margin; no gain if the interval is below it.

        Everything else is undecided.
        """
        found = self.difference
        if self.obstacle or found is None or found.low is None or found.high is None or self.p_holm is None:
            return Verdict.UNDECIDED
        if found.low > 0 and self.p_holm < ALPHA and found.mean > self.margin:
            return Verdict.GAIN
        return Verdict.NO_GAIN if found.high < self.margin else Verdict.UNDECIDED

    @property
    def is_loss(self) -> bool:
        """Whether the arm is worse than the other: interval and test are below zero."""
        found = self.difference
        if self.obstacle or found is None or found.high is None or self.p_holm is None:
            return False
        return found.high < 0 and self.p_holm < ALPHA

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON-able dict."""
        return {
            "difference": None if self.difference is None else self.difference.to_json(),
            "p_value": self.p_value,
            "p_holm": self.p_holm,
            "smallest_gain": self.smallest_gain,
            "num_patients": self.num_patients,
            "num_seeds": list(self.num_seeds),
            "margin": self.margin,
            "verdict": self.verdict.value,
            "obstacle": self.obstacle,
            "is_loss": self.is_loss,
        }


def compare_arms(
    pairs: Mapping[str, tuple[Array, Array]],
    *,
    rng: np.random.Generator,
    margin: float = DEFAULT_MARGIN,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Comparison]:
    """Compare two arms on the same patients, label by label.

    Args:
        pairs: Label -> ``(S, N)`` scores of the arm and ``(T, N)`` scores of the other arm, for S and T trainings and
            the N patients with the label.
        rng: Source of all randomness; every label uses the same draws.
        margin: Largest irrelevant gain.
        num_resamples: Number of bootstrap samples.

    Returns:
        Label -> comparison, with Holm's correction over the labels of at least two patients.

    Raises:
        BenchmarkError: The arms have different numbers of patients for a label.
    """
    _require_pairs(pairs)
    tested = {
        label: wilcoxon_p(arm.mean(0), other.mean(0)) for label, (arm, other) in pairs.items() if arm.shape[1] > 1
    }
    adjusted = dict(zip(tested, adjust_holm(list(tested.values())), strict=True))
    state = rng.bit_generator.state
    found = {}
    for label, (arm, other) in pairs.items():
        rng.bit_generator.state = state
        found[label] = Comparison(
            difference=_find_difference(arm, other, rng=rng, num_resamples=num_resamples),
            p_value=tested.get(label),
            p_holm=adjusted.get(label),
            smallest_gain=_find_smallest_gain(arm, other, margin, len(tested)) if label in tested else None,
            num_patients=arm.shape[1],
            num_seeds=(len(arm), len(other)),
            margin=margin,
            is_found=bool(arm.size) and max(float(arm.mean()), float(other.mean())) >= FOUND,
        )
    return found


def _find_difference(arm: Array, other: Array, *, rng: np.random.Generator, num_resamples: int) -> Interval | None:
    if not arm.shape[1]:
        return None
    if arm.shape[1] < 2:
        return Interval(float(arm.mean() - other.mean()), None, None)
    return interval_of_mean(arm, other, rng=rng, num_resamples=num_resamples).cut(-MOST, MOST)


def _find_smallest_gain(arm: Array, other: Array, margin: float, num_labels: int) -> float | None:
    gain = smallest_gain(find_spread(arm, other), margin=margin, num_labels=num_labels)
    return None if gain is None or gain > MOST else gain


def _require_pairs(pairs: Mapping[str, tuple[Array, Array]]) -> None:
    for label, (arm, other) in pairs.items():
        if arm.shape[1] != other.shape[1]:
            raise BenchmarkError(
                f"Comparison of {label}: both arms must have the same patients, found {arm.shape[1]} and "
                f"{other.shape[1]}. Compare the patients that both have."
            )
