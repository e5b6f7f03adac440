"""A cohort added to a real nnU-Net dataset: synthetic cases in training only, everything else as it was.

The new dataset has the real dataset's labels, plans, fingerprint and validation folds. Real cases are referred to where
they lie; of the synthetic ones the images are referred to as well and only the label maps are written, with the real
dataset's values.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maisi_aug import __version__
from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.check import count_processes, verify_mixed_integrity
from maisi_aug.integrations.nnunet.dataset import describe_case
from maisi_aug.integrations.nnunet.folders import FILE_ENDING, MAPPING_NAME, MARK_KEY, require_free_target
from maisi_aug.integrations.nnunet.inserting import INSERT_KEY
from maisi_aug.integrations.nnunet.labels import describe_mapping, require_complete_mapping
from maisi_aug.integrations.nnunet.plans import move_real_plans, refer_to
from maisi_aug.integrations.nnunet.report import LikeReport, Seen, build_report, write_report
from maisi_aug.integrations.nnunet.request import LikeExport, prepare_like_export
from maisi_aug.integrations.nnunet.splits import SPLITS_NAME
from maisi_aug.integrations.request import NnunetExport
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.system.whole_folder import folders_that_appear_whole
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from maisi_aug.volumes.orientation import turn_volume

# Not imagesTr and labelsTr where dataset.json names every file: nnU-Net's nnUNetv2_find_best_configuration and
# nnUNetv2_accumulate_crossval_results take labelsTr, if it exists, for the label maps of all training cases.
IMAGES_FOLDER, LABELS_FOLDER = "imagesSynthetic", "labelsSynthetic"

# Keys of the real dataset.json that decide how nnU-Net reads and trains.
_KEPT_KEYS = ("labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer")


def export_like(cohorts: Sequence[Path], request: NnunetExport, *, notify: ReportStage = report_nothing) -> LikeReport:
    """Add a cohort to a real dataset: write a raw and a preprocessed dataset under a new id, whole or not at all.

    Args:
        cohorts: Folders of cohorts.
        request: What to export and where to. A dry run reads and checks everything, including voxels and nnU-Net's own
            check of the real cases, and writes nothing; only nnU-Net's planner is not run.
        notify: Progress callback, called with (a stage, the steps done, their number).

    Returns:
        The report; unless it is a dry run, the dataset has passed nnU-Net's integrity check.

    Raises:
        CohortError: The cohort's folder is not a cohort.
        ExportError: Something does not fit, or nnU-Net refuses the result.
        VocabularyError: A label name is unknown.
    """
    export = prepare_like_export(cohorts, request)
    if request.dry_run:
        seen = _write_cases(export, None, notify)
        require_complete_mapping(export.real, export.cohort, export.mapping, seen.counts)
        return build_report(export, seen, plans=None, warnings=_check_real_cases(export, notify))
    targets, name = (export.target, export.preprocessed_target), export.target.name.partition("_")[2]
    require_free = partial(require_free_target, export.target.parent, request.dataset_id, name)
    with folders_that_appear_whole(*targets, require_free=require_free) as (raw, preprocessed):
        seen = _write_cases(export, raw, notify)
        require_complete_mapping(export.real, export.cohort, export.mapping, seen.counts)
        description = _write_raw(export, raw, seen.counts)
        notify("plans of the real cases", 0, 2)
        plans = move_real_plans(export.real, export.plans, export.target, preprocessed, description)
        _write_json(preprocessed / "dataset.json", description)
        _write_json(preprocessed / SPLITS_NAME, export.mixed_folds)
        notify("nnU-Net's integrity check", 1, 2)
        num_cases = len(export.cases) + len(export.real.cases)
        warnings = verify_mixed_integrity(raw, num_processes=count_processes(num_cases))
        notify("nnU-Net's integrity check", 2, 2)
        report = build_report(export, seen, plans=plans, warnings=warnings)
        write_report(report, raw)
    return report


def _check_real_cases(export: LikeExport, notify: ReportStage) -> tuple[str, ...]:
    """Run nnU-Net's integrity check on the real cases alone, from a scratch folder that refers to them."""
    notify("nnU-Net's integrity check", 0, 1)
    with tempfile.TemporaryDirectory(prefix="maisi-aug-") as name:
        raw = Path(name, export.target.name)
        raw.mkdir()
        alone = {**_describe_dataset(export), "dataset": refer_to(export.real), "numTraining": len(export.real.cases)}
        _write_json(raw / "dataset.json", alone)
        warnings = verify_mixed_integrity(raw, num_processes=count_processes(len(export.real.cases)))
    notify("nnU-Net's integrity check", 1, 1)
    return warnings


def _write_cases(export: LikeExport, building: Path | None, notify: ReportStage) -> Seen:
    """Write label maps with the real dataset's values, and images where they have to be turned.

    Args:
        export: The export.
        building: The raw dataset; ``None`` to read only.
        notify: Called per case.

    Returns:
        What the label maps hold.
    """
    table, seen = export.mapping.build_table(), Seen()
    for index, case in enumerate(export.cases):
        notify("cases", index, len(export.cases))
        image = export.cohort.require_file(case, "image")
        anatomy = load_label_map(export.cohort.require_file(case, "anatomy"))
        seen.add(anatomy.array)
        if building is None:
            continue
        synthetic_id = export.synthetic_ids[case.case_id]
        values, grid = turn_volume(table[anatomy.array], anatomy.grid, export.orientation)
        image_place, label_place = _places(export, synthetic_id)
        save_label_map(building / label_place, values, grid, is_new=True)
        if export.is_turned:
            volume = load_image(image)
            image_hu, grid = turn_volume(volume.array, volume.grid, export.orientation)
            save_image(building / image_place, image_hu, grid, is_new=True)
    notify("cases", len(export.cases), len(export.cases))
    return seen


