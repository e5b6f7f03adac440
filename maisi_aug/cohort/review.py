"""Reviewers' decisions on the cases of a folder, accepted or rejected, one per line of ``review.jsonl``.

The file is only ever appended to. The last decision of each reviewer on an attempt counts, and one rejection by anybody
leaves the case out of exports, datasets, evaluation and reports until it is taken back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from maisi_aug.cohort.folder import (
    KEEP_FIELD,
    NOT_BEGUN,
    BegunCohort,
    CohortFolder,
    find_cohort,
    read_cohort_document,
)
from maisi_aug.cohort.manifest import (
    MANIFEST_NAME,
    AttemptRecord,
    FileRecord,
    Manifest,
    ManifestWriter,
    list_manifests,
    load_manifest,
)
from maisi_aug.cohort.request import COHORT_NAME
from maisi_aug.cohort.shards import Shard
from maisi_aug.errors import CohortError, RequestError
from maisi_aug.system.content import MAX_LINE_BYTES
from maisi_aug.system.whole_files import append_to_shared

REVIEW_NAME = "review.jsonl"
MAX_LETTERS = 500
Choice = Literal["accept", "reject", "undo"]

_CaseName = Annotated[str, Field(min_length=1, max_length=200)]
_Text = Annotated[str, Field(max_length=MAX_LETTERS)]


class CaseKey(NamedTuple):
    """Key of a reviewed case: its id and attempt; cases that are not of a cohort have only attempt 0."""

    case_id: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """A reviewer's decision on a case: one line of ``review.jsonl``.

    Attributes:
        case_id: Name of the case.
        attempt: Number of the attempt that was reviewed.
        choice: ``accept``, ``reject``, or ``undo``, which revokes the reviewer's last valid decision.
        reason: Reason for a rejection; may be empty.
        reviewer: Name of the reviewer; empty if none was given.
        time: Time of the decision in ISO 8601, UTC.
    """

    case_id: _CaseName
    attempt: Annotated[int, Field(ge=0, lt=10**9)]
    choice: Choice
    reason: _Text = ""
    reviewer: _Text = ""
    time: Annotated[str, Field(max_length=40)] = ""

    @property
    def key(self) -> CaseKey:
        """Case id and attempt that the decision is about."""
        return CaseKey(self.case_id, self.attempt)


_DECISION: TypeAdapter[Decision] = TypeAdapter(Decision)


@dataclass
class Review:
    """Decisions of all reviewers, with revoked decisions removed.

    Attributes:
        num_bytes: Number of bytes of ``review.jsonl`` that were read so far.
    """

    num_bytes: int = 0
    _stacks: dict[str, list[Decision]] = field(default_factory=dict)

    def add(self, decision: Decision) -> Decision | None:
        """Apply the next decision of ``review.jsonl``.

        Returns:
            The decision that an ``undo`` revokes; None for other decisions, or if there is none to revoke.
        """
        stack = self._stacks.setdefault(decision.reviewer, [])
        if decision.choice == "undo":
            return stack.pop() if stack else None
        stack.append(decision)
        return None

    @property
    def reviewers(self) -> list[str]:
        """Names of the reviewers who have a valid decision, sorted."""
        return sorted(name for name, stack in self._stacks.items() if stack)

    def last_of(self, reviewer: str) -> Decision | None:
        """Return the decision that the next ``undo`` of a reviewer revokes; None if there is none."""
        stack = self._stacks.get(reviewer)
        return stack[-1] if stack else None

    def decisions_of(self, reviewer: str) -> dict[CaseKey, Decision]:
        """Return attempt -> last valid decision of one reviewer."""
        return {decision.key: decision for decision in self._stacks.get(reviewer, ())}

    def standing(self) -> dict[CaseKey, list[Decision]]:
        """Return attempt -> last valid decision of every reviewer."""
        found: dict[CaseKey, list[Decision]] = {}
        for reviewer in self.reviewers:
            for key, decision in self.decisions_of(reviewer).items():
                found.setdefault(key, []).append(decision)
        return found

    def rejections(self) -> dict[CaseKey, str]:
        """Return attempt -> sentence with reviewer and reason, for attempts that at least one reviewer rejected."""
        found = {}
        for key, decisions in self.standing().items():
            if spelled := [_spell(decision) for decision in decisions if decision.choice == "reject"]:
                found[key] = f"Rejected in review{'; '.join(spelled)}."
        return found


def _spell(decision: Decision) -> str:
    by = f" by {decision.reviewer}" if decision.reviewer else ""
    return by + (f": {decision.reason.rstrip('.')}" if decision.reason else "")


def load_review(folder: Path) -> Review:
    """Read the decisions in a folder's ``review.jsonl``; empty if the folder has not been reviewed.

    A last line without a line break was left by a killed process and is skipped.

    Raises:
        CohortError: A line is not a decision.
    """
    review = Review()
    read_on(review, folder / REVIEW_NAME)
    return review


def read_on(review: Review, path: Path) -> bool:
    """Apply the decisions that were added to ``review.jsonl`` since it was last read.

    Args:
        review: Decisions read so far; updated in place.
        path: Path of ``review.jsonl``, which may not exist yet.

    Returns:
        Whether there were new decisions.

    Raises:
        CohortError: A line is not a decision.
    """
    begin = review.num_bytes
    try:
        with path.open("rb") as file:
            file.seek(begin)
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                review.add(_read_line(path, line))
                review.num_bytes += len(line)
    except FileNotFoundError:
        return False
    return review.num_bytes > begin


def _read_line(path: Path, line: bytes) -> Decision:
    try:
        return _DECISION.validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]["msg"]
        raise CohortError(f"{path}: not a decision: {line.rstrip()[:60]!r} ({problem}). Remove the line.") from None


def append_decision(folder: Path, decision: Decision) -> None:
    """Append a decision to a folder's ``review.jsonl``; several processes may do so at the same time.

    Args:
        folder: Folder of the reviewed cases.
        decision: Decision of one reviewer about one attempt.

    Raises:
        CohortError: The disk is full or the folder cannot be written to; the file is then unchanged.
    """
    append_to_shared(folder / REVIEW_NAME, _DECISION.dump_json(decision).decode())


def now() -> str:
    """Return the current time in ISO 8601, UTC, as decisions have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def apply_review(manifest: Manifest, review: Review) -> Manifest:
    """Return a manifest in which accepted cases that a reviewer rejected count as rejected, with the reason.

    Args:
        manifest: Attempts of a cohort; not modified.
        review: Decisions of all reviewers.
    """
    rejections = review.rejections()
    return Manifest(tuple(judge_record(record, rejections) for record in manifest.records))


