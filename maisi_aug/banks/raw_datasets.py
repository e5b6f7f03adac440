"""Raw datasets of nnU-Net and the Medical Decathlon: found by number, name or path; their CT channel and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.banks.case_files import list_images, list_labels, pair_by_name, split_channels, stem_of
from maisi_aug.errors import BankError
from maisi_aug.system.content import read_json, spells_number

RAW_VARIABLE = "nnUNet_raw"
DESCRIPTION_NAME = "dataset.json"
_FOLDERS = ("labelsTr", "imagesTr")
_FOLDER_NAME = re.compile(r"Dataset(?P<number>\d{3,})_(?P<name>.+)")
NEVER_TRAINED = "_seg"
"""nnU-Net 2.8.1 lists preprocessed cases by their files, and takes those that end so for label maps."""


@dataclass(frozen=True, slots=True)
class RawCase:
    """The files of one training case.

    Attributes:
        id: nnU-Net's identifier.
        image: The CT; it need not be there.
        label: The label map; it need not be there.
    """

    id: str
    image: Path | None
    label: Path


def find_dataset(path: Path | str) -> Path:
    """The place of a dataset that is called by its path, by its number or by its name.

    Args:
        path: A path that exists, or with the environment variable ``nnUNet_raw`` a raw dataset's number (``3``), name
            (``Liver``) or whole name (``Dataset003_Liver``).

    Returns:
        The folder in ``nnUNet_raw``; the path itself where there is none of that number or name.
    """
    path = Path(path)
    raw = os.environ.get(RAW_VARIABLE)
    if path.exists() or not raw or len(path.parts) != 1 or not Path(raw).is_dir():
        return path
    for folder in sorted(Path(raw).iterdir()):
        match = _FOLDER_NAME.fullmatch(folder.name)
        if match and (folder / DESCRIPTION_NAME).is_file():
            is_number = spells_number(path.name) and int(path.name) == int(match["number"])
            if is_number or path.name in (folder.name, match["name"]):
                return folder
    return path


def read_document(path: Path) -> dict[str, Any]:
    """``dataset.json`` as it is.

    Raises:
        BankError: It is no JSON object.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise BankError(f"{path}: expected nnU-Net's description, found: {error}. Correct the file.") from error
    if not isinstance(document, dict):
        raise BankError(f"{path}: expected nnU-Net's description, found a {type(document).__name__}. Correct the file.")
    return document


def channels_of(document: Mapping[str, Any]) -> dict[int, str]:
    """Number and name of each channel that ``dataset.json`` describes, in nnU-Net's spelling or the Decathlon's."""
    table = document.get("channel_names", document.get("modality"))
    if not isinstance(table, dict):
        return {}
    return {int(key): str(name) for key, name in table.items() if spells_number(key)}


def choose_ct_channel(document: Mapping[str, Any], path: Path) -> int:
    """The channel that is the CT: the one that is called so, or the only one; 0 where none is described.

    Args:
        document: ``dataset.json``.
        path: Its path, for messages.

    Raises:
        BankError: There are several, and not exactly one of them is called CT.
    """
    channels = channels_of(document)
    if len(channels) < 2:
        return next(iter(channels), 0)
    cts = [number for number, name in channels.items() if name.strip().lower() == "ct"]
    if len(cts) != 1:
        raise BankError(
            f"{path}: expected one channel, or one that is named CT, found {', '.join(channels.values())}. "
            "Export the CT alone."
        )
    return cts[0]


def find_ct_channel(folder: Path) -> int:
    """The channel that is the CT of a folder that may be a raw dataset; 0 for every other.

    Raises:
        BankError: Its ``dataset.json`` cannot be read, or describes several channels, none of which is called CT.
    """
    description = folder / DESCRIPTION_NAME
    return choose_ct_channel(read_document(description), description) if description.is_file() else 0


def list_referenced(folder: Path, document: Mapping[str, Any], channel: int) -> list[RawCase] | None:
    """The cases of a dataset whose ``dataset.json`` points at files elsewhere; None for every other.

    Args:
        folder: The dataset's folder.
        document: Its ``dataset.json``.
        channel: Of the CT.

    Raises:
        BankError: An entry has no path of its label map.
    """
    table = document.get("dataset")
    if not isinstance(table, dict):
        return None
    cases = []
    for case_id, files in sorted(table.items()):
        images = files.get("images") if isinstance(files, dict) else None
        label = files.get("label") if isinstance(files, dict) else None
        if not isinstance(label, str):
            raise BankError(
                f"{folder / DESCRIPTION_NAME}: expected 'images' and 'label' in dataset.{case_id}, found {files!r}. "
                "Correct the file."
            )
        has_image = isinstance(images, list) and len(images) > channel and isinstance(images[channel], str)
        image = find_referenced(folder, images[channel]) if has_image and isinstance(images, list) else None
        cases.append(RawCase(str(case_id), image, find_referenced(folder, label)))
    return cases


def list_in_folders(folder: Path, document: Mapping[str, Any], channel: int) -> list[RawCase]:
    """The cases of ``labelsTr`` and their images in ``imagesTr``, which the Decathlon names without a channel.

    Args:
        folder: The dataset's folder.
        document: Its ``dataset.json``; what it says of the files' ending counts, else all that can be read.
        channel: Of the CT.
    """
    label_folder, image_folder = (folder / name for name in _FOLDERS)
    labels = list_labels(label_folder) if label_folder.is_dir() else []
    images = list_images(image_folder) if image_folder.is_dir() else []
    ending = document.get("file_ending")
    if isinstance(ending, str):
        labels = [label for label in labels if label.name.endswith(ending)]
    by_image, _ = split_channels(images, labels, ct_channel=channel, has_channels=len(channels_of(document)) > 1)
    return [
        RawCase(
            label.name.removesuffix(ending) if isinstance(ending, str) else stem_of(label),
            pair.image or _expected(folder, label, document, channel),
            label,
        )
        for label, pair in zip(labels, pair_by_name(labels, by_image), strict=True)
    ]


def _expected(folder: Path, label: Path, document: Mapping[str, Any], channel: int) -> Path:
    """The image of a label map that has none, as its dataset would call it."""
    ending = str(document.get("file_ending", ".nii.gz"))
    return folder / _FOLDERS[1] / f"{label.name.removesuffix(ending)}_{channel:04d}{ending}"


def find_referenced(folder: Path, text: str) -> Path:
    """A file that an nnU-Net dataset's ``dataset`` entry points at: relative to its folder, variables replaced.

    Where there is no such file, the path is as it is written, for messages: a dataset of somebody else's shall not have
    them say what is in a variable.
    """
    path = folder / os.path.expandvars(text)
    return path if path.exists() else folder / text


def note_never_trained(case_ids: Iterable[str]) -> str:
    """A sentence on cases that nnU-Net leaves out of training by their names; empty without any."""
    named = sorted(case_id for case_id in case_ids if case_id.endswith(NEVER_TRAINED))
    if not named:
        return ""
    shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    return (
        f"nnU-Net never trains on cases whose names end in {NEVER_TRAINED}, which it takes for label maps, found "
        f"{len(named)} ({shown}). Rename them."
    )
