"""A cohort as DICOM: for every case a CT series and a segmentation, of a patient who is clearly made up.

RTSTRUCT is left out. rt-utils draws contours through the centres of a mask's outermost voxels, so that a lesion loses
half a voxel on every side (measured: 4 of 9 voxels are left of a disk three voxels wide, 14 of 21 of one five wide),
and it cannot read masks of slices that are not square. Convert the segmentation where contours are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug import __version__
from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.errors import ExportError
from maisi_aug.integrations.dicom.image import build_series, require_dicom, study_uid
from maisi_aug.integrations.dicom.segmentation import build_segmentation
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohorts
from maisi_aug.integrations.reading.export_labels import LabelNumbering, choose_labels, name_in_totalsegmentator
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.system.whole_folder import folders_that_appear_whole, require_new_folder
from maisi_aug.vocabulary.modalities import is_mr
from maisi_aug.volumes.image_files import load_image, load_label_map

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

INDEX_NAME = "maisi_aug_index.json"
SERIES_FOLDER = "CT"
SEGMENTATION_NAME = "SEG.dcm"


@dataclass(frozen=True, slots=True)
class DicomReport:
    """Result of an export to DICOM.

    Attributes:
        path: Folder of the export.
        num_cases: Number of CT series.
        num_slices: Number of files of all series.
        num_segmentations: Number of segmentations; a case without any of the labels has none.
        segments: Names of the exported labels.
        notes: Notes to the user, a sentence each.
    """

    path: Path
    num_cases: int
    num_slices: int
    num_segmentations: int
    segments: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dict."""
        return {**asdict(self), "path": str(self.path), "segments": list(self.segments), "notes": list(self.notes)}


def export_dicom(
    cohort_dir: Path | Sequence[Path],
    out: Path,
    *,
    labels: Sequence[str] = (),
    include_anatomy: bool = False,
    notify: ReportStage = report_nothing,
) -> DicomReport:
    """Write the accepted cases of a cohort as ``OUT/CASE/CT/*.dcm`` and ``OUT/CASE/SEG.dcm``, whole or not at all.

    UIDs are derived from the case's bytes, so that the same cohort exported again has the same UIDs.

    Args:
        cohort_dir: Folder of a cohort, or several.
        out: New or empty folder.
        labels: Names or ids to export; if empty, those requested for the cohort.
        include_anatomy: Also export every other label in the maps, except the body.
        notify: Progress callback, called with (a stage, the steps done, their number).

    Raises:
        CohortError: ``cohort_dir`` is not a cohort.
        ExportError: ``out`` is in use, the cohort is unfinished, altered or one of MR images, a label occurs nowhere,
            or a grid is sheared.
        MissingExtraError: The extra ``dicom`` is not installed.
        VocabularyError: A label name is unknown.
    """
    require_dicom()
    require_new_folder(out)
    cohort = load_cohorts(cohort_dir)
    _require_ct(cohort)
    has_maps = any("anatomy" in case.files for case in cohort.cases)
    numbering = LabelNumbering((), ())
    if has_maps or labels or include_anatomy:
        numbering = choose_labels(cohort, labels, include_anatomy=include_anatomy, notify=notify)
    rows: dict[str, dict[str, Any]] = {}
    with folders_that_appear_whole(out) as (building,):
        for index, case in enumerate(cohort.cases):
            notify("cases", index, len(cohort.cases))
            rows[case.case_id] = _write_case(cohort, case, numbering, building / case.case_id)
        content = {"made_by": f"maisi-aug {__version__}", "cases": rows}
        write_json_whole(building / INDEX_NAME, content, is_new=True)
    notify("cases", len(cohort.cases), len(cohort.cases))
    return DicomReport(
        path=out,
        num_cases=len(rows),
        num_slices=sum(row["num_slices"] for row in rows.values()),
        num_segmentations=sum(bool(row["segments"]) for row in rows.values()),
        segments=numbering.names,
        notes=(cohort.partial_note,) if cohort.partial_note else (),
    )


def _require_ct(cohort: CohortSource) -> None:
    """Raise for MR images, whose series are of another kind and hold no HU.

    Raises:
        ExportError: The message names the case and its modality.
    """
    for case in cohort.cases:
        modality = str(case.settings.get("modality", "ct"))
        if is_mr(modality):
            raise ExportError(
                f"{case.case_id}: expected a CT image, found '{modality}'. Use the cohort's NIfTI files: MR series are "
                "not written."
            )


def _write_case(cohort: CohortSource, case: AttemptRecord, numbering: LabelNumbering, folder: Path) -> dict[str, Any]:
    """Write one case, and tell what the index says of it."""
    volume = load_image(cohort.require_file(case, "image"))
    slices = list(build_series(case, volume.array, volume.grid))
    _make_folder(folder / SERIES_FOLDER)
    for dataset in slices:
        _save(dataset, folder / SERIES_FOLDER / f"{dataset.InstanceNumber:04d}.dcm")
    row: dict[str, Any] = {
        "patient_id": slices[0].PatientID,
        "study_instance_uid": study_uid(case),
        "series_instance_uid": slices[0].SeriesInstanceUID,
        "num_slices": len(slices),
        "segments": [],
    }
    if not numbering.ids or "anatomy" not in case.files:
        return row
    anatomy = load_label_map(cohort.require_file(case, "anatomy"))
    if not anatomy.grid.is_close(volume.grid):
        raise ExportError(f"{case.case_id}: image and label map are on different grids. Make the cohort again.")
    segmentation = build_segmentation(case, slices, anatomy.array, numbering, cohort.vocabulary)
    if segmentation is not None:
        _save(segmentation, folder / SEGMENTATION_NAME)
        row["segments"] = [
            {
                "segment": int(item.SegmentNumber),
                "name": item.SegmentLabel,
                "vocabulary_id": label_id,
                "totalsegmentator": name_in_totalsegmentator(label_id),
            }
            for item, label_id in zip(segmentation.SegmentSequence, _ids_of(segmentation, numbering), strict=True)
        ]
    return row


def _ids_of(segmentation: Dataset, numbering: LabelNumbering) -> list[int]:
    by_name = dict(zip(numbering.names, numbering.ids, strict=True))
    return [by_name[item.TrackingID] for item in segmentation.SegmentSequence]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ExportError(f"{folder.parent.name}: two cases have this name. Give every case its own name.") from None


def _save(dataset: Dataset, path: Path) -> None:
    """Write a file where none is; the folder is new, and its slices are numbered."""
    dataset.save_as(path, enforce_file_format=True, overwrite=False)
