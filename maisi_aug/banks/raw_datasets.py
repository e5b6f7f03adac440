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
"""Ending of the names of cases that nnU-Net 2.8.1 never trains on, because it takes their files for label maps."""


@dataclass(frozen=True, slots=True)
class RawCase:
    """The files of one training case of an nnU-Net raw dataset.

    Attributes:
        id: Identifier of the case in nnU-Net.
        image: Path of the CT; it may not exist.
        label: Path of the label map; it may not exist.
    """

    id: str
    image: Path | None
    label: Path


def find_dataset(path: Path | str) -> Path:
    """Return the folder of a dataset that is given by path, or by its number or name in nnU-Net.

    Args:
        path: A path that exists, or with the environment variable ``nnUNet_raw`` a raw dataset's number (``3``), name
            (``Liver``) or whole name (``Dataset003_Liver``).

    Returns:
        The dataset's folder in ``nnUNet_raw``; the given path if there is no dataset of that number or name.
    """
    path = Path(path)
    if path.exists() or len(path.parts) != 1:
        return path
    for folder in list_datasets():
        match = _FOLDER_NAME.fullmatch(folder.name)
        is_number = match and spells_number(path.name) and int(path.name) == int(match["number"])
        if is_number or path.name in (folder.name, match and match["name"]):
            return folder
    return path


def list_datasets() -> list[Path]:
    """List the raw datasets in the folder that the environment variable ``nnUNet_raw`` names, ordered by number."""
    raw = os.environ.get(RAW_VARIABLE)
    if not raw or not Path(raw).is_dir():
        return []
    folders = (folder for folder in sorted(Path(raw).iterdir()) if _FOLDER_NAME.fullmatch(folder.name))
    return [folder for folder in folders if (folder / DESCRIPTION_NAME).is_file()]


