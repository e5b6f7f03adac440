"""Choose the files that a benchmark trains and tests on: real and synthetic cases, and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maisi_aug.banks.case_files import stem_of
from maisi_aug.banks.files import list_bank
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME, RawDataset, label_values
from maisi_aug.cohort.manifest import is_cohort
from maisi_aug.cohort.mask_origin import origin_words
from maisi_aug.errors import BankError, BenchmarkError, PreparationError, VocabularyError
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME, MARK_KEY
from maisi_aug.integrations.reading.cohort_source import load_cohort_source
from maisi_aug.preparation.prepared import SPEC_NAME, load_prepared
from maisi_aug.system.content import read_json, spells_number
from maisi_aug.system.printed_text import spell_count
from maisi_aug.vocabulary.label_meaning import resolve_names
from maisi_aug.vocabulary.labels import BODY_ID, FULL_VOCABULARY, Vocabulary, lesion_word

LabelIds = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """Image and label map of one case of a benchmark.

    Attributes:
        case_id: Name of the case.
        image: Path of the image.
        label: Path of the label map.
        origin: Names and hashes of the label maps from which a synthetic case was made.
        patient: Name of the patient, if the folder states it; otherwise empty.
    """

    case_id: str
    image: Path
    label: Path
    origin: tuple[str, ...] = ()
    patient: str = ""


@dataclass(frozen=True)
class CaseSource:
    """Cases of one source of a benchmark, whose label maps use the same ids.

    Attributes:
        name: Name of the source in arms; ``real`` for the real cases.
        cases: Cases ordered by name, or as in the cohort's plan.
        label_ids: Label name -> ids in the label maps.
        notes: Notes to the user, a sentence each.
        names: All label names in the folder, including unused ones; not stored with a plan.
    """

    name: str
    cases: tuple[CaseFiles, ...]
    label_ids: LabelIds
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), compare=False)


def find_real_cases(path: Path, labels: Mapping[str, tuple[int, ...]] | None) -> CaseSource:
    """List the real cases of a benchmark: an nnU-Net raw dataset, a prepared folder or a folder of pairs.

    Args:
        path: Path of the folder.
        labels: Label name -> ids, or -> nothing to use the ids that the folder states; None for all of its labels.

    Raises:
        BenchmarkError: There are no cases or no label names, several channels, or synthetic cases among the real ones.
    """
    if _read_mark(path):
        raise BenchmarkError(
            f"{path}: was exported with --like and has synthetic cases, but tests need real ones. Give the real "
            "dataset that it was made from."
        )
    cases, names, notes = _list_folder(path)
    label_ids = {name: ids or names.get(name, ()) for name, ids in labels.items()} if labels else _keep_disjoint(names)
    if not label_ids:
        raise BenchmarkError(
            f"{path}: its labels have no names in dataset.json or labels.json. Name them, for instance with --map "
            '"1=liver".'
        )
    left_out = [name for name in names if name not in label_ids] if not labels else []
    if left_out:
        named = ", ".join(left_out)
        notes = (*notes, f"Regions that contain other labels were left out ({named}): choose them with --label.")
    unknown = [name for name, ids in label_ids.items() if not ids]
    if unknown:
        raise _unknown_label(unknown[0], (unknown[0],), path, names, is_real=True)
    return CaseSource("real", cases, label_ids, notes, tuple(names))


def find_synthetic_cases(
    name: str,
    path: Path,
    labels: Sequence[str],
    mapping: Mapping[str, tuple[str, ...]],
    *,
    context: Sequence[str] = (),
) -> CaseSource:
    """List the synthetic cases of a benchmark: a cohort, an nnU-Net raw dataset or a folder of pairs.

    Args:
        name: Name of the source in arms.
        path: Path of the folder.
        labels: Names of the real labels.
        mapping: Name of a real label -> names or ids in these cases; other labels are matched by the meaning of their
            name, such as "cancer" together with "liver".
        context: Further label names of the real dataset, by which a bare name such as "cancer" is interpreted.

    Raises:
        BenchmarkError: There are no cases, or a label cannot be found.
    """
    if is_cohort(path):
        return _read_cohort(name, path, labels, mapping, context)
    cases, names, notes = _list_folder(path)
    synthetic_ids = _read_mark(path)
    if synthetic_ids:
        num_listed = len(cases)
        cases = tuple(case for case in cases if case.case_id in synthetic_ids)
        notes = (*notes, f"{num_listed - len(cases)} of the {num_listed} cases of '{name}' are real and are left out.")
    cases = _with_origins(path, cases)
    num_unknown = sum(not case.origin for case in cases)
    if num_unknown:
        notes = (
            *notes,
            (
                f"The origin of the label maps of {_spell_share(num_unknown, len(cases))} of '{name}' is unknown: a "
                "case made from a test patient's map is only detected if it still has that map. Give the cohort "
                "itself, or export it again."
            ),
        )
    found: LabelIds = {}
    for label in labels:
        wanted = mapping.get(label) or _find_by_meaning(label, [*labels, *context], names)
        ids = [names.get(word, (int(word),) if spells_number(word) else ()) for word in wanted]
        if not all(ids):
            raise _unknown_label(label, wanted, path, names)
        found[label] = tuple(sorted({number for group in ids for number in group}))
    return CaseSource(name, cases, found, notes)


def _spell_share(part: int, total: int) -> str:
    return f"all {spell_count(total, 'case')}" if part == total > 1 else f"{part} of {spell_count(total, 'case')}"


def _read_cohort(
    name: str, path: Path, labels: Sequence[str], mapping: Mapping[str, tuple[str, ...]], context: Sequence[str]
) -> CaseSource:
    cohort = load_cohort_source(path)
    meanings = resolve_names(labels, cohort.vocabulary, context=context)
    found: LabelIds = {}
    for label in labels:
        meant = meanings[label]
        is_plain = label not in mapping and meant.label_id is not None and not meant.is_union
        wanted = (str(meant.label_id),) if is_plain else mapping.get(label, (label,))
        found[label] = _find_ids(label, wanted, cohort.vocabulary, path)
    # The full label maps: those of the requested labels may lack a tumour that was not requested for the case.
    cases = tuple(
        CaseFiles(
            record.case_id,
            cohort.require_file(record, "image"),
            cohort.require_file(record, "anatomy"),
            origin_words(record.mask_origin),
        )
        for record in cohort.cases
    )
    return CaseSource(name, cases, found)


def _find_by_meaning(label: str, real_names: Sequence[str], names: LabelIds) -> tuple[str, ...]:
    """Find a real label in a folder of pairs, by the same name or by another name of the same label."""
    meant = resolve_names(real_names, FULL_VOCABULARY)[label]
    if label in names or meant.label_id is None or meant.is_union:
        return (label,)
    others = resolve_names(names, FULL_VOCABULARY)
    same = tuple(n for n, other in others.items() if other.label_id == meant.label_id and not other.is_union)
    return same or (label,)


def _with_origins(path: Path, cases: Sequence[CaseFiles]) -> tuple[CaseFiles, ...]:
    """The cases with what the mapping file of an exported cohort says of their label maps."""
    try:
        rows = read_json(path / MAPPING_NAME)["cases"]
        origins = {str(case_id): origin_words(row["mask_origin"]) for case_id, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # no export, or one of an earlier version
        return tuple(cases)
    return tuple(replace(case, origin=origins.get(case.case_id, ())) for case in cases)


def _find_ids(label: str, wanted: Sequence[str], vocabulary: Vocabulary, path: Path) -> tuple[int, ...]:
    try:
        return tuple(sorted({vocabulary.id_of(word) for word in wanted}))
    except VocabularyError as error:
        raise BenchmarkError(
            f"Label '{label}': not in the vocabulary of {path}: {error} Name it with --map \"{label}=NAME\" or --map "
            f'"{label}=NAME+NAME".'
        ) from error


def _unknown_label(
    label: str, wanted: Sequence[str], path: Path, names: Mapping[str, Any], *, is_real: bool = False
) -> BenchmarkError:
    known = ", ".join(names) or "no names"
    return BenchmarkError(
        f"Label '{label}': {path} has no label '{'+'.join(wanted)}', found {known}. Give its ids there with --map "
        f'"{f"1+2={label}" if is_real else f"{label}=1+2"}".'
    )


def _read_mark(path: Path) -> frozenset[str]:
    """Ids of the synthetic cases that a dataset holds beside real ones; empty for every other folder."""
    try:
        mark = read_json(path / DESCRIPTION_NAME)[MARK_KEY]
        return frozenset(map(str, mark["synthetic_cases"]))
    except (OSError, ValueError, TypeError, KeyError):
        return frozenset()


def _list_folder(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    if not path.is_dir():
        raise BenchmarkError(f"{path}: folder not found. Check the path.")
    if (path / SPEC_NAME).is_file():
        return _read_prepared(path)
    is_dataset = (path / DESCRIPTION_NAME).is_file() and not (path / "labels").is_dir()
    cases, names, notes = _read_dataset(path) if is_dataset else _read_pairs(path)
    if not cases:
        raise BenchmarkError(
            f"{path}: no images with label maps found. Give an nnU-Net raw dataset, a cohort, or a folder with "
            "images/ and labels/."
        )
    return cases, names, notes


def _read_dataset(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    """An nnU-Net v2 raw dataset; its optional entry ``dataset`` names files elsewhere."""
    try:
        dataset = RawDataset.read(path)
        values = label_values(dataset.document["labels"])
        if (num_channels := len(dataset.channels)) > 1:
            raise BenchmarkError(
                f"{path}: expected one channel, CT, found {num_channels}. Make a dataset of the CT alone."
            )
        listed = dataset.list_cases()
    except BankError as error:
        raise BenchmarkError(str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchmarkError(
            f"{path / DESCRIPTION_NAME}: nnU-Net's labels cannot be read: {error!r}. Correct the file."
        ) from error
    names = {name: ids for name, ids in values.items() if name not in ("background", "ignore")}
    notes = ["Voxels labelled 'ignore' count as background."] if "ignore" in values else []
    notes += [f"{case.id} was left out: it has no image." for case in listed if case.image is None]
    cases = [CaseFiles(case.id, case.image, case.label) for case in listed if case.image is not None]
    kept = _keep_complete(cases, notes)
    return kept, names, tuple(notes)


def _read_prepared(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    """A folder of ``maisi-aug prepare``."""
    try:
        dataset = load_prepared(path)
    except PreparationError as error:
        raise BenchmarkError(str(error)) from error
    cases = tuple(
        CaseFiles(case.id, dataset.file_of("image", case.id), dataset.file_of("label", case.id), patient=case.patient)
        for case in dataset.cases
    )
    names: LabelIds = {name: (label_id,) for name, label_id in dataset.spec.labels.items() if label_id != BODY_ID}
    return cases, names, ()


def _read_pairs(path: Path) -> tuple[tuple[CaseFiles, ...], LabelIds, tuple[str, ...]]:
    try:
        found = list_bank(path, lambda word: False)
    except BankError as error:
        raise BenchmarkError(str(error)) from error
    notes = [f"{name} was left out: {reason}." for name, reason in (*found.faults, *found.left_out)]
    notes += [f"{entry.name} was left out: it has no image." for entry in found.entries if entry.image_path is None]
    cases, names = [], LabelIds()
    for entry in found.entries:
        if entry.image_path is not None:
            label = entry.label_paths[0]
            cases.append(CaseFiles(entry.case or stem_of(label), entry.image_path, label))
            names |= entry.ids_by_name
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


def _keep_disjoint(names: LabelIds) -> LabelIds:
    """The names that share no id with one of fewer ids: of nnU-Net's regions those that hold no other label."""
    taken: set[int] = set()
    kept = []
    for name in sorted(names, key=lambda name: len(names[name])):
        if taken.isdisjoint(names[name]):
            kept.append(name)
            taken.update(names[name])
    return {name: ids for name, ids in names.items() if name in kept}


def find_lesion_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the labels whose name says that they are lesions."""
    return tuple(name for name in labels if lesion_word(name))
