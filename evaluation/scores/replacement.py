"""Worth of a training set with synthetic cases in real ones, read from a learning curve of real cases alone.

The curve is ``a - b n^(-c)``, the form that error follows in the number of training cases (Hestness et al., "Deep
Learning Scaling is Predictable, Empirically", 2017), fitted to the mean scores by least squares. A training set is
worth ``n`` real cases where the curve passes its score. The interval is found by inversion, as in calibration: it holds
every ``n`` at which the difference of curve and score is not significant. That difference has the variance of draws of
training cases and that of test patients, each by its jackknife, and Student's t with Satterthwaite's degrees of
freedom; so it need not be symmetric, and has no end where the curve is too flat to tell. The curve is not trusted
beyond the counts that were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.evaluation.scores.statistics import ALPHA

MIN_COUNTS: Final = 3
MIN_DRAWS: Final = 3
MIN_PATIENTS: Final = 5
EXPONENTS: Final = np.linspace(0.1, 2.0, 39)
NUM_PLACES: Final = 400
TINY: Final = 1e-12

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """A learning curve ``a - b n^(-c)``.

    Attributes:
        ceiling: a, the score with very many cases.
        drop: b, at least 0.
        exponent: c.
    """

    ceiling: float
    drop: float
    exponent: float

    def __call__(self, counts: Array) -> Array:
        """Return the score for a number of real cases."""
        scores: Array = self.ceiling - self.drop * counts**-self.exponent
        return scores


@dataclass(frozen=True, slots=True)
class Worth:
    """Number of real cases that a training set with synthetic cases is worth, with its interval.

    Attributes:
        estimate: Number of real cases; None outside of the range that was trained on.
        low: Lower end of the 95% interval; None if it is below the smallest count.
        high: Upper end of the 95% interval; None if it is above the largest count.
        obstacle: Why nothing can be said; otherwise empty.
    """

    estimate: float | None
    low: float | None
    high: float | None
    obstacle: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the estimate and its interval as a JSON-able dict."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "obstacle": self.obstacle}


def fit_curve(counts: Array, scores: Array) -> Curve:
    """Fit a learning curve ``a - b n^(-c)`` by least squares; a flat line if scores do not rise.

    Args:
        counts: ``(C,)`` numbers of real cases.
        scores: ``(C,)`` mean scores with these numbers of cases.
    """
    ceilings, drops, exponents = _fit_all(counts, scores[np.newaxis])
    return Curve(float(ceilings[0]), float(drops[0]), float(exponents[0]))


def find_worth(counts: Sequence[int], scores: Array, mixed: Array) -> Worth:
    """Return how many real cases alone reach the score of a training set with synthetic cases.

    Args:
        counts: Numbers of real cases, ascending.
        scores: ``(C, D, N)`` scores of real cases alone, by count, draw of the training cases and test patient.
        mixed: ``(D, N)`` scores of the training set with synthetic cases, for the same draws and patients.
    """
    num_draws, num_patients = mixed.shape
    obstacle = _find_obstacle(len(counts), num_draws, num_patients)
    if obstacle:
        return Worth(None, None, None, obstacle)
    places = np.geomspace(counts[0], counts[-1], NUM_PLACES)
    numbers = np.asarray(counts, dtype=np.float64)
    whole = _differ(numbers, scores.mean((1, 2))[np.newaxis], np.array([mixed.mean()]), places)[0]
    parts = []
    for axis, num in ((0, num_draws), (1, num_patients)):
        left = [(np.delete(scores, n, axis + 1).mean((1, 2)), np.delete(mixed, n, axis).mean()) for n in range(num)]
        values = _differ(numbers, np.array([row for row, _ in left]), np.array([mean for _, mean in left]), places)
        parts.append((num - 1) / num * ((values - values.mean(0)) ** 2).sum(0))
    variance = np.maximum(parts[0] + parts[1], TINY)
    degrees = variance**2 / np.maximum(parts[0] ** 2 / (num_draws - 1) + parts[1] ** 2 / (num_patients - 1), TINY**2)
    reach = stats.t.ppf(1 - ALPHA / 2, degrees) * np.sqrt(variance)
    return _read_off(places, whole, np.abs(whole) <= reach)


def _read_off(places: Array, difference: Array, is_possible: NDArray[np.bool_]) -> Worth:
    """The place where the curve passes a score, and the ends of what is possible."""
    estimate = None
    if difference[0] <= 0 <= difference[-1] and difference[-1] > difference[0]:
        estimate = float(np.exp(np.interp(0.0, difference, np.log(places))))
        passed = int(np.searchsorted(places, estimate))
        is_possible[max(0, passed - 1) : passed + 1] = True  # an interval may be narrower than the places are apart
    if not is_possible.any():  # all of the curve lies above, or below
        return Worth(None, float(places[-1]), None) if difference[-1] < 0 else Worth(None, None, float(places[0]))
    first, last = np.flatnonzero(is_possible)[[0, -1]]
    low = None if first == 0 else float(places[first])
    high = None if last == len(places) - 1 else float(places[last])
    if low is None and high is None:
        return Worth(None, None, None, "the curve of real cases is too flat, or its interval too wide")
    return Worth(estimate, low, high)


def _find_obstacle(num_counts: int, num_draws: int, num_patients: int) -> str:
    if num_counts < MIN_COUNTS:
        return f"{num_counts} numbers of real cases are finished, but a curve needs {MIN_COUNTS}"
    if num_draws < MIN_DRAWS:
        return f"{num_draws} draws are finished, but an interval needs {MIN_DRAWS}"
    if num_patients < MIN_PATIENTS:
        return f"{num_patients} test patients show the label, but an interval needs {MIN_PATIENTS}"
    return ""


def _differ(counts: Array, scores: Array, mixed: Array, places: Array) -> Array:
    """Curve minus score at every place, ``(R, P)``, of R replicates of scores ``(R, C)`` and ``(R,)``."""
    ceilings, drops, exponents = (values[:, np.newaxis] for values in _fit_all(counts, scores))
    difference: Array = ceilings - drops * places**-exponents - mixed[:, np.newaxis]
    return difference


def _fit_all(counts: Array, scores: Array) -> tuple[Array, Array, Array]:
    """Of every row of ``(R, C)`` scores the ceiling, drop and exponent with the least squares."""
    powers = counts ** -EXPONENTS[:, np.newaxis]
    centred = powers - powers.mean(axis=1, keepdims=True)
    moved = scores - scores.mean(axis=1, keepdims=True)
    drops = np.maximum(-(moved @ centred.T) / (centred**2).sum(axis=1), 0.0)
    errors = ((moved[:, np.newaxis] + drops[:, :, np.newaxis] * centred) ** 2).sum(axis=2)
    best = errors.argmin(axis=1)
    rows = np.arange(len(scores))
    drop = drops[rows, best]
    return scores.mean(axis=1) + drop * powers.mean(axis=1)[best], drop, EXPONENTS[best]
