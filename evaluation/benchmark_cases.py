"""Which files a benchmark trains and tests on: real and synthetic cases, their labels, and the split by patient."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maisi_aug.bank_files import find_entries, stem_of
from maisi_aug.errors import BankError, BenchmarkError, VocabularyError
from maisi_aug.evaluation.benchmark_config import BenchmarkConfig
from maisi_aug.integrations.cohort_source import load_cohort_source
from maisi_aug.integrations.nnunet_folders import MARK_KEY
from maisi_aug.labels import Vocabulary, lookup_words
from maisi_aug.manifest import MANIFEST_NAME
from maisi_aug.seeds import numpy_generator
from maisi_aug.whole_files import sha256_of

DATASET_NAME: Final = "dataset.json"
MIN_TEST_PATIENTS: Final = 2
_LESION_WORDS: Final = frozenset(
    {"tumor", "tumors", "lesion", "lesions", "nodule", "nodules", "cancer", "metastasis", "metastases", "cyst", "gtv"}
)

LabelIds = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """One image with its label map.

    Attributes:
        case_id: Its name.
        image: The image's file.
        label: The label map's file.
        origin: Names and hashes of the maps that a synthetic case was made from.
    """

    case_id: str
    image: Path
    label: Path
    origin: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseSource:
    """Cases whose label maps number their labels alike.

    Attributes:
        name: What arms call it; "real" for the real ones.
        cases: In the order of their names, or of the cohort's plan.
        label_ids: Name of a label to its numbers in the maps.
        notes: What the user should know, one sentence each.
    """

    name: str
    cases: tuple[CaseFiles, ...]
    label_ids: LabelIds
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Case ids to train and to test on; no patient is in both."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def find_real_cases(path: Path, labels: Mapping[str, tuple[int, ...]] | None) -> CaseSource:
    """List the real cases of an nnU-Net raw dataset or of a folder of pairs.

    Args:
        path: The folder.
        labels: Name to numbers; None for the names that the folder gives itself.

    Raises:
        BenchmarkError: There are no cases or no label names, several channels, or synthetic cases among the real ones.
    """
    if _read_mark(path):
        raise BenchmarkError(
            f"{path}: expected real cases, which are tested on, found a dataset with synthetic ones, exported with "
            "--like. Give the real dataset that it was made from."
        )
    cases, names, notes = _list_folder(path)
    label_ids = dict(labels) if labels else names
    if not label_ids:
        raise BenchmarkError(
            f"{path}: expected names of its labels in dataset.json or labels.json, found none. "
            'Name them with --label "liver=1".'
        )
    return CaseSource("real", cases, label_ids, notes)


def find_synthetic_cases(
    name: str, path: Path, labels: Sequence[str], mapping: Mapping[str, tuple[str, ...]]
) -> CaseSource:
    """List the cases of a cohort, of an nnU-Net raw dataset or of a folder of pairs.

    Args:
        name: What arms call the source.
        path: The folder.
        labels: Names of the real labels.
        mapping: Name of a real label to names or ids here; labels that are not named are looked up by their own name.

    Raises:
        BenchmarkError: There are no cases, or a label cannot be found.
    """
    if (path / MANIFEST_NAME).is_file():
        return _read_cohort(name, path, labels, mapping)
    cases, names, notes = _list_folder(path)
    synthetic_ids = _read_mark(path)
    if synthetic_ids:
        num_listed = len(cases)
        cases = tuple(case for case in cases if case.case_id in synthetic_ids)
        notes = (*notes, f"{num_listed - len(cases)} of the {num_listed} cases of '{name}' are real and left out.")
    found: LabelIds = {}
    for label in labels:
        wanted = mapping.get(label, (label,))
        ids = [names.get(word, (int(word),) if word.isdecimal() else ()) for word in wanted]
        if not all(ids):
            raise _unknown_label(label, wanted, path, names)
        found[label] = tuple(sorted({number for group in ids for number in group}))
    return CaseSource(name, cases, found, notes)


def _read_cohort(name: str, path: Path, labels: Sequence[str], mapping: Mapping[str, tuple[str, ...]]) -> CaseSource:
    cohort = load_cohort_source(path)
    found = {label: _find_ids(label, mapping.get(label, (label,)), cohort.vocabulary, path) for label in labels}
    # The full label maps: those of the requested labels may lack a tumour that the case was not asked for.
    cases = tuple(
        CaseFiles(
            record.case_id,
            cohort.require_file(record, "image"),
            cohort.require_file(record, "anatomy"),
            tuple(str(value) for value in record.mask_origin.values() if isinstance(value, str)),
        )
        for record in cohort.cases
    )
    return CaseSource(name, cases, found)


def _find_ids(label: str, wanted: Sequence[str], vocabulary: Vocabulary, path: Path) -> tuple[int, ...]:
    try:
        return tuple(sorted({vocabulary.id_of(word) for word in wanted}))
    except VocabularyError as error:
        raise BenchmarkError(
            f"Label '{label}': expected to find it in the vocabulary of {path}, found: {error} "
            f'Say what it is there, with --map "{label}=NAME" or --map "{label}=NAME+NAME".'
        ) from error


def _unknown_label(label: str, wanted: Sequence[str], path: Path, names: Mapping[str, Any]) -> BenchmarkError:
    known = ", ".join(names) or "no names at all"
    return BenchmarkError(
        f"Label '{label}': expected '{'+'.join(wanted)}' among the labels of {path}, found {known}. "
        f'Say which ids it has there, with --map "{label}=1+2".'
    )


def _read_mark(path: Path) -> frozenset[str]:
    """Ids of the synthetic cases that a dataset holds beside real ones; empty for every other folder."""
    try:
        mark = json.loads((path / DATASET_NAME).read_text(encoding="utf-8"))[MARK_KEY]
        return frozenset(map(str, mark["synthetic_cases"]))
    except (OSError, ValueError, TypeError, KeyError):
        return frozenset()


def _list_folder(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    if not path.is_dir():
        raise BenchmarkError(f"{path}: expected a folder of cases, found none there. Check the path.")
    is_dataset = (path / DATASET_NAME).is_file() and not (path / "labels").is_dir()
    cases, names, notes = _read_dataset(path) if is_dataset else _read_pairs(path)
    if not cases:
        raise BenchmarkError(
            f"{path}: expected images with label maps, found no such pair. Give an nnU-Net raw dataset, a cohort, or "
            "a folder with images/ and labels/."
        )
    return cases, names, notes


def _read_dataset(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    """An nnU-Net v2 raw dataset; its optional entry ``dataset`` names files elsewhere."""
    try:
        document = json.loads((path / DATASET_NAME).read_text(encoding="utf-8"))
        labels, ending = dict(document["labels"]), str(document["file_ending"])
        channels = document.get("channel_names", document.get("modality", {}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BenchmarkError(
            f"{path / DATASET_NAME}: expected nnU-Net's labels and file_ending, found: {error!r}. Correct the file."
        ) from error
    if len(channels) > 1:
        raise BenchmarkError(
            f"{path}: expected one channel, CT, found {len(channels)}. Make a dataset of the CT alone."
        )
    notes = ["Voxels labelled 'ignore' count as background."] if "ignore" in labels else []
    names: LabelIds = {
        str(name): (int(i),) for name, i in labels.items() if name not in ("background", "ignore") and _is_int(i)
    }
    regions = [name for name, number in labels.items() if not _is_int(number)]
    if regions:
        notes.append(f"Regions of several labels were left out ({', '.join(regions)}): name them with --label.")
    if "dataset" in document:
        listed = sorted(document["dataset"].items())
        cases = [CaseFiles(c, _within(path, row["images"][0]), _within(path, row["label"])) for c, row in listed]
    else:
        cases = [
            CaseFiles(stem_of(label), path / "imagesTr" / f"{label.name.removesuffix(ending)}_0000{ending}", label)
            for label in sorted((path / "labelsTr").glob(f"*{ending}"))
        ]
    kept = _keep_complete(cases, notes)
    return kept, names, tuple(notes)


def _read_pairs(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    try:
        entries, skipped = find_entries(path, lambda word: False)
    except BankError as error:
        raise BenchmarkError(str(error)) from error
    notes = [f"{name} was left out: {reason}." for name, reason in skipped]
    notes += [f"{entry.name} was left out: it has no image." for entry in entries if entry.image_path is None]
    cases, names = [], LabelIds()
    for entry in entries:
        if entry.image_path is not None:
            label = entry.label_paths[0]
            cases.append(CaseFiles(stem_of(label), entry.image_path, label))
            names |= {word: (number,) for number, word in (entry.label_names or {}).items() if number}
    repeated = {case.case_id for case in cases if sum(other.case_id == case.case_id for other in cases) > 1}
    cases = [
        CaseFiles(f"{case.label.parent.name}_{case.case_id}", case.image, case.label)
        if case.case_id in repeated
        else case
        for case in cases
    ]
    return tuple(cases), names, tuple(notes)


def _keep_complete(cases: Iterable[CaseFiles], notes: list[str]) -> tuple[CaseFiles, ...]:
    kept = []
    for case in cases:
        missing = next((file for file in (case.image, case.label) if not file.is_file()), None)
        if missing is None:
            kept.append(case)
        else:
            notes.append(f"{case.case_id} was left out: {missing} is missing.")
    return tuple(kept)


def _is_int(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isdecimal())


def _within(folder: Path, path: str) -> Path:
    """A file that ``dataset.json`` names; nnU-Net takes paths relative to the folder, with variables."""
    return folder / os.path.expandvars(path)


def find_lesion_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels whose name says that they are lesions."""
    return tuple(name for name in labels if _LESION_WORDS & set(lookup_words(name.replace("_", " "))))


