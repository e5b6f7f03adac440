"""A cohort as an nnU-Net v2 raw dataset, checked by nnU-Net itself before it appears under its name.

Which labels it holds and how they are numbered is decided by :mod:`maisi_aug.integrations.reading.export_labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug import __version__
from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.integrations.nnunet.check import count_processes, verify_integrity
from maisi_aug.integrations.nnunet.folders import (
    FILE_ENDING,
    MAPPING_NAME,
    place_file,
    require_free_target,
    require_raw_folder,
)
from maisi_aug.integrations.nnunet.splits import NUM_FOLDS
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohorts
from maisi_aug.integrations.reading.export_labels import LabelNumbering, choose_labels
from maisi_aug.integrations.request import NnunetExport
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.system.whole_folder import folders_that_appear_whole
from maisi_aug.vocabulary.labels import BACKGROUND_ID
from maisi_aug.volumes.image_files import load_label_map, save_label_map

NAMED_FROM = 1000
"""Cases from which on ``dataset.json`` names every file; in a smaller dataset files can be added to the folders.

Without it nnU-Net compares every case with every file, in its check, its planner and its preprocessing
(``create_lists_from_splitted_dataset_folder`` of 2.8).
"""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export to nnU-Net.

    Attributes:
        path: Folder of the dataset.
        labels: Label name -> label number in nnU-Net, including the background.
        vocabulary_ids: Label name -> id in the cohort's label maps, without the background.
        num_cases: Number of training cases.
        num_linked: Number of images that are hard links to the cohort's files rather than copies.
        notes: Notes to the user, a sentence each.
    """

    path: Path
    labels: dict[str, int]
    vocabulary_ids: dict[str, int]
    num_cases: int
    num_linked: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dict."""
        return {
            "path": str(self.path),
            "labels": self.labels,
            "vocabulary_ids": self.vocabulary_ids,
            "num_cases": self.num_cases,
            "num_linked": self.num_linked,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class _Written:
    """What was found while the cases were written."""

    present_ids: frozenset[int]
    num_linked: int
    num_empty: int


def export_alone(
    cohorts: Sequence[Path], request: NnunetExport, *, notify: ReportStage = report_nothing
) -> ExportReport:
    """Export cohorts to an nnU-Net dataset without real cases.

    Args:
        cohorts: Folders of the cohorts.
        request: Options of the export, with ``name`` and without ``like``.
        notify: Progress callback, called with (stage, done, total).

    Returns:
        The report of :func:`export_nnunet`, whose errors may be raised.
    """
    assert request.name is not None
    return export_nnunet(
        cohorts,
        dataset_id=request.dataset_id,
        name=request.name,
        out=request.out,
        labels=request.labels,
        include_anatomy=request.include_anatomy,
        copy=request.copy_images,
        notify=notify,
    )


def export_nnunet(
    cohort_dir: Path | Sequence[Path],
    *,
    dataset_id: int,
    name: str,
    out: Path | None = None,
    labels: Sequence[str] = (),
    include_anatomy: bool = False,
    copy: bool = False,
    notify: ReportStage = report_nothing,
) -> ExportReport:
    """Write the accepted cases of a cohort as an nnU-Net dataset ``DatasetXXX_Name``, whole or not at all.

    Args:
        cohort_dir: Folder of a cohort, or several.
        dataset_id: Unused number of the dataset, 1 to 999.
        name: Name of the dataset, the part after ``DatasetXXX_``.
        out: Folder for raw datasets; None for ``$nnUNet_raw``.
        labels: Names or ids to export; if empty, those requested for the cohort.
        include_anatomy: Also export every other label in the maps, except the body.
        copy: Copy the images instead of linking them.
        notify: Progress callback, called with (a stage, the steps done, their number).

    Returns:
        The report; the dataset has passed nnU-Net's integrity check.

    Raises:
        CohortError: ``cohort_dir`` is not a cohort.
        ExportError: The cohort is unfinished or altered, the id is taken, a label occurs nowhere, or the check fails.
        VocabularyError: A label name is unknown.
    """
    require_free = partial(require_free_target, require_raw_folder(out), dataset_id, name)
    target = require_free()
    cohort = load_cohorts(cohort_dir)
    numbering = choose_labels(cohort, labels, include_anatomy=include_anatomy, notify=notify)
    with folders_that_appear_whole(target, require_free=require_free) as (building,):
        written = _write_cases(cohort, numbering, building, copy=copy, notify=notify)
        _write_descriptions(cohort, numbering, written, building, target.name)
        notify("nnU-Net's integrity check", 0, 1)
        verify_integrity(building, num_processes=count_processes(len(cohort.cases)))
        notify("nnU-Net's integrity check", 1, 1)
    return ExportReport(
        path=target,
        labels=numbering.to_dict(),
        vocabulary_ids=dict(zip(numbering.names, numbering.ids, strict=True)),
        num_cases=len(cohort.cases),
        num_linked=written.num_linked,
        notes=tuple(_build_notes(cohort, written)),
    )


def _write_cases(
    cohort: CohortSource, numbering: LabelNumbering, building: Path, *, copy: bool, notify: ReportStage
) -> _Written:
    """Images as they are, label maps renumbered."""
    for folder in ("imagesTr", "labelsTr"):
        (building / folder).mkdir()
    present: set[int] = set()
    num_linked = num_empty = 0
    for index, case in enumerate(cohort.cases):
        notify("cases", index, len(cohort.cases))
        image_place, label_place = _places(case.case_id)
        num_linked += place_file(cohort.require_file(case, "image"), building / image_place, copy=copy)
        anatomy = load_label_map(cohort.require_file(case, "anatomy"))
        label_map = numbering.apply(anatomy.array)
        save_label_map(building / label_place, label_map, anatomy.grid, is_new=True)
        present |= {int(label_id) for label_id in np.unique(anatomy.array)}
        num_empty += not label_map.any()
    notify("cases", len(cohort.cases), len(cohort.cases))
    return _Written(frozenset(present - {BACKGROUND_ID}), num_linked, num_empty)


def _places(case_id: str) -> tuple[str, str]:
    """Image and label map in the dataset's folder."""
    return f"imagesTr/{case_id}_0000{FILE_ENDING}", f"labelsTr/{case_id}{FILE_ENDING}"


