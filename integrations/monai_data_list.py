"""A cohort for MONAI: label maps in a network's numbers, a data list with folds, and a task for Auto3DSeg.

Synthetic cases carry no ``fold`` when there are real ones: Auto3DSeg then trains on them in every fold and validates on
real cases alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from maisi_aug import __version__
from maisi_aug.errors import ExportError
from maisi_aug.integrations.cohort_source import CohortSource, load_cohort_source
from maisi_aug.integrations.export_labels import LabelNumbering, choose_labels
from maisi_aug.integrations.real_dataset import RealCase, load_real_dataset, number_like
from maisi_aug.integrations.whole_folder import (
    Notify,
    folder_that_appears_whole,
    link_or_copy,
    require_new_folder,
    tell_nobody,
)
from maisi_aug.volume_io import load_label_map, save_label_map
from maisi_aug.whole_files import write_text_whole

DATA_LIST_NAME, TASK_NAME, MAPPING_NAME = "datalist.json", "task.yaml", "maisi_aug_mapping.json"
DEFAULT_FOLDS = 5
NNUNET_SPLIT_SEED = 12345
"""Of nnU-Net's default split, so that the folds of a real dataset are the same in both frameworks."""


@dataclass(frozen=True, slots=True)
class MonaiReport:
    """What an export wrote.

    Attributes:
        path: The folder.
        num_synthetic: Cases of the cohort.
        num_real: Cases of the real dataset.
        num_folds: Folds of the data list.
        num_linked: How many images are hard links to the cohort's files rather than copies.
        labels: Label name -> number.
        notes: What the user should know, one sentence each.
    """

    path: Path
    num_synthetic: int
    num_real: int
    num_folds: int
    num_linked: int
    labels: dict[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {**asdict(self), "path": str(self.path), "notes": list(self.notes)}


def export_monai(
    cohort_dir: Path,
    out: Path,
    *,
    like: Path | None = None,
    mapping: Mapping[str, str] | None = None,
    num_folds: int = DEFAULT_FOLDS,
    labels: Sequence[str] = (),
    include_anatomy: bool = False,
    notify: Notify = tell_nobody,
) -> MonaiReport:
    """Write ``images/``, ``labels/``, ``datalist.json`` and ``task.yaml``, whole or not at all.

    Args:
        cohort_dir: Folder that ``synthesize`` wrote.
        out: New or empty folder.
        like: nnU-Net raw dataset of real cases, referred to where they are; its labels decide the numbers.
        mapping: Label of the cohort -> label of the real dataset, for what is not called alike.
        num_folds: Folds of the real cases, or of the cohort's where there are none.
        labels: Names or ids to export; those that the cohort was asked for when empty.
        include_anatomy: Export every label in the maps as well, except the body envelope.
        notify: Called with a stage, the steps done and their number.

    Raises:
        CohortError: ``cohort_dir`` is no cohort.
        ExportError: ``out`` is in use, the cohort is unfinished or altered, labels have no counterpart, or there are
            too few cases for two folds.
        VocabularyError: An unknown label name.
    """
    require_new_folder(out)
    if like is not None and (labels or include_anatomy):
        raise ExportError(
            f"{like}: expected its labels to decide what is exported, found --labels or --include-anatomy too. Leave "
            "one out."
        )
    cohort = load_cohort_source(cohort_dir)
    real = None if like is None else load_real_dataset(like)
    chosen = choose_labels(cohort, labels, include_anatomy=include_anatomy, notify=notify)
    numbering = chosen if real is None else number_like(cohort, real, mapping or {})
    real_cases = () if real is None else real.cases
    folds = deal_folds(len(real_cases) or len(cohort.cases), num_folds)
    with folder_that_appears_whole(out) as building:
        num_linked = _write_cases(cohort, numbering, building, notify)
        rows = _build_rows(cohort, real_cases, folds)
        _write_json(building / DATA_LIST_NAME, {"training": rows, "testing": []})
        task = {"modality": "CT", "datalist": str(out.resolve() / DATA_LIST_NAME), "dataroot": str(out.resolve())}
        write_text_whole(building / TASK_NAME, yaml.safe_dump(task, sort_keys=False))
        _write_json(building / MAPPING_NAME, {"made_by": f"maisi-aug {__version__}", "labels": numbering.to_json()})
    notes = [] if real_cases else ["the folds hold synthetic cases, so that they say nothing of real ones; see --like."]
    return MonaiReport(
        path=out,
        num_synthetic=len(cohort.cases),
        num_real=len(real_cases),
        num_folds=max(folds) + 1,
        num_linked=num_linked,
        labels=numbering.to_dict(),
        notes=tuple(notes),
    )


def deal_folds(num_cases: int, num_folds: int) -> list[int]:
    """The fold of every case, as nnU-Net's default split deals the same cases in the order of their names.

    Raises:
        ExportError: There are too few cases for two folds.
    """
    from sklearn.model_selection import KFold

    num_folds = min(num_folds, num_cases)
    if num_folds < 2:
        raise ExportError(
            f"Folds: expected at least two cases and two folds, found {num_cases} cases and {num_folds} folds. Add "
            "cases, or raise --folds."
        )
    folds = [0] * num_cases
    splitter = KFold(n_splits=num_folds, shuffle=True, random_state=NNUNET_SPLIT_SEED)
    for fold, (_, validation) in enumerate(splitter.split(range(num_cases))):
        for place in validation:
            folds[int(place)] = fold
    return folds


def _write_cases(cohort: CohortSource, numbering: LabelNumbering, building: Path, notify: Notify) -> int:
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
        save_label_map(building / "labels" / f"{case.case_id}.nii.gz", renumbered, anatomy.grid)
    notify("cases", len(cohort.cases), len(cohort.cases))
    return num_linked


def _build_rows(cohort: CohortSource, real_cases: Sequence[RealCase], folds: Sequence[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"image": str(case.image), "label": str(case.label), "fold": fold}
        for case, fold in zip(real_cases, folds, strict=False)
    ]
    for place, case in enumerate(cohort.cases):
        row = {"image": f"images/{case.case_id}.nii.gz", "label": f"labels/{case.case_id}.nii.gz"}
        rows.append(row if real_cases else {**row, "fold": folds[place]})
    return rows


def _write_json(path: Path, content: Any) -> None:
    write_text_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
