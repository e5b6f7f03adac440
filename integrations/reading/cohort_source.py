"""Accepted cases of a cohort for exports: names of their labels, and whether files are intact."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.cohort.manifest import (
    MANIFEST_NAME,
    AttemptRecord,
    Manifest,
    find_holder,
    list_manifests,
    load_manifest,
)
from maisi_aug.cohort.recipe_files import read_recipe
from maisi_aug.cohort.request import COHORT_NAME
from maisi_aug.cohort.review import apply_review, load_review
from maisi_aug.cohort.twins import parse_twins
from maisi_aug.errors import BundleError, ExportError, RecipeError, RequestError, VocabularyError
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import BACKGROUND_ID, MAISI, Label, SlotBinding, Vocabulary
from maisi_aug.volumes.image_files import NIFTI_SUFFIXES, load_stored_grid


@dataclass(frozen=True)
class CohortSource:
    """Accepted cases of a finished cohort, for exports and datasets.

    Attributes:
        folder: Folder of the cohort.
        cases: One record per accepted case, in the order of the plan; at least one.
        num_planned: Number of planned cases; None if the configuration is missing.
        vocabulary: Names of the ids in its label maps.
        manifest: All attempts; empty if only some cases were read.
        num_rejected_in_review: Number of cases that passed the gates but were rejected by a reviewer.
    """

    folder: Path
    cases: tuple[AttemptRecord, ...]
    num_planned: int | None
    vocabulary: Vocabulary
    manifest: Manifest = field(default_factory=lambda: Manifest(()))
    num_rejected_in_review: int = 0

    @cached_property
    def requested_ids(self) -> tuple[int, ...]:
        """Vocabulary ids requested for the accepted cases, lesions and organs, ascending."""
        return find_requested_ids(self.cases)

    @property
    def partial_note(self) -> str:
        """Sentence for the user if fewer cases are accepted than planned or reviewers rejected some; or empty."""
        notes = []
        if self.num_planned is not None and len(self.cases) < self.num_planned:
            notes.append(f"{len(self.cases)} of {self.num_planned} planned cases of the cohort are accepted.")
        return " ".join([*notes, *([self.review_note] if self.review_note else [])])

    @property
    def review_note(self) -> str:
        """Sentence for the user if cases are left out because reviewers rejected them; otherwise empty."""
        count = self.num_rejected_in_review
        return f"Left out because rejected in review: {count} case{'s' * (count != 1)}." if count else ""

    def resolve_ids(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the vocabulary ids of label names, ascending, without duplicates.

        Raises:
            VocabularyError: A name is not in the cohort's vocabulary.
        """
        return tuple(sorted({self.vocabulary.id_of(name) for name in names} - {BACKGROUND_ID}))

    def name_of(self, label_id: int) -> str:
        """Return the name of a label, or ``label ID`` if the vocabulary does not have it."""
        return self.vocabulary.name_of(label_id) if self.vocabulary.contains(label_id) else f"label {label_id}"

    def require_file(self, case: AttemptRecord, role: str) -> Path:
        """Return the path of a case's file, after comparing its bytes with the manifest.

        Args:
            case: Record of the case.
            role: Kind of the file: ``image``, ``label``, ``anatomy`` or ``preview``.

        Raises:
            ExportError: The manifest names no such file, the file is missing or altered, or a volume's axes are
                sheared, which SimpleITK, qforms and DICOM cannot represent.
        """
        remade = f"remove its lines from {MANIFEST_NAME} and run synthesize again to have the case made again."
        record = case.files.get(role)
        if record is None:
            raise ExportError(f"{case.case_id}: the manifest has no file '{role}' for it. To continue, {remade}")
        path = self.folder / record.path
        if not path.is_file():
            raise ExportError(f"{case.case_id}: {path} is missing. Restore the file, or {remade}")
        found = sha256_of(path)
        if found != record.sha256:
            raise ExportError(
                f"{case.case_id}: {path} has changed since it was written (sha256 {record.sha256[:12]}... then, "
                f"{found[:12]}... now). Restore the file, or {remade}"
            )
        if path.name.endswith(NIFTI_SUFFIXES) and not load_stored_grid(path).has_right_angles:
            raise ExportError(
                f"{case.case_id}: {path} has sheared voxel axes, which nibabel and SimpleITK read differently. New "
                f"label maps are resampled to right angles: to continue, {remade}"
            )
        return path


def find_requested_ids(cases: Sequence[AttemptRecord]) -> tuple[int, ...]:
    """Return the vocabulary ids requested for cases, lesions and organs, ascending."""
    return tuple(sorted(frozenset().union(*(case.requested_ids for case in cases)) - {BACKGROUND_ID}))


def load_cohort_source(folder: Path, *, gates: Collection[str] = ()) -> CohortSource:
    """Open a cohort for an export or dataset.

    Args:
        folder: Folder of the cohort.
        gates: Gates whose figures are kept; by default none.

    Raises:
        CohortError: The folder is not a cohort, or its manifest is damaged.
        ExportError: The cohort is being written to, or has no accepted case.
    """
    recorded = load_manifest(folder, gates=gates)
    manifest = apply_review(recorded, load_review(folder))
    _require_idle(folder)
    cases = manifest.accepted
    if not cases:
        raise ExportError(
            f"{folder}: has no accepted case in {len(manifest.records)} attempts. "
            + (
                "All were rejected in review; run synthesize again with --redraw-rejected."
                if recorded.accepted
                else "Run synthesize again, and read the reasons in its manifest."
            )
        )
    configuration = _read_configuration(folder)
    vocabulary = _find_vocabulary(str(configuration.get("bundle", cases[0].bundle)), cases)
    num_reviewed = len(recorded.accepted) - len(cases)
    return CohortSource(folder, cases, _num_planned(configuration), vocabulary, manifest, num_reviewed)


