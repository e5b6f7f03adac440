"""``dataset.json`` of a raw nnU-Net dataset: read once, its types checked before anything relies on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maisi_aug.banks.raw_datasets import label_values
from maisi_aug.errors import ExportError
from maisi_aug.system.content import read_json, spells_number
from maisi_aug.system.file_names import is_file_name

_REQUIRED_KEYS = ("labels", "numTraining", "file_ending")


def read_description(path: Path) -> dict[str, Any]:
    """Read ``dataset.json``.

    Returns:
        Its content: ``labels`` maps names to whole numbers or lists of them, the numbers are 0, 1, 2, ... without gaps,
        ``channel_names`` maps numbers to names, and ``dataset``, where it is there, names files for every case.

    Raises:
        ExportError: It is no JSON, or an entry is of another form.
    """
    try:
        description = read_json(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: expected JSON, found: {error}. Repair the file.") from None
    missing = [key for key in _REQUIRED_KEYS if not isinstance(description, dict) or key not in description]
    if missing:
        raise ExportError(
            f"{path}: expected the keys of nnU-Net v2, found no {', '.join(missing)}. Add what is missing."
        )
    _require_labels(path, description["labels"])
    number = description["numTraining"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise _wrong(path, "numTraining", "a whole number", number)
    if not isinstance(description["file_ending"], str):
        raise _wrong(path, "file_ending", "text such as '.nii.gz'", description["file_ending"])
    for key in ("channel_names", "modality"):
        if key in description and not isinstance(description[key], dict):
            raise _wrong(path, key, '{"0": "CT"}', description[key])
    if "dataset" in description:
        _require_files(path, description["dataset"])
    return dict(description)


def _wrong(path: Path, key: str, expected: str, found: object) -> ExportError:
    text = json.dumps(found)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return ExportError(f"{path}: expected {expected} as '{key}', found {shown}. Correct the file.")


def _require_labels(path: Path, labels: object) -> None:
    if not isinstance(labels, dict):
        raise _wrong(path, "labels", 'a number for each name, {"background": 0, "liver": 1},', labels)
    if labels and all(spells_number(name) and isinstance(value, str) for name, value in labels.items()):
        raise ExportError(
            f"{path}: expected a number for each name as nnU-Net v2 has it, found a name for each number as the "
            "Medical Segmentation Decathlon has it. Convert the dataset with nnUNetv2_convert_MSD_dataset."
        )
    for name, value in labels.items():
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, int | str) and spells_number(part) for part in parts):
            raise _wrong(path, "labels", f"a whole number, or a list of them, for '{name}'", value)
    values = sorted({number for numbers in label_values(labels).values() for number in numbers})
    gap = next((number for number in range(len(values)) if number not in values), None)
    if gap is not None or label_values(labels).get("background") != (0,):
        found = f"{', '.join(map(str, values))}, without {gap}" if gap is not None else "another number for background"
        raise ExportError(
            f"{path}: expected labels numbered 0, 1, 2, ... without gaps, 0 being background, as nnU-Net demands, "
            f"found {found}. Renumber the labels, in the label maps too."
        )


def _require_files(path: Path, entries: object) -> None:
    if not isinstance(entries, dict):
        raise _wrong(path, "dataset", "files for each case by its name", entries)
    for case_id, row in entries.items():
        if not is_file_name(case_id):
            raise _wrong(path, "dataset", "names of cases that can be names of files", case_id)
        images = row.get("images") if isinstance(row, dict) else None
        is_right = isinstance(images, list) and all(isinstance(image, str) for image in images)
        if not is_right or not isinstance(row.get("label"), str):
            raise _wrong(path, f"dataset/{case_id}", '{"images": ["..."], "label": "..."}', row)
