"""Contents of a prepared folder, for people and for scripts: volumes and HU per label, folds, notes per case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maisi_aug.preparation.prepared import PreparedDataset
from maisi_aug.system.printed_text import clean_markdown
from maisi_aug.vocabulary.labels import BACKGROUND_ID
from maisi_aug.volumes.grid import spell_grid

NUM_DIGITS = 4


def build_summary(
    dataset: PreparedDataset, hu: Mapping[str, Mapping[str, Sequence[float]]], problems: Mapping[str, str]
) -> dict[str, Any]:
    """Return the summary of a preparation as a JSON-able dict.

    Args:
        dataset: Prepared cases.
        hu: Case -> label id -> 5th, 50th and 95th percentile of its HU.
        problems: Case -> reason why it could not be prepared.
    """
    grid = dataset.spec.grid
    return {
        "name": dataset.spec.name,
        "grid": {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm)},
        "num_cases": len(dataset.cases),
        "num_patients": len({case.patient for case in dataset.cases}),
        "folds": _describe_folds(dataset),
        "labels": [
            _describe_label(dataset, name, label_id, hu)
            for name, label_id in sorted(dataset.spec.labels.items(), key=lambda row: row[1])
        ],
        "notes": {case.id: list(case.notes) for case in dataset.cases if case.notes},
        "problems": dict(problems),
    }


def _describe_folds(dataset: PreparedDataset) -> list[dict[str, Any]]:
    rows = []
    for fold in range(dataset.spec.num_folds):
        cases = [case for case in dataset.cases if case.fold == fold]
        rows.append({"fold": fold, "cases": len(cases), "patients": len({case.patient for case in cases})})
    return rows


def _describe_label(
    dataset: PreparedDataset, name: str, label_id: int, hu: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    cases = [case for case in dataset.cases if case.voxels.get(label_id)]
    volumes = [case.volume_ml(label_id) for case in cases]
    percentiles = np.median([hu[case.id][str(label_id)] for case in cases], axis=0)
    return {
        "id": label_id,
        "name": name,
        "is_new": name in dataset.spec.new_labels,
        "cases": len(cases),
        "folds": sorted({case.fold for case in cases}),
        "voxels_median": float(np.median([case.voxels[label_id] for case in cases])),
        "ml_min": _round(min(volumes)),
        "ml_median": _round(float(np.median(volumes))),
        "ml_max": _round(max(volumes)),
        "hu_percentiles_5_50_95": [round(float(value), 1) for value in percentiles],
    }


def spell_summary(summary: Mapping[str, Any], dataset: PreparedDataset) -> str:
    """Format the summary of a preparation as Markdown.

    Args:
        summary: Content of ``summary.json``.
        dataset: The prepared cases.

    Returns:
        Content of ``summary.md``.
    """
    grid = dataset.spec.grid
    lines = [
        f"# {clean_markdown(summary['name'])}",
        "",
        f"Cases: {summary['num_cases']}. Patients: {summary['num_patients']}. Grid: "
        f"{spell_grid(grid.shape, grid.spacing_mm)}.",
        "Pictures: `contact_sheet.png`, and `previews/` for each case.",
        "",
        "## Labels",
        "",
        "HU: medians over the cases of the 5th, 50th and 95th percentile.",
        "",
        "| id | label | new | cases | voxels, median | mL, least | mL, median | mL, most | HU 5% | HU 50% | HU 95% |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary["labels"]:
        hu = " | ".join(f"{value:.0f}" for value in row["hu_percentiles_5_50_95"])
        lines.append(
            f"| {row['id']} | {clean_markdown(row['name'])} | {'yes' if row['is_new'] else ''} | {row['cases']} | "
            f"{row['voxels_median']:.0f} | {row['ml_min']:g} | {row['ml_median']:g} | {row['ml_max']:g} | {hu} |"
        )
    lines += ["", "## Folds", "", "| fold | cases | patients |", "| ---: | ---: | ---: |"]
    lines += [f"| {row['fold']} | {row['cases']} | {row['patients']} |" for row in summary["folds"]]
    lines += ["", "## Cases", "", *_spell_cases(dataset)]
    if summary["problems"]:
        lines += [
            "",
            "## Not prepared",
            "",
            *(f"- {clean_markdown(name)}: {clean_markdown(why)}" for name, why in summary["problems"].items()),
        ]
    return "\n".join(lines) + "\n"


def _spell_cases(dataset: PreparedDataset) -> list[str]:
    named = [
        (name, label_id) for name, label_id in dataset.spec.labels.items() if name in dataset.spec.new_labels
    ] or list(dataset.spec.labels.items())
    head = " | ".join(f"{clean_markdown(name)}, mL" for name, _ in named)
    lines = [f"| case | patient | fold | {head} | notes |", "| --- | --- | ---: |" + " ---: |" * len(named) + " --- |"]
    for case in dataset.cases:
        volumes = " | ".join(
            f"{case.volume_ml(label_id):.4g}" if case.voxels.get(label_id) else "" for _, label_id in named
        )
        texts = map(clean_markdown, (case.id, case.patient))
        notes = clean_markdown(" ".join(case.notes))
        lines.append(f"| {' | '.join(texts)} | {case.fold} | {volumes} | {notes} |")
    return lines


def labels_in(cases: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the label ids that occur in any case record, ascending, without the background."""
    return sorted({int(label_id) for case in cases for label_id in case["voxels"]} - {BACKGROUND_ID})


def _round(value: float) -> float:
    return float(f"{value:.{NUM_DIGITS}g}")
