"""A real nnU-Net v2 raw dataset that a cohort is to be added to: its cases, its labels, and what must hold for both.

Its ``dataset.json`` is read once, its types checked before anything relies on them.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maisi_aug.banks.case_files import list_volumes
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME, RawDataset, find_dataset, label_values
from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.folders import FILE_ENDING, MAPPING_NAME, MARK_KEY
from maisi_aug.system.content import read_json, spells_number
from maisi_aug.system.file_names import is_file_name
from maisi_aug.volumes.image_files import load_stored_grid
from maisi_aug.volumes.orientation import axis_codes

_REQUIRED_KEYS = ("labels", "numTraining", "file_ending")
_FOLDER_PATTERN = re.compile(r"Dataset(\d{3})_(.+)")
_CHANNEL_SUFFIX = "_0000" + FILE_ENDING


def read_description(path: Path) -> dict[str, Any]:
    """Read and check the ``dataset.json`` of an nnU-Net dataset.

    Returns:
        The content: ``labels`` maps names to integers or lists of them, numbered 0, 1, 2, ... without gaps,
            ``channel_names`` maps numbers to names, and ``dataset``, if present, names the files of every case.

    Raises:
        ExportError: The file is not JSON, or an entry has another form.
    """
    try:
        description = read_json(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: not valid JSON: {error}. Repair the file.") from None
    missing = [key for key in _REQUIRED_KEYS if not isinstance(description, dict) or key not in description]
    if missing:
        raise ExportError(f"{path}: keys of nnU-Net v2 are missing: {', '.join(missing)}. Add them.")
    _require_labels(path, description["labels"])
    number = description["numTraining"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise _wrong(path, "numTraining", "an integer", number)
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
            f"{path}: expected a number for each name, as in nnU-Net v2, found a name for each number, as in the "
            "Medical Segmentation Decathlon. Convert the dataset with nnUNetv2_convert_MSD_dataset."
        )
    for name, value in labels.items():
        parts = value if isinstance(value, list) else [value]
        if not parts or not all(isinstance(part, int | str) and spells_number(part) for part in parts):
            raise _wrong(path, "labels", f"an integer, or a list of them, for '{name}'", value)
    values = sorted({number for numbers in label_values(labels).values() for number in numbers})
    gap = next((number for number in range(len(values)) if number not in values), None)
    if gap is not None or label_values(labels).get("background") != (0,):
        found = f"{', '.join(map(str, values))}, without {gap}" if gap is not None else "another number for background"
        raise ExportError(
            f"{path}: nnU-Net requires labels numbered 0, 1, 2, ... without gaps, with 0 for background, found "
            f"{found}. Renumber the labels, also in the label maps."
        )


def _require_files(path: Path, entries: object) -> None:
    if not isinstance(entries, dict):
        raise _wrong(path, "dataset", "files of each case by its name", entries)
    for case_id, row in entries.items():
        if not is_file_name(case_id):
            raise _wrong(path, "dataset", "case names that can be file names", case_id)
        images = row.get("images") if isinstance(row, dict) else None
        is_right = isinstance(images, list) and all(isinstance(image, str) for image in images)
        if not is_right or not isinstance(row.get("label"), str):
            raise _wrong(path, f"dataset/{case_id}", '{"images": ["..."], "label": "..."}', row)


@dataclass(frozen=True, slots=True)
class RealCase:
    """One case of a real nnU-Net dataset: identifier, image and label map."""

    case_id: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class Target:
    """A value in real label maps to which labels of a cohort can be mapped.

    Attributes:
        value: Integer value.
        name: Name of the label; None if it only occurs as part of a region.
    """

    value: int
    name: str | None

    @property
    def spelling(self) -> str:
        """Name or number by which a user refers to it."""
        return self.name or str(self.value)


@dataclass(frozen=True)
class RealDataset:
    """A raw dataset of nnU-Net with one CT channel.

    Attributes:
        folder: Folder ``DatasetXXX_Name`` of the dataset.
        description: Content of ``dataset.json``.
        cases: Cases in the order of nnU-Net's identifiers; at least one.
        targets: Foreground values, ascending, without the ignore label.
    """

    folder: Path
    description: dict[str, Any]
    cases: tuple[RealCase, ...]
    targets: tuple[Target, ...]

    @property
    def name(self) -> str:
        """Name of the dataset for nnU-Net, which is the name of its folder."""
        return self.folder.name

    @property
    def short_name(self) -> str:
        """Name of the dataset without ``DatasetXXX_``."""
        return self.name.partition("_")[2]

    @property
    def region_names(self) -> tuple[str, ...]:
        """Names of the labels that join several values."""
        return tuple(name for name, values in label_values(self.description["labels"]).items() if len(values) > 1)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Identifiers of the cases in nnU-Net, sorted."""
        return tuple(case.case_id for case in self.cases)

    @cached_property
    def orientations(self) -> Counter[str]:
        """Orientation of the voxel axes -> number of images, from headers only."""
        return Counter(axis_codes(load_stored_grid(case.image).affine) for case in self.cases)

    @property
    def is_reoriented_on_reading(self) -> bool:
        """Whether nnU-Net's reader turns every image to the same axes."""
        return "Reorient" in str(self.description.get("overwrite_image_reader_writer", ""))


