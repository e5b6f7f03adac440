"""HU of every organ and lesion of a set of cases against reference ranges: the published, or those of real cases.

A case's figure for a label is the median of its voxels, as in the image gate of synthesis. Medians and percentiles come
from one histogram per label with bins of 1 HU, so that a case of 512^3 voxels needs little more than its two files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import EvaluationError, VocabularyError
from maisi_aug.evaluation.cohort.case_sets import (
    CaseSet,
    EvaluatedCase,
    SkippedCase,
    describe_skipped,
    measure_each,
    require_labelled,
    spell_skipped,
)
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import percent, share_of, to_markdown
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import Report
from maisi_aug.vocabulary.hu import MIN_ORGAN_VOXELS, reference_hu_ranges
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, Vocabulary

REPORT_NAME: Final = "hu"
RANGES_NAME: Final = "hu_ranges.json"
LOWEST_HU: Final = -1200
HIGHEST_HU: Final = 4095
MIN_REFERENCE_CASES: Final = 3
NUM_SIGMAS: Final = 6.0
"""Width of a reference range in standard deviations, as in MAISI's published statistics."""
SLAB: Final = 16
CHART_LIMITS_HU: Final = (-1100.0, 1100.0)


class Bounds(NamedTuple):
    """Range of a label's median HU, and the number of its reference cases (0 for published ranges)."""

    low_hu: float
    high_hu: float
    num_cases: int = 0


@dataclass(frozen=True)
class Reference:
    """Reference ranges with which median HU are compared.

    Attributes:
        name: Name of the reference, as text.
        bounds: Vocabulary id -> range.
    """

    name: str
    bounds: Mapping[int, Bounds]


class LabelHu(NamedTuple):
    """HU of one label in one case: number of voxels, and percentiles."""

    case_id: str
    label_id: int
    num_voxels: int
    median_hu: float
    p5_hu: float
    p95_hu: float


def published_reference() -> Reference:
    """Return MAISI's published HU ranges of liver, spleen, pancreas, kidneys, lungs, bones and brain, by label."""
    bounds = {
        single.label_ids[0]: Bounds(single.low_hu, single.high_hu)
        for group in reference_hu_ranges()
        for single in group.split()
    }
    return Reference("MAISI's published ranges", bounds)


def load_reference(path: Path, vocabulary: Vocabulary) -> Reference:
    """Read HU ranges from a JSON file, written by ``evaluate hu --reference`` or by hand.

    The file has rows ``{"name": "liver", "low_hu": 20, "high_hu": 160}`` under ``organs``; ``label_ids`` may replace
    the name.

    Args:
        path: JSON file.
        vocabulary: Vocabulary of the names.

    Returns:
        Ranges of the median HU by label id.

    Raises:
        EvaluationError: The file has another format.
        VocabularyError: A name is not in the vocabulary.
    """
    subject = f"Ranges {path}"
    try:
        rows = read_json(path)["organs"]
        bounds = {}
        for row in rows:
            limits = Bounds(float(row["low_hu"]), float(row["high_hu"]), int(row.get("num_cases", 0)))
            if not limits.low_hu < limits.high_hu:
                raise EvaluationError(
                    f"{subject}: expected low_hu below high_hu, found {limits.low_hu:g} and {limits.high_hu:g} for "
                    f"'{row.get('name')}'. Correct the row."
                )
            for label_id in row["label_ids"] if "label_ids" in row else [vocabulary.id_of(row["name"])]:
                bounds[int(label_id)] = limits
    except (EvaluationError, VocabularyError):
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f'{subject}: expected JSON such as {{"organs": [{{"name": "liver", "low_hu": 20, "high_hu": 160}}]}}, '
            f"found: {type(error).__name__} {error}. Correct the file."
        ) from error
    return Reference(path.name, bounds)


def measure_reference(
    case_set: CaseSet, notify: Report, *, num_workers: int | None = 1
) -> tuple[Reference, list[SkippedCase]]:
    """Measure reference ranges of HU on real cases, by the rule of MAISI's published ranges.

    A label's range extends from the lower of mean - 6 standard deviations and the 0.5 percentile of its medians, to the
    higher of mean + 6 standard deviations and the 99.5 percentile. Labels in fewer than three cases have no range.

    Args:
        case_set: Labelled real cases.
        notify: Progress callback, called with (cases done, cases in all).
        num_workers: Number of processes; None for one per core.

    Returns:
        The reference, and the skipped cases.

    Raises:
        EvaluationError: No case can be read, or no label occurs in three cases.
    """
    rows, skipped = measure_label_hu(case_set, notify, num_workers=num_workers)
    bounds = {}
    for label_id in sorted({row.label_id for row in rows}):
        medians = [row.median_hu for row in rows if row.label_id == label_id and row.num_voxels >= MIN_ORGAN_VOXELS]
        if len(medians) >= MIN_REFERENCE_CASES:
            mean, deviation = float(np.mean(medians)), float(np.std(medians, ddof=1))
            low, high = (float(value) for value in np.percentile(medians, [0.5, 99.5]))
            reach = NUM_SIGMAS * max(deviation, 1.0)
            bounds[label_id] = Bounds(min(mean - reach, low), max(mean + reach, high), len(medians))
    if not bounds:
        raise EvaluationError(
            f"{case_set.path}: no label occurs in at least {MIN_REFERENCE_CASES} reference cases (of "
            f"{len(case_set.labelled)}). Add cases, or use the published ranges."
        )
    num_read = len(case_set.labelled) + len(case_set.skipped) - len(skipped)
    return Reference(f"ranges of {spell_count(num_read, 'case')} in {case_set.path.name}", bounds), skipped


