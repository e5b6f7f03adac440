"""Lesion-wise detection: which lesions of a case were found, missed or made up, by size.

A lesion is a connected component (faces, edges or corners touching). Predicted lesions are matched to real ones one to
one, best overlap first, from an intersection over union of 0.1 on; panoptica's ``NaiveThresholdMatching`` is the same
rule. The threshold is low because the question is whether a lesion was found, not how well it was outlined: that is
what Dice and NSD are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.components import label_parts

MIN_IOU: Final = 0.1
BINS_MM: Final = (0.0, 10.0, 20.0, 30.0, float("inf"))


@dataclass(frozen=True, slots=True)
class LesionMatch:
    """One lesion of a case: a real lesion, found or not, or a false positive.

    Attributes:
        diameter_mm: Equivalent-sphere diameter in mm of the real lesion, or of the false positive.
        is_real: Whether the lesion is in the reference.
        is_found: Whether a predicted lesion was matched to it; False for a false positive.
        iou: Intersection over union of the match; 0 without one.
    """

    diameter_mm: float
    is_real: bool
    is_found: bool
    iou: float

    def to_json(self) -> dict[str, Any]:
        """Return the match as a JSON-able dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DetectionFigures:
    """Numbers of found and missed lesions and of false positives, in one size bin.

    Attributes:
        name: Name of the size bin.
        num_found: Number of real lesions that were found.
        num_missed: Number of real lesions that were missed.
        num_made_up: Number of false positives, counted in the bin of their own size.
    """

    name: str
    num_found: int
    num_missed: int
    num_made_up: int

    @property
    def sensitivity(self) -> float | None:
        """Fraction of real lesions that were found; None without real lesions."""
        num_real = self.num_found + self.num_missed
        return self.num_found / num_real if num_real else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of sensitivity and precision; None if there is neither a real nor a predicted lesion."""
        denominator = 2 * self.num_found + self.num_missed + self.num_made_up
        return 2 * self.num_found / denominator if denominator else None

    def to_json(self) -> dict[str, Any]:
        """Return the counts, sensitivity and F1 as a JSON-able dict."""
        return {**asdict(self), "sensitivity": self.sensitivity, "f1": self.f1}


def match_lesions(
    reference: NDArray[np.bool_], found: NDArray[np.bool_], *, voxel_ml: float
) -> tuple[LesionMatch, ...]:
    """Match the connected lesions of a prediction with those of the reference, one to one.

    Args:
        reference: ``(I, J, K)`` mask of all real lesions with a label.
        found: ``(I, J, K)`` mask of all predicted lesions.
        voxel_ml: Volume of a voxel in mL.

    Returns:
        Every real lesion in the order of components, then the false positives.
    """
    real, num_real = label_parts(reference)
    predicted, num_predicted = label_parts(found)
    shape = (num_real + 1, num_predicted + 1)
    pairs = real.ravel().astype(np.int64) * shape[1] + predicted.ravel()
    overlap = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    real_voxels, predicted_voxels = overlap.sum(axis=1), overlap.sum(axis=0)
    union = real_voxels[1:, None] + predicted_voxels[None, 1:] - overlap[1:, 1:]
    iou = overlap[1:, 1:] / np.maximum(union, 1)
    matched = _match_best_first(iou)
    lesions = [
        LesionMatch(_diameter(real_voxels[row + 1], voxel_ml), True, row in matched, _iou_of(iou, row, matched))
        for row in range(num_real)
    ]
    made_up = sorted(set(range(num_predicted)) - set(matched.values()))
    lesions += [LesionMatch(_diameter(predicted_voxels[col + 1], voxel_ml), False, False, 0.0) for col in made_up]
    return tuple(lesions)


def count_by_size(lesions: Iterable[LesionMatch]) -> tuple[DetectionFigures, ...]:
    """Count matched lesions in total and by diameter.

    Args:
        lesions: Results of :func:`match_lesions` of any number of cases.

    Returns:
        Counts of all lesions, named ``all``, and of every bin of ``BINS_MM``, ascending; bins include their lower and
        exclude their upper edge.
    """
    found = list(lesions)
    groups = [("all", found)]
    groups += [
        (name_of_bin(low, high), [x for x in found if low <= x.diameter_mm < high]) for low, high in pairwise(BINS_MM)
    ]
    return tuple(_count(name, group) for name, group in groups)


def _count(name: str, lesions: Sequence[LesionMatch]) -> DetectionFigures:
    return DetectionFigures(
        name,
        num_found=sum(lesion.is_real and lesion.is_found for lesion in lesions),
        num_missed=sum(lesion.is_real and not lesion.is_found for lesion in lesions),
        num_made_up=sum(not lesion.is_real for lesion in lesions),
    )


def _match_best_first(iou: NDArray[np.float64]) -> dict[int, int]:
    """Real lesion to predicted lesion, each at most once."""
    matched: dict[int, int] = {}
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), iou.shape[1])
        if iou[row, column] < MIN_IOU:
            break
        if row not in matched and column not in matched.values():
            matched[row] = column
    return matched


def _iou_of(iou: NDArray[np.float64], row: int, matched: dict[int, int]) -> float:
    return float(iou[row, matched[row]]) if row in matched else 0.0


def _diameter(num_voxels: int, voxel_ml: float) -> float:
    return diameter_mm(float(num_voxels) * voxel_ml)


def name_of_bin(low: float, high: float) -> str:
    """Return the name of a range of diameters for tables, such as ``10-20 mm``.

    Args:
        low: Lower edge in mm; 0 gives ``under 10 mm``.
        high: Upper edge in mm; infinity gives ``30 mm and more``.
    """
    if high == float("inf"):
        return f"{low:g} mm and more"
    return f"{low:g}-{high:g} mm" if low else f"under {high:g} mm"
