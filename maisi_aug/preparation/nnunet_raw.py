"""nnU-Net's raw datasets: their training cases, and what their labels are called."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maisi_aug.banks.files import to_label_names
from maisi_aug.banks.raw_datasets import find_referenced
from maisi_aug.errors import BankError, PreparationError
from maisi_aug.preparation.sources import LabelFile, SourceCase, to_case_id

RAW_VARIABLE = "nnUNet_raw"


def find_dataset(name: str) -> Path:
    """The folder of a raw dataset.

    Args:
        name: A folder, or with the environment variable ``nnUNet_raw`` a dataset's name or number.

    Raises:
        PreparationError: There is no such dataset.
    """
    if (Path(name) / "dataset.json").is_file():
        return Path(name)
    raw = os.environ.get(RAW_VARIABLE)
    if raw:
        prefix = f"Dataset{int(name):03d}_" if name.isdecimal() else name
        for folder in sorted(Path(raw).glob("Dataset*")):
            if (folder / "dataset.json").is_file() and (
                folder.name == name or (name.isdecimal() and folder.name.startswith(prefix))
            ):
                return folder
    place = f" or a dataset in {raw}" if raw else f"; the variable {RAW_VARIABLE} is not set"
    raise PreparationError(
        f"--nnunet {name}: expected a raw dataset's folder with dataset.json{place}, found none. Check the path."
    )


def read_dataset(folder: Path) -> list[SourceCase]:
    """The training cases of a raw dataset, from ``imagesTr`` and ``labelsTr`` or from its entry ``dataset``.

    Raises:
        PreparationError: ``dataset.json`` cannot be read, no channel is a CT, or a case's files are missing.
    """
    path = folder / "dataset.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = to_label_names(document["labels"], path)
        channels = {str(key): str(name) for key, name in dict(document["channel_names"]).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BankError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else error
        raise PreparationError(
            f"{path}: expected nnU-Net's entries 'labels' and 'channel_names', found: {reason}. Correct the file."
        ) from error
    channel = _choose_channel(channels, path)
    ending = str(document.get("file_ending", ".nii.gz"))
    if isinstance(document.get("dataset"), dict):
        cases = list(_from_entry(folder, document["dataset"], names, channel, path))
    else:
        cases = list(_from_folders(folder, names, channel, ending))
    if not cases:
        raise PreparationError(f"{folder}: expected training cases in labelsTr, found none. Check the dataset.")
    missing = [str(file) for case in cases for file in case.paths if not file.exists()]
    if missing:
        raise PreparationError(
            f"{folder}: expected every file of its training cases, found {len(missing)} missing, the first of them "
            f"{missing[0]}. Complete the dataset."
        )
    return cases


def _choose_channel(channels: Mapping[str, str], path: Path) -> int:
    cts = [int(key) for key, name in channels.items() if name.strip().lower() == "ct"]
    if len(channels) == 1:
        return int(next(iter(channels)))
    if len(cts) != 1:
        raise PreparationError(
            f"{path}: expected one channel, or one that is named CT, found {', '.join(channels.values())}. "
            "Export the CT alone."
        )
    return cts[0]


def _from_folders(folder: Path, names: Mapping[int, str], channel: int, ending: str) -> list[SourceCase]:
    labels = sorted(path for path in (folder / "labelsTr").glob(f"*{ending}") if not path.name.startswith("."))
    cases = []
    for label in labels:
        case_id = label.name.removesuffix(ending)
        image = folder / "imagesTr" / f"{case_id}_{channel:04d}{ending}"
        cases.append(SourceCase(to_case_id(case_id), image, (LabelFile(label, names=names),)))
    return cases


def _from_entry(
    folder: Path, entry: Mapping[str, Any], names: Mapping[int, str], channel: int, path: Path
) -> list[SourceCase]:
    cases = []
    for case_id, files in entry.items():
        try:
            image, label = (find_referenced(folder, text) for text in (files["images"][channel], files["label"]))
        except (KeyError, IndexError, TypeError) as error:
            raise PreparationError(
                f"{path}: expected 'images' and 'label' in dataset.{case_id}, found {files!r}. Correct the file."
            ) from error
        cases.append(SourceCase(to_case_id(case_id), image, (LabelFile(label, names=names),)))
    return cases
