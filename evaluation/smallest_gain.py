"""The smallest true gain that a test set of a given size and spread shows four times in five, by simulation."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.evaluation.rank_tests import critical_sum, least_p
from maisi_aug.evaluation.statistics import ALPHA, Spread

POWER: Final = 0.8
NUM_DRAWS: Final = 1000
NUM_HALVINGS: Final = 12
MOST_ERRORS: Final = 40.0
"""Standard errors up to which gains are looked for."""

Array = NDArray[np.float64]


def smallest_gain(spread: Spread, *, margin: float, num_labels: int = 1) -> float | None:
    """The smallest true gain of one label, none of the others gaining, that is called a gain four times in five.

    Differences of patients and effects of seeds are drawn from normals of the measured spread, and judged as the
    verdict judges: Student's interval above zero, Wilcoxon's test below alpha by the number of labels (Holm's first
    step), and a mean above the margin.

    Args:
        spread: Of the difference of two arms.
        margin: Gains up to here do not matter.
        num_labels: Labels over which the test is corrected.

    Returns:
        None when so few patients cannot show any gain.
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
    """How often a true gain is called one."""
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
