"""HU ranges of organs in the user's own CTs, measured in CTs with label maps or read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import load_image_on
from maisi_aug.errors import BankError, RecipeError, VocabularyError
from maisi_aug.system.content import read_json
from maisi_aug.system.progress import Report
from maisi_aug.vocabulary.hu import MIN_ORGAN_VOXELS, HuRange
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.volumes.grid import Grid

MIN_CASES = 3
NUM_SIGMAS = 3.0
MIN_SIGMA_HU = 5.0
"""Smallest standard deviation in HU to assume: three scans of a protocol may agree, but the next patient will not."""


def load_hu_reference(
    path: Path, vocabulary: Vocabulary, *, grid: Grid, report: Report | None = None
) -> tuple[HuRange, ...]:
    """Return the ranges of the median HU of labels, measured on labelled CTs or read from a file.

    Args:
        path: A folder, data list or dataset of CTs with label maps, read as mask banks are, or a JSON file such as
            ``evaluate hu --reference`` writes.
        vocabulary: Vocabulary of the labels.
        grid: Grid of the cohort, to which CTs are resampled.
        report: Progress callback, called with (CTs measured, CTs in all).

    Raises:
        RecipeError: The file cannot be read, or no label is in enough CTs.
        BankError: The folder has no label maps with CTs.
        VolumeError: A CT cannot be read.
    """
    if path.is_file() and path.suffix.lower() == ".json" and (rows := _read_rows(path)) is not None:
        return tuple(_to_range(row, vocabulary, f"HU reference {path}") for row in rows)
    return _measure(path, vocabulary, grid, report)


def ranges_to_json(ranges: Sequence[HuRange]) -> list[dict[str, Any]]:
    """Return HU ranges as JSON-able values, as in ``cohort.yaml``; :func:`ranges_from_json` reads them.

    Returns:
        One row per range, in the same order, with ``name``, ``label_ids``, ``low_hu``, ``high_hu`` and ``median_hu``;
        HU are rounded to two decimals.
    """
    return [
        {
            "name": row.name,
            "label_ids": list(row.label_ids),
            "low_hu": round(row.low_hu, 2),
            "high_hu": round(row.high_hu, 2),
            "median_hu": None if row.median_hu is None else round(row.median_hu, 2),
        }
        for row in ranges
    ]


def ranges_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[HuRange, ...]:
    """Read HU ranges from the rows that :func:`ranges_to_json` wrote; nothing is checked.

    Args:
        rows: Rows with ``name``, ``label_ids``, ``low_hu``, ``high_hu`` and ``median_hu``.

    Returns:
        One range per row, in the same order.

    Raises:
        KeyError: A row has no ``label_ids``.
        TypeError: A row lacks another field that has no default, or has an unknown one.
    """
    return tuple(HuRange(**{**row, "label_ids": tuple(row["label_ids"])}) for row in rows)


def _read_rows(path: Path) -> list[Mapping[str, Any]] | None:
    """The rows of a file of ranges; None for JSON of another kind, such as a data list."""
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"HU reference {path}: not valid JSON: {error}. Check --hu-reference.") from error
    rows = document.get("organs") if isinstance(document, Mapping) else None
    return rows if isinstance(rows, list) else None


def _to_range(row: Any, vocabulary: Vocabulary, subject: str) -> HuRange:
    try:
        ids = tuple(map(int, row["label_ids"])) if "label_ids" in row else (vocabulary.id_of(row["name"]),)
        low, high = float(row["low_hu"]), float(row["high_hu"])
        median = row.get("median_hu")
        usual = (low + high) / 2 if median is None else float(median)
        name = str(row.get("name") or vocabulary.name_of(ids[0]))
    except VocabularyError as error:
        raise RecipeError(f"{subject}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RecipeError(
            f'{subject}: expected rows such as {{"name": "liver", "low_hu": 20, "high_hu": 160}} under "organs", found '
            f"{row!r}. Correct the file."
        ) from error
    if not low < high:
        raise RecipeError(f"{subject}: expected low_hu below high_hu, found {low:g} and {high:g} for '{name}'.")
    return HuRange(name, ids, low, high, usual)


def _measure(path: Path, vocabulary: Vocabulary, grid: Grid, report: Report | None) -> tuple[HuRange, ...]:
    bank = FolderBank(path, vocabulary=vocabulary, grid=grid, min_cover=0.0)
    medians: dict[int, list[float]] = {}
    num_read = 0
    for index in range(len(bank.names)):
        bank_map, image_path = bank.load(index), bank.image_path_of(index)
        if bank_map is not None and image_path is not None:
            num_read += 1
            image_hu = load_image_on(image_path, bank_map.grid)
            for label_id, box in bank_map.boxes.items():
                values = image_hu[box][bank_map.label_map[box] == label_id]
                if label_id != BODY_ID and values.size >= MIN_ORGAN_VOXELS:
                    medians.setdefault(label_id, []).append(float(np.median(values)))
        if report is not None:
            report(index + 1, len(bank.names))
    if not num_read:
        raise BankError(
            f"HU reference {path}: no label map has a CT next to it. Give CTs with label maps, or a file of ranges."
        )
    ranges = [
        _summarise(vocabulary.name_of(label_id), label_id, found)
        for label_id, found in sorted(medians.items())
        if len(found) >= MIN_CASES
    ]
    if not ranges:
        raise RecipeError(
            f"HU reference {path}: no label occurs in at least {MIN_CASES} CTs (of {num_read}). Add CTs, or give a "
            "file of ranges."
        )
    return tuple(ranges)


def _summarise(name: str, label_id: int, medians: Sequence[float]) -> HuRange:
    """From the lower of mean - 3 sigma and the 0.5 percentile to the higher of their opposites."""
    mean, sigma = float(np.mean(medians)), max(MIN_SIGMA_HU, float(np.std(medians, ddof=1)))
    low, high = (float(value) for value in np.percentile(medians, [0.5, 99.5]))
    return HuRange(
        name,
        (label_id,),
        min(mean - NUM_SIGMAS * sigma, low),
        max(mean + NUM_SIGMAS * sigma, high),
        float(np.median(medians)),
    )
