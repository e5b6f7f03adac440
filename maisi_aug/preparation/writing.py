"""The files of one prepared case, and the record by which a later run knows that they need not be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.errors import MaisiAugError
from maisi_aug.pictures.preview import Caption, build_preview, save_picture
from maisi_aug.preparation.case import BuiltCase, CaseTask, build_case
from maisi_aug.system.whole_files import sha256_of, write_json_whole
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import spell_grid
from maisi_aug.volumes.image_files import save_image, save_label_map

STATE_FOLDER = ".prepare"
MAX_CAPTION_LABELS = 4
HU_PERCENTILES = (5, 50, 95)


def prepare_and_write(work: tuple[CaseTask, Path]) -> dict[str, Any]:
    """Prepare a case and write its files into a folder, unless they are there already.

    Returns:
        The case's record; one with ``problem`` for a case that cannot be used.
    """
    task, folder = work
    try:
        key = task.hash_inputs()
        record = read_record(folder, task.case.id)
        if record is not None and record["key"] == key and _is_whole(folder, record):
            return record
        return _write(folder, task, build_case(task), key)
    except MaisiAugError as error:
        return {"id": task.case.id, "problem": str(error)}


def read_record(folder: Path, case_id: str) -> dict[str, Any] | None:
    """What an earlier run noted of a case, or None."""
    try:
        record = json.loads((folder / STATE_FOLDER / f"{case_id}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "key" in record else None


def _is_whole(folder: Path, record: dict[str, Any]) -> bool:
    paths = {role: folder / f"{role}s" / f"{record['id']}.nii.gz" for role in ("image", "label")}
    is_there = all(path.is_file() for path in (*paths.values(), folder / "previews" / f"{record['id']}.png"))
    return is_there and all(sha256_of(path) == record[f"{role}_sha256"] for role, path in paths.items())


def _write(folder: Path, task: CaseTask, built: BuiltCase, key: str) -> dict[str, Any]:
    case_id, settings = task.case.id, task.settings
    image_path, label_path = (folder / name / f"{case_id}.nii.gz" for name in ("images", "labels"))
    save_image(image_path, built.image_hu, built.grid)
    save_label_map(label_path, built.label_map, built.grid)
    _write_preview(folder, task, built)
    counts = np.bincount(built.label_map.ravel(), minlength=256)
    present = [int(label_id) for label_id in np.flatnonzero(counts)]
    record = {
        "id": case_id,
        "modality": settings.modality,
        "shape": list(built.grid.shape),
        "spacing_mm": list(settings.spacing_mm),
        "voxels": {label_id: int(counts[label_id]) for label_id in present},
        "image_sha256": sha256_of(image_path),
        "label_sha256": sha256_of(label_path),
        "image_source": str(task.case.image),
        "label_sources": [str(path) for path in task.case.paths[1:]],
        "key": key,
        "notes": list(built.notes),
        "hu": {
            label_id: [
                round(float(hu), 1) for hu in np.percentile(built.image_hu[built.label_map == label_id], HU_PERCENTILES)
            ]
            for label_id in present
            if label_id
        },
    }
    write_json_whole(folder / STATE_FOLDER / f"{case_id}.json", record)
    # As a later run will read it: JSON's keys are text.
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def _write_preview(folder: Path, task: CaseTask, built: BuiltCase) -> None:
    vocabulary = task.settings.vocabulary
    counts = np.bincount(built.label_map.ravel(), minlength=256)
    focus = [label_id for label_id in task.settings.focus_ids if counts[label_id]]
    organs = [int(label_id) for label_id in np.flatnonzero(counts) if label_id not in (0, BODY_ID)]
    shown = [f"{vocabulary.name_of(i)} {counts[i] * built.grid.voxel_ml:.3g} mL" for i in focus or organs]
    first = ", ".join(shown[:MAX_CAPTION_LABELS]) + (", ..." if len(shown) > MAX_CAPTION_LABELS else "")
    lines = (first or "no labels", spell_grid(built.grid.shape, task.settings.spacing_mm), *built.notes)
    picture = build_preview(
        built.image_hu,
        built.label_map,
        built.grid,
        Caption(task.case.id, lines),
        lesion_ids=focus,
        organ_ids=organs,
        names={label.id: label.name for label in vocabulary},
    )
    save_picture(folder / "previews" / f"{task.case.id}.png", picture)
