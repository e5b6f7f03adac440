"""The folder of a prepared data set, taken for one set of options, and the files of each of its cases.

A record of each case tells a later run that its files need not be made again.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.cohort.request import differences
from maisi_aug.errors import MaisiAugError, PreparationError
from maisi_aug.pictures.preview import Caption, build_preview, save_picture
from maisi_aug.preparation.case import BuiltCase, CaseTask, build_case
from maisi_aug.preparation.prepared import FOLDERS, LATENTS_FOLDER, SPEC_NAME
from maisi_aug.system.content import read_json
from maisi_aug.system.whole_files import remove_leftovers, sha256_of, write_json_whole
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import spell_grid
from maisi_aug.volumes.image_files import save_image, save_label_map

STATE_FOLDER = ".prepare"
MAX_CAPTION_LABELS = 4
HU_PERCENTILES = (5, 50, 95)
OPTIONS_NAME = "options.json"


def prepare_and_write(work: tuple[CaseTask, Path]) -> dict[str, Any]:
    """Prepare a case and write its files to a folder, unless they are there already.

    Args:
        work: Task of the case, and the folder.

    Returns:
        Record of the case; it has the key ``problem`` if the case cannot be used.
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
    """Return the record of a case from an earlier run in a folder; None if there is none.

    Args:
        folder: The prepared folder.
        case_id: Id of the case.

    Returns:
        The record as a dict; None as well for a file that cannot be read.
    """
    try:
        record = read_json(folder / STATE_FOLDER / f"{case_id}.json")
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


def take_folder(out: Path, options: Mapping[str, Any], case_ids: Collection[str], *, update: bool) -> None:
    """Create a folder for prepared cases, or check that it belongs to this preparation.

    The folder has no ``dataset.yaml`` until it is complete.

    Args:
        out: New or empty folder, or one that was prepared with the same options.
        options: Settings for every case, as JSON values.
        case_ids: Names of the cases of the preparation.
        update: Whether an existing folder may be changed to other options; further cases are then removed.

    Raises:
        PreparationError: The folder holds something else, was prepared with other options, or has further cases.
    """
    path = out / STATE_FOLDER / OPTIONS_NAME
    if out.exists() and not out.is_dir():
        raise PreparationError(f"{out}: this is a file, not a folder. Choose another --out.")
    if path.is_file() and not update:
        _require_same(out, read_json(path), options)
        _require_no_further(out, _find_further(out, case_ids))
    elif not path.is_file() and out.is_dir() and any(out.iterdir()):
        found = sorted(child.name for child in out.iterdir())[0]
        raise PreparationError(
            f"{out}: the folder must be new, empty or a prepared one, found '{found}'. Nothing was changed; choose "
            "another --out."
        )
    for name in (STATE_FOLDER, *FOLDERS):
        (out / name).mkdir(parents=True, exist_ok=True)
        remove_leftovers(out / name)
    (out / SPEC_NAME).unlink(missing_ok=True)
    _remove_cases(out, _find_further(out, case_ids))
    write_json_whole(path, options)


def _require_same(out: Path, before: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    changed = differences(before, options)
    if changed:
        raise PreparationError(
            f"{out}: this folder was prepared with other options ({'; '.join(changed)}). Choose another --out, or "
            "change the folder to the new options with --update."
        )


def _require_no_further(out: Path, further: Sequence[str]) -> None:
    if further:
        named = ", ".join(further[:3]) + (", ..." if len(further) > 3 else "")
        raise PreparationError(
            f"{out}: {len(further)} cases that this folder was prepared from are now left out ({named}). Choose "
            "another --out, give all of them, or remove those from the folder with --update."
        )


def _find_further(out: Path, case_ids: Collection[str]) -> list[str]:
    """The cases that an earlier run prepared and this one leaves out."""
    prepared = {record.stem for record in (out / STATE_FOLDER).glob("*.json") if record.name != OPTIONS_NAME}
    return sorted(prepared.difference(case_ids))


def _remove_cases(out: Path, case_ids: Sequence[str]) -> None:
    for case_id in case_ids:
        for name in FOLDERS:
            (out / name / f"{case_id}{'.png' if name == 'previews' else '.nii.gz'}").unlink(missing_ok=True)
        for file in (out / LATENTS_FOLDER).glob(f"*/{glob.escape(case_id)}.*"):
            file.unlink()
        (out / STATE_FOLDER / f"{case_id}.json").unlink()
