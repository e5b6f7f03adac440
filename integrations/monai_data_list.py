"""A cohort for MONAI: label maps in a network's numbers, a data list with folds, and a task for Auto3DSeg.

Synthetic cases carry no ``fold`` when there are real ones: Auto3DSeg then trains on them in every fold and validates on
real cases alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from maisi_aug import __version__
from maisi_aug.cohort.mask_origin import RealMaps, origin_words
from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.dataset import describe_case
from maisi_aug.integrations.nnunet.folders import preprocessed_places
from maisi_aug.integrations.nnunet.labels import map_labels, require_complete_mapping
from maisi_aug.integrations.nnunet.real import RealDataset, load_real_dataset
from maisi_aug.integrations.nnunet.splits import Folds, load_real_folds
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohorts
from maisi_aug.integrations.reading.export_labels import LabelNumbering, choose_labels, count_labels, require_label_maps
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.whole_files import write_json_whole, write_text_whole
from maisi_aug.system.whole_folder import (
    folders_that_appear_whole,
    link_or_copy,
    require_new_folder,
)
from maisi_aug.volumes.image_files import load_label_map, save_label_map

DATA_LIST_NAME, TASK_NAME, MAPPING_NAME = "datalist.json", "task.yaml", "maisi_aug_mapping.json"


@dataclass(frozen=True, slots=True)
class MonaiReport:
    """Result of an export to a MONAI data list.

    Attributes:
        path: Folder of the export.
        num_synthetic: Number of cases of the cohort.
        num_real: Number of cases of the real dataset.
        num_folds: Number of folds of the data list.
        folds_source: Origin of the folds.
        num_linked: Number of images that are hard links to the cohort's files rather than copies.
        labels: Label name -> number.
        notes: Notes to the user, a sentence each.
    """

    path: Path
    num_synthetic: int
    num_real: int
    num_folds: int
    folds_source: str
    num_linked: int
    labels: dict[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dict."""
        return {**asdict(self), "path": str(self.path), "notes": list(self.notes)}


def export_monai(
    cohort_dir: Path | Sequence[Path],
    out: Path,
    *,
    like: Path | None = None,
    label: Sequence[str] = (),
    absent: Sequence[str] = (),
    labels: Sequence[str] = (),
    include_anatomy: bool = False,
    notify: ReportStage = report_nothing,
) -> MonaiReport:
    """Write ``images/``, ``labels/``, ``datalist.json`` and ``task.yaml``, whole or not at all.

    The folds are those of the real dataset, or of the cohort if there is none: nnU-Net's ``splits_final.json`` under
    ``$nnUNet_preprocessed``, otherwise those that nnU-Net would draw. Because a data list cannot exclude a training
    case from a single fold, synthetic cases made from the label map of a validation case are left out entirely.

    Args:
        cohort_dir: Folder of a cohort, or several.
        out: New or empty folder.
        like: nnU-Net raw dataset of real cases, whose files are referred to and whose label numbers are used.
        label: Rules ``LABEL=NAME``: a label of the real dataset or ``background``, and its name in the cohort.
        absent: Labels of the real dataset that truly do not occur in the cohort's cases.
        labels: Names or ids to export without ``like``; if empty, those requested for the cohort.
        include_anatomy: Without ``like``, also export every other label in the maps, except the body.
        notify: Progress callback, called with (a stage, the steps done, their number).

    Raises:
        CohortError: ``cohort_dir`` is not a cohort.
        ExportError: ``out`` is in use, the cohort is unfinished or altered, labels have no counterpart, a single case
            would have to be divided into folds, a data list cannot express the folds, or no synthetic case may be
            trained on.
        VocabularyError: A label name is unknown.
    """
    require_new_folder(out)
    _require_use(like, label=label, absent=absent, labels=labels, include_anatomy=include_anatomy)
    cohort = load_cohorts(cohort_dir)
    real = None if like is None else load_real_dataset(like)
    folds = _find_folds(cohort, real)
    places = _place_in_folds(folds, real)
    chosen = _without_leaks(cohort, real, places)
    if real is None:
        numbering = choose_labels(chosen, labels, include_anatomy=include_anatomy, notify=notify)
    else:
        require_label_maps(chosen)
        numbering = _number_like(chosen, real, label, absent, notify)
    with folders_that_appear_whole(out) as (building,):
        num_linked = _write_cases(chosen, numbering, building, notify)
        _write_json(building / DATA_LIST_NAME, {"training": _build_rows(chosen, real, places), "testing": []})
        task = {"modality": "CT", "datalist": str(out.resolve() / DATA_LIST_NAME), "dataroot": str(out.resolve())}
        write_text_whole(building / TASK_NAME, yaml.safe_dump(task, sort_keys=False), is_new=True)
        made_by = f"maisi-aug {__version__}"
        origins = {case.case_id: describe_case(case) for case in chosen.cases}
        _write_json(building / MAPPING_NAME, {"made_by": made_by, "labels": numbering.to_json(), "cases": origins})
    return MonaiReport(
        path=out,
        num_synthetic=len(chosen.cases),
        num_real=0 if real is None else len(places),
        num_folds=len(folds.folds),
        folds_source=folds.source,
        num_linked=num_linked,
        labels=numbering.to_dict(),
        notes=tuple(_build_notes(cohort, chosen, real, places)),
    )


def _build_notes(
    cohort: CohortSource, chosen: CohortSource, real: RealDataset | None, places: Mapping[str, int | None]
) -> Iterator[str]:
    if cohort.partial_note:
        yield cohort.partial_note
    if real is None:
        yield "The folds consist of synthetic cases, so that validation says nothing about real ones; see --like."
        return
    if unused := [case_id for case_id in real.case_ids if case_id not in places]:
        yield f"{len(unused)} of the {len(real.cases)} real cases are left out, because no fold has them ({unused[0]})."
    if leaks := len(cohort.cases) - len(chosen.cases):
        yield (
            f"{leaks} of the {len(cohort.cases)} synthetic cases are left out: they were made from label maps of "
            "real cases used for validation, and a data list trains on its synthetic cases in every fold. The "
            "nnU-Net export only leaves them out of the folds concerned."
        )


