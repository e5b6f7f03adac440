"""The manifest of a cohort: one JSON line per attempt, written last, so that a line means its files are whole.

A cohort folder holds it as ``manifest.jsonl``; of a cohort that is made in shards, each has a manifest of its own, as
``manifest.2-of-4.jsonl``, and they are read as one. The file is also the lock of the folder: who appends to it holds an
``flock``, which the kernel drops when the process dies, however it dies, and next to it a lease, for disks whose locks
reach no further than one machine.

A manifest may come from an untrusted source. What is read is checked: case ids and paths become names of files in
exports, so that ids are plain names, each of one case, paths stay inside the folder, numbers have bounds and hashes
are hashes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import sleep
from types import TracebackType
from typing import Annotated, BinaryIO, Literal, Self

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from maisi_aug.errors import CohortError
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.system.content import MAX_LINE_BYTES
from maisi_aug.system.file_lock import is_locked, try_lock
from maisi_aug.system.file_names import INNER_PATH, PLAIN_NAME
from maisi_aug.system.lease import Holder, busy_folder, is_fresh, read_holder, take_lease
from maisi_aug.system.whole_files import APPENDING, append_line, cut_torn_line, remove_leftovers

MANIFEST_NAME = "manifest.jsonl"
FOLDERS = ("images", "labels", "anatomy", "previews", "previews/rejected")
REJECTED_FOLDERS = ("rejected/images", "rejected/labels", "rejected/anatomy")
"""Of attempts that a run was asked to keep; FOLDERS are in every cohort."""
SHARD_NAME = re.compile(r"manifest\.(?P<number>[1-9]\d{0,5})-of-(?P<count>[1-9]\d{0,5})\.jsonl$")
NUM_TRIES, TRY_SECONDS = 4, 0.1

Status = Literal["accepted", "retried", "rejected"]

_CaseId = Annotated[str, Field(pattern=PLAIN_NAME, max_length=64)]
_InnerPath = Annotated[str, Field(pattern=INNER_PATH, max_length=255)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
_FileRole = Annotated[str, Field(pattern=r"^(image|label|anatomy|preview)$")]
_Count = Annotated[int, Field(ge=0, lt=10**9)]
_Seed = Annotated[int, Field(ge=0, lt=2**64)]
_LabelId = Annotated[int, Field(ge=0, le=255)]
_Amount = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """Verdict of one quality gate on an attempt, as a part of the manifest."""

    gate: str
    passed: bool
    figures: dict[str, JsonValue]
    message: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of an accepted case: its path relative to the cohort's folder, with ``/``, and its SHA-256."""

    path: _InnerPath
    sha256: _Sha256


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One line of the manifest.

    Attributes:
        case_id: Name of the case and stem of its files.
        case_index: Position in the plan, from 0.
        attempt: Number of the attempt, starting at 0.
        seed: Seed of this attempt; everything random in the case derives from it.
        status: ``accepted`` (files are there), ``retried`` (failed, another attempt follows) or ``rejected`` (failed,
            and the budget of attempts is spent; a run with a larger one takes the case up again).
        request: The request that the case serves, as the user typed it.
        lesions: The case's lesions, requested against realised.
        required_ids: Organs that the request or the cohort's ``anatomy`` names.
        verdicts: One entry per gate that was run.
        reason: Why the attempt failed, one sentence; empty when it was accepted.
        mask_origin: Origin of the label map.
        bundle: Name of the bundle.
        bundle_fingerprint: Hash over its weights and definition.
        licence: Licence of the weights.
        settings: What sampling was run with (``num_inference_steps``, ``guidance_scale``, ``modality``, ``device``,
            ``precision``, ``num_threads`` on a CPU, ``solver`` where it is not ``euler``, ``steps`` where ``auto``
            chose them, and ``body_region``, ``compile`` and ``gates`` where they were requested), and how the image was
            decoded (``decoding``), and, where the bundle completes label maps, with which seed and contrast phase
            (``completion``).
        files: ``image``, ``label``, ``anatomy`` and ``preview`` when accepted; otherwise ``preview`` at most, and under
            ``rejected/`` the others of a rejected case whose user keeps them.
        seconds: Wall-clock time of the stages ``mask``, ``image`` and ``files``.
        max_attempts: The budget of attempts per case that the attempt was made under; 0 where it is not known.
    """

    case_id: _CaseId
    case_index: _Count
    attempt: _Count
    seed: _Seed
    status: Status
    request: str
    lesions: tuple[Lesion, ...]
    required_ids: tuple[_LabelId, ...]
    verdicts: tuple[VerdictRecord, ...]
    reason: str
    mask_origin: dict[str, JsonValue]
    bundle: str
    bundle_fingerprint: _Fingerprint
    licence: str
    settings: dict[str, JsonValue]
    files: dict[_FileRole, FileRecord]
    seconds: dict[str, _Amount]
    max_attempts: _Count = 0

    @property
    def requested_ids(self) -> frozenset[int]:
        """Vocabulary ids of the lesions and organs requested for the case."""
        return frozenset(lesion.label_id for lesion in self.lesions) | frozenset(self.required_ids)

    def keep_figures(self, gates: Collection[str]) -> AttemptRecord:
        """Return the record with the figures of the named gates only, because figures take most of its memory."""
        verdicts = (
            verdict if verdict.gate in gates else VerdictRecord(verdict.gate, verdict.passed, {}, verdict.message)
            for verdict in self.verdicts
        )
        return replace(self, verdicts=tuple(verdicts))

    def to_json(self) -> str:
        """Return the record as one line of JSON, without the line break."""
        return _RECORD.dump_json(self).decode()

    @classmethod
    def from_json(cls, line: str | bytes) -> AttemptRecord:
        """Parse a line that :meth:`to_json` wrote.

        Raises:
            pydantic.ValidationError: The line is not a record.
        """
        return _RECORD.validate_json(line)


_RECORD: TypeAdapter[AttemptRecord] = TypeAdapter(AttemptRecord)


@dataclass(frozen=True)
class Manifest:
    """All attempts of a cohort, in the order of the plan."""

    records: tuple[AttemptRecord, ...]

    @classmethod
    def from_records(cls, records: Iterable[AttemptRecord]) -> Manifest:
        """Build a manifest from attempts, sorted by case and attempt; duplicate lines count once."""
        by_key = {(record.case_index, record.attempt): record for record in records}
        return cls(tuple(by_key[key] for key in sorted(by_key)))

    @cached_property
    def accepted(self) -> tuple[AttemptRecord, ...]:
        """The accepted attempts, one per accepted case."""
        return tuple(record for record in self.records if record.status == "accepted")

    @cached_property
    def rejected(self) -> tuple[AttemptRecord, ...]:
        """The last attempt of every case that has used all its attempts."""
        return tuple(record for record in self._last.values() if record.status == "rejected")

    @cached_property
    def settled_indices(self) -> frozenset[int]:
        """Indices of the cases that are accepted or finally rejected."""
        return frozenset(index for index, record in self._last.items() if record.status != "retried")

    @cached_property
    def _last(self) -> dict[int, AttemptRecord]:
        """The last attempt of every case."""
        return {record.case_index: record for record in self.records}

    def reopen(self, max_attempts: int) -> Manifest:
        """Return the manifest with cases reopened that were rejected after fewer than ``max_attempts`` attempts."""
        return Manifest(
            tuple(
                replace(record, status="retried")
                if record.status == "rejected" and record.max_attempts < max_attempts
                else record
                for record in self.records
            )
        )

    def without(self, records: Collection[AttemptRecord]) -> Manifest:
        """Return the manifest without some attempts, so that their cases count as unfinished again."""
        keys = {(record.case_index, record.attempt) for record in records}
        return Manifest(tuple(record for record in self.records if (record.case_index, record.attempt) not in keys))

    def among(self, indices: Collection[int]) -> Manifest:
        """Return the part of the manifest that is about some cases, such as those of a shard."""
        return Manifest(tuple(record for record in self.records if record.case_index in indices))

    def next_attempt(self, case_index: int) -> int:
        """Return the number of the first attempt at a case that is not recorded yet."""
        last = self._last.get(case_index)
        return 0 if last is None else last.attempt + 1

    def first_attempt_rate(self) -> float | None:
        """Return the fraction of cases whose first attempt was accepted; None without any attempt."""
        first = [record.status == "accepted" for record in self.records if record.attempt == 0]
        return sum(first) / len(first) if first else None


def lease_of(manifest: Path) -> Path:
    """Return the path of a manifest's lease, by which other processes see that it is being written."""
    return manifest.with_name(f".{manifest.name}.lease")