def judge_record(record: AttemptRecord, rejections: dict[CaseKey, str]) -> AttemptRecord:
    """Return a record with the rejections by reviewers applied.

    Args:
        record: Attempt at a case.
        rejections: Attempt -> sentence, see :meth:`Review.rejections`.
    """
    reason = rejections.get(CaseKey(record.case_id, record.attempt))
    if record.status != "accepted" or reason is None:
        return record
    return replace(record, status="rejected", reason=reason)


def load_reviewed_manifest(folder: Path, *, gates: Collection[str] | None = None) -> Manifest:
    """Read the manifest of a cohort, with the rejections by reviewers applied.

    Args:
        folder: The cohort's folder.
        gates: Gates whose figures are kept; None for all.

    Raises:
        CohortError: There is no manifest, or a line of it or of the review cannot be read.
    """
    return apply_review(load_manifest(folder, gates=gates), load_review(folder))


def num_rejected_in_review(folder: Path, manifest: Manifest) -> int:
    """Return the number of accepted cases in a manifest that a reviewer rejected.

    Args:
        folder: Folder with ``review.jsonl``; without it, no case was rejected.
        manifest: Attempts of the cohort, as the gates judged them.

    Raises:
        CohortError: A line of the review cannot be read.
    """
    return len(manifest.accepted) - len(apply_review(manifest, load_review(folder)).accepted)


