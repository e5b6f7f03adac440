"""A real dataset beside which a cohort is used: its cases, its labels, and what the labels are in the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.bank_labels import find_label_id
from maisi_aug.census import LESION_WORDS
from maisi_aug.errors import ExportError
from maisi_aug.integrations.cohort_source import CohortSource
from maisi_aug.integrations.export_labels import LabelNumbering
from maisi_aug.labels import BACKGROUND_ID


@dataclass(frozen=True, slots=True)
class RealCase:
    """One case with its files."""

    case_id: str
    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class RealDataset:
    """An nnU-Net raw dataset of one channel.

    Attributes:
        folder: Where it is.
        cases: Sorted by name.
        labels: Name -> number, background included.
    """

    folder: Path
    cases: tuple[RealCase, ...]
    labels: Mapping[str, int]


def load_real_dataset(folder: Path) -> RealDataset:
    """Read an nnU-Net raw dataset; no volume is opened.

    Raises:
        ExportError: It is none, has several channels or labels of regions, or lacks a file.
    """
    description = folder / "dataset.json"
    try:
        document = json.loads(description.read_text(encoding="utf-8"))
        ending, channels, labels = (document[key] for key in ("file_ending", "channel_names", "labels"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{folder}: expected an nnU-Net raw dataset with a dataset.json, found: {error!r}. Check the path."
        ) from error
    if len(channels) != 1:
        raise ExportError(
            f"{folder}: expected one channel, found {len(channels)} ({', '.join(map(str, channels.values()))}). A "
            "cohort has CT alone; choose a CT dataset."
        )
    if not all(isinstance(number, int) for number in labels.values()):
        raise ExportError(
            f"{folder}: expected one number for every label, found labels of regions. Choose a dataset without regions."
        )
    cases = tuple(sorted(_find_cases(folder, document, ending), key=lambda case: case.case_id))
    for path in (path for case in cases for path in (case.image, case.label)):
        if not path.is_file():
            raise ExportError(f"{folder}: expected {path}, found nothing there. Restore the file.")
    if not cases:
        raise ExportError(f"{folder}: expected training cases in labelsTr, found none. Check the folder.")
    return RealDataset(folder, cases, labels)


def _find_cases(folder: Path, document: Mapping[str, Any], ending: str) -> list[RealCase]:
    table = document.get("dataset")
    if isinstance(table, dict):  # files elsewhere, named relative to the dataset
        return [
            RealCase(name, (folder / row["images"][0]).resolve(), (folder / row["label"]).resolve())
            for name, row in table.items()
        ]
    names = [path.name.removesuffix(ending) for path in (folder / "labelsTr").glob(f"*{ending}")]
    images, labels = folder.resolve() / "imagesTr", folder.resolve() / "labelsTr"
    return [RealCase(name, images / f"{name}_0000{ending}", labels / f"{name}{ending}") for name in names]


def number_like(cohort: CohortSource, real: RealDataset, mapping: Mapping[str, str]) -> LabelNumbering:
    """The numbers of a real dataset for the labels of a cohort.

    Args:
        cohort: The cohort.
        real: The dataset.
        mapping: Label of the cohort -> label of the dataset, for what is not called alike.

    Raises:
        ExportError: A label of either has no counterpart: as background it would teach the wrong thing.
        VocabularyError: The mapping names an unknown label of the cohort.
    """
    by_real = {source: cohort.vocabulary.id_of(name) for name, source in mapping.items()}
    unknown = [source for source in by_real if source not in real.labels]
    if unknown:
        raise ExportError(
            f"--map: expected a label of {real.folder} ({', '.join(real.labels)}), found '{unknown[0]}'. Correct it."
        )
    ids: dict[int, str] = {}
    for name, number in real.labels.items():
        if number == BACKGROUND_ID:
            continue
        label_id = by_real.get(name) or _find_counterpart(name, cohort)
        if label_id is None:
            raise ExportError(
                f"{real.folder}: expected every label in the cohort's vocabulary, found '{name}', which is not. Say "
                f"which it is, such as --map 'hepatic tumor={name}'."
            )
        ids[label_id] = name
    missing = [label_id for label_id in cohort.requested_ids if label_id not in ids]
    if missing:
        raise ExportError(
            f"{real.folder}: expected every label that the cohort was asked for, found none that is "
            f"{', '.join(map(cohort.name_of, missing))}; it has {', '.join(real.labels)}. Make a cohort of its labels, "
            "or add --map."
        )
    ordered = sorted(ids)
    return LabelNumbering(tuple(ordered), tuple(ids[i] for i in ordered), tuple(real.labels[ids[i]] for i in ordered))


def _find_counterpart(name: str, cohort: CohortSource) -> int | None:
    """A label by its name; "tumor" alone is the one lesion that the cohort was asked for, if there is but one."""
    found = find_label_id(name, cohort.vocabulary)
    if found is not None or name.strip().lower() not in LESION_WORDS:
        return found
    lesions = [label_id for label_id in cohort.requested_ids if label_id in cohort.vocabulary.tumor_ids]
    return lesions[0] if len(lesions) == 1 else None
