"""Lesion size: percentile, volume and equivalent diameter, and the distributions that tie them together.

A size percentile is a fraction in [0, 1] of the distribution of the largest lesion per patient: one lesion requested is
one patient's main lesion. The diameter of a volume is that of the sphere of equal volume.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from maisi_aug.errors import RequestError, did_you_mean

NUM_QUANTILES = 21
_MM3_PER_ML = 1000.0


def diameter_mm(volume_ml: float) -> float:
    """Return the diameter in mm of the sphere that has this volume in mL."""
    return float((6.0 * volume_ml * _MM3_PER_ML / math.pi) ** (1.0 / 3.0))


def volume_ml(diameter_mm: float) -> float:
    """Return the volume in mL of the sphere that has this diameter in mm."""
    return math.pi * diameter_mm**3 / 6.0 / _MM3_PER_ML


SIZE_UNITS: Mapping[str, tuple[Literal["mm", "ml"], float]] = {
    "mm": ("mm", 1.0),
    "cm": ("mm", 10.0),
    **dict.fromkeys(("ml", "cc", "ccm", "cm3", "cm^3", "cm³"), ("ml", 1.0)),
    **dict.fromkeys(("mm3", "mm^3", "mm³"), ("ml", 1e-3)),
    "l": ("ml", 1e3),
}
"""Units of sizes in lower case: whether they are of a diameter, in mm, or of a volume, in mL, and how many of those."""


@dataclass(frozen=True, slots=True)
class SizeDistribution:
    """Distribution over patients of the volume of the largest lesion with a label.

    Attributes:
        label: Name of the label whose lesions were measured.
        quantiles_ml: Quantiles of the volume in mL at 0, 5, ..., 100 percent; positive and not decreasing.
        source: Source of the figures.
        stand_in_for: Name of the label for which this distribution is a stand-in; None for the label that was measured.
    """

    label: str
    quantiles_ml: tuple[float, ...]
    source: str
    stand_in_for: str | None = None

    def __post_init__(self) -> None:
        rises = all(low <= high for low, high in zip(self.quantiles_ml, self.quantiles_ml[1:], strict=False))
        positive = all(math.isfinite(volume) and volume > 0 for volume in self.quantiles_ml)
        if len(self.quantiles_ml) != NUM_QUANTILES or not rises or not positive:
            raise RequestError(
                f"Sizes of '{self.label}': expected {NUM_QUANTILES} positive volumes in mL that never fall, found "
                f"{list(self.quantiles_ml)}. Correct the quantiles."
            )

    def volume_ml(self, percentile: float) -> float:
        """Return the volume in mL at a percentile in [0, 1], with log-linear interpolation between quantiles.

        Raises:
            RequestError: The percentile lies outside [0, 1].
        """
        if not 0.0 <= percentile <= 1.0:
            raise RequestError(
                f"Size percentile of '{self.label}': expected a fraction in [0, 1], found {percentile:g}. "
                "Use 0.3 for the 30th percentile."
            )
        # 0.3 x 20 is 5.999...: without rounding a tabulated percentile would miss its own quantile.
        place = round(percentile * (NUM_QUANTILES - 1), 9)
        below = min(int(place), NUM_QUANTILES - 2)
        share = place - below
        low, high = self.quantiles_ml[below], self.quantiles_ml[below + 1]
        if share in (0.0, 1.0):
            return high if share else low
        return float(low ** (1.0 - share) * high**share)

    def percentile(self, volume_ml: float) -> float:
        """Return the fraction in [0, 1] of patients whose largest lesion is smaller than a volume in mL."""
        if volume_ml <= self.quantiles_ml[0]:
            return 0.0
        if volume_ml >= self.quantiles_ml[-1]:
            return 1.0
        above = bisect_left(self.quantiles_ml, volume_ml)
        low, high = self.quantiles_ml[above - 1], self.quantiles_ml[above]
        share = math.log(volume_ml / low) / math.log(high / low)
        return (above - 1 + share) / (NUM_QUANTILES - 1)

    def cut(self, low_ml: float, high_ml: float) -> tuple[float, ...]:
        """Return the quantiles of the distribution among lesions of a range of volumes.

        Args:
            low_ml: Smallest volume in mL.
            high_ml: Largest volume in mL.

        Returns:
            21 volumes in mL, ascending: the quantiles 0, 0.05, ..., 1.
        """
        first, last = self.percentile(low_ml), self.percentile(high_ml)
        steps = (step / (NUM_QUANTILES - 1) for step in range(NUM_QUANTILES))
        return tuple(self.volume_ml(min(1.0, first + step * (last - first))) for step in steps)


@cache
def _tables() -> dict[str, Any]:
    text = Path(__file__).parents[1].joinpath("data").joinpath("lesion_sizes.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def reference_labels() -> tuple[str, ...]:
    """Return the names of the labels with a reference size distribution, measured ones first."""
    return (*_tables()["measured"], *_tables()["stand_ins"])


@cache
def reference_distribution(label_name: str) -> SizeDistribution:
    """Return the package's size distribution for a label, which for some labels is a stand-in, marked as such.

    Raises:
        RequestError: The package has none for this label.
    """
    measured, stand_ins = _tables()["measured"], _tables()["stand_ins"]
    if label_name in measured:
        row = measured[label_name]
        return SizeDistribution(label_name, tuple(row["largest_per_patient_ml"]), row["source"])
    if label_name not in stand_ins:
        raise RequestError(
            f"Sizes of '{label_name}': no lesion sizes are known for this label, only for "
            f"{', '.join(reference_labels())}.{did_you_mean(label_name, reference_labels())} Give the size in mm or "
            "mL, or measure your own lesions with --size-reference."
        )
    row = stand_ins[label_name]
    base = reference_distribution(row["stand_in"])
    low_ml, high_ml = row["limits_ml"]
    source = f"estimated, not measured: {base.label} cut at {low_ml:g}-{high_ml:g} mL ({base.source})"
    return SizeDistribution(base.label, base.cut(low_ml, high_ml), source, stand_in_for=label_name)


def measure_distribution(
    volumes_per_patient_ml: Sequence[Sequence[float]], label: str, source: str
) -> SizeDistribution:
    """Return the size distribution of lesions in the user's own data.

    Args:
        volumes_per_patient_ml: For each patient, the volumes of all lesions in mL; patients without any are ignored.
        label: Name of the label that was measured.
        source: Origin of the lesions, for the plan and the manifest.

    Raises:
        RequestError: No patient has a lesion.
    """
    largest = sorted(max(volumes) for volumes in volumes_per_patient_ml if volumes)
    if not largest:
        raise RequestError(
            f"Sizes of '{label}' from {source}: no patient with a lesion in {len(volumes_per_patient_ml)} label "
            "maps. Check --size-label."
        )
    quantiles = (_quantile(largest, step / (NUM_QUANTILES - 1)) for step in range(NUM_QUANTILES))
    return SizeDistribution(label, tuple(quantiles), f"{source}, {len(largest)} patients")


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """Linear interpolation between order statistics, NumPy's default definition."""
    place = fraction * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
