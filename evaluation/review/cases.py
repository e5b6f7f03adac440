"""The cases that a page shows, of a cohort that may still be growing or of any other folder with CTs or label maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import list_bank
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME
from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, ManifestReader, VerdictRecord, is_cohort
from maisi_aug.cohort.review import CaseKey
from maisi_aug.cohort.twins import twin_of
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import EvaluatedCase, find_case_set
from maisi_aug.integrations.nnunet.prediction import read_label_values
from maisi_aug.integrations.reading.cohort_source import find_vocabulary
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.pictures.slices import label_colours
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, Vocabulary, lesion_word

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ShownCase:
    """One case, or one attempt at a case, that the viewer shows.

    Attributes:
        key: Name of the shown case in addresses.
        case: Key of the case in decisions.
        index: Position in the plan or the folder.
        status: ``accepted``, ``retried`` or ``rejected`` by the gates; ``given`` if no gate has judged it.
        request: Label request; empty outside of a cohort.
        reason: Why the gates refused it; otherwise empty.
        lesions: ``label``, ``id``, ``ml``, ``mm``, ``asked_ml`` and ``centre`` (I, J, K) of each lesion.
        verdicts: ``gate``, ``passed`` and ``message`` of each verdict.
        origin: Origin of its label map and image.
        files: Role -> path: volumes ``image``, ``anatomy`` or ``label``, and the picture ``preview``.
        label_names: Id -> name, if the label map does not use the vocabulary's ids.
        twin: Group, factor and value of a twin; None for other cases.
    """

    key: str
    case: CaseKey
    index: int
    status: str
    files: Mapping[str, Path]
    request: str = ""
    reason: str = ""
    lesions: tuple[Json, ...] = ()
    verdicts: tuple[Json, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    label_names: Mapping[int, str] | None = None
    twin: tuple[int, str, str] | None = None

    def to_row(self) -> Json:
        """Return the row of the case in the viewer's grid, as JSON types."""
        return {
            "key": self.key,
            "id": self.case.case_id,
            "index": self.index,
            "attempt": self.case.attempt,
            "status": self.status,
            "request": self.request,
            "reason": self.reason,
            "labels": list(dict.fromkeys(lesion["label"] for lesion in self.lesions)),
            "mm": max((lesion["mm"] or 0.0 for lesion in self.lesions), default=None),
            "failed": [verdict["gate"] for verdict in self.verdicts if not verdict["passed"]],
            "has": sorted(self.files),
        }


class CaseSource(Protocol):
    """Protocol of what the viewer can show: a list of cases, which may grow.

    Attributes:
        path: Folder that contains their files.
        title: Title of the page.
        kind: ``cohort``, ``plan``, or another kind of folder.
        vocabulary: Vocabulary of label maps without label names.
    """

    path: Path
    title: str
    kind: str
    vocabulary: Vocabulary

    def read_on(self) -> list[ShownCase]:
        """Return the cases that were added since the last call.

        Raises:
            MaisiAugError: The folder cannot be read.
        """


class CohortCases:
    """Attempts of a cohort for the viewer, also while the cohort is being written."""

    kind = "cohort"

    def __init__(self, path: Path) -> None:
        """Create the source; nothing is read yet.

        Args:
            path: Path of the cohort.
        """
        self.path, self.title = path, path.resolve().name
        self._reader = ManifestReader(path / MANIFEST_NAME, gates=())
        self.vocabulary = FULL_VOCABULARY
        self._has_vocabulary = False

    def read_on(self) -> list[ShownCase]:
        """Return the attempts that were added to the manifest since the last call.

        Raises:
            CohortError: A line of the manifest cannot be read.
        """
        records = self._reader.read_on()
        if records and not self._has_vocabulary:
            self.vocabulary, self._has_vocabulary = find_vocabulary(self.path, records), True
        return [_show_record(record, self.path) for record in records]


def _show_record(record: AttemptRecord, folder: Path) -> ShownCase:
    return ShownCase(
        f"{record.case_id}.{record.attempt}",
        CaseKey(record.case_id, record.attempt),
        record.case_index,
        record.status,
        {role: folder / file.path for role, file in record.files.items()},
        record.request,
        record.reason,
        describe_lesions(record.lesions),
        describe_verdicts(record.verdicts),
        {**record.mask_origin, "seed": record.seed, "bundle": record.bundle, "licence": record.licence},
        twin=twin_of(record),
    )


def describe_lesions(lesions: Iterable[Lesion]) -> tuple[Json, ...]:
    """Return lesions as JSON types for the viewer's page."""
    return tuple(
        {
            "label": lesion.label,
            "id": lesion.label_id,
            "ml": lesion.realised_ml,
            "mm": lesion.diameter_mm,
            "asked_ml": lesion.requested_ml,
            "centre": lesion.centre_ijk,
        }
        for lesion in lesions
    )


def describe_verdicts(verdicts: Iterable[VerdictRecord]) -> tuple[Json, ...]:
    """Return verdicts as JSON types for the viewer's page."""
    return tuple({"gate": one.gate, "passed": one.passed, "message": one.message} for one in verdicts)


