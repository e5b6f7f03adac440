"""The report's sections on a cohort: what was accepted, sizes, HU, FID, pictures, provenance and licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from maisi_aug.cohort.manifest import AttemptRecord, Manifest
from maisi_aug.cohort.review import load_reviewed_manifest
from maisi_aug.errors import EvaluationError, MaisiAugError
from maisi_aug.evaluation.cohort import detection_curve, hu, lesion_report
from maisi_aug.evaluation.cohort.case_sets import CaseSet, find_case_set
from maisi_aug.evaluation.fid import measurement as fid
from maisi_aug.evaluation.output.files import percent
from maisi_aug.evaluation.report import page
from maisi_aug.evaluation.report.page import Section
from maisi_aug.integrations.reading.cohort_source import find_num_planned
from maisi_aug.system.content import ContentError, content_errors, read_json
from maisi_aug.system.printed_text import clean_document, clean_html, spell_count
from maisi_aug.system.progress import ReportStage

NUM_PICTURES: Final = 6
MAX_MEASURED_CASES: Final = 40
PICTURE_PX: Final = 720


def summarise_cohort(
    folder: Path, *, fid_file: Path | None, curve_file: Path | None = None, notify: ReportStage
) -> dict[str, Any]:
    """Collect all figures of a cohort's report as a JSON-able dict; what cannot be measured is listed.

    Args:
        folder: Folder of the cohort.
        fid_file: ``fid.json`` of ``evaluate fid --out``; None without one.
        curve_file: ``detection_curve.json`` of ``evaluate detection-curve --out``; None without one.
        notify: Progress callback, called with (stage, done, total).

    Raises:
        CohortError: The folder is not a cohort.
    """
    manifest = load_reviewed_manifest(folder, gates=())
    num_begun = len({record.case_index for record in manifest.records})
    num_cases = max(num_begun, find_num_planned(folder) or 0)
    document: dict[str, Any] = {
        "kind": "cohort",
        "path": str(folder),
        "num_cases": num_cases,
        "num_accepted": len(manifest.accepted),
        "num_rejected": len(manifest.rejected),
        "num_attempts": len(manifest.records),
        "first_attempt_rate": manifest.first_attempt_rate(),
        "rejected": [{"case": r.case_id, "reason": r.reason} for r in manifest.rejected],
        "failed_gates": _count_failed_gates(manifest),
        "provenance": _describe_provenance(manifest),
        "notes": [],
        "lesions": None,
        "hu": None,
        "fid": None if fid_file is None else _read_figures(fid_file, "fid", fid.draw_chart),
        "detection_curve": (
            None if curve_file is None else _read_figures(curve_file, "detection-curve", detection_curve.draw_chart)
        ),
    }
    if num_begun < num_cases:
        document["notes"].append(
            f"{num_cases - num_begun} of {spell_count(num_cases, 'planned case')} have not been made yet; "
            "the command that began "
            "the cohort continues it."
        )
    del manifest  # read again with its figures, one at a time: a large cohort's is large
    if document["num_accepted"]:
        _measure(folder, document, notify)
    return document


def _measure(folder: Path, document: dict[str, Any], notify: ReportStage) -> None:
    try:
        case_set = find_case_set(folder)
    except MaisiAugError as error:  # such as a cohort that is still being written
        document["notes"].append(f"HU and visibility were not measured. {error}")
        return
    if len(case_set.cases) > MAX_MEASURED_CASES:
        case_set = CaseSet(**{**vars(case_set), "cases": case_set.cases[:MAX_MEASURED_CASES]})
        document["notes"].append(f"HU and visibility were measured on the first {MAX_MEASURED_CASES} cases.")
    measurements: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("lesions", lambda: lesion_report.measure_lesions_of(case_set, lambda a, b: notify("lesions", a, b))),
        ("hu", lambda: hu.measure_hu(case_set, hu.published_reference(), lambda a, b: notify("HU", a, b))),
    )
    for name, measure in measurements:
        try:
            document[name] = measure()
        except MaisiAugError as error:
            document["notes"].append(f"{name}: {error}")


def build_cohort_sections(folder: Path, document: Mapping[str, Any], *, name: str = "") -> list[Section]:
    """Return the sections of a cohort's report page, in order.

    Args:
        folder: Folder of the cohort.
        document: Result of :func:`summarise_cohort`.
        name: Name at the beginning of titles, for pages about several cohorts.
    """
    prefix = f"{name}: " if name else ""
    return [
        Section(f"{prefix}Cohort", _build_summary(document)),
        Section(f"{prefix}Size calibration", _build_sizes(document)),
        Section(f"{prefix}HU by organ", _build_hu(document)),
        Section(f"{prefix}FID by plane", _build_fid(document)),
        Section(f"{prefix}Detection", _build_curve(document)),
        Section(f"{prefix}Accepted and rejected cases", _build_pictures(folder)),
        Section(f"{prefix}Provenance and licences", _build_provenance(document)),
    ]


def to_cohort_text(document: Mapping[str, Any]) -> str:
    """Format the figures of a cohort's report as Markdown."""
    # Their own reports clean what they are given.
    measured = {"lesions": lesion_report, "hu": hu, "fid": fid, "detection_curve": detection_curve}
    said = {**document, **clean_document({key: part for key, part in document.items() if key not in measured})}
    parts = [f"# Cohort {said['path']}\n", *(f"- {name}: {value}" for name, value in _facts(said).items()), ""]
    parts += [f"- {note}" for note in said["notes"]]
    parts += [f"- {row['case']} was rejected: {row['reason']}" for row in said["rejected"]]
    for key, module in measured.items():
        if document[key] is not None:
            parts += ["", module.to_report(document[key])]
    parts += ["", "## Provenance", "", *(f"- {row}" for row in _spell_provenance(said))]
    return "\n".join(parts) + "\n"


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "cases accepted": f"{document['num_accepted']} of {document['num_cases']}",
        "at the first attempt": percent(document["first_attempt_rate"]),
        "attempts": str(document["num_attempts"]),
    }
    if document["hu"] is not None and document["hu"]["inside"] is not None:
        found["organ medians within range"] = percent(document["hu"]["inside"])
    if document["lesions"] is not None and document["lesions"]["calibration"][0].get("mean_absolute_error") is not None:
        found["mean error of size"] = f"{100 * document['lesions']['calibration'][0]['mean_absolute_error']:.1f}%"
    return found


