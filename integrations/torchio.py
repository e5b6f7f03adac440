"""A finished cohort as TorchIO subjects, for TorchIO 1 and 2.

from maisi_aug.integrations.torchio import load_subjects
subjects = load_subjects("cohort")
dataset = torchio.SubjectsDataset(subjects, transform=...)   # version 1; version 2 takes the list as it is
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maisi_aug.integrations.reading.cohort_pairs import open_pairs
from maisi_aug.integrations.reading.items import import_torchio, to_subject


def load_subjects(
    folder: Path | str,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> list[Any]:
    """All cases of a cohort as subjects with ``image``, ``label``, ``case_id``, ``request`` and ``seed``, in memory.

    Args:
        folder: Folder that ``synthesize`` wrote.
        labels: Names or ids, numbered 1, 2, ... in the order of their ids; those that the cohort was asked for when
            empty.
        include_anatomy: Every label in the maps as well, except the body envelope.
        numbers: Label name -> number instead, such as a real dataset's; 0 for background.

    Raises:
        CohortError: It is no cohort.
        ExportError: It is unfinished or altered, or a label occurs nowhere.
        MissingExtraError: TorchIO is not installed.
        RequestError: ``numbers`` lack a label that the cohort was asked for, or do not fit otherwise.
        VocabularyError: An unknown label name.
    """
    return list(iterate_subjects(folder, labels, include_anatomy=include_anatomy, numbers=numbers))


def iterate_subjects(
    folder: Path | str,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> Iterator[Any]:
    """The subjects of :func:`load_subjects` one after the other, for cohorts that do not fit into memory."""
    import_torchio()
    pairs = open_pairs(folder, labels, include_anatomy=include_anatomy, numbers=numbers)
    return (to_subject(pairs.load(index)) for index in range(len(pairs)))