class FolderCases:
    """Cases of a folder that does not change: prepared, nnU-Net, images with labels, or label maps only."""

    def __init__(self, path: Path) -> None:
        """Create the source; only ``dataset.json`` is opened, if it exists.

        Raises:
            MaisiAugError: There is none.
        """
        self.vocabulary = FULL_VOCABULARY
        try:
            found = find_case_set(path)
        except EvaluationError:
            entries = list_bank(path, lambda name: find_label_id(name, FULL_VOCABULARY) is not None).entries
            if not entries:
                raise
            self.path, self.kind = path, "bank"
            cases = [EvaluatedCase(entry.case or entry.name, entry.label_paths[0], entry) for entry in entries]
            self._cases = [_show_entry(n, case, has_image=False) for n, case in enumerate(cases)]
        else:
            self.path, self.kind, self.vocabulary = found.path, found.kind, found.vocabulary
            self._cases = [_show_entry(n, case) for n, case in enumerate(found.cases)]
        self.title = self.path.resolve().name

    def read_on(self) -> list[ShownCase]:
        """Return all cases at the first call, and none later."""
        new, self._cases = self._cases, []
        return new


def _show_entry(number: int, case: EvaluatedCase, *, has_image: bool = True) -> ShownCase:
    """A case of a folder; of several masks per case the first label map is shown."""
    entry = case.entry
    files = {"image": case.image_path} if has_image else {}
    if entry is not None and entry.label_paths:
        files["label"] = entry.label_paths[0]
    if case.anatomy_path is not None:
        files["anatomy"] = case.anatomy_path
    return ShownCase(
        f"c{number}",
        CaseKey(case.case_id[-200:]),
        number,
        "given",
        files,
        origin={} if entry is None else {"file": entry.name},
        label_names=_names_of(entry),
    )


def _names_of(entry: BankEntry | None) -> dict[int, str] | None:
    if entry is None or entry.has_vocabulary_ids:
        return None
    if entry.organ_names:
        return {1: entry.organ_names[0]}
    return None if entry.label_names is None else {number: name for number, name in entry.label_names.items() if number}


def open_cases(path: Path) -> CaseSource:
    """Open a folder for the viewer, and list its cases.

    Raises:
        MaisiAugError: The folder has no cases.
    """
    return CohortCases(path) if is_cohort(path) else FolderCases(path)


class Partners:
    """Finds the case that the viewer shows next to a case: a twin, the CT or label map of origin, or a reference."""

    def __init__(self, beside: Path | None) -> None:
        """List the reference.

        Args:
            beside: A folder of real CTs, or a cohort to compare with; None for none.

        Raises:
            MaisiAugError: There is nothing in it.
        """
        self.source: CaseSource | None = None
        self.cases: list[ShownCase] = []
        if beside is not None:
            self.source = open_cases(beside)
            self.cases = [case for case in self.source.read_on() if "image" in case.files]
        self._by_id = {case.case.case_id: case for case in self.cases}
        self._by_file = {case.files["image"].resolve(): case for case in self.cases}

    def find(self, case: ShownCase) -> tuple[str, ShownCase] | None:
        """Return the relation and the case to show next to a case; None if there is none."""
        if not self.cases:
            return None
        image, file = case.origin.get("image"), str(case.origin.get("file", ""))
        if isinstance(image, str) and (found := self._by_file.get(Path(image).resolve())) is not None:
            return "before insertion", found
        names = (str(case.origin.get("background", "")), file, file.partition(".")[0], case.case.case_id)
        for name in filter(None, names):
            if (found := self._by_id.get(name)) is not None:
                return "real", found
        return "reference, another case", self.cases[case.index % len(self.cases)]


class Predictions:
    """Label maps that a segmenter predicted, ``CASE.nii.gz`` as nnU-Net and the benchmark write them."""

    def __init__(self, path: Path) -> None:
        """Open only ``dataset.json``, if it exists.

        Args:
            path: Their folder.

        Raises:
            EvaluationError: There is no such folder, or its ``dataset.json`` names no labels.
        """
        if not path.is_dir():
            raise EvaluationError(f"{path}: folder of predicted label maps not found. Check --predictions.")
        self.path = path
        self._names: dict[int, str] | None = None
        if (path / DESCRIPTION_NAME).is_file():
            values = read_label_values(path / DESCRIPTION_NAME)
            self._names = {value: name for name, (value, *_) in values.items()}

    def find(self, case: ShownCase) -> ShownCase | None:
        """Return the prediction of a case, with the case's label names if the folder has none; None without one."""
        path = self.path / f"{case.case.case_id}.nii.gz"
        if not path.is_file():
            return None
        names = self._names or case.label_names
        return ShownCase(case.key, case.case, case.index, "given", {"label": path}, label_names=names)


def list_labels(case: ShownCase, vocabulary: Vocabulary) -> list[Json]:
    """Return id, name, colour and ``is_lesion`` of every label that a case's label map may contain.

    Args:
        case: Case that is shown.
        vocabulary: Vocabulary of its ids, if it has no names of its own.
    """
    if case.label_names is not None:
        lesions = tuple(number for number, name in case.label_names.items() if _is_lesion(name))
        names = dict(case.label_names)
    else:
        lesions, names = tuple(vocabulary.tumor_ids), {label.id: label.name for label in vocabulary if label.id}
    own = tuple({int(lesion["id"]) for lesion in case.lesions})  # in the colours of the case's picture
    colours = label_colours(np.array(sorted(names)), lesions) | label_colours(np.array(own), own)
    return [
        {
            "id": number,
            "name": name,
            "colour": colours[number],
            "lesion": number in lesions,
        }
        for number, name in names.items()
        if 0 < number < 256
    ]


def _is_lesion(name: str) -> bool:
    return lesion_word(name) is not None or find_label_id(name, FULL_VOCABULARY) in FULL_VOCABULARY.tumor_ids