def scratch_of(manifest: Path) -> Path:
    """Return the path of the hidden scratch folder for files that are not in a manifest yet."""
    return manifest.with_name(f".{manifest.name}.work")


def remove_cohort_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files of a cohort; nothing else may write into it meanwhile."""
    for name in (".", *FOLDERS, *REJECTED_FOLDERS):
        remove_leftovers(folder / name)


def find_holder(manifest: Path) -> Holder | None:
    """Return the process that is writing a manifest, on this machine or another; None if there is none."""
    lease = lease_of(manifest)
    if not manifest.is_file() or not is_fresh(lease):
        return None
    holder = read_holder(lease)
    # The lock is not taken where there is another way to tell: a process that begins then would find it taken.
    has_ended = holder.is_dead(has_lock=None) or (holder.is_hidden and is_locked(manifest) is False)
    return None if has_ended else holder


def list_manifests(folder: Path) -> list[Path]:
    """List the manifests in a cohort's folder: that of the cohort, then those of its shards in order."""
    shards = [(found, path) for path in folder.glob("manifest.*.jsonl") if (found := SHARD_NAME.match(path.name))]
    ordered = sorted(shards, key=lambda shard: (int(shard[0]["count"]), int(shard[0]["number"])))
    whole = folder / MANIFEST_NAME
    return [*([whole] if whole.is_file() else []), *(path for _, path in ordered)]