def _write_raw(export: LikeExport, building: Path, present: Mapping[int, int]) -> dict[str, Any]:
    """Write ``dataset.json`` and the mapping, and link what is to be linked.

    Returns:
        The content of ``dataset.json``.
    """
    entries = _list_files(export)
    description = _describe_dataset(export)
    if export.link == "none":
        description["dataset"] = {
            case_id: {"images": [_refer(image, export.target)], "label": _refer(label, export.target)}
            for case_id, (image, label) in entries.items()
        }
    else:
        for case_id, (image, label) in entries.items():
            _link(image, building / "imagesTr" / f"{case_id}_0000{FILE_ENDING}", export)
            _link(label, building / "labelsTr" / f"{case_id}{FILE_ENDING}", export)
    _write_json(building / "dataset.json", description)
    _write_json(building / MAPPING_NAME, _describe_mapping(export, present))
    return description


def _list_files(export: LikeExport) -> dict[str, tuple[Path, Path]]:
    """Image and label map per identifier; paths inside the new dataset are those of its final place."""
    entries = {case.case_id: (case.image, case.label) for case in export.real.cases}
    for case in export.cases:
        synthetic_id = export.synthetic_ids[case.case_id]
        image = (export.cohort.folder / case.files["image"].path).resolve()
        image_place, label_place = _places(export, synthetic_id)
        if export.is_turned:
            image = export.target / image_place
        entries[synthetic_id] = image, export.target / label_place
    return entries


def _places(export: LikeExport, synthetic_id: str) -> tuple[Path, Path]:
    """Return where the image and the label map of a synthetic case are written in the new dataset."""
    is_named = export.link == "none"
    images, labels = (IMAGES_FOLDER, LABELS_FOLDER) if is_named else ("imagesTr", "labelsTr")
    return Path(images, f"{synthetic_id}_0000{FILE_ENDING}"), Path(labels, f"{synthetic_id}{FILE_ENDING}")


def _refer(path: Path, target: Path) -> str:
    """The path as the ``dataset`` entry holds it: relative where both lie under nnUNet_raw, so that it can be moved."""
    return os.path.relpath(path, target) if path.is_relative_to(target.parent) else str(path)


def _link(source: Path, place: Path, export: LikeExport) -> None:
    if source.is_relative_to(export.target):
        return  # written into the dataset already
    place.parent.mkdir(exist_ok=True)
    try:
        if export.link == "symlink":
            place.symlink_to(source)
        else:
            place.hardlink_to(source.resolve())
    except FileExistsError:
        raise ExportError(
            f"{place.name}: two files of the export have this name. Give every case its own name."
        ) from None
    except OSError as error:
        if export.link == "symlink":
            raise ExportError(
                f"--link symlink: {place.name} could not be linked to {source}: {error.strerror}. Windows allows "
                "links in developer mode only. Use --link hard, or none."
            ) from error
        raise ExportError(
            f"--link hard: {source} cannot be linked from the file system of {export.target.parent}: "
            f"{error.strerror}. Use --link symlink, or none."
        ) from None


def _describe_dataset(export: LikeExport) -> dict[str, Any]:
    real = export.real
    licences = ", ".join(sorted({case.licence for case in export.cases}))
    real_licence = real.description.get("licence", real.description.get("license", "see the dataset"))
    return {
        "channel_names": {"0": "CT"},
        **{key: real.description[key] for key in _KEPT_KEYS if key in real.description},
        "numTraining": len(real.cases) + len(export.cases),
        "name": export.target.name,
        "description": (
            f"{len(real.cases)} cases of {real.name} and {len(export.cases)} synthetic ones, which are used for "
            f"training only; see {MAPPING_NAME}."
        ),
        "reference": str(real.description.get("reference", real.name)),
        "release": __version__,
        "licence": f"real cases: {real_licence}; synthetic cases: {licences}",
        "converted_by": f"maisi-aug {__version__}",
        MARK_KEY: {
            "format": 1,
            "real_dataset": real.name,
            "synthetic_cases": sorted(export.synthetic_ids.values()),
            **({} if export.insertion is None else {INSERT_KEY: export.insertion.to_dict()}),
        },
    }


def _describe_mapping(export: LikeExport, present: Mapping[int, int]) -> dict[str, Any]:
    rows = describe_mapping(export.real, export.cohort, export.mapping)
    return {
        "format": 1,
        "made_by": f"maisi-aug {__version__}",
        "real_dataset": export.real.name,
        "labels": [row | {"num_cases": present.get(row["vocabulary_id"], 0)} for row in rows],
        "background": [
            {"vocabulary_id": label_id, "name": export.cohort.name_of(label_id), "num_cases": present[label_id]}
            for label_id in sorted(present.keys() - export.mapping.values.keys())
        ],
        "absent": sorted(export.mapping.absent),
        "cases": {
            export.synthetic_ids[case.case_id]: {"case_id": case.case_id, **describe_case(case)}
            for case in export.cases
        },
    }


def _write_json(path: Path, content: Any) -> None:
    write_json_whole(path, content, is_new=True, indent=2)
