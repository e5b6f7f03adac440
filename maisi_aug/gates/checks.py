"""Quality gates: each compares a case with what was asked for and returns a verdict with its figures.

A gate never raises on a bad image or label map: whatever is wrong is a verdict that did not pass, so that one bad case
never stops a cohort. Arrays have axes ``I J K``; intensities are Hounsfield units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.lesions.lesion import GrowthRule, Lesion
from maisi_aug.vocabulary.hu import MIN_ORGAN_VOXELS, HuRange, _reference, reference_hu_ranges
from maisi_aug.vocabulary.labels import MAISI, Vocabulary
from maisi_aug.volumes.components import is_any_of
from maisi_aug.volumes.grid import Grid

MIN_BIAS_ORGANS = 2
PLAUSIBLE_HU = (-1100.0, 4000.0)
MIN_SHAPE_VOXELS = 30
"""Lesions with fewer voxels have no shape to speak of."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one gate.

    Attributes:
        gate: Name of the gate: "geometry", "presence", "lesion size", "lesion place", "organ HU", "HU bias",
            "lesion visibility" or "patient".
        passed: Whether the case may be kept as far as this gate is concerned.
        figures: What was measured and what was expected.
        message: One sentence for people.
    """

    gate: str
    passed: bool
    figures: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON values; figures that are not finite become null."""
        plain: dict[str, Any] = _to_plain(
            {"gate": self.gate, "passed": self.passed, "figures": self.figures, "message": self.message}
        )
        return plain


def check_geometry(image_hu: NDArray[Any], label_map: NDArray[Any] | None, grid: Grid, expected: Grid) -> Verdict:
    """Image and label map share the expected grid, and the image holds finite, varying, plausible numbers.

    Args:
        image_hu: ``(I, J, K)`` intensities.
        label_map: ``(I, J, K)`` label ids; None for an image without one.
        grid: Grid of both.
        expected: Grid that was asked for.
    """
    finite = np.isfinite(image_hu)
    low, high = (float(image_hu[finite].min()), float(image_hu[finite].max())) if finite.any() else (math.nan, math.nan)
    figures = {
        "image_shape": list(image_hu.shape),
        "label_map_shape": None if label_map is None else list(label_map.shape),
        "expected_shape": list(expected.shape),
        "spacing_mm": list(grid.spacing_mm),
        "expected_spacing_mm": list(expected.spacing_mm),
        "num_not_finite": int(finite.size - np.count_nonzero(finite)),
        "lowest_hu": low,
        "highest_hu": high,
    }
    problems = []
    if image_hu.shape != expected.shape or (label_map is not None and label_map.shape != expected.shape):
        problems.append("shapes that are not the expected one")
    if not grid.is_close(expected):
        problems.append("a grid that is not the expected one")
    if not finite.all():
        problems.append(f"{figures['num_not_finite']} values that are not finite")
    if not low < high:
        problems.append("an image without any structure")
    if low < PLAUSIBLE_HU[0] or high > PLAUSIBLE_HU[1]:
        problems.append(f"intensities from {low:.0f} to {high:.0f} HU")
    return _verdict("geometry", figures, problems, "Geometry: the grid is the expected one.")


def check_presence(label_map: NDArray[Any], required_ids: Sequence[int], *, vocabulary: Vocabulary = MAISI) -> Verdict:
    """Every required label is there.

    Args:
        label_map: ``(I, J, K)`` label ids.
        required_ids: Ids that must be there.
        vocabulary: Names for the message.
    """
    # Slice by slice, and all ids at once: a user's map may have a hundred of them.
    num_ids = 1 + max(int(label_map.max()), *required_ids, 0)
    found = np.sum([np.bincount(plane.ravel(), minlength=num_ids) for plane in label_map], axis=0)
    counts = {label_id: int(found[label_id]) for label_id in required_ids}
    missing = [label_id for label_id, count in counts.items() if not count]
    figures = {"num_voxels": {str(label_id): count for label_id, count in counts.items()}, "missing_ids": missing}
    problems = [f"{counts[label_id]} voxels of {_name_of(label_id, vocabulary)}" for label_id in missing]
    return _verdict("presence", figures, problems, f"Presence: all {len(counts)} required labels are there.")


