"""A cohort on disk: whose folder it is, what it was made with, and where the files of a case go."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from maisi_aug.cohort.manifest import (
    FOLDERS,
    MANIFEST_NAME,
    AttemptRecord,
    Manifest,
    ManifestWriter,
    list_manifests,
    load_manifest,
    remove_cohort_leftovers,
    scratch_of,
)
from maisi_aug.cohort.request import COHORT_NAME, differences
from maisi_aug.cohort.shards import find_others, require_compatible
from maisi_aug.errors import CohortError, VolumeError
from maisi_aug.system.content import ContentError
from maisi_aug.system.whole_files import (
    TEMPORARY_SUFFIX,
    is_leftover_of,
    sha256_of,
    write_text_whole,
)
from maisi_aug.system.yaml_content import read_yaml

CONTACT_SHEET_NAME = "contact_sheet.png"
ATTEMPTS_FIELD = "max_attempts"
CASES_FIELD, GROWTH_FIELD = "num_cases", "grown_from"
KEEP_FIELD = "keep_rejected"
REJECTED_FOLDER = "rejected"
_SECTIONS = ("bundle", "mask_bank")


@dataclass(frozen=True, slots=True)
class CohortFolder:
    """Paths of the files in a cohort's folder.

    Attributes:
        path: Path of the folder.
    """

    path: Path

    def file_of(self, role: str, case_id: str) -> Path:
        """Return the path of a file of a case.

        Args:
            role: Kind of the file: ``image``, ``label``, ``anatomy`` or ``preview``.
            case_id: Name of the case.
        """
        folder = {"image": "images", "label": "labels", "anatomy": "anatomy", "preview": "previews"}[role]
        return self.path / folder / (case_id + (".png" if role == "preview" else ".nii.gz"))

    def rejected_preview(self, case_id: str, attempt: int) -> Path:
        """Return the path of the preview of a failed attempt.

        Args:
            case_id: Name of the case.
            attempt: Number of the attempt, from 0.

        Returns:
            ``previews/rejected/ID_aN.png`` in the cohort's folder, which need not exist.
        """
        return self.path / "previews" / "rejected" / f"{case_id}_a{attempt}.png"

    def rejected_file_of(self, role: str, case_id: str, attempt: int) -> Path:
        """Return the path of a volume of a rejected case that is kept, separate from the training data.

        Args:
            role: ``image``, ``label`` or ``anatomy``.
            case_id: Name of the case.
            attempt: Number of the attempt, from 0.

        Returns:
            Path below ``rejected/`` in the cohort's folder, which need not exist.
        """
        return self.path / REJECTED_FOLDER / self.file_of(role, f"{case_id}_a{attempt}").relative_to(self.path)

    def relative(self, path: Path) -> str:
        """Return a path relative to the cohort's folder, as it is written in the manifest."""
        return path.relative_to(self.path).as_posix()


def read_cohort_document(folder: Path) -> dict[str, Any] | None:
    """Read ``cohort.yaml`` in a folder; None if the folder is empty or does not exist.

    Raises:
        CohortError: The folder holds something that is not a cohort, or ``cohort.yaml`` is damaged.
    """
    path = folder / COHORT_NAME
    if folder.exists() and not folder.is_dir():
        raise CohortError(f"{folder}: this is a file, not a folder. Choose another --out.")
    if not path.is_file():
        _require_empty(folder)
        return None
    try:
        document = read_yaml(path)
    except (OSError, ContentError) as error:
        raise CohortError(f"{path}: cannot be read: {error}. Choose another --out.") from None
    if not isinstance(document, dict) or not isinstance(document.get("configuration"), dict):
        raise CohortError(f"{path}: is not the configuration of a cohort. Choose another --out.")
    _require_forms(document, path)
    return document


