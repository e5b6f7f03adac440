"""All files of all cases, from images, label files, folders of organ labels, and nnU-Net's raw datasets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from maisi_aug.banks.case_files import list_labels
from maisi_aug.banks.files import to_label_names
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME, RAW_VARIABLE, RawDataset, note_never_trained
from maisi_aug.banks.raw_datasets import find_dataset as find_raw_dataset
from maisi_aug.errors import BankError, PreparationError
from maisi_aug.preparation.request import Sources
from maisi_aug.preparation.sources import (
    LabelFile,
    SourceCase,
    find_images,
    find_labels,
    find_organs,
    sort_images,
    to_case_id,
)

MAX_SHOWN = 5


def find_dataset(name: str) -> Path:
    """Return the folder of an nnU-Net raw dataset.

    Args:
        name: Path of the folder, or the dataset's name or number in the folder that ``nnUNet_raw`` names.

    Raises:
        PreparationError: The dataset was not found.
    """
    folder = find_raw_dataset(name)
    if (folder / DESCRIPTION_NAME).is_file():
        return folder
    raw = os.environ.get(RAW_VARIABLE)
    place = f" or a dataset in ${RAW_VARIABLE}" if raw else f"; the variable {RAW_VARIABLE} is not set"
    raise PreparationError(f"--nnunet {name}: no raw dataset with dataset.json at this path{place}. Check the path.")


def read_dataset(folder: Path) -> list[SourceCase]:
    """List the training cases of an nnU-Net raw dataset, from ``imagesTr`` and ``labelsTr`` or its entry ``dataset``.

    Raises:
        PreparationError: ``dataset.json`` cannot be read, no channel is a CT, or a case's files are missing.
    """
    try:
        dataset = RawDataset.read(folder)
        labels = dataset.document.get("labels")
        if not isinstance(labels, dict) or not dataset.channels:
            raise PreparationError(
                f"{dataset.path}: nnU-Net's entries 'labels' and 'channel_names' are required, found: "
                f"{', '.join(dataset.document)}. Correct the file."
            )
        names = to_label_names(labels, dataset.path)
        found = dataset.list_cases()
    except BankError as error:
        raise PreparationError(str(error)) from error
    if not found:
        raise PreparationError(f"{folder}: has no training cases in labelsTr. Check the dataset.")
    missing = [
        str(file or f"an image of {case.id}")
        for case in found
        for file in (case.image, case.label)
        if file is None or not file.exists()
    ]
    if missing:
        raise PreparationError(
            f"{folder}: {len(missing)} files of training cases are missing; the first is {missing[0]}. Complete the "
            "dataset."
        )
    return [
        SourceCase(to_case_id(case.id), case.image, (LabelFile(case.label, names=names),))
        for case in found
        if case.image is not None
    ]


def collect_cases(sources: Sources) -> tuple[tuple[SourceCase, ...], tuple[str, ...]]:
    """List the cases of the user's sources, without opening an image.

    Returns:
        The cases in the order of their names, and notes for the user, a sentence each.

    Raises:
        PreparationError: Sources contradict each other or are empty, or an excluded case does not exist.
    """
    cases, unlabelled, notes = _collect_labelled(sources)
    excluded = {to_case_id(name): name for name in sources.excluded}
    unknown = sorted(excluded.keys() - {case.id for case in cases} - set(unlabelled))
    if unknown:
        raise PreparationError(
            f"--exclude {excluded[unknown[0]]}: there is no such case; names look like {cases[0].id}."
        )
    cases = [case for case in cases if case.id not in excluded]
    without = [case_id for case_id in unlabelled if case_id not in excluded]
    if without:
        notes.insert(0, f"Left out, because they have no label file: {_list(without)}.")
    if not sources.label_patterns:
        notes += _note_several_label_files(cases)
    if not cases:
        raise PreparationError("Cases: none is left. Exclude fewer.")
    for folder in sources.organs:
        cases, missing = add_organs(cases, folder)
        if missing:
            notes.append(f"--organs {folder} has nothing for {_list(missing)}.")
    return tuple(sorted(cases, key=lambda case: case.id)), tuple(notes)


def add_organs(cases: Sequence[SourceCase], folder: Path) -> tuple[list[SourceCase], list[str]]:
    """Return the cases with organ labels from a folder in place of earlier ones, and the names of cases without.

    Args:
        cases: Cases with their images and label files.
        folder: Folder of TotalSegmentator's label maps or masks, named after the cases.

    Returns:
        All cases in the same order, and the ids of those without organ labels in the folder.

    Raises:
        PreparationError: No organ labels belong to a case.
    """
    found = find_organs(folder, [case.id for case in cases], images=[case.image for case in cases])
    with_organs = [replace(case, organs=(*case.organs, found[case.id])) if case.id in found else case for case in cases]
    return with_organs, [case.id for case in cases if case.id not in found]


def _collect_labelled(sources: Sources) -> tuple[list[SourceCase], list[str], list[str]]:
    """The cases, those that are none because they have an image alone, and notes."""
    if sources.nnunet is not None:
        if sources.images is not None or sources.labels is not None:
            raise PreparationError(
                "Sources: --nnunet cannot be used together with --images and --labels. Give one of the two."
            )
        cases = read_dataset(find_dataset(sources.nnunet))
        note = note_never_trained(case.id for case in cases)
        return cases, [], [note] if note else []
    if sources.images is None:
        raise PreparationError("Sources: --images with --labels, or --nnunet, is required. Give one of the two.")
    images = find_images(sources.images, sources.image_pattern, labels=sources.labels)
    if sources.labels is None:
        notes = _note_files_left_out(sources, images.values())
        return [SourceCase(case_id, path) for case_id, path in images.items()], [], notes
    labels = find_labels(sources.labels, images, sources.label_patterns, images=images.values())
    without = [case_id for case_id in images if case_id not in labels]
    cases = [SourceCase(case_id, images[case_id], tuple(files)) for case_id, files in labels.items()]
    used = (*images.values(), *(file.path for files in labels.values() for file in files))
    return cases, without, _note_files_left_out(sources, used)


def _note_files_left_out(sources: Sources, used: Iterable[Path]) -> list[str]:
    """Files that are of no case, unless a pattern chose among them."""
    images, labels, used = sources.images, sources.labels, set(used)
    notes = []
    is_chosen = sources.image_pattern is not None or (bool(sources.label_patterns) and labels == images)
    if images is not None and not is_chosen:
        reasons: dict[str, list[str]] = {}
        sorted_files = sort_images(images, labels)
        for out in sorted_files.others:
            if out.path not in used and images not in sources.organs:  # where organ labels lie next to the CTs
                reasons.setdefault(out.reason, []).append(out.path.name)
        notes += [
            f"Left out of {images}, because {reason}: {_list(names, 'files')}." for reason, names in reasons.items()
        ]
        alone = [path.name for path in sorted_files.labels if path not in used and labels == images]
        notes += _note_without_image(images, alone)
    if labels is not None and labels != images and not sources.label_patterns:
        notes += _note_without_image(labels, [path.name for path in list_labels(labels) if path not in used])
    return notes


def _note_without_image(folder: Path, names: Sequence[str]) -> list[str]:
    return [f"Left out of {folder}, because no image has their name: {_list(names, 'files')}."] if names else []


def _note_several_label_files(cases: Sequence[SourceCase]) -> list[str]:
    """Cases with several label maps, those with files of the same kinds together."""
    alike: dict[tuple[str, ...], list[SourceCase]] = {}
    for case in cases:
        roles = tuple(file.role for file in case.labels if file.mask_name is None)
        if len(roles) > 1:
            alike.setdefault(roles, []).append(case)
    notes = []
    for first, *others in alike.values():
        names = ", ".join(file.path.name for file in first.labels)
        more = f"; likewise for {len(others)} other cases" if others else ""
        notes.append(f"Label files of {first.id}, {names}, are merged; later ones override earlier ones{more}.")
    return notes


def _list(names: Sequence[str], noun: str = "cases") -> str:
    shown = ", ".join(names[:MAX_SHOWN])
    return f"{len(names)} {noun}, {shown}, ..." if len(names) > MAX_SHOWN else shown
