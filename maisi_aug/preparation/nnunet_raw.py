"""nnU-Net's raw datasets: their training cases, and what their labels are called."""

from __future__ import annotations

import os
from pathlib import Path

from maisi_aug.banks.files import to_label_names
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME, RAW_VARIABLE, RawDataset
from maisi_aug.banks.raw_datasets import find_dataset as find_raw_dataset
from maisi_aug.errors import BankError, PreparationError
from maisi_aug.preparation.sources import LabelFile, SourceCase, to_case_id


def find_dataset(name: str) -> Path:
    """The folder of a raw dataset.

    Args:
        name: A folder, or with the environment variable ``nnUNet_raw`` a dataset's name or number.

    Raises:
        PreparationError: There is no such dataset.
    """
    folder = find_raw_dataset(name)
    if (folder / DESCRIPTION_NAME).is_file():
        return folder
    raw = os.environ.get(RAW_VARIABLE)
    place = f" or a dataset in ${RAW_VARIABLE}" if raw else f"; the variable {RAW_VARIABLE} is not set"
    raise PreparationError(
        f"--nnunet {name}: expected a raw dataset's folder with dataset.json{place}, found none. Check the path."
    )


def read_dataset(folder: Path) -> list[SourceCase]:
    """The training cases of a raw dataset, from ``imagesTr`` and ``labelsTr`` or from its entry ``dataset``.

    Raises:
        PreparationError: ``dataset.json`` cannot be read, no channel is a CT, or a case's files are missing.
    """
    try:
        dataset = RawDataset.read(folder)
        labels = dataset.document.get("labels")
        if not isinstance(labels, dict) or not dataset.channels:
            raise PreparationError(
                f"{dataset.path}: expected nnU-Net's entries 'labels' and 'channel_names', found: "
                f"{', '.join(dataset.document)}. Correct the file."
            )
        names = to_label_names(labels, dataset.path)
        found = dataset.list_cases()
    except BankError as error:
        raise PreparationError(str(error)) from error
    if not found:
        raise PreparationError(f"{folder}: expected training cases in labelsTr, found none. Check the dataset.")
    missing = [
        str(file or f"an image of {case.id}")
        for case in found
        for file in (case.image, case.label)
        if file is None or not file.exists()
    ]
    if missing:
        raise PreparationError(
            f"{folder}: expected every file of its training cases, found {len(missing)} missing, the first of them "
            f"{missing[0]}. Complete the dataset."
        )
    return [
        SourceCase(to_case_id(case.id), case.image, (LabelFile(case.label, names=names),))
        for case in found
        if case.image is not None
    ]