@dataclass(frozen=True)
class BegunCohort:
    """State of a cohort's folder before a run opens it.

    Attributes:
        path: Path of the folder.
        document: Content of ``cohort.yaml``; empty if no cohort was begun.
        has_cases: Whether an attempt is recorded; otherwise the cohort is planned anew.
        stamp: Size, modification time and inode of ``cohort.yaml``, which reveal whether it was written since.
    """

    path: Path | None
    document: Mapping[str, Any]
    has_cases: bool = False
    stamp: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path, *, may_resume: bool = True) -> BegunCohort:
        """Read the state of a cohort's folder, without changing it.

        Args:
            path: Path of the cohort.
            may_resume: Whether the folder may hold a cohort already.

        Raises:
            CohortError: The folder holds something that is not a cohort, or a cohort although ``may_resume`` is False.
        """
        stamp, document = _stamp_of(path), read_cohort_document(path)
        if document is None:
            return cls(path, {})
        if not may_resume:
            raise CohortError(
                f"{path}: --no-resume needs a new folder, but this one holds a cohort. Choose another --out."
            )
        return cls(path, document, any(manifest.stat().st_size > 0 for manifest in list_manifests(path)), stamp)

    def read_again(self, path: Path) -> dict[str, Any] | None:
        """Return the content of ``cohort.yaml``, which is read again only if the file has changed."""
        if self.path == path and self.document and self.stamp == _stamp_of(path):
            return dict(self.document)
        return read_cohort_document(path)

    def steps_to(self, num_cases: int | None, asked: Sequence[int]) -> tuple[int, ...]:
        """Return the earlier numbers of cases of a growing cohort, with the current one if more are requested.

        Args:
            num_cases: Requested number of cases; if it is smaller than the current one, a later comparison raises.
            asked: Earlier numbers of cases that the request itself names.
        """
        written = self.document.get("configuration", {})
        before, steps = written.get(CASES_FIELD), tuple(written.get(GROWTH_FIELD) or ())
        if not isinstance(before, int) or num_cases is None or num_cases < before or not self.has_cases:
            return tuple(asked)
        steps = steps if num_cases == before else (*steps, before)
        rises = all(type(step) is int and step < after for step, after in pairwise((*steps, num_cases)))
        return steps if rises else tuple(asked)


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        found = (path / COHORT_NAME).stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino


NOT_BEGUN = BegunCohort(None, {})
"""State of a cohort whose folder does not exist or was not read."""


def _require_forms(document: Mapping[str, Any], path: Path) -> None:
    """Raise where what a run compares and counts with is of another form than it writes.

    Raises:
        CohortError: The message names the field.
    """
    steps = document["configuration"].get(GROWTH_FIELD)
    is_list = steps is None or (isinstance(steps, list) and all(type(step) is int for step in steps))
    wrong = next((name for name in _SECTIONS if not isinstance(document.get(name, {}), dict)), None)
    if wrong is not None or not is_list:
        raise CohortError(f"{path}: '{wrong or GROWTH_FIELD}' is not as synthesize writes it. Choose another --out.")


def _require_empty(folder: Path) -> None:
    """Raise when the folder holds anything but what a run that was killed at its very start leaves behind."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        is_fresh_manifest = path in list_manifests(folder) and path.stat().st_size == 0
        is_lease = path.name.startswith(".manifest.") and ".jsonl.lease" in path.name
        if not (is_leftover_of(path, COHORT_NAME) or is_fresh_manifest or is_lease):
            raise CohortError(
                f"{folder}: the folder is not empty and holds no cohort: it has '{path.name}' but no {COHORT_NAME}. "
                "Nothing was changed; choose another --out."
            )


def _find_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields that decide the bytes of a cohort and differ."""
    different = differences(old["configuration"], new["configuration"])
    for section in _SECTIONS:
        found = differences(dict(old.get(section, {})), dict(new.get(section, {})))
        different += [f"{section}.{difference}" for difference in found]
    return different


def find_cohort(
    path: Path,
    document: Mapping[str, Any],
    begun: BegunCohort = NOT_BEGUN,
    *,
    is_shared: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Return the ``cohort.yaml`` of a cohort that a run can continue; None if the run begins a new cohort.

    Args:
        path: Folder of the cohort, which is not changed.
        document: Content of the run's ``cohort.yaml``. Once a case has been made, it must equal the existing one,
            except that it may allow more attempts or add cases.
        begun: State of an existing folder.
        is_shared: Function that returns whether other processes work in the folder, whose configuration then counts
            even before a case was made.

    Raises:
        CohortError: The folder is not a cohort's, or the configuration differs.
    """
    existing = begun.read_again(path)
    if existing is None:
        return None
    grown = _allow_growth(_allow_attempts(existing, document), document)
    different = _find_differences(grown, document)
    if different and not any(_holds_files(path / name) for name in FOLDERS) and not is_shared():
        # Nothing was made, because the bank was missing for instance: the next try may request something else.
        return None
    before, after = (content["configuration"].get(CASES_FIELD) for content in (existing, document))
    if isinstance(before, int) and isinstance(after, int) and after < before:
        raise CohortError(f"{path}: this cohort has {before} cases, -n asks for {after}. -n can only grow.")
    if different:
        raise CohortError(
            f"{path}: this cohort was made with a different configuration ({'; '.join(different)}). Choose another "
            "--out, or continue with the original options, weights and label maps."
        )
    return existing


def _holds_files(folder: Path) -> bool:
    """Whether a folder holds a file that is not a leftover of a killed process."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.is_file() and not entry.name.endswith(TEMPORARY_SUFFIX) for entry in entries)


class LostCase(NamedTuple):
    """An accepted case with files that are missing or altered.

    Attributes:
        record: Line of the manifest about the case.
        missing: Paths of files that do not exist.
        altered: Paths of files whose bytes differ from the manifest's SHA-256, or that cannot be read.
    """

    record: AttemptRecord
    missing: tuple[str, ...]
    altered: tuple[str, ...]


def find_lost(folder: Path, manifest: Manifest, *, verify: bool = False) -> list[LostCase]:
    """Return the accepted cases with missing or altered files, in the order of the plan.

    Args:
        folder: Folder of the cohort.
        manifest: Manifest to compare the files with.
        verify: Also compare the bytes of every file; otherwise only the existence of files is checked.
    """
    listed: dict[str, frozenset[str]] = {}
    lost = []
    for record in manifest.accepted:
        missing, altered = [], []
        for path in (file.path for file in record.files.values()):
            place, _, name = path.rpartition("/")
            if place not in listed:
                listed[place] = _list_files(folder / place)
            if name not in listed[place]:
                missing.append(path)
        if verify:
            there = (file for file in record.files.values() if file.path not in missing)
            altered = [file.path for file in there if not _has_hash(folder / file.path, file.sha256)]
        if missing or altered:
            lost.append(LostCase(record, tuple(missing), tuple(altered)))
    return lost


def _list_files(folder: Path) -> frozenset[str]:
    """Names of the files in a folder; a link that leads nowhere is none."""
    if not folder.is_dir():
        return frozenset()
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_file())