def _write_descriptions(
    cohort: CohortSource, numbering: LabelNumbering, written: _Written, building: Path, name: str
) -> None:
    """Write ``dataset.json`` for nnU-Net and the mapping back to the vocabulary for everyone else."""
    licences = sorted({case.licence for case in cohort.cases})
    dataset: dict[str, Any] = {
        "channel_names": {"0": channel_name(cohort.cases)},
        "labels": numbering.to_dict(),
        "numTraining": len(cohort.cases),
        "file_ending": FILE_ENDING,
        "name": name,
        "description": f"Synthetic CT cohort of {len(cohort.cases)} cases, for training only; see {MAPPING_NAME}.",
        "reference": f"maisi-aug {__version__}",
        "release": __version__,
        "licence": ", ".join(licences),
        "converted_by": f"maisi-aug {__version__}",
    }
    if len(cohort.cases) >= NAMED_FROM:
        places = {case.case_id: _places(case.case_id) for case in cohort.cases}
        dataset["dataset"] = {
            case_id: {"images": [image], "label": label} for case_id, (image, label) in places.items()
        }
    mapping = {
        "format": 1,
        "made_by": f"maisi-aug {__version__}",
        "labels": numbering.to_json(),
        "background": [
            {"name": cohort.name_of(label_id), "vocabulary_id": label_id}
            for label_id in sorted(written.present_ids - set(numbering.ids))
        ],
        "cases": {case.case_id: describe_case(case) for case in cohort.cases},
    }
    for path, content in ((building / "dataset.json", dataset), (building / MAPPING_NAME, mapping)):
        write_json_whole(path, content, is_new=True, indent=2)


def channel_name(cases: Sequence[AttemptRecord]) -> str:
    """Return nnU-Net's channel name for cases: ``CT`` selects normalisation in HU, other names per image."""
    modalities = {str(case.settings.get("modality", "ct")) for case in cases}
    if all(modality.lower().startswith("ct") for modality in modalities):
        return "CT"
    return "+".join(sorted(modalities))


def describe_case(case: AttemptRecord) -> dict[str, Any]:
    """Return the origin of a case for the mapping file, by which a benchmark recognises the source of its label map."""
    return {
        "request": case.request,
        "seed": case.seed,
        "bundle": case.bundle,
        "bundle_fingerprint": case.bundle_fingerprint,
        "licence": case.licence,
        "image_sha256": case.files["image"].sha256,
        "anatomy_sha256": case.files["anatomy"].sha256,
        "mask_origin": dict(case.mask_origin),
    }


def _build_notes(cohort: CohortSource, written: _Written) -> Iterator[str]:
    num_cases = len(cohort.cases)
    if cohort.partial_note:
        yield cohort.partial_note
    if num_cases < NUM_FOLDS:
        yield f"nnU-Net's default split has {NUM_FOLDS} folds and needs as many cases; this dataset has {num_cases}."
    if written.num_empty:
        yield f"{written.num_empty} of {num_cases} cases hold none of the exported labels."
