"""Lesions of a cohort: realised against requested size, and whether each can be seen against its host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.evaluation.cohort.case_sets import (
    CaseSet,
    EvaluatedCase,
    describe_skipped,
    measure_each,
    require_cohort,
    require_labelled,
    spell_skipped,
)
from maisi_aug.evaluation.cohort.lesion_sizes import measure_lesion_sizes
from maisi_aug.evaluation.cohort.lesion_sizes import to_report as to_size_report
from maisi_aug.evaluation.output.charts import DotRow, ScatterSeries, draw_dot_chart, draw_scatter
from maisi_aug.evaluation.output.files import percent, share_of, to_markdown
from maisi_aug.gates.checks import SMALL_LESION_MM, check_label_visibility
from maisi_aug.insertion.surroundings import add_surroundings
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import Report
from maisi_aug.vocabulary.hu import expected_contrast_sign
from maisi_aug.vocabulary.labels import LUNG_LOBE_IDS
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.components import is_any_of

REPORT_NAME: Final = "lesions"
MIN_FIT_LESIONS: Final = 3


class SeenLesion(NamedTuple):
    """Visibility of one lesion in its image: contrast and noise."""

    case_id: str
    label: str
    diameter_mm: float
    contrast_hu: float | None
    noise_hu: float | None
    cnr: float | None
    is_visible: bool
    message: str


def measure_lesions_of(case_set: CaseSet, notify: Report, *, num_workers: int | None = 1) -> dict[str, Any]:
    """Measure a cohort's lesions: sizes from the manifest, visibility from the files.

    Args:
        case_set: Cases of a cohort.
        notify: Progress callback, called with (cases done, cases in all).
        num_workers: Number of processes; None for one per core.

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: The cases are not a cohort, or no case can be read.
    """
    source = require_cohort(case_set)
    sizes = measure_lesion_sizes(source.manifest)
    records = {record.case_id: record for record in source.cases}
    seen, skipped = measure_each(
        [(case, records[case.case_id]) for case in require_labelled(case_set)],
        lambda pair: pair[0].case_id,
        partial(_see_lesions, case_set),
        notify,
        num_workers=num_workers,
    )
    lesions = [lesion for case in seen for lesion in case]
    points = [
        {
            "case": record.case_id,
            "label": lesion.label,
            "requested_mm": diameter_mm(lesion.requested_ml),
            "realised_mm": diameter_mm(lesion.realised_ml or 0.0),
            "requested_ml": lesion.requested_ml,
            "realised_ml": lesion.realised_ml or 0.0,
        }
        for record in source.cases
        for lesion in record.lesions
    ]
    return {
        "measurement": REPORT_NAME,
        "path": str(case_set.path),
        "num_cases": len(source.cases),
        "sizes": sizes,
        "calibration": [_calibrate(name, chosen) for name, chosen in [("all", points), *_by_label(points)]],
        "points": points,
        "visibility": [_describe_visibility(name, chosen) for name, chosen in _by_name(lesions)],
        "seen": [lesion._asdict() for lesion in lesions],
        "skipped": describe_skipped(skipped),
    }


def _see_lesions(case_set: CaseSet, pair: tuple[EvaluatedCase, AttemptRecord]) -> list[SeenLesion]:
    case, record = pair
    image, known = case_set.load_pair(case)
    vocabulary = case_set.vocabulary
    seen = []
    for label_id in sorted({lesion.label_id for lesion in record.lesions}):
        label, host_ids, label_map = vocabulary.name_of(label_id), vocabulary.hosts_of(label_id), known
        if LUNG_LOBE_IDS.issuperset(host_ids) and not is_any_of(known, host_ids).any():
            # The CT has no labels of its lungs: insertion found them by HU.
            lesion = is_any_of(known, vocabulary.tumor_ids)
            label_map = add_surroundings(image.array, known, image.grid.spacing_mm, lesion=lesion)
        verdicts = check_label_visibility(
            image.array,
            label_map,
            label_id,
            host_ids=host_ids,
            tumor_ids=vocabulary.tumor_ids,
            expected_sign=expected_contrast_sign(label),
            spacing_mm=image.grid.spacing_mm,
        )
        for verdict in verdicts:
            found = verdict.to_dict()["figures"]
            volume_ml = found.get("num_voxels", 0) * image.grid.voxel_ml
            seen.append(
                SeenLesion(
                    case.case_id,
                    label,
                    diameter_mm(volume_ml),
                    found.get("contrast_hu"),
                    found.get("noise_hu"),
                    found.get("cnr"),
                    verdict.passed,
                    verdict.message,
                )
            )
    return seen


def _calibrate(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors of the diameter, and the line of realised over requested on log axes: slope 1 and factor 1 are right."""
    requested = np.asarray([point["requested_mm"] for point in points])
    realised = np.asarray([point["realised_mm"] for point in points])
    errors = realised / requested - 1.0 if len(points) else np.zeros(0)
    slope = factor = None
    drawn = realised > 0
    if drawn.sum() >= MIN_FIT_LESIONS and np.ptp(requested[drawn]) > 0:
        x, y = np.log(requested[drawn]), np.log(realised[drawn])
        slope = float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))
        factor = float(np.exp(np.mean(y - x)))
    return {
        "label": name,
        "num_lesions": len(points),
        "mean_absolute_error": float(np.abs(errors).mean()) if len(points) else None,
        "bias": float(errors.mean()) if len(points) else None,
        "worst": float(errors[np.abs(errors).argmax()]) if len(points) else None,
        "slope": slope,
        "factor": factor,
    }