def load_cohorts(folders: Path | Sequence[Path]) -> CohortSource:
    """Open one cohort, or several as if they were one, for an export or dataset.

    With several cohorts, the name of a case includes that of its folder, such as ``small_case_0001``.

    Raises:
        CohortError: A folder is not a cohort, or its manifest is damaged.
        ExportError: A cohort is being written to or has no accepted case, or two have the same name or different names
            for an id.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else list(folders)
    sources = [load_cohort_source(path) for path in paths]
    if len(sources) == 1:
        return sources[0]
    names = [re.sub(r"[^A-Za-z0-9._-]", "_", path.resolve().name) for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExportError(f"Cohorts: two folders are named '{twice}'. Name each once, or rename one.")
    cases: list[AttemptRecord] = []
    for name, source in zip(names, sources, strict=True):
        begin = cases[-1].case_index + 1 if cases else 0
        cases += [_move(case, source.folder.resolve(), name, begin) for case in source.cases]
    planned = [source.num_planned for source in sources]
    total = None if None in planned else sum(number or 0 for number in planned)
    num_reviewed = sum(source.num_rejected_in_review for source in sources)
    return CohortSource(paths[0], tuple(cases), total, _join_vocabularies(sources), num_rejected_in_review=num_reviewed)


def _move(case: AttemptRecord, folder: Path, name: str, begin: int) -> AttemptRecord:
    """A case among those of other cohorts: with its cohort's name, a place of its own and absolute paths."""
    files = {role: replace(file, path=str(folder / file.path)) for role, file in case.files.items()}
    return replace(case, case_id=f"{name}_{case.case_id}", case_index=begin + case.case_index, files=files)


def _join_vocabularies(sources: Sequence[CohortSource]) -> Vocabulary:
    """The labels of all cohorts; a slot that one of them has bound means what it is bound to.

    Raises:
        ExportError: Two cohorts call an id differently.
    """
    labels: dict[int, tuple[Label, Path]] = {}
    for source in sources:
        for label in source.vocabulary:
            known, place = labels.get(label.id, (label, source.folder))
            if label.kind != "slot" and known.kind != "slot" and known.name != label.name:
                raise ExportError(
                    f"Cohorts: label id {label.id} is '{known.name}' in {place} but '{label.name}' in "
                    f"{source.folder}. Export them separately."
                )
            if label.id not in labels or known.kind == "slot":
                labels[label.id] = (label, source.folder)
    return Vocabulary(tuple(labels[label_id][0] for label_id in sorted(labels)))


def find_num_planned(folder: Path) -> int | None:
    """Return the number of planned cases of a cohort; None if its configuration is missing or cannot be read."""
    return _num_planned(_read_configuration(folder))


def _num_planned(configuration: Mapping[str, Any]) -> int | None:
    num_planned, twins = configuration.get("num_cases"), configuration.get("twins")
    if not isinstance(num_planned, int):
        return None
    try:
        return num_planned * (len(parse_twins(twins).values) if isinstance(twins, str) else 1)
    except RequestError:
        return None


def _require_idle(folder: Path) -> None:
    """Raise when a process is writing the cohort."""
    if is_being_written(folder):
        raise ExportError(f"{folder}: another process is still writing this cohort. Wait for it to end.")


def is_being_written(folder: Path) -> bool | None:
    """Whether a process is writing to a cohort, or to a shard of it.

    Returns:
        True or False; None if unknown, because there is no manifest yet.
    """
    paths = list_manifests(folder)
    return any(find_holder(path) is not None for path in paths) if paths else None


def _read_configuration(folder: Path) -> dict[str, Any]:
    """The fields of ``cohort.yaml``; empty where it cannot be read, since the manifest says what is there."""
    path = folder / COHORT_NAME
    try:
        return read_recipe(str(path)) if path.is_file() else {}
    except RecipeError:
        return {}


def find_vocabulary(folder: Path, records: Sequence[AttemptRecord]) -> Vocabulary:
    """Return the vocabulary of a cohort's label maps, from its configuration or from the bundle of its attempts.

    Args:
        folder: Folder of the cohort.
        records: Attempts of the cohort, at least one.
    """
    return _find_vocabulary(str(_read_configuration(folder).get("bundle", records[0].bundle)), records)


def _find_vocabulary(bundle: str, cases: Sequence[AttemptRecord]) -> Vocabulary:
    """The vocabulary of the cohort's bundle; where that is gone, MAISI's with the names that the manifest holds."""
    try:
        return load_bundle(bundle).vocabulary
    except BundleError:
        pass
    vocabulary = MAISI
    for label_id, name in {lesion.label_id: lesion.label for case in cases for lesion in case.lesions}.items():
        try:
            vocabulary = vocabulary.with_slots({name: SlotBinding(id=label_id)})
        except VocabularyError:  # not a slot: the id has its name already
            continue
    return vocabulary