def split_patients(case_ids: Sequence[str], config: BenchmarkConfig) -> Split:
    """Draw the test patients; all cases of a patient go the same way.

    Raises:
        BenchmarkError: There are too few patients to train on one and to test on two.
    """
    patients: dict[str, list[str]] = {}
    for case_id in case_ids:
        patients.setdefault(config.patient_of(case_id), []).append(case_id)
    order = [sorted(patients)[i] for i in numpy_generator(config.seed, "benchmark split").permutation(len(patients))]
    num_train = config.num_train or len(order) - max(MIN_TEST_PATIENTS, round(config.test_share * len(order)))
    if num_train < 1 or len(order) - num_train < MIN_TEST_PATIENTS:
        raise BenchmarkError(
            f"Real cases: expected at least {max(1, num_train) + MIN_TEST_PATIENTS} patients, to train on "
            f"{max(1, num_train)} and to test on {MIN_TEST_PATIENTS} or more, found {len(order)}. "
            "Add cases, or choose another --num-train."
        )
    sides = [[c for patient in side for c in patients[patient]] for side in (order[:num_train], order[num_train:])]
    return Split(tuple(sorted(sides[0])), tuple(sorted(sides[1])))


def find_leaks(cases: Iterable[CaseFiles], tested: Iterable[CaseFiles]) -> tuple[str, ...]:
    """Ids of synthetic cases that were made from the label map of a test case, or are a test case.

    Such a case shows a test patient's anatomy to the training; by file name or by the hash of the map, and by the map
    itself where nothing says what a case was made from.
    """
    stems, hashes = set(), set()
    for case in tested:
        stems |= {case.case_id, stem_of(case.label)}
        hashes.add(sha256_of(case.label)[:16])
    return tuple(
        case.case_id
        for case in cases
        if any(word[:16] in hashes or _stem_of_name(word) in stems for word in case.origin)
        or (not case.origin and sha256_of(case.label)[:16] in hashes)
    )


def _stem_of_name(name: str) -> str:
    return re.sub(r"_0000$", "", stem_of(Path(name)))