def _by_label(points: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    labels = sorted({point["label"] for point in points})
    return [(label, [point for point in points if point["label"] == label]) for label in labels]


def _by_name(lesions: Sequence[SeenLesion]) -> list[tuple[str, list[SeenLesion]]]:
    labels = sorted({lesion.label for lesion in lesions})
    return [(label, [lesion for lesion in lesions if lesion.label == label]) for label in labels]


def _describe_visibility(name: str, lesions: Sequence[SeenLesion]) -> dict[str, Any]:
    def median(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    return {
        "label": name,
        "num_lesions": len(lesions),
        "contrast_hu": median([lesion.contrast_hu for lesion in lesions]),
        "noise_hu": median([lesion.noise_hu for lesion in lesions]),
        "cnr": median([lesion.cnr for lesion in lesions]),
        "visible": share_of(lesion.is_visible for lesion in lesions),
    }


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of lesion sizes and visibility as Markdown."""
    hidden = [lesion for lesion in document["seen"] if not lesion["is_visible"]]
    calibration = [
        [
            row["label"],
            row["num_lesions"],
            *(_percentage(row[key]) for key in ("mean_absolute_error", "bias", "worst")),
            row["slope"],
            row["factor"],
        ]
        for row in document["calibration"]
    ]
    visibility = [
        [
            row["label"],
            row["num_lesions"],
            _whole(row["contrast_hu"]),
            _whole(row["noise_hu"]),
            row["cnr"],
            percent(row["visible"]),
        ]
        for row in document["visibility"]
    ]
    parts = [
        to_size_report(document["sizes"]),
        "## Calibration of the diameter\n",
        "Slope and factor of realised over requested diameter on log axes; both should be 1.\n",
        to_markdown(["lesion", "lesions", "mean error", "bias", "worst", "slope", "factor"], calibration),
        "## Visibility, medians over lesions\n",
        (
            "Contrast of the lesion's core to its host, relative to the host's noise. Visible: the expected sign, and "
            f"above the noise for lesions of {SMALL_LESION_MM:g} mm or more.\n"
        ),
        to_markdown(["lesion", "lesions", "contrast, HU", "noise, HU", "contrast to noise", "visible"], visibility),
    ]
    if hidden:
        parts += ["## Not visible\n", *(f"- {row['case_id']}, {row['label']}: {row['message']}\n" for row in hidden)]
    return "\n".join([*parts, *spell_skipped(document["skipped"])])


def draw_charts(document: Mapping[str, Any]) -> dict[str, str]:
    """Draw size calibration and contrast to noise as SVG charts, by file name; charts without lesions are left out."""
    charts = {}
    drawn = [point for point in document["points"] if point["realised_mm"] > 0]
    if drawn:
        error, lesions = document["calibration"][0]["mean_absolute_error"], spell_count(len(drawn), "lesion")
        series = [
            ScatterSeries(label, [(point["requested_mm"], point["realised_mm"]) for point in points])
            for label, points in _by_label(drawn)
        ]
        charts["lesion_sizes.svg"] = draw_scatter(
            "Lesion size, realised against requested",
            series,
            axes=("requested diameter, mm", "realised diameter, mm"),
            subtitle=f"{lesions} of {spell_count(document['num_cases'], 'case')}; mean error {100 * error:.1f}%",
            is_log=True,
        )
    rows = [
        DotRow(
            row["label"],
            [
                lesion["cnr"]
                for lesion in document["seen"]
                if lesion["label"] == row["label"] and lesion["cnr"] is not None
            ],
            row["cnr"],
            is_marked=row["visible"] < 1,
            note=percent(row["visible"]),
        )
        for row in document["visibility"]
        if row["cnr"] is not None
    ]
    if rows:
        charts["lesion_visibility.svg"] = draw_dot_chart(
            "Contrast to noise of lesions",
            rows,
            axis="contrast to the host, in multiples of its noise",
            subtitle="A dot is a lesion, the large one the median; right: share that is visible",
        )
    return charts


def _percentage(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
