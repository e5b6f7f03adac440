"""Sensitivity of a segmenter by the size of lesions, or by whatever else the twins of a cohort differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.cohort.twins import twin_of
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.agreement import MatchedLabel, Segment
from maisi_aug.evaluation.cohort.case_sets import (
    CaseSet,
    EvaluatedCase,
    describe_skipped,
    measure_each,
    require_cohort,
    require_labelled,
    spell_skipped,
)
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import percent, to_markdown
from maisi_aug.evaluation.scores.detection import MIN_IOU, match_lesions, name_of_bin
from maisi_aug.evaluation.scores.statistics import find_ratio_interval
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.system.printed_text import spell_count
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.components import label_parts

REPORT_NAME: Final = "detection_curve"
CHART_NAME: Final = "detection_curve.svg"
EDGES_MM: Final = (0.0, 6.0, 10.0, 15.0, 20.0, 30.0, float("inf"))
SHARES: Final = (0.5, 0.8, 0.9)
"""Sensitivities for which the fit gives the lesion size."""
NUM_DRAWS: Final = 300
LEAST_FITTED: Final = 0.8
"""Share of the bootstrap's draws that must have a fit for an interval to be given."""
SLOPE_DEVIATION: Final = 10.0
"""Standard deviation of the prior of the slope per unit of log diameter; it keeps the fit finite if sizes separate
found from missed lesions perfectly.
"""


@dataclass(frozen=True, slots=True)
class JudgedLesion:
    """A lesion of a cohort, and whether a segmenter found it.

    Attributes:
        case_id: Id of its case.
        patient: Patient whose CT or label map contains it.
        label: Name of its label.
        group: Group of twins; without twins, the case itself.
        value: Value of the varied factor; empty without twins.
        diameter_mm: Realised equivalent diameter in mm.
        is_found: Whether a predicted lesion was matched to it.
        iou: Intersection over union of the match; 0 without one.
    """

    case_id: str
    patient: str
    label: str
    group: str
    value: str
    diameter_mm: float
    is_found: bool
    iou: float


def measure_detection_curve(
    case_set: CaseSet,
    segment: Segment,
    labels: Sequence[MatchedLabel],
    *,
    segmenter: str,
    seed: int = 0,
    notify: Report = report_nothing,
) -> dict[str, Any]:
    """Measure which lesions of a cohort a segmenter finds, by size or by the factor that twins vary.

    Args:
        case_set: Cases of a cohort.
        segment: Function that returns the segmenter's label map of a case.
        labels: Labels to compare.
        segmenter: Description of the segmenter.
        seed: Seed of the bootstrap over patients.
        notify: Progress callback, called with (cases done, cases in all).

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: The cases are not a cohort, none of the labels is a lesion, or no case can be read.
    """
    records = {record.case_id: record for record in require_cohort(case_set).cases}
    asked = {lesion.label_id: lesion.label for record in records.values() for lesion in record.lesions}
    labels = [label for label in labels if asked.keys() & set(label.vocabulary_ids)]
    if not labels:
        raise EvaluationError(
            f"Labels of the segmenter: none matches the cohort's lesions ({', '.join(asked.values()) or 'none'}). "
            "Pass --map LABEL=NAME."
        )

    def measure(case: EvaluatedCase) -> tuple[list[JudgedLesion], int]:
        return _judge_case(case_set, case, records[case.case_id], segment, labels)

    results, skipped = measure_each(require_labelled(case_set), lambda case: case.case_id, measure, notify)
    lesions = [lesion for found, _ in results for lesion in found]
    twins = next((twin for record in records.values() if (twin := twin_of(record)) is not None), None)
    factor = "size" if twins is None else twins[1]
    names = _order_values(lesions) if twins is not None else ()
    return {
        "measurement": REPORT_NAME,
        "path": str(case_set.path),
        "segmenter": segmenter,
        "factor": factor,
        "has_twins": twins is not None,
        "num_cases": len(results),
        "num_patients": len({lesion.patient for lesion in lesions}),
        "num_false_positives": sum(made_up for _, made_up in results),
        "seed": seed,
        "groups": _describe_groups(lesions, names, seed),
        "pairs": [_compare(lesions, *pair) for pair in pairwise(names)],
        "fit": _fit_sizes(lesions, seed) if factor == "size" else None,
        "lesions": [asdict(lesion) for lesion in lesions],
        "skipped": describe_skipped([*case_set.skipped, *skipped]),
    }


def _judge_case(
    case_set: CaseSet, case: EvaluatedCase, record: AttemptRecord, segment: Segment, labels: Sequence[MatchedLabel]
) -> tuple[list[JudgedLesion], int]:
    """The drawn lesions of a case, and how many predicted ones match none, drawn or real."""
    image, label_map = case_set.load_pair(case)
    predicted = segment(case, image)
    judged: list[JudgedLesion] = []
    num_made_up = 0
    for label in labels:
        expected = np.isin(label_map, label.vocabulary_ids)
        matches = match_lesions(expected, np.isin(predicted, label.values), voxel_ml=image.grid.voxel_ml)
        num_made_up += sum(not match.is_real for match in matches)
        parts, _ = label_parts(expected)
        for lesion in record.lesions:
            if lesion.label_id not in label.vocabulary_ids:
                continue
            match = matches[_number_of(parts, lesion, image.grid.spacing_mm) - 1]
            judged.append(_describe(case, record, lesion, match.is_found, match.iou))
    return judged, num_made_up