def measure_label_hu(
    case_set: CaseSet, notify: Report, *, num_workers: int | None = 1
) -> tuple[list[LabelHu], list[SkippedCase]]:
    """Measure the HU of every label in every case, except background and body.

    Args:
        case_set: Labelled cases.
        notify: Progress callback, called with (cases done, cases in all).
        num_workers: Number of processes; None for one per core.

    Returns:
        Measurements by label and case, and the skipped cases.

    Raises:
        EvaluationError: No case has a label map, or none can be read.
    """
    cases, skipped = measure_each(
        require_labelled(case_set),
        lambda case: case.case_id,
        partial(_measure_case, case_set),
        notify,
        num_workers=num_workers,
    )
    return [row for rows in cases for row in rows], [*case_set.skipped, *skipped]


def _measure_case(case_set: CaseSet, case: EvaluatedCase) -> list[LabelHu]:
    image, label_map = case_set.load_pair(case)
    counts = count_hu(image.array, label_map)
    found = [
        int(label_id) for label_id in np.flatnonzero(counts.sum(axis=1)) if label_id not in (BACKGROUND_ID, BODY_ID)
    ]
    return [
        LabelHu(case.case_id, label_id, int(counts[label_id].sum()), *_percentiles(counts[label_id], (0.5, 0.05, 0.95)))
        for label_id in found
    ]


