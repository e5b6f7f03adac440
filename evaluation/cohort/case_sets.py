"""The cases that a measurement reads: a cohort, prepared or nnU-Net folders, data lists, or a folder of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.case_files import (
    IMAGE_FOLDERS,
    LeftOut,
    SortedFiles,
    case_of,
    find_folders,
    is_image_name,
    list_folders,
    sort_folder,
    stem_of,
)
from maisi_aug.banks.case_reader import load_ct, place_labels
from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import list_bank
from maisi_aug.banks.label_ids import Translation, build_translation, guess_maisi_ids, translate_own_names
from maisi_aug.banks.label_map import load_entry
from maisi_aug.banks.raw_datasets import find_ct_channel, find_dataset
from maisi_aug.cohort.manifest import MANIFEST_NAME, is_cohort
from maisi_aug.errors import EvaluationError, MaisiAugError
from maisi_aug.evaluation.cohort.lesion_sizes import SIZE_GATE
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohort_source
from maisi_aug.preparation.prepared import CASES_NAME, PreparedDataset, load_prepared
from maisi_aug.system.engine.cores import count_cores
from maisi_aug.system.engine.mapping import OpenFunction, map_items, run_parallel
from maisi_aug.system.engine.work import Engine, WorkerPlace
from maisi_aug.system.progress import Report
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, Vocabulary
from maisi_aug.volumes.image_files import Volume, is_readable, load_label_map
from maisi_aug.volumes.own_names import load_own_names

Result = TypeVar("Result")
MIN_ITEMS_PER_WORKER = 12
"""Smallest number of cases per process; fewer are not worth its start-up time of one to two seconds."""
Item = TypeVar("Item")


class SkippedCase(NamedTuple):
    """Name of a case that could not be measured, and the reason as a sentence."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class EvaluatedCase:
    """One case to be evaluated, which is read when it is needed.

    Attributes:
        case_id: Name of the case.
        image_path: Path of the CT.
        entry: Label map as an entry of a mask bank; None for a CT without label map, and for cases of a cohort.
        anatomy_path: Path of the full label map of a cohort's case; None for other cases.
        patient: Name of the patient, whose cases are resampled together; empty if every case is a patient.
    """

    case_id: str
    image_path: Path
    entry: BankEntry | None = None
    anatomy_path: Path | None = None
    patient: str = ""

    @property
    def has_label_map(self) -> bool:
        """Whether the case has a label map."""
        return self.entry is not None or self.anatomy_path is not None

    def load_image(self) -> Volume:
        """Read the CT of the case, ``(I, J, K)`` HU in RAS+.

        Raises:
            VolumeError: The CT cannot be read, has NaN, or its values are not HU.
        """
        return load_ct(self.image_path)