def load_real_dataset(folder: Path) -> RealDataset:
    """Open a real nnU-Net dataset, and check its description and files; image headers and voxels are not read.

    Raises:
        ExportError: The folder is not a raw dataset of nnU-Net, its description has another form, there is not a single
            CT channel, or a file is missing.
    """
    folder = Path(os.path.abspath(find_dataset(folder)))  # noqa: PTH100  links are kept: nnU-Net joins paths as text too
    if not _FOLDER_PATTERN.fullmatch(folder.name) or not (folder / DESCRIPTION_NAME).is_file():
        raise ExportError(
            f"{folder}: not a raw dataset of nnU-Net, DatasetXXX_Name with a dataset.json "
            f"({'no such folder' if not folder.is_dir() else 'it has none'}). Give --like nnUNet_raw/DatasetXXX_Name."
        )
    description = read_description(folder / DESCRIPTION_NAME)
    if MARK_KEY in description or (folder / MAPPING_NAME).exists():
        raise ExportError(
            f"{folder.name}: this dataset was exported by maisi-aug and has synthetic cases, but validation needs "
            "real ones. Give --like the real dataset."
        )
    _require_ct(folder, description)
    if description["file_ending"] != FILE_ENDING:
        raise ExportError(
            f"{folder.name}: images must end in {FILE_ENDING}, like the cohort's, found "
            f"'{description['file_ending']}'. Convert the real dataset to NIfTI."
        )
    return RealDataset(folder, description, _list_cases(folder, description), _list_targets(folder, description))


def _require_ct(folder: Path, description: Mapping[str, Any]) -> None:
    channels = description.get("channel_names", description.get("modality", {}))
    names = [str(name) for name in channels.values()]
    if len(names) != 1:
        raise ExportError(
            f"{folder.name}: must have one channel, like the cohort, found {len(names)} ({', '.join(names)}). A "
            "cohort can only be added to a dataset of one CT channel."
        )
    if names[0].casefold() != "ct":  # what nnU-Net compares with before it normalises by HU statistics
        raise ExportError(
            f"{folder.name}: the channel must be named CT, found '{names[0]}', which nnU-Net normalises image by "
            "image. If the images are CTs in HU, rename the channel in dataset.json and plan again."
        )


def _list_cases(folder: Path, description: Mapping[str, Any]) -> tuple[RealCase, ...]:
    cases = _cases_by_reference(RawDataset(folder, description)) if "dataset" in description else _cases_by_name(folder)
    if not cases:
        raise ExportError(f"{folder}: has no training cases. Add them to imagesTr and labelsTr.")
    if len(cases) != description["numTraining"]:
        raise ExportError(
            f"{folder.name}: dataset.json counts {description['numTraining']} cases, found {len(cases)}. Correct "
            "numTraining or add the missing files."
        )
    for case in cases:
        for path in (case.image, case.label):
            if not path.is_file():
                raise ExportError(f"{case.case_id}: {path} is missing. Restore the file.")
    return cases


def _cases_by_reference(dataset: RawDataset) -> tuple[RealCase, ...]:
    """Cases that dataset.json points at; nnU-Net takes paths relative to the folder, with variables."""
    for case_id, files in dataset.document["dataset"].items():
        if (num_images := len(files["images"])) != 1:
            raise ExportError(f"{case_id}: must have one image, found {num_images} in dataset.json. Correct the entry.")
    found = dataset.list_cases()
    return tuple(RealCase(case.id, _clean(case.image), _clean(case.label)) for case in found if case.image)


def _cases_by_name(folder: Path) -> tuple[RealCase, ...]:
    place = folder / "imagesTr"
    images = [path for path in list_volumes(place) if path.name.endswith(FILE_ENDING)] if place.is_dir() else []
    strange = [path for path in images if not path.name.endswith(_CHANNEL_SUFFIX)]
    if strange:
        raise ExportError(
            f"{strange[0]}: the name must end in {_CHANNEL_SUFFIX}. Rename the file, or remove further channels."
        )
    case_ids = sorted(path.name.removesuffix(_CHANNEL_SUFFIX) for path in images)
    return tuple(
        RealCase(
            case_id,
            folder / "imagesTr" / f"{case_id}{_CHANNEL_SUFFIX}",
            folder / "labelsTr" / f"{case_id}{FILE_ENDING}",
        )
        for case_id in case_ids
    )


def _clean(path: Path) -> Path:
    """The path without ``..``, as text: what nnU-Net makes of it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _list_targets(folder: Path, description: Mapping[str, Any]) -> tuple[Target, ...]:
    """Foreground values; a region that is a list of several values names none of them."""
    names: dict[int, str | None] = {}
    for name, values in label_values(description["labels"]).items():
        if name == "ignore":
            continue
        for part in values:
            if part and (len(values) == 1 or part not in names):
                names[part] = name if len(values) == 1 else None
    if not names:
        raise ExportError(f"{folder.name}: has no labels besides the background. Check dataset.json.")
    return tuple(Target(value, names[value]) for value in sorted(names))
