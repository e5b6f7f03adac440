"""nnU-Net's folders: where a dataset goes, and whether its id is free."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maisi_aug.banks.raw_datasets import RAW_VARIABLE
from maisi_aug.errors import ExportError
from maisi_aug.system.content import ContentError, parse_json
from maisi_aug.system.whole_folder import copy_new, link_or_copy

FILE_ENDING = ".nii.gz"
MAPPING_NAME = "maisi_aug_mapping.json"
MARK_KEY = "maisi_aug"  # in dataset.json, which nnU-Net hands to the trainer; names the synthetic cases
PREPROCESSED_VARIABLE = "nnUNet_preprocessed"
RESULTS_VARIABLE = "nnUNet_results"
OTHER_VARIABLES = (PREPROCESSED_VARIABLE, RESULTS_VARIABLE)
MAX_DATASET_ID = 999  # nnU-Net reads exactly three digits after "Dataset"
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def require_raw_folder(out: Path | None) -> Path:
    """Return the folder for raw datasets: the given one, or ``$nnUNet_raw``.

    Raises:
        ExportError: Neither is given or set.
    """
    return _require_folder(out, "raw", "--out", RAW_VARIABLE)


def require_preprocessed_folder(given: Path | None) -> Path:
    """Return the folder for preprocessed datasets: the given one, or ``$nnUNet_preprocessed``.

    Raises:
        ExportError: Neither is given or set.
    """
    return _require_folder(given, "preprocessed", "--preprocessed", PREPROCESSED_VARIABLE)


def preprocessed_places(dataset: str, given: Path | None = None) -> tuple[Path, ...]:
    """Return the folders in which nnU-Net may have preprocessed, or may preprocess, a dataset.

    Args:
        dataset: Name of the dataset, such as ``Dataset007_Pancreas``.
        given: Folder for preprocessed datasets in addition to ``$nnUNet_preprocessed``; None for none.

    Returns:
        Folders named after the dataset, which need not exist, the one in ``given`` first; empty if neither is known.
    """
    folders = [Path(folder) for folder in (given, os.environ.get(PREPROCESSED_VARIABLE)) if folder]
    different = {folder.resolve(): folder for folder in reversed(folders)}
    return tuple(folder / dataset for folder in folders if folder is different[folder.resolve()])


def choose_same(files: Sequence[Path], what: str) -> Path | None:
    """Return the first existing one of several JSON files, provided that all are equal; None if none exists.

    Args:
        files: Paths that may exist.
        what: Description of the content, for the error.

    Raises:
        ExportError: Two of them differ.
    """
    found = [path for path in files if path.is_file()]
    for other in found[1:]:
        if _read(other) != _read(found[0]):
            raise ExportError(
                f"{what}: {found[0]} and {other} differ. Remove the one that is not to be used, or let "
                "--preprocessed and nnUNet_preprocessed name one folder."
            )
    return found[0] if found else None


def _read(path: Path) -> Any:
    """Read the content of a file, ignoring whitespace."""
    content = path.read_bytes()
    try:
        return parse_json(content)
    except ContentError:
        return content


def tell_places(places: Sequence[Path]) -> str:
    """Join the folders that were searched for a preprocessed dataset into a phrase for a message.

    Args:
        places: Searched folders, as :func:`preprocessed_places` returns them.

    Returns:
        ``"A or B"``; without folders, that ``nnUNet_preprocessed`` is not set.
    """
    return " or ".join(map(str, places)) or f"nnU-Net's folders: {PREPROCESSED_VARIABLE} is not set"


def _require_folder(given: Path | None, kind: str, option: str, variable: str) -> Path:
    if given is not None:
        return given
    from_environment = os.environ.get(variable)
    if not from_environment:
        raise ExportError(f"nnU-Net {kind} folder: not given. Use {option} FOLDER, or export {variable}=FOLDER.")
    return Path(from_environment)


def require_free_target(raw_folder: Path, dataset_id: int, name: str) -> Path:
    """Return the path of a new dataset's folder, after checking that id and name are free in all folders of nnU-Net.

    Args:
        raw_folder: Folder for raw datasets.
        dataset_id: Number of the dataset, 1 to 999.
        name: Name of the dataset without its number.

    Returns:
        ``raw_folder/DatasetXXX_NAME``, which is not created.

    Raises:
        ExportError: The id or the name is invalid for nnU-Net, or the id is in use.
    """
    if not 1 <= dataset_id <= MAX_DATASET_ID:
        raise ExportError(
            f"Dataset id: must be 1 to {MAX_DATASET_ID}, found {dataset_id}. Choose another --dataset-id."
        )
    if not _NAME_PATTERN.fullmatch(name):
        raise ExportError(
            f"Dataset name: only letters, digits, '_' and '-' are allowed, found '{name}'. Choose another --name."
        )
    target = raw_folder / f"Dataset{dataset_id:03d}_{name}"
    for variable in (None, RAW_VARIABLE, *OTHER_VARIABLES):
        folder = Path(os.environ.get(variable, "") or raw_folder) if variable else raw_folder
        for taken in sorted(folder.glob(f"Dataset{dataset_id:03d}_*")):
            # The same name in nnU-Net's other folders is what it made of an earlier export of this very dataset.
            if taken.name != target.name or variable not in OTHER_VARIABLES:
                raise_taken(dataset_id, taken)
    return target


def require_unused_id(folder: Path, dataset_id: int) -> None:
    """Raise if one of nnU-Net's folders contains anything with a dataset id.

    Args:
        folder: Folder for raw or preprocessed datasets, or for results; may be missing.
        dataset_id: Number of the dataset, 1 to 999.

    Raises:
        ExportError: The id is in use; the message names the path.
    """
    for taken in sorted(folder.glob(f"Dataset{dataset_id:03d}_*")):
        raise_taken(dataset_id, taken)


def raise_taken(dataset_id: int, taken: Path) -> None:
    """Raise the error for a dataset id that is in use.

    Args:
        dataset_id: Number of the dataset.
        taken: Path that uses it.

    Raises:
        ExportError: Always.
    """
    raise ExportError(
        f"Dataset id {dataset_id}: already used by {taken}. Choose another --dataset-id, or remove that folder."
    )


def place_file(source: Path, target: Path, *, copy: bool) -> bool:
    """Link or copy an image file to its place in a dataset, with its bytes unchanged.

    Args:
        source: File to link or copy.
        target: New path; its folder exists.
        copy: Whether to copy; otherwise it is hard-linked, or copied where the disk supports no links.

    Returns:
        Whether it is a hard link.

    Raises:
        ExportError: The file has another suffix than the dataset's, or the path exists.
    """
    if not source.name.endswith(FILE_ENDING):
        raise ExportError(f"{source}: the name must end in {FILE_ENDING}. Make the cohort again.")
    if not copy:
        return link_or_copy(source, target)
    copy_new(source, target)
    return False