@dataclass(frozen=True)
class CaseSet:
    """A set of cases to be evaluated together, from a cohort, dataset or folder.

    Attributes:
        path: Folder or file of the cases.
        kind: Kind of dataset, as text.
        cases: Cases ordered by name; at least one.
        vocabulary: Vocabulary of the ids in returned label maps.
        cohort: The cohort; None for other kinds.
        skipped: Files that are missing or empty.
    """

    path: Path
    kind: str
    cases: tuple[EvaluatedCase, ...]
    vocabulary: Vocabulary
    cohort: CohortSource | None = None
    skipped: tuple[SkippedCase, ...] = ()

    @property
    def labelled(self) -> tuple[EvaluatedCase, ...]:
        """The cases that have a label map."""
        return tuple(case for case in self.cases if case.has_label_map)

    def load_label_map(self, case: EvaluatedCase) -> Volume:
        """Read the label map of a case as ``(I, J, K)`` vocabulary ids; labels that the vocabulary lacks become body.

        Raises:
            VolumeError: The label map cannot be read, or the meaning of its ids is unknown.
            BankError: None of its labels are in the vocabulary.
        """
        if case.anatomy_path is not None:
            return load_label_map(case.anatomy_path)
        assert case.entry is not None
        translation = self._translation_of(case.entry)
        source = load_entry(case.entry, translation, self.vocabulary)
        if translation is None:
            present = np.flatnonzero(np.bincount(source.array.ravel()))
            names = load_own_names(case.entry.label_paths[0]) if case.entry.label_paths else {}
            subject = case.case_id
            translation = translate_own_names(names, self.vocabulary, subject=subject, has_options=False)
            translation = translation or guess_maisi_ids(present, self.vocabulary, subject=subject, has_options=False)
        return Volume(translation.apply(source.array), source.grid)

    def load_pair(self, case: EvaluatedCase) -> tuple[Volume, NDArray[np.uint8]]:
        """Read the CT and the label map of a case, on the same grid.

        Raises:
            VolumeError: One of them cannot be read, or their grids differ.
            BankError: None of the labels are in the vocabulary.
        """
        image, label_map = case.load_image(), self.load_label_map(case)
        return image, place_labels(label_map, image.grid, subject=case.case_id).array

    def _translation_of(self, entry: BankEntry) -> Translation | None:
        names = dict(enumerate(entry.organ_names, start=1)) if entry.organ_names else entry.label_names
        return build_translation(
            "auto",
            names,
            self.vocabulary,
            has_vocabulary_ids=entry.has_vocabulary_ids,
            subject=str(self.path),
            has_options=False,
        )


def find_case_set(path: Path, *, vocabulary: Vocabulary | None = None) -> CaseSet:
    """List the cases at a path without opening a volume.

    Args:
        path: A cohort, a prepared folder, a folder with ``images/`` and ``labels/``, an nnU-Net raw dataset, a MONAI
            data list, or a folder of CT volumes or DICOM series.
        vocabulary: Vocabulary of label maps without label names; a cohort has its own.

    Raises:
        EvaluationError: The path does not exist, or has no CT.
        PreparationError: A prepared folder is damaged.
        ExportError: A cohort has no accepted case, or is being written.
    """
    path = find_dataset(path)
    if not path.exists():
        raise EvaluationError(f"{path}: not found. Check the path.")
    if is_cohort(path):
        source = load_cohort_source(path, gates=(SIZE_GATE,))
        cases = tuple(
            EvaluatedCase(
                record.case_id,
                path / record.files["image"].path,
                anatomy_path=path / record.files["anatomy"].path if "anatomy" in record.files else None,
            )
            for record in source.cases
            if "image" in record.files
        )
        return CaseSet(path, "cohort", cases, source.vocabulary, source)
    if (path / CASES_NAME).is_file():
        return _list_prepared(load_prepared(path), vocabulary)
    words = vocabulary or FULL_VOCABULARY
    return _list_folder(path, words)


def _list_folder(path: Path, words: Vocabulary) -> CaseSet:
    """The cases of a folder or data list: pairs, and the CTs next to them without a label map."""
    found = list_bank(path, lambda name: find_label_id(name, words) is not None)
    skipped = [SkippedCase(name, f"{reason}.") for name, reason in found.faults]
    # A CT with several label maps is one case; the first map in the order of names is its own.
    by_image: dict[Path, EvaluatedCase] = {}
    for entry in found.entries:
        if (image := entry.image_path) is not None:
            by_image.setdefault(image, EvaluatedCase(entry.case or case_of(image, role="image"), image, entry))
    labelled = frozenset(by_image)
    taken = {file for entry in found.entries for file in entry.paths} if labelled else set()
    named = {case.reason for case in skipped}
    volumes = _find_unlabelled(path, labelled, [label for entry in found.entries for label in entry.label_paths])
    for volume, base in volumes.images.items():
        is_named = f"{volume.name} is empty." in named and volume.stat().st_size == 0
        if volume not in taken and not is_named:
            by_image[volume] = EvaluatedCase(case_of(volume, base, role="image"), volume)
    skipped += [
        SkippedCase(_name_in(path, out.path), f"Left out, because {out.reason}.")
        for out in volumes.others
        if out.path not in taken and out.path not in by_image
    ]
    if not by_image:
        what = f" that can be read ({skipped[0].case_id}: {skipped[0].reason})" if skipped else ""
        raise EvaluationError(
            f"{path}: no CT volumes{what}. Give a cohort, an nnU-Net dataset, images/ next to labels/, or a folder "
            "of NIfTI, NRRD, MHA or DICOM."
        )
    cases = tuple(sorted(by_image.values(), key=lambda case: case.case_id))
    return CaseSet(path, "labelled folder" if labelled else "folder of volumes", cases, words, skipped=tuple(skipped))