def _number_of(parts: NDArray[Any], lesion: Lesion, spacing_mm: Sequence[float]) -> int:
    """The connected part of a lesion: that at its centre, or the nearest."""
    places = np.argwhere(parts > 0)
    if lesion.centre_ijk is None or not len(places):
        raise EvaluationError(f"{lesion.label}: the lesion is missing in the label map.")
    steps_mm = (places - np.asarray(lesion.centre_ijk)) * np.asarray(spacing_mm)
    return int(parts[tuple(places[int(np.argmin((steps_mm**2).sum(axis=1)))])])


def _describe(case: EvaluatedCase, record: AttemptRecord, lesion: Lesion, is_found: bool, iou: float) -> JudgedLesion:
    group, _, value = twin_of(record) or (record.case_index, "", "")
    patient = str(record.mask_origin.get("background") or case.patient or case.case_id)
    diameter = float(lesion.diameter_mm or 0.0)
    return JudgedLesion(case.case_id, patient, lesion.label, str(group), value, diameter, is_found, iou)


def _order_values(lesions: Sequence[JudgedLesion]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lesion.value for lesion in lesions))


def _describe_groups(lesions: Sequence[JudgedLesion], names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Sensitivity of every value, or of every range of sizes that holds a lesion, with its interval."""
    if names:
        groups = [(name, [lesion for lesion in lesions if lesion.value == name]) for name in names]
    else:
        groups = [
            (name_of_bin(low, high), [lesion for lesion in lesions if low <= lesion.diameter_mm < high])
            for low, high in pairwise(EDGES_MM)
        ]
    return [_describe_group(name, group, seed) for name, group in groups if group]


def _describe_group(name: str, group: Sequence[JudgedLesion], seed: int) -> dict[str, Any]:
    num_found = sum(lesion.is_found for lesion in group)
    low, high = stats.binomtest(num_found, len(group)).proportion_ci(method="wilson")
    patients = list(dict.fromkeys(lesion.patient for lesion in group))
    if 1 < len(patients) < len(group):  # lesions of a patient resemble each other: the wider interval counts
        counts, totals = (
            np.array([[float(sum(weigh(x) for x in group if x.patient == patient)) for patient in patients]])
            for weigh in (lambda lesion: lesion.is_found, lambda lesion: 1)
        )
        drawn = find_ratio_interval(counts, totals, rng=numpy_generator(seed, f"detection {name}"))
        if drawn is not None and drawn.low is not None and drawn.high is not None:
            low, high = min(low, drawn.low), max(high, drawn.high)
    return {
        "name": name,
        "num": len(group),
        "num_found": num_found,
        "num_patients": len(patients),
        "mean_diameter_mm": float(np.mean([lesion.diameter_mm for lesion in group])),
        "sensitivity": num_found / len(group),
        "interval": [float(low), float(high)],
    }


def _compare(lesions: Sequence[JudgedLesion], first: str, second: str) -> dict[str, Any]:
    """Twins of two values: how many are found at one of them alone, with McNemar's exact test."""
    found = {value: {(x.group, x.label): x.is_found for x in lesions if x.value == value} for value in (first, second)}
    both = found[first].keys() & found[second].keys()
    only_first = sum(found[first][key] and not found[second][key] for key in both)
    only_second = sum(found[second][key] and not found[first][key] for key in both)
    num_differ = only_first + only_second
    p = float(stats.binomtest(only_first, num_differ).pvalue) if num_differ else 1.0
    return {
        "first": first,
        "second": second,
        "num": len(both),
        "only_first": only_first,
        "only_second": only_second,
        "p": p,
    }


def _fit_sizes(lesions: Sequence[JudgedLesion], seed: int) -> dict[str, Any] | None:
    """Diameters at which shares of the lesions are found, by a logistic curve over the log diameter.

    Intervals are percentiles over drawn patients.
    """
    sizes = np.array([lesion.diameter_mm for lesion in lesions])
    found = np.array([lesion.is_found for lesion in lesions])
    fitted = fit_logistic(sizes, found)
    if fitted is None:
        return None
    patients = list(dict.fromkeys(lesion.patient for lesion in lesions))
    rows = [np.flatnonzero([lesion.patient == patient for lesion in lesions]) for patient in patients]
    rng = numpy_generator(seed, "detection fit")
    draws = []
    for _ in range(NUM_DRAWS if len(patients) > 1 else 0):
        drawn = np.concatenate([rows[number] for number in rng.integers(len(rows), size=len(rows))])
        again = fit_logistic(sizes[drawn], found[drawn])
        if again is not None:
            draws.append([size_at(again, share) for share in SHARES])
    has_interval = len(draws) >= LEAST_FITTED * NUM_DRAWS
    ends = np.percentile(draws, [2.5, 97.5], axis=0) if has_interval else None
    return {
        "intercept": fitted[0],
        "slope": fitted[1],
        "diameters": [
            {
                "share": share,
                "diameter_mm": size_at(fitted, share),
                "interval": None if ends is None else [float(end) for end in ends[:, place]],
            }
            for place, share in enumerate(SHARES)
        ],
    }


def fit_logistic(diameters_mm: NDArray[Any], is_found: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Fit a logistic curve of detection over lesion size: log odds against the natural logarithm of the diameter.

    Args:
        diameters_mm: ``(N,)`` equivalent diameters in mm.
        is_found: ``(N,)`` whether each lesion was found.

    Returns:
        Intercept and slope; None if all or none are found, or larger lesions are not found more often.
    """
    if is_found.all() or not is_found.any():
        return None
    x = np.log(np.maximum(diameters_mm, 1e-3))
    middle = float(x.mean())
    signs = np.where(is_found, 1.0, -1.0)

    def lose(parameters: NDArray[np.float64]) -> float:
        odds = parameters[0] + parameters[1] * (x - middle)
        return float(-special.log_expit(signs * odds).sum() + 0.5 * (parameters[1] / SLOPE_DEVIATION) ** 2)

    level, slope = optimize.minimize(lose, np.array([0.0, 1.0]), method="BFGS").x
    return (float(level - slope * middle), float(slope)) if slope > 0 else None


def size_at(fitted: tuple[float, float], share: float) -> float:
    """Return the diameter in mm at which a given fraction of lesions is found, by a fitted logistic curve.

    Args:
        fitted: Intercept and slope, result of :func:`fit_logistic`.
        share: Fraction of the lesions in (0, 1).
    """
    return float(np.exp(np.clip((special.logit(share) - fitted[0]) / fitted[1], -10.0, 10.0)))


def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of detection by a segmenter as Markdown."""
    rows = [
        [
            row["name"],
            row["num"],
            row["num_patients"],
            row["num_found"],
            percent(row["sensitivity"]),
            f"{percent(row['interval'][0])} to {percent(row['interval'][1])}",
        ]
        for row in document["groups"]
    ]
    parts = [
        f"# Sensitivity by {document['factor']} of the lesion, {spell_count(document['num_cases'], 'case')}\n",
        f"Segmenter: {document['segmenter']}. Lesions of "
        f"{spell_count(document['num_patients'], 'patient')}. A lesion is found when a "
        f"predicted one overlaps it with an intersection over union of {MIN_IOU:g} or more; 95% intervals are "
        "Wilson's, or over patients where that is wider. "
        f"{spell_count(document['num_false_positives'], 'predicted lesion')} match "
        "none.\n",
        to_markdown([document["factor"], "lesions", "patients", "found", "sensitivity", "interval"], rows),
    ]
    if document["pairs"]:
        pairs = [
            [f"{row['first']}, {row['second']}", row["num"], row["only_first"], row["only_second"], f"{row['p']:.3g}"]
            for row in document["pairs"]
        ]
        parts.append(to_markdown(["twins", "pairs", "first alone", "second alone", "p (McNemar, exact)"], pairs))
    parts += [f"{sentence}\n" for sentence in spell_sizes(document)]
    return "\n".join([*parts, *spell_skipped(document["skipped"])])


def spell_sizes(document: Mapping[str, Any]) -> list[str]:
    """Say from which diameter on half of the lesions are found, and so on for every fraction of the logistic fit.

    Args:
        document: Figures of :func:`measure_detection_curve`, of which ``fit`` is used.

    Returns:
        One sentence per fraction, in the order of the fit, with the diameter in mm and its 95% interval where there is
        one; an empty list if ``fit`` is None, because there was too little to fit.
    """
    found = []
    for row in (document["fit"] or {}).get("diameters", ()):
        ends = row["interval"]
        interval = "" if ends is None else f" ({ends[0]:.1f} to {ends[1]:.1f} mm)"
        found.append(
            f"{percent(row['share'])} are found from {row['diameter_mm']:.1f} mm{interval} upwards, by a logistic "
            "curve."
        )
    return found


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw sensitivity by the varied value as an SVG chart."""
    rows = [
        DotRow(
            row["name"],
            centre=row["sensitivity"],
            interval=(row["interval"][0], row["interval"][1]),
            note=f"{row['num_found']} of {row['num']}",
        )
        for row in document["groups"]
    ]
    return draw_dot_chart(
        f"Sensitivity by {document['factor']} of the lesion",
        rows,
        axis="share of lesions found",
        subtitle=f"{spell_count(document['num_cases'], 'case')}; 95% intervals; {document['segmenter']}",
        limits=(0.0, 1.0),
    )
