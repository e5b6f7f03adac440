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
    """The folder of a cohort.

    Attributes:
        path: Path of the folder.
    """

    path: Path

    def file_of(self, role: str, case_id: str) -> Path:
        """Return the path of a case's file.

        Args:
            role: "image", "label", "anatomy" or "preview".
            case_id: The case.
        """
        folder = {"image": "images", "label": "labels", "anatomy": "anatomy", "preview": "previews"}[role]
        return self.path / folder / (case_id + (".png" if role == "preview" else ".nii.gz"))

    def rejected_preview(self, case_id: str, attempt: int) -> Path:
        """Return the path for the picture of a failed attempt."""
        return self.path / "previews" / "rejected" / f"{case_id}_a{attempt}.png"

    def rejected_file_of(self, role: str, case_id: str, attempt: int) -> Path:
        """Return the path for a kept volume of a rejected case, separate from the training data."""
        return self.path / REJECTED_FOLDER / self.file_of(role, f"{case_id}_a{attempt}").relative_to(self.path)

    def relative(self, path: Path) -> str:
        """Return a path relative to the folder, as in the manifest."""
        return path.relative_to(self.path).as_posix()


def read_cohort_document(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``cohort.yaml``, or ``None`` where the folder is empty or absent.

    Raises:
        CohortError: When the folder holds something that is not a cohort, or ``cohort.yaml`` is damaged.
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
    """Contents of a cohort's folder before a run opens it.

    Attributes:
        path: The folder.
        document: Content of its ``cohort.yaml``; empty where no cohort was begun.
        has_cases: Whether any attempt at a case is noted; without one the cohort is planned anew.
        stamp: Size, time and place of ``cohort.yaml``; while it is unchanged, the file has not been written.
    """

    path: Path | None
    document: Mapping[str, Any]
    has_cases: bool = False
    stamp: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path, *, may_resume: bool = True) -> BegunCohort:
        """Read the state of a folder, without changing it.

        Args:
            path: Path of the cohort.
            may_resume: Whether it may hold one.

        Raises:
            CohortError: It holds something that is not a cohort or, where a run must not continue, one.
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
        """Return the content of ``cohort.yaml``, read again only if the file has changed."""
        if self.path == path and self.document and self.stamp == _stamp_of(path):
            return dict(self.document)
        return read_cohort_document(path)

    def steps_to(self, num_cases: int | None, asked: Sequence[int]) -> tuple[int, ...]:
        """Return the earlier sizes of the cohort, including the current one if more cases are requested.

        Args:
            num_cases: Number of requested cases; fewer than there are is left for the comparison to refuse.
            asked: The steps that the request names.
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
    """Return the content of ``cohort.yaml`` where a run can continue a cohort; ``None`` where it begins one.

    Args:
        path: Folder of the cohort; nothing in it is changed.
        document: What ``cohort.yaml`` would be; once a case was made it must be the same as the one that is there, but
            may allow more attempts, or continue from its number of cases.
        begun: State of an existing folder.
        is_shared: Tells whether others are at work in it, so that it is theirs as well, before anything was made.

    Raises:
        CohortError: When the folder is not a cohort's, or the configuration differs.
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
    """An accepted case whose files are not what the manifest says.

    Attributes:
        record: Its line in the manifest.
        missing: Paths of files that are gone.
        altered: Paths of files that hold other bytes, or cannot be read.
    """

    record: AttemptRecord
    missing: tuple[str, ...]
    altered: tuple[str, ...]


def find_lost(folder: Path, manifest: Manifest, *, verify: bool = False) -> list[LostCase]:
    """Return accepted cases with files that are gone, or altered; in the order of the plan.

    Args:
        folder: Folder of the cohort.
        manifest: Manifest to compare the files with.
        verify: Compare the bytes of every file as well; otherwise files are listed and not opened.
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
    """Begin or continue a cohort, locked against other processes except those of its other shards.

    Args:
        path: Folder, made where there is none.
        document: Content of ``cohort.yaml``; once a case was made it must be the same as the one that is there, but may
            allow more attempts or hold more cases, which are then noted.
        header: Comment lines that open ``cohort.yaml``.
        begun: State of an existing folder.
        manifest: Name of the one that is written: of the whole, or of a shard.

    Yields:
        The folder, the writer of its manifest and what its manifests hold so far, without the gates' figures.

    Raises:
        CohortError: When the folder is not a cohort's, another process writes to it, or the configuration differs.
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
    """Open a hidden folder inside a cohort's, on the same disk, for files that have no line in the manifest yet.

    Args:
        path: Path of the cohort, whose manifest is locked.
        manifest: Its name; what killed processes left that were writing for it is removed.
    """
    place = scratch_of(path / manifest)
    shutil.rmtree(place, ignore_errors=True)
    scratch = place / secrets.token_hex(4)  # a worker that outlives its killed driver for a moment has another
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(place, ignore_errors=True)