def _find_unlabelled(path: Path, labelled: frozenset[Path], labels: Sequence[Path]) -> SortedFiles:
    """CTs that may have no label map, given those that have one, and the volumes next to them that are of no case.

    Beside these a file is a CT when it lies in a folder of images or is called one: other volumes, such as a dose or a
    PET, may lie there too.
    """
    if path.is_file():
        return SortedFiles({path: stem_of(path)} if is_readable(path) and not labelled else {})
    image_folders = find_folders(path, IMAGE_FOLDERS)
    if not labelled or image_folders:
        return _find_volumes(path, image_folders[0] if image_folders else path, labels if labelled else ())
    images: dict[Path, str] = {}
    others: list[LeftOut] = []
    for folder in (path, *list_folders(path)):
        if folder in images:
            continue  # a series
        found = sort_folder(folder)
        own = {image for image in found.images if image.is_dir() and any(_is_nested(image, ct) for ct in labelled)}
        images |= {
            image: base
            for image, base in found.images.items()
            if image not in own and (image.is_dir() or is_image_name(image) or not found.is_bare)
        }
        reason = "its name does not mark it as an image, unlike other names in the folder"
        left = (image for image in found.images if image not in images and image not in own)
        others += [*found.others, *(LeftOut(image, reason) for image in left)]
    return SortedFiles(images, (), tuple(others))


def _is_nested(series: Path, image: Path) -> bool:
    """Whether a folder holds an image, or the other way round."""
    return image.is_relative_to(series) or series.is_relative_to(image)


def _list_prepared(dataset: PreparedDataset, vocabulary: Vocabulary | None) -> CaseSet:
    """The cases of a prepared folder; its new labels may have other ids in the vocabulary that is requested."""
    names = {label_id: name for name, label_id in dataset.spec.labels.items()}
    cases = []
    for case in dataset.cases:
        image, label = (dataset.file_of(role, case.id) for role in ("image", "label"))
        entry = BankEntry(case.id, (label,), image, label_names=names)
        cases.append(EvaluatedCase(case.id, image, entry, patient=case.patient))
    return CaseSet(dataset.path, "prepared folder", tuple(cases), vocabulary or dataset.vocabulary)


def require_labelled(case_set: CaseSet) -> tuple[EvaluatedCase, ...]:
    """Return the cases of a set that have a label map.

    Raises:
        EvaluationError: No case has a label map.
    """
    if not case_set.labelled:
        raise EvaluationError(
            f"{case_set.path}: label maps are needed, but its {len(case_set.cases)} volumes have none. Give a "
            "cohort, a prepared or nnU-Net dataset, or images/ next to labels/."
        )
    return case_set.labelled


def require_cohort(case_set: CaseSet) -> CohortSource:
    """Return the cohort from which a set of cases was read.

    Raises:
        EvaluationError: The cases are not a cohort.
    """
    if case_set.cohort is None:
        raise EvaluationError(
            f"{case_set.path}: must be a cohort with {MANIFEST_NAME}, found a {case_set.kind}. Give the folder that "
            "synthesize wrote."
        )
    return case_set.cohort


