"""The cases that a measurement reads: a cohort, prepared or nnU-Net folders, data lists, or a folder of volumes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import IMAGE_FOLDERS, case_of, find_entries, is_image_name, is_label_name, stem_of
from maisi_aug.banks.label_ids import Translation, build_translation, find_label_id, guess_maisi_ids
from maisi_aug.banks.label_map import load_entry
from maisi_aug.cohort.manifest import MANIFEST_NAME, is_cohort
from maisi_aug.errors import EvaluationError, MaisiAugError, VolumeError
from maisi_aug.evaluation.cohort.lesion_sizes import SIZE_GATE
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohort_source
from maisi_aug.preparation.prepared import CASES_NAME, PreparedDataset, load_prepared
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, Vocabulary
from maisi_aug.volumes.image_files import Volume, is_readable_name, load_image, load_label_map

Notify = Callable[[int, int], None]
Result = TypeVar("Result")
Item = TypeVar("Item")

_OTHER_CHANNEL = re.compile(r"_000[1-9]$")


class SkippedCase(NamedTuple):
    """A case that could not be measured, and why, in a sentence."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class EvaluatedCase:
    """One case, not read yet.

    Attributes:
        case_id: Its name.
        image_path: The CT.
        entry: Its label map as a bank has it; None for a bare volume, and in a cohort, whose files lie elsewhere.
        anatomy_path: Its label map in vocabulary ids, in a cohort; None elsewhere.
        patient: Whose it is; cases of one patient are drawn together. Empty where every case is a patient.
    """

    case_id: str
    image_path: Path
    entry: BankEntry | None = None
    anatomy_path: Path | None = None
    patient: str = ""

    @property
    def has_label_map(self) -> bool:
        """Whether there is a label map."""
        return self.entry is not None or self.anatomy_path is not None

    def load_image(self) -> Volume:
        """The CT, ``(I, J, K)`` HU in RAS+.

        Raises:
            VolumeError: When it cannot be read, or holds NaN.
        """
        return load_image(self.image_path)


@dataclass(frozen=True)
class CaseSet:
    """Cases that are measured together.

    Attributes:
        path: Where they lie.
        kind: What that is, in words.
        cases: In the order of their names; at least one.
        vocabulary: Meaning of the ids in the label maps that are handed out.
        cohort: The cohort, where it is one.
        skipped: What lies there and is missing or empty.
    """

    path: Path
    kind: str
    cases: tuple[EvaluatedCase, ...]
    vocabulary: Vocabulary
    cohort: CohortSource | None = None
    skipped: tuple[SkippedCase, ...] = ()

    @property
    def labelled(self) -> tuple[EvaluatedCase, ...]:
        """The cases with a label map."""
        return tuple(case for case in self.cases if case.has_label_map)

    def load_label_map(self, case: EvaluatedCase) -> Volume:
        """The label map of a case, ``(I, J, K)`` in ids of the vocabulary; labels that it lacks are body.

        Raises:
            VolumeError: When it cannot be read, or its ids could mean anything.
            BankError: When none of its labels are in the vocabulary.
        """
        if case.anatomy_path is not None:
            return load_label_map(case.anatomy_path)
        assert case.entry is not None
        translation = self._translation_of(case.entry)
        source = load_entry(case.entry, translation, self.vocabulary)
        if translation is None:
            present = np.flatnonzero(np.bincount(source.array.ravel()))
            translation = guess_maisi_ids(present, self.vocabulary, subject=case.case_id)
        return Volume(translation.apply(source.array), source.grid)

    def load_pair(self, case: EvaluatedCase) -> tuple[Volume, NDArray[np.uint8]]:
        """Image and label map of a case.

        Raises:
            VolumeError: When one cannot be read, or their grids differ.
            BankError: When none of the labels are in the vocabulary.
        """
        image, label_map = case.load_image(), self.load_label_map(case)
        if not image.grid.is_close(label_map.grid, tolerance_mm=0.05):
            raise VolumeError(
                f"{case.case_id}: expected image and label map on one grid, found "
                f"{_spell(image)} and {_spell(label_map)}. Resample one to the other."
            )
        return image, label_map.array

    def _translation_of(self, entry: BankEntry) -> Translation | None:
        names = dict(enumerate(entry.organ_names, start=1)) if entry.organ_names else entry.label_names
        return build_translation(
            "auto", names, self.vocabulary, has_vocabulary_ids=entry.has_vocabulary_ids, subject=str(self.path)
        )


def find_case_set(path: Path, *, vocabulary: Vocabulary | None = None) -> CaseSet:
    """List the cases of a folder or data list, without opening a volume.

    Args:
        path: A cohort, a prepared folder, ``images/`` beside ``labels/``, an nnU-Net raw dataset, a data list of
            MONAI's kind, or a folder of CT volumes or DICOM series.
        vocabulary: Meaning of ids in label maps that name none; a cohort brings its own.

    Raises:
        EvaluationError: When there is nothing, or no CT.
        PreparationError: When a prepared folder is damaged.
        ExportError: When a cohort has no accepted case, or is being written.
    """
    if not path.exists():
        raise EvaluationError(f"{path}: expected CT volumes, found nothing there. Check the path.")
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
    """The cases of a folder or data list: pairs, and the CTs beside them without a label map."""
    entries, faults = find_entries(path, lambda name: find_label_id(name, words) is not None)
    skipped = tuple(SkippedCase(name, f"{reason}.") for name, reason in faults)
    # A CT with several label maps is one case; the first map in the order of names is its own.
    by_image: dict[Path, EvaluatedCase] = {}
    for entry in entries:
        if (image := entry.image_path) is not None:
            by_image.setdefault(image, EvaluatedCase(case_of(image), image, entry))
    labelled = frozenset(by_image)
    taken = {file for entry in entries for file in entry.paths} if labelled else set()
    named = {case.reason for case in skipped}
    for volume in _find_unlabelled(path, labelled):
        is_named = f"{volume.name} is empty." in named and volume.stat().st_size == 0
        if volume not in taken and not is_named:
            by_image[volume] = EvaluatedCase(case_of(volume), volume)
    if not by_image:
        found = f"none that can be read ({skipped[0].case_id}: {skipped[0].reason})" if skipped else "none"
        raise EvaluationError(
            f"{path}: expected CT volumes, found {found}. Give a cohort, an nnU-Net dataset, images/ beside labels/, "
            "or a folder of NIfTI, NRRD, MHA or DICOM."
        )
    cases = tuple(sorted(by_image.values(), key=lambda case: case.case_id))
    return CaseSet(path, "labelled folder" if labelled else "folder of volumes", cases, words, skipped=skipped)