def count_hu(image_hu: NDArray[Any], label_map: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the HU of every label in a histogram.

    Args:
        image_hu: ``(I, J, K)`` image in HU, which is rounded and clipped to -1200 to 4095.
        label_map: ``(I, J, K)`` uint8 vocabulary ids.

    Returns:
        ``(256, 5296)`` counts; column 0 is -1200 HU.
    """
    num_bins = HIGHEST_HU - LOWEST_HU + 1
    counts = np.zeros(256 * num_bins, dtype=np.int64)
    for start in range(0, len(image_hu), SLAB):
        hu = np.clip(np.rint(image_hu[start : start + SLAB]), LOWEST_HU, HIGHEST_HU).astype(np.int64)
        place = label_map[start : start + SLAB].astype(np.int64) * num_bins + (hu - LOWEST_HU)
        counts += np.bincount(place.ravel(), minlength=counts.size)
    return counts.reshape(256, num_bins)


def _percentiles(counts: NDArray[np.int64], shares: Sequence[float]) -> tuple[float, ...]:
    """The HU at which the cumulated count passes each share; for the median of an even number, the middle of two."""
    cumulated = np.cumsum(counts)
    num = int(cumulated[-1])
    found = []
    for share in shares:
        low, high = (
            int(np.searchsorted(cumulated, math.floor(share * (num - 1)) + step, side="right")) for step in (0, 1)
        )
        weight = share * (num - 1) - math.floor(share * (num - 1))
        high = min(high, len(counts) - 1)
        found.append(LOWEST_HU + low + weight * (high - low))
    return tuple(found)


def measure_hu(
    case_set: CaseSet,
    reference: Reference,
    notify: Report,
    *,
    skipped_reference: Sequence[SkippedCase] = (),
    num_workers: int | None = 1,
) -> dict[str, Any]:
    """Compare the median HU of all labels with a reference, and list all outliers.

    Args:
        case_set: Labelled cases.
        reference: Reference ranges.
        notify: Progress callback, called with (cases done, cases in all).
        skipped_reference: Cases that could not be read for the reference.
        num_workers: Number of processes; None for one per core.

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: No case has a label map, or none can be read.
    """
    rows, skipped = measure_label_hu(case_set, notify, num_workers=num_workers)
    vocabulary = case_set.vocabulary
    labels = [_describe_label(label_id, rows, reference, vocabulary) for label_id in sorted({r.label_id for r in rows})]
    judged = [row for row in rows if row.label_id in reference.bounds and row.num_voxels >= MIN_ORGAN_VOXELS]
    outliers = [row for row in judged if not _is_inside(row, reference)]
    return {
        "measurement": REPORT_NAME,
        "path": str(case_set.path),
        "num_cases": len({row.case_id for row in rows}),
        "reference": reference.name,
        "min_voxels": MIN_ORGAN_VOXELS,
        "num_judged": len(judged),
        "inside": share_of(_is_inside(row, reference) for row in judged),
        "labels": labels,
        "outliers": [
            {
                "case": row.case_id,
                "label": _name_of(row.label_id, vocabulary),
                "median_hu": row.median_hu,
                "low_hu": reference.bounds[row.label_id].low_hu,
                "high_hu": reference.bounds[row.label_id].high_hu,
                "num_voxels": row.num_voxels,
            }
            for row in sorted(outliers, key=lambda row: (row.label_id, row.case_id))
        ],
        "skipped": describe_skipped([*skipped, *skipped_reference]),
    }


def _describe_label(
    label_id: int, rows: Sequence[LabelHu], reference: Reference, vocabulary: Vocabulary
) -> dict[str, Any]:
    own = [row for row in rows if row.label_id == label_id]
    large = [row for row in own if row.num_voxels >= MIN_ORGAN_VOXELS]
    bounds = reference.bounds.get(label_id)
    medians = [row.median_hu for row in large]
    return {
        "label_id": label_id,
        "label": _name_of(label_id, vocabulary),
        "is_lesion": label_id in vocabulary.tumor_ids,
        "num_cases": len(own),
        "num_too_small": len(own) - len(large),
        "medians_hu": medians,
        "median_hu": float(np.median(medians)) if medians else None,
        "p5_hu": float(np.median([row.p5_hu for row in large])) if large else None,
        "p95_hu": float(np.median([row.p95_hu for row in large])) if large else None,
        "low_hu": bounds.low_hu if bounds else None,
        "high_hu": bounds.high_hu if bounds else None,
        "num_reference_cases": bounds.num_cases if bounds else None,
        "inside": share_of(_is_inside(row, reference) for row in large) if bounds else None,
    }


def _is_inside(row: LabelHu, reference: Reference) -> bool:
    bounds = reference.bounds[row.label_id]
    return bounds.low_hu <= row.median_hu <= bounds.high_hu


def _name_of(label_id: int, vocabulary: Vocabulary) -> str:
    return vocabulary.name_of(label_id) if vocabulary.contains(label_id) else f"label {label_id}"


def to_ranges(reference: Reference, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of a file with reference ranges, which :func:`load_reference` reads.

    Args:
        reference: Ranges by label id.
        vocabulary: Vocabulary of the ids.
    """
    return {
        "source": reference.name,
        "rule": "low = min(mean - 6 sigma, percentile 0.5), high = max(mean + 6 sigma, percentile 99.5) of medians",
        "organs": [
            {
                "name": _name_of(label_id, vocabulary),
                "label_ids": [label_id],
                "low_hu": bounds.low_hu,
                "high_hu": bounds.high_hu,
                "num_cases": bounds.num_cases,
            }
            for label_id, bounds in reference.bounds.items()
        ],
    }


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of HU of labels as Markdown."""
    outliers = document["outliers"]
    names = ("label", "from", "to", "cases", "median", "5%", "95%", "inside")
    keys = ("label", "low_hu", "high_hu", "num_cases", "median_hu", "p5_hu", "p95_hu")
    rows = [[*(row[key] for key in keys), percent(row["inside"])] for row in document["labels"]]
    share = f"{percent(document['inside'])} of {spell_count(document['num_judged'], 'median')} inside"
    judged = f"{share} {document['reference']}, {len(outliers)} outside."
    if not document["num_judged"]:
        judged = f"None of the labels can be compared with {document['reference']}."
    parts = [
        f"# HU of {spell_count(document['num_cases'], 'case')}\n",
        (
            f"{judged} Organs of fewer than {document['min_voxels']} voxels in a case and labels without a range are "
            "not judged.\n"
        ),
        to_markdown(names, rows, num_digits=0),
    ]
    if outliers:
        cells = [[o["case"], o["label"], o["median_hu"], o["low_hu"], o["high_hu"], o["num_voxels"]] for o in outliers]
        parts += [
            "## Outliers\n",
            to_markdown(["case", "label", "median", "from", "to", "voxels"], cells, num_digits=0),
        ]
    return "\n".join([*parts, *spell_skipped(document["skipped"])])


def draw_chart(document: Mapping[str, Any]) -> str:
    """Return an SVG chart of what :func:`measure_hu` found: medians of every label over its range, outliers marked."""
    rows = []
    for row in document["labels"]:
        if row["medians_hu"]:
            is_odd = row["inside"] is not None and row["inside"] < 1
            band = None if row["low_hu"] is None else (row["low_hu"], row["high_hu"])
            note = percent(row["inside"]) if row["inside"] is not None else ""
            rows.append(
                DotRow(row["label"], row["medians_hu"], row["median_hu"], band=band, is_marked=is_odd, note=note)
            )
    if not rows:
        rows = [DotRow("no label of 30 voxels or more")]
    subtitle = (
        f"{spell_count(document['num_cases'], 'case')}; a dot is the median of a case; grey: "
        f"{document['reference']}; right: inside"
    )
    return draw_dot_chart("HU by label", rows, axis="median, HU", subtitle=subtitle, limits=CHART_LIMITS_HU)
