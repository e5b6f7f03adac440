"""Dice, in the one place where it is computed; what it is of a label that the reference lacks is None, never 0 or 1.

Whether a case counts for a label is decided by its reference alone. Dice is 2 |A and B| / (|A| + |B|), in voxels (Dice,
"Measures of the Amount of Ecologic Association Between Species", Ecology 1945).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.components import Mask


def measure_dice(expected: Mask, found: Mask) -> float | None:
    """Dice of two masks of one shape; None where the expected one is empty, whatever was found."""
    in_both, in_expected, in_found = (int(np.count_nonzero(mask)) for mask in (expected & found, expected, found))
    return _to_dice(in_both, in_expected, in_found)


def measure_dice_by_class(expected: NDArray[Any], found: NDArray[Any], num_classes: int) -> list[float | None]:
    """Dice of every class of two maps of one shape.

    Args:
        expected: ``(I, J, K)`` classes that are right, below ``num_classes``.
        found: ``(I, J, K)`` classes to compare, below ``num_classes``.
        num_classes: How many there are, the background among them.

    Returns:
        One by class, between 0 and 1; None for a class that the expected map lacks.
    """
    maps = (expected[expected == found], expected, found)
    counts = (np.bincount(one.ravel(), minlength=num_classes).tolist() for one in maps)
    return [_to_dice(*row) for row in zip(*counts, strict=True)]


def _to_dice(in_both: int, in_expected: int, in_found: int) -> float | None:
    return 2 * in_both / (in_expected + in_found) if in_expected else None