def _require_use(like: Path | None, **flags: Any) -> None:
    """Raise for a flag that would do nothing."""
    names = ("labels", "include_anatomy") if like is not None else ("label", "absent")
    idle = ["--map" if name == "label" else f"--{name.replace('_', '-')}" for name in names if flags[name]]
    if idle and like is not None:
        raise ExportError(
            f"{idle[0]} cannot be used with --like, whose labels decide what is exported. Leave one of the two out."
        )
    if idle:
        raise ExportError(f"{idle[0]} can only be used with --like. Leave it out, or add --like.")


def _number_like(
    cohort: CohortSource, real: RealDataset, label: Sequence[str], absent: Sequence[str], notify: ReportStage
) -> LabelNumbering:
    """The numbers of the real dataset, checked as the export to nnU-Net checks them."""
    mapping = map_labels(real, cohort, label, absent, cohort.requested_ids)
    require_complete_mapping(real, cohort, mapping, count_labels(cohort, notify))
    names = {target.value: target.spelling for target in real.targets}
    ids = sorted(label_id for label_id, value in mapping.values.items() if value)
    numbers = tuple(mapping.values[label_id] for label_id in ids)
    return LabelNumbering(tuple(ids), tuple(names[number] for number in numbers), numbers)


def _find_folds(cohort: CohortSource, real: RealDataset | None) -> Folds:
    """The folds of the real dataset; of the cohort's cases where there is none."""
    case_ids = [case.case_id for case in cohort.cases] if real is None else list(real.case_ids)
    if real is None and len(case_ids) < 2:
        raise ExportError(
            f"{cohort.folder}: at least two cases are needed for folds, found one. Make more, or give --like."
        )
    places = preprocessed_places((cohort.folder if real is None else real.folder).name)
    return load_real_folds(places, case_ids, raw=None if real is None else real.folder)


def _place_in_folds(folds: Folds, real: RealDataset | None) -> dict[str, int | None]:
    """The fold in which each case of the folds validates; None for one that every fold trains on.

    Raises:
        ExportError: A data list cannot hold the folds: a fold trains on all cases that do not validate in it.
    """
    name = "The cohort" if real is None else real.name
    advice = (
        "A MONAI data list cannot hold such folds; use the nnU-Net export, or add all remaining cases to every fold."
    )
    places: dict[str, int | None] = {
        case_id: None for fold in folds.folds for case_id in (*fold["train"], *fold["val"])
    }
    for number, fold in enumerate(folds.folds):
        for case_id in fold["val"]:
            if places[case_id] is not None:
                raise ExportError(
                    f"{name}: a case can be a validation case of one fold at most, found '{case_id}' in folds "
                    f"{places[case_id]} "
                    f"and {number} of {folds.source}. {advice}"
                )
            places[case_id] = number
        missing = sorted(places.keys() - {*fold["train"], *fold["val"]})
        if missing:
            raise ExportError(
                f"{name}: every case must be used for training or validation in fold {number} of {folds.source}; "
                f"'{missing[0]}' does "
                f"neither. {advice}"
            )
    return places


def _without_leaks(cohort: CohortSource, real: RealDataset | None, places: Mapping[str, int | None]) -> CohortSource:
    """The cohort without cases that were made from the label map of a real case that validates in some fold."""
    if real is None:
        return cohort
    known = RealMaps((case.case_id, case.label) for case in real.cases if places.get(case.case_id) is not None)
    cases = tuple(case for case in cohort.cases if not known.named_by(origin_words(case.mask_origin)))
    if not cases:
        raise ExportError(
            f"{cohort.folder}: every case was made from the label map of a validation case of {real.name}, and a "
            "MONAI data list trains on its synthetic cases in every fold. Use the nnU-Net export, which leaves such "
            "a case out of one fold only, or make cases from other label maps."
        )
    return replace(cohort, cases=cases)


def _write_cases(cohort: CohortSource, numbering: LabelNumbering, building: Path, notify: ReportStage) -> int:
    """Images as they are, label maps renumbered; returns how many images are links."""
    for name in ("images", "labels"):
        (building / name).mkdir()
    num_linked = 0
    for index, case in enumerate(cohort.cases):
        notify("cases", index, len(cohort.cases))
        image = cohort.require_file(case, "image")
        num_linked += link_or_copy(image, building / "images" / f"{case.case_id}.nii.gz")
        anatomy = load_label_map(cohort.require_file(case, "anatomy"))
        renumbered = numbering.apply(anatomy.array)
        save_label_map(building / "labels" / f"{case.case_id}.nii.gz", renumbered, anatomy.grid, is_new=True)
    notify("cases", len(cohort.cases), len(cohort.cases))
    return num_linked


def _build_rows(
    cohort: CohortSource, real: RealDataset | None, places: Mapping[str, int | None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case in real.cases if real is not None else ():
        if case.case_id in places:
            row = {"image": str(case.image.resolve()), "label": str(case.label.resolve())}
            rows.append(row | ({} if places[case.case_id] is None else {"fold": places[case.case_id]}))
    for record in cohort.cases:
        row = {"image": f"images/{record.case_id}.nii.gz", "label": f"labels/{record.case_id}.nii.gz"}
        rows.append(row | ({"fold": places[record.case_id]} if real is None else {}))
    return rows


def _write_json(path: Path, content: Any) -> None:
    write_json_whole(path, content, is_new=True)