@dataclass(frozen=True)
class RawDataset:
    """An nnU-Net raw dataset or one of the Medical Segmentation Decathlon: its ``dataset.json`` and training cases.

    Attributes:
        folder: Folder of the dataset.
        document: Content of ``dataset.json``.
    """

    folder: Path
    document: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> RawDataset:
        """Open a raw dataset by reading ``dataset.json``; cases are not searched for yet.

        Raises:
            BankError: ``dataset.json`` is not a JSON object.
        """
        path = folder / DESCRIPTION_NAME
        try:
            document = read_json(path)
        except (OSError, ValueError) as error:
            raise BankError(f"{path}: nnU-Net's description cannot be read: {error}. Correct the file.") from error
        if not isinstance(document, dict):
            raise BankError(
                f"{path}: expected nnU-Net's description, found a {type(document).__name__}. Correct the file."
            )
        return cls(folder, document)

    @property
    def path(self) -> Path:
        """Path of ``dataset.json``."""
        return self.folder / DESCRIPTION_NAME

    @property
    def channels(self) -> dict[int, str]:
        """Channel number -> channel name."""
        table = self.document.get("channel_names", self.document.get("modality"))
        if not isinstance(table, dict):
            return {}
        return {int(key): str(name) for key, name in table.items() if spells_number(key)}

    @property
    def ct_channel(self) -> int:
        """Number of the CT channel: the one named CT, or the only one; 0 if ``dataset.json`` describes no channels.

        Raises:
            BankError: There are several channels, and not exactly one of them is named CT.
        """
        channels = self.channels
        if len(channels) < 2:
            return next(iter(channels), 0)
        cts = [number for number, name in channels.items() if name.strip().lower() == "ct"]
        if len(cts) != 1:
            raise BankError(
                f"{self.path}: needs one channel, or one named CT, found {', '.join(channels.values())}. Export the "
                "CT alone."
            )
        return cts[0]

    @property
    def names_files(self) -> bool:
        """Whether ``dataset.json`` lists the paths of the files, instead of leaving them to the folders."""
        return isinstance(self.document.get("dataset"), dict)

    def list_cases(self) -> list[RawCase]:
        """List the training cases: those that ``dataset.json`` points at, or those in ``labelsTr``.

        Raises:
            BankError: No channel is the CT, or an entry lacks the path of its label map.
        """
        return self._list_referenced() if self.names_files else self._list_in_folders()

    def _list_referenced(self) -> list[RawCase]:
        place = sorted(self.channels or [0]).index(self.ct_channel)
        cases = []
        for case_id, files in sorted(self.document["dataset"].items()):
            images = files.get("images") if isinstance(files, dict) else None
            label = files.get("label") if isinstance(files, dict) else None
            if not isinstance(label, str):
                raise BankError(
                    f"{self.path}: 'images' and 'label' are missing in dataset.{case_id}, found {files!r}. Correct "
                    "the file."
                )
            image = images[place] if isinstance(images, list) and len(images) > place else None
            found = self.find_file(image) if isinstance(image, str) else None
            cases.append(RawCase(str(case_id), found, self.find_file(label)))
        return cases

    def _list_in_folders(self) -> list[RawCase]:
        """The cases of ``labelsTr`` and their images in ``imagesTr``, which the Decathlon names without a channel.

        What the description says of the files' ending counts, else all that can be read.
        """
        labels, images = (
            list_files(self.folder / name) if (self.folder / name).is_dir() else []
            for name, list_files in zip(_FOLDERS, (list_labels, list_images), strict=True)
        )
        ending = self.document.get("file_ending")
        if isinstance(ending, str):
            labels = [label for label in labels if label.name.endswith(ending)]
        has_channels = len(self.channels) > 1
        by_image, _ = split_channels(images, labels, ct_channel=self.ct_channel, has_channels=has_channels)
        return [
            RawCase(
                label.name.removesuffix(ending) if isinstance(ending, str) else stem_of(label),
                pair.image or self._expected_image(label),
                label,
            )
            for label, pair in zip(labels, pair_by_name(labels, by_image), strict=True)
        ]

    def _expected_image(self, label: Path) -> Path:
        """The image of a label map that has none, as its dataset would call it."""
        ending = str(self.document.get("file_ending", ".nii.gz"))
        return self.folder / _FOLDERS[1] / f"{label.name.removesuffix(ending)}_{self.ct_channel:04d}{ending}"

    def find_file(self, text: str) -> Path:
        """Resolve a path from ``dataset.json``: relative to the dataset's folder, with environment variables replaced.

        If there is no such file, the path is returned as it is written, because messages must not reveal the value of
        an environment variable that a dataset from elsewhere names.
        """
        path = self.folder / os.path.expandvars(text)
        try:
            is_there = path.exists()
        except OSError as error:  # a name longer than any file's
            reason = error.strerror
            raise BankError(f"{self.path}: lists a path that cannot exist: {reason}.") from None
        return path if is_there else self.folder / text


def label_values(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Convert ``labels`` of a ``dataset.json``, of nnU-Net or the Decathlon, to name -> ids; regions have several ids.

    Raises:
        TypeError, ValueError: A value is not a number.
    """
    if all(spells_number(key) and isinstance(value, str) for key, value in labels.items()):
        labels = {name: number for number, name in labels.items()}
    return {
        str(name): tuple(map(_read_value, value if isinstance(value, list) else [value]))
        for name, value in labels.items()
    }


def _read_value(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():  # neither are infinity and NaN
        raise ValueError(f"an integer is required, found {value}")
    return int(value)


def find_ct_channel(folder: Path) -> int:
    """Return the number of the CT channel of a folder, if it is a raw dataset; 0 for every other folder.

    Raises:
        BankError: ``dataset.json`` cannot be read, or describes several channels, none of which is called CT.
    """
    return RawDataset.read(folder).ct_channel if (folder / DESCRIPTION_NAME).is_file() else 0


def note_never_trained(case_ids: Iterable[str]) -> str:
    """Return a sentence about cases that nnU-Net leaves out of training because of their names; empty without any."""
    named = sorted(case_id for case_id in case_ids if case_id.endswith(NEVER_TRAINED))
    if not named:
        return ""
    shown = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    return (
        f"nnU-Net never trains on cases whose names end in {NEVER_TRAINED}, because it takes them for label maps; "
        f"{len(named)} cases do ({shown}). Rename them."
    )
