"""Driver of a cohort: gives cases to an engine, records the results, and reports progress.

Only the driver moves the files of a worker to their place and then writes the line to the manifest: a line means that
the files are complete and in place. A worker that was considered lost may return an attempt that another worker has
repeated in the meantime; the two must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from maisi_aug.cohort.folder import CohortFolder, LostCase
from maisi_aug.cohort.manifest import AttemptRecord, Manifest, ManifestWriter
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.errors import BankError, CohortError, LesionError
from maisi_aug.generate.writer import explain_disk
from maisi_aug.system.engine.work import Engine, WorkerSpec
from maisi_aug.system.whole_files import flush_folder

ROLES = ("image", "label", "anatomy", "preview")


class Listener:
    """Receiver of progress reports before and during a run; each method does nothing unless it is overridden."""

    def measures(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` files of the size or HU reference have been measured."""

    def tries(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` label maps of a plan have been tried."""

    def advises(self, sentence: str) -> None:
        """Report a sentence about the bundle or the images that the user should know."""

    def starts(self, num_cases: int, manifest: Manifest) -> None:
        """Report that the cohort is open, its number of cases, and the results of earlier runs."""

    def finds_lost(self, lost: Sequence[LostCase]) -> None:
        """Report accepted cases with lost files, which are drawn again; not called if there are none."""

    def enters(self, stage: str) -> None:
        """Report that a stage begins that may take a while, such as loading the weights."""

    def steps(self, case_id: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` sampling steps of a case's image are done."""

    def generates(self, number: int, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` sampling steps of a case's first, second, ... label map are done."""

    def records(self, record: AttemptRecord) -> None:
        """Report that an attempt has ended and is recorded in the manifest."""

    def opens(self, worker: str) -> None:
        """Report that a worker starts loading the networks, for the first time or again."""

    def works(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        """Report that a worker called ``enters``, ``steps`` or ``generates``; those methods are called, too.

        Args:
            worker: Name of the worker.
            event: Name of the method.
            details: Arguments of the method.
        """

    def loses(self, worker: str, how: str) -> None:
        """Report that a worker was killed; its cases are drawn by other workers, or by itself after a restart.

        Args:
            worker: Name of the worker.
            how: How it ended, as a clause.
        """


@dataclass(frozen=True)
class CaseItem:
    """An attempt to be made at one case, or at a group of cases that are accepted together or not at all.

    Attributes:
        cases: The case, or the cases of the group.
        number: Number of the attempt, from 0.
        wanted: Indices of the cases to write; others are finished already.
    """

    cases: tuple[CasePlan, ...]
    number: int
    wanted: frozenset[int]


def list_items(groups: Iterable[tuple[CasePlan, ...]], manifest: Manifest, todo: Collection[int]) -> list[CaseItem]:
    """Return the next attempt at each group of cases that is not finished.

    Args:
        groups: Groups in the order in which they are begun; settled ones are skipped.
        manifest: Manifest of earlier runs.
        todo: Indices of cases that are not settled.
    """
    own = ((group, frozenset(case.index for case in group if case.index in todo)) for group in groups)
    return [CaseItem(group, max(map(manifest.next_attempt, wanted)), wanted) for group, wanted in own if wanted]


@dataclass(frozen=True)
class CaseResult:
    """Result of an attempt at one case or a group of cases.

    Attributes:
        records: Records of the cases that were wanted; their files are in the worker's folder.
        error: Error because of which no label map could be drawn; None otherwise.
        skipped: ``(name, reason)`` of files of the mask bank, or of CTs to insert lesions into, that the worker could
            not use so far.
    """

    records: tuple[AttemptRecord, ...]
    error: LesionError | BankError | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the written files, relative to the worker's folder."""
        return tuple(file.path for record in self.records for file in record.files.values())


@dataclass
class Recorder:
    """Records attempts: moves their files into the cohort's folder and appends to the manifest.

    Attributes:
        folder: Folder of the cohort.
        manifest: Writer of the manifest, open and locked.
        made: Attempts recorded by this run, without the gates' figures.
    """

    folder: CohortFolder
    manifest: ManifestWriter
    made: list[AttemptRecord] = field(default_factory=list)
    _files: dict[tuple[int, int], dict[str, str]] = field(default_factory=dict)

    def record(self, attempt: AttemptRecord, scratch: Path) -> bool:
        """Move the files of an attempt into the cohort's folder and append its record; does nothing if it is recorded.

        Args:
            attempt: Record of the attempt, made by a worker.
            scratch: Folder that contains the files.

        Returns:
            Whether the attempt is new.

        Raises:
            CohortError: The disk is full, the folder cannot be written (nothing is left behind), or the same attempt
                was made before with other bytes.
        """
        key, hashes = (attempt.case_index, attempt.attempt), {f.path: f.sha256 for f in attempt.files.values()}
        if key in self._files:
            self._require_same(attempt, self._files[key], hashes)
            for path in hashes:
                (scratch / path).unlink(missing_ok=True)
            return False
        placed: list[Path] = []
        try:
            for path in hashes:
                self._place(scratch / path, self.folder.path / path, placed)
            for place in dict.fromkeys(target.parent for target in placed):
                flush_folder(place)
            self.manifest.append(attempt)
        except OSError as error:
            for target in placed:
                target.unlink(missing_ok=True)
            raise explain_disk(self.folder.path, error) from error
        if attempt.status != "accepted":  # what an accepted attempt left that was made again on another machine
            for role in ROLES:
                self.folder.file_of(role, attempt.case_id).unlink(missing_ok=True)
        self._files[key] = hashes
        self.made.append(attempt.keep_figures(()))
        return True

    @staticmethod
    def _place(source: Path, target: Path, placed: list[Path]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        placed.append(target)
        source.replace(target)

    def _require_same(self, attempt: AttemptRecord, before: dict[str, str], now: dict[str, str]) -> None:
        if before != now:
            different = next(path for path in {**before, **now} if before.get(path) != now.get(path))
            raise CohortError(
                f"{self.folder.path}: {attempt.case_id} was drawn twice with different results: {different} differ. "
                "Use devices of one kind, with the same number of threads each."
            )


LeavesHope = Callable[[LesionError | BankError, CasePlan, Sequence[CasePlan]], bool]


@dataclass
class CaseDriver:
    """Makes attempts at cases, through workers, until every case is accepted or rejected.

    Attributes:
        recorder: Records the attempts.
        listener: Object whose methods are called as the run proceeds.
        has_map: Whether a label map could be drawn for any case. Until then nothing is recorded, because the fault may
            be the bank's.
        leaves_hope: Function that returns whether another case may still succeed after a case has failed with an error.
        skipped: Files of the mask bank, or CTs to insert lesions into, that could not be used, with the reason.
    """

    recorder: Recorder
    listener: Listener
    has_map: bool = True
    leaves_hope: LeavesHope = lambda error, case, others: True
    skipped: dict[str, str] = field(default_factory=dict)
    _open_cases: dict[int, CasePlan] = field(default_factory=dict)
    _held: list[tuple[CaseItem, CaseResult, Path]] = field(default_factory=list)
    _began_at: float = 0.0
    _num_open: int = 0
    _num_settled: int = 0
    _num_retried: int = 0

    def make(
        self, spec: WorkerSpec[CaseItem, CaseResult], items: Iterable[CaseItem], engine: Engine, *, scratch: Path
    ) -> None:
        """Make attempts until every case is accepted or rejected.

        Args:
            spec: Specification from which workers are opened.
            items: The first attempts to make.
            engine: Engine that runs the workers.
            scratch: Folder that the workers write to.

        Raises:
            LesionError, BankError: No label map can be drawn for any case, or for one that asks for no more than all
                remaining ones; nothing is recorded then.
        """
        items, self._began_at = list(items), monotonic()
        self._open_cases = {case.index: case for item in items for case in item.cases}
        self._num_open = len(self._open_cases)
        self._tell_others()
        engine.run(spec, items, self._settle, scratch=scratch, watch=self._watch)

    def _settle(self, item: CaseItem, result: CaseResult, scratch: Path) -> list[CaseItem]:
        self.skipped.update(result.skipped)
        if result.error is not None and not self.has_map:
            self._held.append((item, result, scratch))
            held = {case.index for each, _, _ in self._held for case in each.cases}
            others = [self._open_cases[index] for index in self._open_cases.keys() - held]
            if not self.leaves_hope(result.error, item.cases[0], others):
                raise result.error
            return []
        self.has_map = True
        ready, self._held = [*self._held, (item, result, scratch)], []
        return [further for each in ready for further in self._record(*each)]

    def _record(self, item: CaseItem, result: CaseResult, scratch: Path) -> list[CaseItem]:
        for record in result.records:
            if not self.recorder.record(record, scratch):
                return []  # it was handed out twice
            self.listener.records(record)
            self._num_retried += record.status == "retried"
            self._num_settled += record.status != "retried"
            self._tell_others()
        if any(record.status == "retried" for record in result.records):
            return [replace(item, number=item.number + 1)]
        for case in item.cases:
            self._open_cases.pop(case.index, None)
        return []

    def _tell_others(self) -> None:
        """Write what ``cohort status`` shows of this run."""
        self.recorder.manifest.lease.state = {
            "num_settled": self._num_settled,
            "num_retried": self._num_retried,
            "num_left": self._num_open - self._num_settled,
            "seconds": round(monotonic() - self._began_at, 1),
        }

    def _watch(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        if event == "opens":
            self.listener.opens(worker)
        elif event == "loses":
            self.listener.loses(worker, *details)
        else:
            self.listener.works(worker, event, details)
            if event == "enters":
                self.listener.enters(*details)
            elif event == "steps":
                self.listener.steps(*details)
            else:
                self.listener.generates(*details)