def measure_each(
    items: Sequence[Item],
    name_of: Callable[[Item], str],
    measure: Callable[[Item], Result],
    notify: Report,
    *,
    num_workers: int | None = 1,
) -> tuple[list[Result], list[SkippedCase]]:
    """Measure items one by one; items that cannot be read are skipped with the reason.

    Args:
        items: Items to measure.
        name_of: Function that returns the name of an item.
        measure: Function that measures an item; for several processes, it must be picklable.
        notify: Progress callback, called with (items done, items in all).
        num_workers: Number of processes; None for one per core, or for a few items none.

    Returns:
        The results, and the skipped items.

    Raises:
        EvaluationError: No item could be measured.
    """
    if num_workers is None:
        num_workers = max(1, min(count_cores(), len(items) // MIN_ITEMS_PER_WORKER))
    found = run_parallel(
        partial(_measure_or_skip, measure), items, "", lambda _, done, total: notify(done, total), num_workers
    )
    return _part_unreadable(items, name_of, found)


def measure_each_on(
    engine: Engine,
    items: Sequence[Item],
    name_of: Callable[[Item], str],
    open_measure: OpenFunction[Item, Result],
    notify: Report,
    *,
    reads: tuple[Path, ...] = (),
) -> tuple[list[Result], list[SkippedCase]]:
    """Measure items in the workers of an engine, each of which first loads something, such as networks.

    Items that cannot be read are skipped with the reason.

    Args:
        engine: Engine that runs the workers.
        items: Items to measure.
        name_of: Function that returns the name of an item.
        open_measure: Picklable function, called once in each worker, that returns the function that measures an item.
        notify: Progress callback, called with (items done, items in all).
        reads: Paths that must exist where a worker runs.

    Raises:
        EvaluationError: No item could be measured.
    """
    found = map_items(partial(_open_or_skip, open_measure), items, engine, notify, reads=reads)
    return _part_unreadable(items, name_of, found)


def _part_unreadable(
    items: Sequence[Item], name_of: Callable[[Item], str], found: Sequence[Result | _Unreadable]
) -> tuple[list[Result], list[SkippedCase]]:
    pairs = list(zip(items, found, strict=True))
    skipped = [SkippedCase(name_of(item), one.reason) for item, one in pairs if isinstance(one, _Unreadable)]
    results = [one for _, one in pairs if not isinstance(one, _Unreadable)]
    require_some(len(results), skipped)
    return results, skipped


class _Unreadable(NamedTuple):
    """Why an item was set aside."""

    reason: str


def _measure_or_skip(measure: Callable[[Item], Result], item: Item) -> Result | _Unreadable:
    try:
        return measure(item)
    except MaisiAugError as error:
        return _Unreadable(str(error))


def _open_or_skip(
    open_measure: OpenFunction[Item, Result], place: WorkerPlace
) -> Callable[[Item], Result | _Unreadable]:
    return partial(_measure_or_skip, open_measure(place))


def require_some(num_left: int, skipped: Sequence[SkippedCase]) -> None:
    """Raise if no item could be measured.

    Args:
        num_left: Number of items that were measured.
        skipped: Items that were not, with their reasons.

    Raises:
        EvaluationError: The message names the first skipped item and the number of others.
    """
    if num_left == 0:
        first = skipped[0].reason if skipped else "there are no cases"
        raise EvaluationError(f"Cases: none of {len(skipped)} can be measured; the first: {first}")


def describe_skipped(skipped: Iterable[SkippedCase]) -> list[dict[str, str]]:
    """Return skipped cases as JSON-able rows of name and reason."""
    return [{"case": case_id, "reason": reason} for case_id, reason in skipped]


def spell_skipped(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the paragraph about skipped cases in a report; empty if there are none."""
    return ["## Left out\n", *(f"- {row['case']}: {row['reason']}\n" for row in rows)] if rows else []


def _find_volumes(path: Path, folder: Path, labels: Sequence[Path]) -> SortedFiles:
    """CT files, or folders of DICOM series, of a folder; what is called a label map or another channel is left out."""
    return sort_folder(folder, ct_channel=find_ct_channel(path), are_images=folder != path, labels_elsewhere=labels)


def _name_in(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