def _find_unlabelled(path: Path, labelled: frozenset[Path]) -> list[Path]:
    """CTs that may have no label map, given those that have one.

    Beside these a file is a CT when it lies in a folder of images or is called one: other volumes, such as a dose or a
    PET, may lie there too. Where a CT with a label map ends in _0001, that is the number of a case, not of a channel.
    """
    has_numbers = any(_OTHER_CHANNEL.search(stem_of(image)) for image in labelled)
    if not labelled or any((path / name).is_dir() for name in IMAGE_FOLDERS):
        return _find_volumes(path, has_numbers=has_numbers)
    if not path.is_dir():
        return []
    folders = [path, *(child for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith("."))]
    return [volume for folder in folders for volume in _find_volumes(folder) if is_image_name(volume)]


def _list_prepared(dataset: PreparedDataset, vocabulary: Vocabulary | None) -> CaseSet:
    """The cases of a prepared folder; its new labels may have other ids in the vocabulary that is asked for."""
    names = {label_id: name for name, label_id in dataset.spec.labels.items()}
    cases = []
    for case in dataset.cases:
        image, label = (dataset.file_of(role, case.id) for role in ("image", "label"))
        entry = BankEntry(case.id, (label,), image, label_names=names)
        cases.append(EvaluatedCase(case.id, image, entry, patient=case.patient))
    return CaseSet(dataset.path, "prepared folder", tuple(cases), vocabulary or dataset.vocabulary)


def require_labelled(case_set: CaseSet) -> tuple[EvaluatedCase, ...]:
    """The cases with a label map.

    Raises:
        EvaluationError: When there is none.
    """
    if not case_set.labelled:
        raise EvaluationError(
            f"{case_set.path}: expected CT volumes with label maps, found {len(case_set.cases)} volumes without. "
            "Give a cohort, a prepared or nnU-Net dataset, or images/ beside labels/."
        )
    return case_set.labelled


def require_cohort(case_set: CaseSet) -> CohortSource:
    """The cohort that a set of cases is.

    Raises:
        EvaluationError: When it is none.
    """
    if case_set.cohort is None:
        raise EvaluationError(
            f"{case_set.path}: expected a cohort with {MANIFEST_NAME}, found a {case_set.kind}. "
            "Give the folder that synthesize wrote."
        )
    return case_set.cohort


def measure_each(
    items: Sequence[Item], name_of: Callable[[Item], str], measure: Callable[[Item], Result], notify: Notify
) -> tuple[list[Result], list[SkippedCase]]:
    """Measure item by item; one that cannot be read is set aside with its reason, and the others go on.

    Raises:
        EvaluationError: When none is left.
    """
    results: list[Result] = []
    skipped: list[SkippedCase] = []
    for number, item in enumerate(items):
        notify(number, len(items))
        try:
            results.append(measure(item))
        except MaisiAugError as error:
            skipped.append(SkippedCase(name_of(item), str(error)))
    notify(len(items), len(items))
    require_some(len(results), skipped)
    return results, skipped


def require_some(num_left: int, skipped: Sequence[SkippedCase]) -> None:
    """Raise when nothing is left to measure.

    Raises:
        EvaluationError: Naming the first case that was set aside and how many more there are.
    """
    if num_left == 0:
        first = skipped[0].reason if skipped else "there is no case"
        raise EvaluationError(
            f"Cases: expected at least one that can be measured, found {len(skipped)} that cannot; the first: {first}"
        )


def describe_skipped(skipped: Iterable[SkippedCase]) -> list[dict[str, str]]:
    """Skipped cases as JSON types."""
    return [{"case": case_id, "reason": reason} for case_id, reason in skipped]


def _find_volumes(path: Path, *, has_numbers: bool = False) -> list[Path]:
    """CT files, or folders of DICOM series, of a folder; what is called a label map or another channel is left out."""
    if path.is_file():
        return [path] if is_readable_name(path) else []
    folder = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), path)
    children = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
    files = [child for child in children if child.is_file() and is_readable_name(child)]
    slices = [file for file in files if file.suffix.lower() == ".dcm"]
    if len(slices) > 1:
        return [folder]
    volumes = [
        file for file in files if not is_label_name(file) and (has_numbers or not _OTHER_CHANNEL.search(stem_of(file)))
    ]
    series = [child for child in children if child.is_dir() and any(child.glob("*.dcm"))]
    return volumes + series


def _spell(volume: Volume) -> str:
    return f"{'x'.join(map(str, volume.grid.shape))} at {'x'.join(f'{s:.3g}' for s in volume.grid.spacing_mm)} mm"