def is_cohort(folder: Path) -> bool:
    """Whether a folder contains the manifest of a cohort or of a shard."""
    return bool(list_manifests(folder))


def load_manifest(folder: Path, *, gates: Collection[str] | None = None) -> Manifest:
    """Read the manifest of a cohort, together with those of its shards.

    A last line without a line break was left by a killed process and is skipped.

    Args:
        folder: The cohort's folder.
        gates: Gates whose figures are kept, because figures take most of the memory; None for all.

    Raises:
        CohortError: The folder has no manifest, a line cannot be read or is impossible, or two shards have different
            files for the same attempt.
    """
    paths = list_manifests(folder)
    if not paths:
        raise CohortError(
            f"{folder}: not a cohort, because {MANIFEST_NAME} is missing. Give a folder that synthesize or insert "
            "wrote."
        )
    return join_manifests(paths, [read_manifest(path, gates=gates) for path in paths])


def read_manifest(path: Path, *, gates: Collection[str] | None = None) -> Manifest:
    """Read a single manifest file, such as that of a shard.

    Args:
        path: Manifest file.
        gates: Gates whose figures are kept; None for all.

    Raises:
        CohortError: A line in it cannot be read or is impossible.
    """
    return Manifest.from_records(ManifestReader(path, gates=gates).read_on())


def join_manifests(paths: Sequence[Path], parts: Sequence[Manifest]) -> Manifest:
    """Merge the manifests of several shards into one.

    Args:
        paths: Files of the manifests, for messages.
        parts: Their contents.

    Raises:
        CohortError: Two manifests have different files for the same attempt.
    """
    if len(parts) == 1:
        return parts[0]
    known: dict[tuple[int, int], tuple[AttemptRecord, Path]] = {}
    for path, part in zip(paths, parts, strict=True):
        for record in part.records:
            before, place = known.setdefault((record.case_index, record.attempt), (record, path))
            require_same(before, record, places=(place, path))
    return Manifest.from_records(record for record, _ in known.values())


def require_same(first: AttemptRecord, second: AttemptRecord, *, places: tuple[Path, Path]) -> None:
    """Raise unless two records of the same attempt have the same files.

    Args:
        first: Record in one manifest.
        second: Record in another manifest.
        places: Files of both manifests, for the message.

    Raises:
        CohortError: The message names the case, the manifests and a file.
    """
    before, after = ({file.path: file.sha256 for file in record.files.values()} for record in (first, second))
    if (first.case_id, before) != (second.case_id, after):
        different = next((path for path in {**before, **after} if before.get(path) != after.get(path)), second.case_id)
        raise CohortError(
            f"{places[0].parent}: {first.case_id} was drawn twice with different results: {different} differ between "
            f"{places[0].name} and {places[1]}. Remove the line of one to keep the other; use devices of one kind, "
            "with the same number of threads each."
        )


