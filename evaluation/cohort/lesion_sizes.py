"""Lesion sizes of a cohort: what was requested against what lies in the label maps, from the manifest alone.

python -m maisi_aug.evaluation.cohort.lesion_sizes COHORT --out results
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from maisi_aug.cohort.manifest import AttemptRecord, Manifest
from maisi_aug.cohort.review import load_reviewed_manifest
from maisi_aug.evaluation.output.files import percent, run_command, save_results, share_of, to_markdown
from maisi_aug.evaluation.scores.detection import name_of_bin
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.vocabulary.sizes import diameter_mm

REPORT_NAME: Final = "lesion_sizes"
TOLERANCE: Final = 0.10
TOLERANCE_VOXELS: Final = 2.0
REQUIRED_FIRST_RATE: Final = 0.80
BINS_MM: Final = (0.0, 10.0, 15.0, 20.0, 30.0, 50.0, float("inf"))
SIZE_GATE: Final = "lesion size"


@dataclass(frozen=True, slots=True)
class MeasuredLesion:
    """Requested and realised volume of a lesion of an accepted case.

    Attributes:
        label: Name of its label.
        requested_ml: Requested volume in mL.
        realised_ml: Volume in mL in the label map.
        voxel_ml: Volume of a voxel of that map in mL.
    """

    label: str
    requested_ml: float
    realised_ml: float
    voxel_ml: float

    @property
    def error(self) -> float:
        """Realised minus requested volume, as a fraction of the requested volume."""
        return self.realised_ml / self.requested_ml - 1.0

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the volume error is within 10% or two voxels, whichever is more."""
        limit_ml = max(TOLERANCE * self.requested_ml, TOLERANCE_VOXELS * self.voxel_ml)
        return abs(self.realised_ml - self.requested_ml) <= limit_ml * (1 + 1e-9)


@dataclass(frozen=True, slots=True)
class _Group:
    """Lesions and first attempts that a row of a table is about."""

    name: str
    lesions: Sequence[MeasuredLesion]
    first_attempts: Sequence[AttemptRecord]

    def to_json(self) -> dict[str, Any]:
        errors = [abs(lesion.error) for lesion in self.lesions]
        return {
            "name": self.name,
            "num_lesions": len(self.lesions),
            "mean_error": float(np.mean(errors)) if errors else None,
            "largest_error": float(np.max(errors)) if errors else None,
            "largest_error_ml": max((abs(item.realised_ml - item.requested_ml) for item in self.lesions), default=None),
            "within_tolerance": share_of(lesion.is_within_tolerance for lesion in self.lesions),
            "num_first_attempts": len(self.first_attempts),
            "first_attempt_rate": share_of(record.status == "accepted" for record in self.first_attempts),
        }


def measure_lesion_sizes(manifest: Manifest) -> dict[str, Any]:
    """Summarise requested and realised volumes, and accepted first attempts, in total, by label and by size.

    A case with several lesions counts among the first attempts of each of its labels and sizes.
    """
    lesions = [lesion for record in manifest.accepted for lesion in _measured_lesions(record)]
    first = [record for record in manifest.records if record.attempt == 0]
    by_label = [
        _Group(
            label,
            [lesion for lesion in lesions if lesion.label == label],
            [record for record in first if any(lesion.label == label for lesion in record.lesions)],
        )
        for label in sorted({lesion.label for record in first for lesion in record.lesions})
    ]
    by_size = [
        _Group(
            name_of_bin(low, high),
            [lesion for lesion in lesions if low <= diameter_mm(lesion.requested_ml) < high],
            [r for r in first if any(low <= diameter_mm(lesion.requested_ml) < high for lesion in r.lesions)],
        )
        for low, high in pairwise(BINS_MM)
    ]
    return {
        "num_cases": len({record.case_index for record in manifest.records}),
        "num_accepted": len(manifest.accepted),
        "num_rejected": len(manifest.rejected),
        "num_attempts": len(manifest.records),
        "all": _Group("all", lesions, first).to_json(),
        "by_label": [group.to_json() for group in by_label],
        "by_size": [group.to_json() for group in by_size if group.first_attempts],
        "failures": _count_failures(manifest.records),
    }


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of lesion sizes as Markdown."""
    overall = document["all"]
    rate, within = overall["first_attempt_rate"], overall["within_tolerance"]
    criteria = [
        ["lesions within 10% or two voxels", "100%", percent(within), overall["num_lesions"], within == 1.0],
        [
            "cases accepted at the first attempt",
            percent(REQUIRED_FIRST_RATE),
            percent(rate),
            overall["num_first_attempts"],
            rate is not None and rate >= REQUIRED_FIRST_RATE,
        ],
    ]
    parts = [
        f"# Lesion sizes, {spell_count(document['num_cases'], 'case')}\n",
        f"{document['num_accepted']} accepted and {document['num_rejected']} rejected in {document['num_attempts']} "
        "attempts.\n",
        to_markdown(["criterion", "required", "found", "of", "met"], criteria),
        "## By lesion\n",
        to_markdown(["lesion", *_COLUMNS], map(_cells, document["by_label"])),
        "## By requested diameter\n",
        to_markdown(["diameter", *_COLUMNS], map(_cells, document["by_size"])),
    ]
    if document["failures"]:
        parts += ["## What failed\n", to_markdown(["gate", "attempts"], document["failures"].items())]
    return "\n".join(parts)


_COLUMNS: Final = (
    *("lesions", "mean error", "largest error", "largest error, mL", "within tolerance"),
    *("first attempts", "accepted"),
)


def _cells(row: Mapping[str, Any]) -> list[Any]:
    return [
        row["name"],
        row["num_lesions"],
        *(_precise_percent(row[key]) for key in ("mean_error", "largest_error")),
        row["largest_error_ml"],
        percent(row["within_tolerance"]),
        row["num_first_attempts"],
        percent(row["first_attempt_rate"]),
    ]


def _precise_percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _measured_lesions(record: AttemptRecord) -> list[MeasuredLesion]:
    voxel_ml = next(
        (float(str(v.figures["voxel_ml"])) for v in record.verdicts if v.gate == SIZE_GATE and "voxel_ml" in v.figures),
        0.0,
    )
    return [
        MeasuredLesion(lesion.label, lesion.requested_ml, lesion.realised_ml or 0.0, voxel_ml)
        for lesion in record.lesions
    ]


def _count_failures(records: Iterable[AttemptRecord]) -> dict[str, int]:
    """Count the attempts that each gate ended; failures before the first gate count as "no label map"."""
    gates = Counter(
        next((verdict.gate for verdict in record.verdicts if not verdict.passed), "no label map")
        for record in records
        if record.status != "accepted"
    )
    return dict(gates.most_common())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: measure the lesion sizes of a cohort, print and write the report.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.cohort.lesion_sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cohort", type=Path, help="folder that 'maisi-aug synthesize' wrote")
    parser.add_argument("--out", type=Path, help=f"folder that gets {REPORT_NAME}.json and {REPORT_NAME}.md")
    options = parser.parse_args(arguments)

    def body() -> None:
        document = measure_lesion_sizes(load_reviewed_manifest(options.cohort, gates=(SIZE_GATE,)))
        report = to_report(document)
        if options.out is not None:
            save_results(options.out, REPORT_NAME, document, report)
        print(report)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
