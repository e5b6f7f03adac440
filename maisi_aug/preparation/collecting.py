"""All files of all cases, put together from images, label files and folders of organ labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maisi_aug.errors import PreparationError
from maisi_aug.preparation.nnunet_raw import find_dataset, read_dataset
from maisi_aug.preparation.sources import SourceCase, find_images, find_labels, find_organs

MAX_SHOWN = 5


@dataclass(frozen=True)
class Sources:
    """Where a lab's files are.

    Attributes:
        images: Folder of the CTs.
        labels: Folder of the label files; None for cases that have organ labels or tissues alone.
        nnunet: A raw dataset instead of the two.
        organs: Folders of organ labels; later ones win.
        image_pattern: How images are named; None to go by the usual endings.
        label_patterns: How label files are named, later ones win; empty to go by the images' names.
        excluded: Cases to leave out.
    """

    images: Path | None = None
    labels: Path | None = None
    nnunet: str | None = None
    organs: tuple[Path, ...] = ()
    image_pattern: str | None = None
    label_patterns: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def collect_cases(sources: Sources) -> tuple[tuple[SourceCase, ...], tuple[str, ...]]:
    """List the cases without opening an image.

    Returns:
        The cases in the order of their names, and notes for the user, a sentence each.

    Raises:
        PreparationError: Sources that contradict each other or hold nothing, or an excluded case that is not there.
    """
    cases, notes = _collect_labelled(sources)
    unknown = sorted(set(sources.excluded) - {case.id for case in cases})
    if unknown:
        raise PreparationError(
            f"--exclude {unknown[0]}: expected the name of a case, such as {cases[0].id}, found no such case."
        )
    cases = [case for case in cases if case.id not in sources.excluded]
    if not cases:
        raise PreparationError("Cases: expected at least one, found none left. Exclude fewer.")
    for folder in sources.organs:
        cases, missing = add_organs(cases, folder)
        if missing:
            notes.append(f"--organs {folder} has nothing for {_list(missing)}.")
    return tuple(sorted(cases, key=lambda case: case.id)), tuple(notes)


def add_organs(cases: Sequence[SourceCase], folder: Path) -> tuple[list[SourceCase], list[str]]:
    """The cases with their organ labels from a folder, over those that they have; and the cases that it lacks."""
    found = find_organs(folder, [case.id for case in cases])
    with_organs = [replace(case, organs=(*case.organs, found[case.id])) if case.id in found else case for case in cases]
    return with_organs, [case.id for case in cases if case.id not in found]


def _collect_labelled(sources: Sources) -> tuple[list[SourceCase], list[str]]:
    if sources.nnunet is not None:
        if sources.images is not None or sources.labels is not None:
            raise PreparationError("Sources: expected either --nnunet or --images with --labels, found both. Give one.")
        return read_dataset(find_dataset(sources.nnunet)), []
    if sources.images is None:
        raise PreparationError("Sources: expected --images with --labels, or --nnunet, found neither. Give one.")
    images = find_images(sources.images, sources.image_pattern)
    if sources.labels is None:
        return [SourceCase(case_id, path) for case_id, path in images.items()], []
    labels = find_labels(sources.labels, images, sources.label_patterns, images=images.values())
    without = [case_id for case_id in images if case_id not in labels]
    notes = [f"Left out, for they have no label file: {_list(without)}."] if without else []
    return [SourceCase(case_id, images[case_id], tuple(files)) for case_id, files in labels.items()], notes


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_SHOWN])
    return f"{len(names)} cases, {shown}, ..." if len(names) > MAX_SHOWN else shown