class ManifestReader:
    """Reader of a manifest that is still being written: each line is read once and checked against earlier lines."""

    def __init__(self, path: Path, *, gates: Collection[str] | None = None) -> None:
        """Create the reader; nothing is read yet.

        Args:
            path: Path of the manifest.
            gates: Gates whose figures are kept, since figures are most of a manifest; all by default.
        """
        self._path, self._gates = path, gates
        self._begin(None)

    def _begin(self, file: tuple[int, int] | None) -> None:
        self._file = file
        self._num_bytes = self._num_lines = 0
        self._names = _NamesOfCases(self._path)

    def read_on(self) -> list[AttemptRecord]:
        """Return the records of complete lines that were added since the last call.

        Reading starts over if the file was replaced or became shorter.

        Raises:
            CohortError: A line cannot be read or is impossible.
        """
        records: list[AttemptRecord] = []
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if self._file != (status.st_dev, status.st_ino) or status.st_size < self._num_bytes:
                self._begin((status.st_dev, status.st_ino))
            file.seek(self._num_bytes)
            while (line := self._read_line_of(file)).endswith(b"\n"):
                record = _read_line(self._path, self._num_lines + 1, line)
                self._names.add(self._num_lines + 1, record)
                self._num_lines, self._num_bytes = self._num_lines + 1, self._num_bytes + len(line)
                records.append(record if self._gates is None else record.keep_figures(self._gates))
        return records

    def _read_line_of(self, file: BinaryIO) -> bytes:
        line = file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            found = f"one longer than {MAX_LINE_BYTES / 1e6:.0f} MB"
            raise _wrong_line(self._path, self._num_lines + 1, "a record", found)
        return line


def _read_line(path: Path, number: int, line: bytes) -> AttemptRecord:
    try:
        record = AttemptRecord.from_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "line"
        found = f"{line.rstrip()[:60]!r} ({place}: {first['msg']})"
        raise _wrong_line(path, number, "a record", found) from None
    if record.status == "accepted" and "image" not in record.files:
        raise _wrong_line(path, number, f"the image of the accepted case '{record.case_id}'", "none")
    return record


def _wrong_line(path: Path, number: int, expected: str, found: str) -> CohortError:
    return CohortError(
        f"{path}: expected {expected} on line {number}, found {found}. Remove the line to make its case again."
    )


class _NamesOfCases:
    """What the lines of a manifest say of ids and attempts.

    Every id is one case's and every case has one id, and at most its last attempt was accepted. Ids that differ in
    capitals alone are one file on some disks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index_of: dict[str, int] = {}
        self._id_of: dict[int, str] = {}
        self._ends: dict[int, tuple[int, bool]] = {}

    def add(self, number: int, record: AttemptRecord) -> None:
        """Compare a line with those before.

        Raises:
            CohortError: The message names the line.
        """
        index, key = record.case_index, record.case_id.casefold()
        if self._index_of.setdefault(key, index) != index:
            found = f"'{record.case_id}', as case {self._index_of[key]} has"
            raise _wrong_line(self._path, number, "an id of one case alone", found)
        if self._id_of.setdefault(index, record.case_id) != record.case_id:
            expected = f"the id '{self._id_of[index]}' of case {index}"
            raise _wrong_line(self._path, number, expected, f"'{record.case_id}'")
        is_accepted = record.status == "accepted"
        last, was_accepted = self._ends.get(index, (record.attempt, is_accepted))
        if last != record.attempt and (was_accepted if record.attempt > last else is_accepted):
            found = f"attempts {last} and {record.attempt}, the earlier of which was accepted"
            expected = f"one accepted attempt of '{record.case_id}', its last,"
            raise _wrong_line(self._path, number, expected, found)
        if record.attempt >= last:
            self._ends[index] = record.attempt, is_accepted


def _try_lock(descriptor: int) -> bool | None:
    """The lock of a manifest, tried again in case another process is just checking whether it is held."""
    for _ in range(NUM_TRIES):
        if (has_lock := try_lock(descriptor)) is not False:
            return has_lock
        sleep(TRY_SECONDS)
    return False


class ManifestWriter:
    """Appends lines to a manifest, protected by a file lock that ends with the process, and by a lease.

    Attributes:
        lease: Shows other processes which process is at work, and its progress.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file and lock it; a torn last line is cut off.

        Raises:
            CohortError: When another process holds the lock.
        """
        self._descriptor = os.open(path, APPENDING, 0o644)
        try:
            has_lock = _try_lock(self._descriptor)
            if has_lock is False:
                raise busy_folder(path.parent, read_holder(lease_of(path)))
            self.lease = take_lease(lease_of(path), has_lock=has_lock)
        except BaseException:
            os.close(self._descriptor)
            raise
        try:
            cut_torn_line(self._descriptor)
        except BaseException:
            self.close()
            raise

    def append(self, record: AttemptRecord) -> None:
        """Append one record and wait until it is on the disk; if this fails, nothing of it remains.

        Raises:
            OSError: The disk is full or unavailable.
            CohortError: Another process has taken the cohort over, because this one was suspended for long.
        """
        self.lease.require_held()
        append_line(self._descriptor, record.to_json())

    def clear(self) -> None:
        """Delete every line of the manifest; for a cohort without any case."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Release the lease and the lock of the manifest."""
        self.lease.end()
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