def check_lesion_size(
    requested_ml: float | Sequence[float],
    realised_ml: float | Sequence[float],
    voxel_ml: float,
    tolerance: float = 0.10,
) -> Verdict:
    """As many lesions as requested, each within the tolerance or two voxels, whichever is more.

    Args:
        requested_ml: Volume of the lesion, or of all lesions of a label, in millilitres.
        realised_ml: What was measured on the output grid, in any order: largest is compared with largest.
        voxel_ml: Volume of a voxel in millilitres.
        tolerance: Share of the requested volume that a lesion may be off by.
    """
    requested = sorted(np.atleast_1d(requested_ml).tolist(), reverse=True)
    realised = sorted(np.atleast_1d(realised_ml).tolist(), reverse=True)
    errors_ml = [found - wanted for wanted, found in zip(requested, realised, strict=False)]
    figures = {
        "requested_ml": requested,
        "realised_ml": realised,
        "errors_ml": errors_ml,
        "voxel_ml": voxel_ml,
        "tolerance": tolerance,
    }
    problems = []
    if len(requested) != len(realised):
        problems.append(f"{len(realised)} lesions where {len(requested)} were requested")
    for wanted, found, error in zip(requested, realised, errors_ml, strict=False):
        # The hair's breadth keeps "exactly two voxels" inside, whatever the division rounds to.
        if not abs(error) <= max(tolerance * wanted, 2.0 * voxel_ml) * (1 + 1e-9):
            problems.append(f"{found:.2f} mL where {wanted:.2f} mL were requested")
    return _verdict(
        "lesion size", figures, problems, f"Lesion size: {len(requested)} of {len(requested)} as requested."
    )


def check_lesion_place(lesions: Sequence[Lesion], rule: GrowthRule, *, is_judged: bool = True) -> Verdict:
    """Every lesion of a label lies in its host as far as such lesions do, and is about as compact as a ball.

    Args:
        lesions: What a mask source has put into the map; a lesion that was there before has no share outside.
        rule: What is usual for the label.
        is_judged: Whether the lesions have to pass; else the figures are noted all the same.
    """
    rows, problems = [], []
    for lesion in lesions:
        volume_ml, outside, spread = lesion.realised_ml or 0.0, lesion.share_outside, lesion.spread
        rows.append({"volume_ml": volume_ml, "share_outside": outside, "spread": spread})
        if outside is not None and outside > rule.max_share_outside + 1e-3:
            problems.append(
                f"{outside:.0%} of {volume_ml:.1f} mL outside the host, at most {rule.max_share_outside:.0%} expected"
            )
        if spread is not None and lesion.num_voxels >= MIN_SHAPE_VOXELS and spread > rule.max_spread + 1e-3:
            problems.append(
                f"{volume_ml:.1f} mL spread {spread:.2f} times as wide as a ball, at most {rule.max_spread:g} expected"
            )
    figures = {
        "lesions": rows,
        "max_share_outside": rule.max_share_outside,
        "max_spread": rule.max_spread,
        "is_judged": is_judged,
    }
    good = f"Lesion place: {len(rows)} of {len(rows)} in their host and compact."
    if problems and not is_judged:
        return Verdict(
            "lesion place",
            True,
            figures,
            f"Lesion place: found {'; '.join(problems)}. Not judged, as the lesions were in the map before.",
        )
    return _verdict("lesion place", figures, problems, good)


def check_organ_hu(image_hu: NDArray[Any], label_map: NDArray[Any], ranges: Sequence[HuRange] | None = None) -> Verdict:
    """The median of every organ that is there lies inside its range.

    Args:
        image_hu: ``(I, J, K)`` intensities.
        label_map: ``(I, J, K)`` label ids.
        ranges: Bounds per organ; the published ones by default. Append your own for tumors and bound slots.
    """
    if image_hu.shape != label_map.shape:
        return shape_verdict("organ HU", image_hu, label_map)
    rows, problems = [], []
    for bounds in reference_hu_ranges() if ranges is None else ranges:
        values = image_hu[is_any_of(label_map, bounds.label_ids)]
        if values.size == 0:
            continue
        median = float(np.median(values))
        inside, judged = bounds.low_hu <= median <= bounds.high_hu, values.size >= MIN_ORGAN_VOXELS
        usual = bounds.median_hu
        rows.append(
            {
                "organ": bounds.name,
                "median_hu": median,
                "low_hu": bounds.low_hu,
                "high_hu": bounds.high_hu,
                "num_voxels": int(values.size),
                "usual_hu": usual,
                "deviation_hu": None if usual is None else median - usual,
                "inside": inside,
                "judged": judged,
            }
        )
        if judged and not inside:
            problems.append(f"{bounds.name} at {median:.0f} HU outside {bounds.low_hu:.0f} to {bounds.high_hu:.0f}")
    num_judged = sum(bool(row["judged"]) for row in rows)
    figures = {"organs": rows, "num_judged": num_judged, "num_outside": len(problems)}
    return _verdict(
        "organ HU", figures, problems, f"Organ HU: {num_judged} of {num_judged} medians inside their range."
    )