def _build_summary(document: Mapping[str, Any]) -> str:
    parts = [page.facts(_facts(document)), *(page.warn(note) for note in document["notes"])]
    parts += [page.warn(text) for text in _list_skipped(document)]
    parts += [page.warn(f"{row['case']} was rejected. {row['reason']}") for row in document["rejected"]]
    if document["failed_gates"]:
        rows = ([clean_html(gate), str(count)] for gate, count in document["failed_gates"].items())
        parts.append(page.table(["gate that ended an attempt", "attempts"], rows, caption="Failed attempts by gate"))
    return "\n".join(parts)


def _list_skipped(document: Mapping[str, Any]) -> list[str]:
    """Cases that could not be measured; one that neither measurement could read is named once."""
    found = [row for name in ("lesions", "hu") for row in (document[name] or {}).get("skipped", ())]
    return list(dict.fromkeys(f"{row['case']} could not be measured. {row['reason']}" for row in found))


def _build_sizes(document: Mapping[str, Any]) -> str:
    if document["lesions"] is None:
        return ""
    return "\n".join(
        page.chart(svg, caption="Requested against realised size" if "sizes" in name else "Visibility of lesions")
        for name, svg in lesion_report.draw_charts(document["lesions"]).items()
    )


def _build_hu(document: Mapping[str, Any]) -> str:
    if document["hu"] is None:
        return ""
    parts = [page.chart(hu.draw_chart(document["hu"]), caption="Median HU of every label, by case, over its range")]
    outliers = [
        f"{row['case']}: {row['label']} at {row['median_hu']:.0f} HU, expected {row['low_hu']:.0f} to "
        f"{row['high_hu']:.0f}."
        for row in document["hu"]["outliers"]
    ]
    return "\n".join([*parts, page.bullets(outliers) if outliers else ""])


def _build_fid(document: Mapping[str, Any]) -> str:
    if document["fid"] is None:
        return ""
    return page.chart(fid.draw_chart(document["fid"]), caption="FID by plane against the floor of real halves")


