"""Cohorts in several parts: how far they are, whether they are whole, and how they become one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.api.results import Cohort
from maisi_aug.cohort.folder import CohortFolder, LostCase, find_lost, read_cohort_document
from maisi_aug.cohort.manifest import MANIFEST_NAME, Manifest, find_holder, lease_of, list_manifests, load_manifest
from maisi_aug.cohort.recipe_files import read_recipe
from maisi_aug.cohort.request import COHORT_NAME, build_request
from maisi_aug.cohort.resolve import resolve
from maisi_aug.cohort.shards import gather_shards, merge_shards
from maisi_aug.errors import RequestError
from maisi_aug.integrations.reading.cohort_source import find_num_planned
from maisi_aug.system.lease import Holder, age_of


@dataclass(frozen=True)
class RunningJob:
    """A process that is making a cohort or one shard of it, as seen by :func:`cohort_status`.

    Attributes:
        manifest: File name of the manifest that it writes.
        host: Name of the machine that it runs on.
        pid: Process id there.
        seconds_since_sign: Seconds since its last sign of life, by the clock of the file system.
        num_settled: Cases that it has finished, accepted or rejected.
        num_retried: Failed attempts that were followed by another attempt.
        num_left: Cases that it still has to make.
        seconds: Seconds since it began its first case.
    """

    manifest: str
    host: str
    pid: int
    seconds_since_sign: float
    num_settled: int = 0
    num_retried: int = 0
    num_left: int = 0
    seconds: float = 0.0

    @property
    def cases_a_minute(self) -> float:
        """Cases finished per minute since the process began; 0 before the first case."""
        return 60 * self.num_settled / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class CohortStatus:
    """Progress of a cohort on disk, see :func:`cohort_status`.

    Attributes:
        folder: Folder of the cohort.
        num_cases: Number of planned cases; 0 if unknown.
        manifest: The attempts recorded so far, of all shards together.
        shards: File names of the shards' manifests; empty for a cohort that was not sharded.
        running: Processes that are making cases at present.
    """

    folder: Path
    num_cases: int
    manifest: Manifest
    shards: tuple[str, ...]
    running: tuple[RunningJob, ...]

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the slowest running process is done; None if none has finished a case yet."""
        paces = [(job.num_left, job.cases_a_minute) for job in self.running if job.cases_a_minute]
        return max((60 * left / pace for left, pace in paces), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return counts, shards and running processes as a JSON-able dict; ``maisi-aug cohort status --json``."""
        num_attempts, num_settled = len(self.manifest.records), len(self.manifest.settled_indices)
        return {
            "folder": str(self.folder),
            "num_cases": self.num_cases,
            "num_accepted": len(self.manifest.accepted),
            "num_rejected": len(self.manifest.rejected),
            "num_open": max(0, self.num_cases - num_settled),
            "num_attempts": num_attempts,
            "shards": list(self.shards),
            "running": [{**vars(job), "cases_a_minute": round(job.cases_a_minute, 2)} for job in self.running],
            "cases_a_minute": round(sum(job.cases_a_minute for job in self.running), 2),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left),
        }


def cohort_status(folder: str | Path) -> CohortStatus:
    """Return the progress of a cohort, also while processes are making it; nothing is changed.

    >>> import maisi_aug as ma
    >>> status = ma.cohort_status("cohort")
    >>> status.num_cases, len(status.manifest.accepted), status.running
    (1, 1, ())

    Args:
        folder: Folder of the cohort, with one manifest or those of several shards.

    Returns:
        ``num_cases`` (planned), ``manifest`` (attempts so far), ``shards``, ``running`` (processes, with their pace)
        and ``seconds_left``; ``to_json()`` gives the counts of accepted, rejected and open cases.

    Raises:
        CohortError: There is no cohort, or it is damaged.
    """
    folder = Path(folder)
    manifest, paths = load_manifest(folder, gates=()), list_manifests(folder)
    holders = [(path, holder) for path in paths if (holder := find_holder(path)) is not None]
    return CohortStatus(
        folder,
        find_num_planned(folder) or 0,
        manifest,
        tuple(path.name for path in paths if path.name != MANIFEST_NAME),
        tuple(_describe_job(path, holder) for path, holder in holders),
    )


def _describe_job(manifest: Path, holder: Holder) -> RunningJob:
    told = holder.read_state()
    return RunningJob(
        manifest.name,
        holder.host,
        holder.pid,
        round(min(age_of(lease_of(manifest)), 1e6), 1),
        int(told.get("num_settled", 0)),
        int(told.get("num_retried", 0)),
        int(told.get("num_left", 0)),
        told.get("seconds", 0.0),
    )


@dataclass(frozen=True)
class Verification:
    """Result of :func:`verify_cohort`: progress of a cohort, and files that are missing or altered.

    Attributes:
        status: Progress of the cohort.
        lost: Accepted cases with files that are missing, or whose SHA-256 differs from the manifest's.
    """

    status: CohortStatus
    lost: tuple[LostCase, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every case is finished and every file is intact."""
        return not self.lost and len(self.status.manifest.settled_indices) >= self.status.num_cases

    def to_json(self) -> dict[str, Any]:
        """Return status and lost files as a JSON-able dict; ``maisi-aug cohort verify --json``."""
        lost = [
            {"case_id": case.record.case_id, "missing": list(case.missing), "altered": list(case.altered)}
            for case in self.lost
        ]
        return {**self.status.to_json(), "is_whole": self.is_whole, "lost": lost}


def verify_cohort(folder: str | Path) -> Verification:
    """Compare the SHA-256 of every file of a cohort, sharded or not, with its manifest; ``maisi-aug cohort verify``.

    >>> import maisi_aug as ma
    >>> ma.verify_cohort("cohort").is_whole
    True

    Args:
        folder: Folder of the cohort; nothing in it is changed. To draw lost cases again, pass ``verify=True`` to
            :func:`synthesize`.

    Returns:
        ``is_whole``, ``lost`` (accepted cases with ``missing`` and ``altered`` files) and ``status``, as
        :func:`cohort_status` returns it. Lost files do not raise.

    Raises:
        CohortError: There is no cohort, it is damaged, or two shards have made the same case to different bytes.
    """
    status = cohort_status(folder)
    return Verification(status, tuple(find_lost(status.folder, status.manifest, verify=True)))


def merge_cohort(*folders: str | Path, out: str | Path | None = None) -> Cohort:
    """Merge the shards of a cohort into one cohort; ``maisi-aug cohort merge``.

    The result is the same as from one process: the same manifest, ordered by case, the same files, and the contact
    sheet. If merging is interrupted, call it again.

    Args:
        *folders: One folder in which all shards worked, or one folder per shard.
        out: New folder of the merged cohort, required for several folders; files are hard-linked where the disk
            supports it, and copied elsewhere. One folder is merged in place.

    Returns:
        The merged cohort.

    Raises:
        CohortError: A shard is still running, the folders hold different cohorts, or two shards have made the same case
            to different bytes.
        RequestError: Several folders are given without ``out``, or one folder with it.
    """
    if not folders or (len(folders) > 1) != (out is not None):
        raise RequestError("merge: expected one folder, or several together with --out for the result.")
    target = Path(folders[0] if out is None else out)
    if out is not None:
        gather_shards([Path(folder) for folder in folders], target)
    merge_shards(target)
    _draw_contact_sheet(target)
    return Cohort(target)


def _draw_contact_sheet(folder: Path) -> None:
    """As the run that made the cohort would; without its bundle or its CTs there is none."""
    from maisi_aug.generate.run import draw_contact_sheet
    from maisi_aug.insertion.cohort import draw_contact_sheet as draw_insertion_sheet
    from maisi_aug.insertion.config import resolve_insertion
    from maisi_aug.insertion.request import InsertConfig

    configuration = (read_cohort_document(folder) or {}).get("configuration", {})
    manifest = load_manifest(folder, gates=())
    if "into" in configuration:
        known = {name: value for name, value in configuration.items() if name in InsertConfig.model_fields}
        draw_insertion_sheet(CohortFolder(folder), resolve_insertion(InsertConfig.model_validate(known)), manifest)
    else:
        request = build_request(read_recipe(str(folder / COHORT_NAME)), source=COHORT_NAME)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run has already warned about its grid
            draw_contact_sheet(CohortFolder(folder), resolve(request, folder), manifest)