def check_hu_bias(organ_hu: Verdict, ranges: Sequence[HuRange], *, max_dark_hu: float, max_bright_hu: float) -> Verdict:
    """The organs of a case, taken together, are about as bright as usual.

    The bias is the median over the organs of what their medians are above (+) or below (-) the usual ones. Bones count
    as one organ, and so do muscles and the lobes of the lungs, however many of them a map names. Contrast medium makes
    organs brighter and nothing makes all of them darker, hence two limits.

    Args:
        organ_hu: What :func:`check_organ_hu` says of the case.
        ranges: The reference that it was held against.
        max_dark_hu: Largest bias to the dark side.
        max_bright_hu: Largest bias to the bright side.
    """
    rows = organ_hu.figures.get("organs", ())
    ids_of = {bounds.name: bounds.label_ids for bounds in ranges}
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["judged"] and row["deviation_hu"] is not None:
            groups.setdefault(_group_of(row["organ"], ids_of[row["organ"]]), []).append(row["deviation_hu"])
    deviations = {name: float(np.median(values)) for name, values in groups.items()}
    bias = float(np.median(list(deviations.values()))) if deviations else None
    is_judged = len(deviations) >= MIN_BIAS_ORGANS
    figures = {
        "bias_hu": bias,
        "deviations_hu": deviations,
        "num_organs": len(deviations),
        "max_dark_hu": max_dark_hu,
        "max_bright_hu": max_bright_hu,
        "is_judged": is_judged,
    }
    if bias is None or not is_judged:
        good = f"HU bias: not judged, as {len(deviations)} organs have a usual HU, {MIN_BIAS_ORGANS} are needed."
        return Verdict("HU bias", True, figures, good)
    problems = []
    if not -max_dark_hu <= bias <= max_bright_hu:
        side, limit = ("darker", max_dark_hu) if bias < 0 else ("brighter", max_bright_hu)
        problems.append(
            f"organs {abs(bias):.0f} HU {side} than usual, over {len(deviations)} of them, at most {limit:g} expected"
        )
    return _verdict("HU bias", figures, problems, f"HU bias: {bias:+.0f} HU over {len(deviations)} organs.")


def _group_of(name: str, label_ids: Sequence[int]) -> str:
    """The group that an organ counts with, or the organ itself."""
    for group, ids in _bias_groups().items():
        if set(label_ids) <= ids:
            return group
    return name


@cache
def _bias_groups() -> dict[str, frozenset[int]]:
    published = {row["name"]: frozenset(row["label_ids"]) for row in _reference()["organs"]}
    return {"bone": published["bone"], "lung": published["lung"], "muscles": frozenset(range(98, 108))}


def _verdict(gate: str, figures: Mapping[str, Any], problems: Sequence[str], good: str) -> Verdict:
    subject = gate[0].upper() + gate[1:]
    return Verdict(gate, not problems, figures, f"{subject}: found {'; '.join(problems)}." if problems else good)


def shape_verdict(gate: str, image_hu: NDArray[Any], label_map: NDArray[Any]) -> Verdict:
    """What a gate says of an image and a label map that do not have the same shape."""
    figures = {"image_shape": list(image_hu.shape), "label_map_shape": list(label_map.shape)}
    return _verdict(gate, figures, ["an image and a label map of different shapes"], "")


def _name_of(label_id: int, vocabulary: Vocabulary) -> str:
    return vocabulary.name_of(label_id) if vocabulary.contains(label_id) else f"label {label_id}"


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