def _has_hash(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except VolumeError:
        return False


def _allow_attempts(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old content with what may change: a larger budget of attempts, and whether rejected cases are kept.

    Neither changes a case that is there.
    """
    kept = {KEEP_FIELD: new["configuration"].get(KEEP_FIELD, False)} if KEEP_FIELD in old["configuration"] else {}
    before, after = (content["configuration"].get(ATTEMPTS_FIELD) for content in (old, new))
    if isinstance(before, int) and isinstance(after, int) and before < after:
        kept[ATTEMPTS_FIELD] = after
    return {**old, "configuration": {**old["configuration"], **kept}}


def _allow_growth(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old content with the new number of cases, where the new plan has the old one's cases as its first ones."""
    before, after = old["configuration"], new["configuration"]
    steps = [*before.get(GROWTH_FIELD, ()), before.get(CASES_FIELD)]
    if after.get(GROWTH_FIELD) != steps:
        return dict(old)
    grown = {**before, **{name: after[name] for name in (CASES_FIELD, GROWTH_FIELD)}}
    # In the order of the new one, so that the file has the bytes that a cohort of so many cases begins with.
    return {**old, "configuration": {name: grown[name] for name in dict.fromkeys([*after, *before]) if name in grown}}


@contextmanager
def open_cohort(
    path: Path,
    document: Mapping[str, Any],
    *,
    header: Sequence[str],
    begun: BegunCohort = NOT_BEGUN,
    manifest: str = MANIFEST_NAME,
) -> Iterator[tuple[CohortFolder, ManifestWriter, Manifest]]:
    """Context in which a cohort's folder is begun or continued, locked against other processes except its other shards.

    Args:
        path: Folder of the cohort, which is created if it does not exist.
        document: Content of the run's ``cohort.yaml``. Once a case has been made, it must equal the existing one,
            except that it may allow more attempts or add cases, which the file then records.
        header: Comment lines at the top of ``cohort.yaml``.
        begun: State of an existing folder.
        manifest: File name of the manifest to write: that of the cohort, or of a shard.

    Yields:
        The folder, the writer of the manifest, and the attempts recorded so far, without the gates' figures.

    Raises:
        CohortError: The folder is not a cohort's, another process writes to it, or the configuration differs.
    """
    begun.read_again(path)  # before anything is made, so that a foreign folder stays untouched
    path.mkdir(parents=True, exist_ok=True)
    require_compatible(path, manifest)
    with ManifestWriter(path / manifest) as writer:
        require_compatible(path, manifest)  # again, now that others see this process
        existing = find_cohort(path, document, begun, is_shared=lambda: any(find_others(path, manifest)))
        if manifest == MANIFEST_NAME:
            remove_cohort_leftovers(path)
        if existing is None:
            writer.clear()
        content = dict(document) if existing is None else _allow_growth(_allow_attempts(existing, document), document)
        if content != existing:
            comments = "".join(f"# {line}\n" for line in header)
            body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
            write_text_whole(path / COHORT_NAME, comments + body)
        yield CohortFolder(path), writer, load_manifest(path, gates=())


@contextmanager
def open_scratch(path: Path, manifest: str = MANIFEST_NAME) -> Iterator[Path]:
    """Context with a hidden scratch folder inside a cohort's folder, for files that are not in the manifest yet.

    Args:
        path: Path of the cohort, whose manifest is locked.
        manifest: File name of the manifest; scratch files that killed processes left for it are removed.

    Yields:
        Path of the folder, which is removed at the end.
    """
    place = scratch_of(path / manifest)
    shutil.rmtree(place, ignore_errors=True)
    scratch = place / secrets.token_hex(4)  # a worker that outlives its killed driver for a moment has another
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(place, ignore_errors=True)