def _build_curve(document: Mapping[str, Any]) -> str:
    if document["detection_curve"] is None:
        return ""
    curve = document["detection_curve"]
    chart = page.chart(detection_curve.draw_chart(curve), caption=f"Share of lesions found, by {curve['factor']}")
    found = detection_curve.spell_sizes(curve)
    return "\n".join([chart, page.bullets(found) if found else ""])


def _read_figures(path: Path, command: str, draw_chart: Callable[[Mapping[str, Any]], str]) -> dict[str, Any]:
    """Read the result of a command of ``evaluate``, and check that its chart can be drawn."""
    try:
        content = read_json(path)
        draw_chart(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = f"{command.replace('-', '_')}.json"
        raise EvaluationError(
            f"{path}: not {name} as 'maisi-aug evaluate {command} --out' writes it: {error!r}. Correct --{command}."
        ) from error
    found: dict[str, Any] = content
    return found


def _build_pictures(folder: Path) -> str:
    manifest = load_reviewed_manifest(folder, gates=())
    failed = [record for record in manifest.records if record.status != "accepted"]
    parts = []
    for title, records in (("Accepted", manifest.accepted), ("Rejected attempts", failed)):
        figures = [_show(folder, record) for record in _spread(records)]
        if figures:
            parts += [page.heading(title), "".join(figures)]
    return "\n".join(parts)


def _spread(records: Sequence[AttemptRecord]) -> list[AttemptRecord]:
    """A few records, evenly spread."""
    with_picture = [record for record in records if "preview" in record.files]
    step = max(1, -(-len(with_picture) // NUM_PICTURES))
    return with_picture[::step]


def _show(folder: Path, record: AttemptRecord) -> str:
    path = folder / record.files["preview"].path
    try:
        with content_errors(path), Image.open(path) as image:
            image.thumbnail((PICTURE_PX * 2, PICTURE_PX * 2))
            shown = image.convert("RGB")
    except (OSError, ContentError) as error:
        return page.warn(f"{record.case_id}: the picture {path} cannot be read. {error}")
    caption = record.reason or f"{record.case_id}, {record.request}"
    alt = f"Slices of {record.case_id} with its labels outlined"
    return page.picture(shown, alt=alt, caption=caption, case=f"{record.case_id}.{record.attempt}")


def _count_failed_gates(manifest: Manifest) -> dict[str, int]:
    gates = Counter(
        next((verdict.gate for verdict in record.verdicts if not verdict.passed), _other_cause(record))
        for record in manifest.records
        if record.status != "accepted"
    )
    return dict(gates.most_common())


def _other_cause(record: AttemptRecord) -> str:
    """Return what ended an attempt that failed no gate: a reviewer if there is an image."""
    return "review" if "preview" in record.files else "no label map"


def _describe_provenance(manifest: Manifest) -> list[dict[str, str]]:
    """Every combination of bundle, weights, licence and source of label maps, with the number of cases."""
    found = Counter(
        (
            record.bundle,
            record.bundle_fingerprint[:16],
            record.licence,
            str(record.mask_origin.get("source", "unknown")),
            str(record.mask_origin.get("bank", "")),
        )
        for record in manifest.accepted
    )
    keys = ("bundle", "weights", "licence", "mask_source", "mask_bank")
    return [{**dict(zip(keys, row, strict=True)), "cases": str(count)} for row, count in found.items()]


def _spell_provenance(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in document["provenance"]:
        weights = f" (weights {row['weights']})" if row["weights"] else ""
        lines.append(
            f"{spell_count(int(row['cases']), 'case')} by {row['bundle']}{weights}; licence: {row['licence']}; label "
            f"maps by {row['mask_source']} {row['mask_bank']}".rstrip()
        )
    return lines


def _build_provenance(document: Mapping[str, Any]) -> str:
    keys = ("bundle", "weights", "licence", "mask_source", "mask_bank", "cases")
    header = ["bundle", "weights, SHA-256", "licence", "label maps by", "of", "cases"]
    rows = ([clean_html(row[key]) for key in keys] for row in document["provenance"])
    return page.table(header, rows, caption="Provenance", words=(1, 2, 3, 4))