def reopen_for_run(
    folder: Path, document: Mapping[str, Any], *, begun: BegunCohort = NOT_BEGUN, shard: Shard | None = None
) -> None:
    """Reopen the cases that reviewers rejected, provided that the folder holds the cohort that a run continues.

    Args:
        folder: Folder of the cohort; may be new.
        document: Content of the ``cohort.yaml`` of the run.
        begun: What is already known about the folder.
        shard: Shard that the run makes, if any.

    Raises:
        RequestError: The folder is a shard; other shards would not notice the reopened cases.
        CohortError: The cohort is another one or not merged, another process writes to it, or a line cannot be read.
    """
    if shard is not None:
        raise RequestError("--redraw-rejected cannot be used with --shard. Use it after maisi-aug cohort merge.")
    if find_cohort(folder, document, begun) is not None:
        reopen_rejected(folder)


def reopen_rejected(folder: Path) -> list[AttemptRecord]:
    """Reopen the cases that reviewers rejected, so that the next run makes further attempts at them.

    Twins of a case, which show the same patient, are reopened with it. Previews, and with ``keep_rejected`` volumes,
    are moved to those of failed attempts. If this is interrupted, the next run finds cases with lost files and draws
    them again.

    Args:
        folder: Folder of a cohort that nothing is writing to.

    Returns:
        The records of these cases, which are no longer in the manifest.

    Raises:
        CohortError: Shards are not merged, another process writes to the cohort, the disk is full, or a line cannot be
            read.
    """
    place = CohortFolder(folder)
    document = (read_cohort_document(folder) if (folder / COHORT_NAME).is_file() else None) or {}
    keeps = bool(document.get("configuration", {}).get(KEEP_FIELD))
    rejections, given_up = load_review(folder).rejections(), []
    if not rejections:
        return []
    if list_manifests(folder) != [folder / MANIFEST_NAME]:
        raise CohortError(
            f"{folder}: expected a merged cohort for --redraw-rejected, found shards whose manifests are apart. Run "
            f"this first: maisi-aug cohort merge {folder}"
        )
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for record, judged in _judge_with_twins(load_manifest(folder), rejections):
            try:
                files = _set_aside(record, place, keeps_volumes=keeps)
                writer.append(replace(judged, status="retried", files=files))
            except OSError as error:
                raise CohortError(
                    f"{folder}: cannot set '{record.case_id}' aside: {error.strerror or error}. Free some space and "
                    "run the command again."
                ) from error
            given_up.append(record)
    return given_up


def _judge_with_twins(
    manifest: Manifest, rejections: dict[CaseKey, str]
) -> Iterator[tuple[AttemptRecord, AttemptRecord]]:
    """Accepted attempts that a reviewer rejected, or one of whose twins, and the same as they count."""
    from maisi_aug.cohort.twins import twin_of  # loads NumPy, which a page of help should not

    groups = {
        (twin[0], record.attempt): record.case_id
        for record in manifest.records
        if CaseKey(record.case_id, record.attempt) in rejections and (twin := twin_of(record)) is not None
    }
    for record in manifest.accepted:
        twin = twin_of(record)
        rejected = None if twin is None else groups.get((twin[0], record.attempt))
        judged = judge_record(record, rejections)
        if judged is record and rejected is not None:
            judged = replace(record, status="rejected", reason=f"Its twin {rejected} was rejected in review.")
        if judged is not record:
            yield record, judged


def _set_aside(record: AttemptRecord, place: CohortFolder, *, keeps_volumes: bool) -> dict[str, FileRecord]:
    """Move or remove the files of a case; returns those that are kept."""
    kept = {}
    for role, file in record.files.items():
        path = place.path / file.path
        if role == "preview":
            target = place.rejected_preview(record.case_id, record.attempt)
        elif keeps_volumes:
            target = place.rejected_file_of(role, record.case_id, record.attempt)
        else:
            path.unlink(missing_ok=True)
            continue
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            kept[role] = FileRecord(place.relative(target), file.sha256)
    return kept
