"""When a case counts as a copy: distances to the nearest training case, against those of real cases that are none.

Real cases stand for what is no copy, so that pairs which are one are left out of them: a case that lies twice in the
folders, and scans of one patient. What remains, such as follow-up scans whose patient nobody names, is why the rule
rests on a low quantile and not on the lowest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

COPY_SHARE: Final = 0.5
"""A copy is nearer than this share of a low quantile of the real cases' distances."""
LOW_QUANTILE: Final = 0.1
SURE_COPY: Final = 0.05
"""Whatever the real cases are like, a copy is nearer than this share of its own typical distance."""
LEAST_TYPICAL: Final = 0.001
"""Far below the distance of two patients; where all training cases are one, rounding is not divided by rounding."""
MIN_CASES: Final = 5
ALPHA: Final = 0.05


@dataclass(frozen=True, eq=False)
class Nearest:
    """Nearest training cases of some cases.

    Attributes:
        distances: Of each case to its nearest training case.
        relative: The same divided by the median distance to all training cases.
        indices: Which training case that is.
    """

    distances: NDArray[np.float64]
    relative: NDArray[np.float64]
    indices: NDArray[np.int_]


class Double(NamedTuple):
    """A real case and a training case that say nothing about copies.

    Attributes:
        case: Index of the real case.
        train: Index of the training case.
        is_same_patient: Whether that is why; else the two are almost identical.
    """

    case: int
    train: int
    is_same_patient: bool


def find_nearest(distances: NDArray[np.float64]) -> Nearest:
    """The nearest of each row, which holds at least one number."""
    filled = np.where(np.isnan(distances), np.inf, distances)
    indices = filled.argmin(axis=1)
    nearest = filled[np.arange(len(filled)), indices]
    return Nearest(nearest, nearest / _typical(distances), indices)


def find_reference(
    distances: NDArray[np.float64], patients: Sequence[str], train_patients: Sequence[str]
) -> tuple[NDArray[np.float64], list[Double]]:
    """Relative distances of real cases to their nearest training case that is another one, of another patient.

    Args:
        distances: ``(real, train)``, with at least one number in each row; NaN where a case would meet itself.
        patients: Of the real cases; empty where they are not known.
        train_patients: Of the training cases.

    Returns:
        The relative distances, of as many cases as still have a training case to be held against, and the pairs that
        were left out.
    """
    is_same = np.array([[bool(p) and p == q for q in train_patients] for p in patients])
    relative = distances / _typical(distances)[:, np.newaxis]
    left_out = np.isfinite(relative) & (is_same | (relative < SURE_COPY))
    doubles = [Double(int(row), int(column), bool(is_same[row, column])) for row, column in np.argwhere(left_out)]
    kept = np.where(left_out | np.isnan(relative), np.inf, relative).min(axis=1)
    return kept[np.isfinite(kept)], doubles


def find_threshold(reference: NDArray[np.float64], *, num_train: int) -> float:
    """The relative distance below which a case is a copy."""
    if min(len(reference), num_train) < MIN_CASES:
        return SURE_COPY
    return max(SURE_COPY, COPY_SHARE * float(np.quantile(reference, LOW_QUANTILE)))


def judge(
    synthetic: NDArray[np.float64], reference: NDArray[np.float64], *, num_train: int
) -> tuple[str, float | None, NDArray[np.bool_]]:
    """What relative distances say.

    Args:
        synthetic: Of the synthetic cases.
        reference: Of the held-out cases; may be empty.
        num_train: How many training cases there are.

    Returns:
        The verdict, the one-sided p of the rank-sum test that synthetic cases are nearer, and which cases are copies.
    """
    from scipy.stats import mannwhitneyu

    copies = synthetic < find_threshold(reference, num_train=num_train)
    p = None
    verdict = f"undecided with fewer than {MIN_CASES} cases of a kind"
    if min(len(reference), num_train, len(synthetic)) >= MIN_CASES:
        p = float(mannwhitneyu(synthetic, reference, alternative="less").pvalue)
        is_near = p < ALPHA
        verdict = (
            "nearer to training cases than held-out cases are, without a copy" if is_near else "no sign of memorization"
        )
    if copies.any():
        verdict = f"{int(copies.sum())} of {len(synthetic)} repeat a training case"
    return verdict, p, copies


def _typical(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median distance of each row, never less than what rounding makes of identical cases."""
    typical: NDArray[np.float64] = np.maximum(np.nanmedian(distances, axis=1), LEAST_TYPICAL)
    return typical
