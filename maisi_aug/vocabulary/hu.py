"""Reference HU: the published range of every organ's median, and the sign of a lesion's contrast."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from maisi_aug.vocabulary.labels import MAISI

MIN_ORGAN_VOXELS = 30
"""Smallest number of voxels at which an organ is judged; parts cut by the field of view are only reported."""


@dataclass(frozen=True, slots=True)
class HuRange:
    """Range for the median HU of an organ, or of several organs taken together.

    Attributes:
        name: Name of the organ or group.
        label_ids: Ids whose voxels are taken together.
        low_hu: Lowest plausible median HU.
        high_hu: Highest plausible median HU.
        median_hu: Usual median HU, from which a bias is measured; None if unknown.
    """

    name: str
    label_ids: tuple[int, ...]
    low_hu: float
    high_hu: float
    median_hu: float | None = None

    def split(self) -> tuple[HuRange, ...]:
        """Return the same range for each organ of the group separately, named as in the vocabulary."""
        return tuple(
            HuRange(MAISI.name_of(label_id), (label_id,), self.low_hu, self.high_hu, self.median_hu)
            for label_id in self.label_ids
        )


@cache
def reference_hu_ranges() -> tuple[HuRange, ...]:
    """Return the published HU ranges of liver, spleen, pancreas, kidneys, lungs, bones and brain."""
    return tuple(
        HuRange(
            row["name"],
            tuple(row["label_ids"]),
            float(row["low_hu"]),
            float(row["high_hu"]),
            (row["statistics"]["sigma_6_low"] + row["statistics"]["sigma_6_high"]) / 2,
        )
        for row in _reference()["organs"]
    )


def expected_contrast_sign(label_name: str) -> int:
    """Return the usual sign of a tumour's contrast to its host: 1 if brighter, -1 if darker, 0 if either or unknown."""
    sign: int = _reference()["lesion_contrast"].get(label_name, 0)
    return sign


@cache
def _reference() -> dict[str, Any]:
    text = Path(__file__).parents[1].joinpath("data").joinpath("hu_ranges.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


@cache
def bundle_hu_ranges(name: str) -> tuple[HuRange, ...]:
    """Return the published HU ranges, adapted to the usual images of a bundle, and those of further organs.

    Args:
        name: Name of the bundle, or of the base that it shares its networks with.
    """
    own = _reference()["bundles"].get(name)
    if own is None:
        return reference_hu_ranges()
    usual = [replace(row, median_hu=own["medians_hu"].get(row.name, row.median_hu)) for row in reference_hu_ranges()]
    further = [HuRange(**{**row, "label_ids": tuple(row["label_ids"])}) for row in own["further"]]
    return (*usual, *further)
