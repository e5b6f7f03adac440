"""A worker of a cohort: label maps drawn ahead, images sampled, gates and files in the background.

Three stages work at the same time, each on its own attempt: a thread draws the next label map, the thread that called
samples an image, a thread judges and writes the one before. What an attempt becomes depends on its seed alone, never on
the order in which stages finish, nor on the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maisi_aug.cohort.folder import CohortFolder
from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.generate.attempts import Attempt, AttemptMaker
from maisi_aug.generate.driver import CaseItem, CaseResult
from maisi_aug.generate.writer import CaseWriter, open_writer
from maisi_aug.sources.opening import open_source
from maisi_aug.system.engine.work import WorkerPlace

if TYPE_CHECKING:
    from maisi_aug.networks.acceleration import Compiler


@dataclass(frozen=True)
class CohortSpec:
    """Picklable specification from which a worker of a cohort is opened.

    Attributes:
        run: The cohort to be made.
        home: Folder of the cohort, for messages.
        compiler: Compiler for the networks.
    """

    run: CohortRun
    home: Path
    compiler: Compiler = "none"

    @property
    def reads(self) -> tuple[Path, ...]:
        """Paths that the worker reads: the bundle, and the user's label maps."""
        return self.run.bundle.path, *([self.run.bank.path] if self.run.bank.entries else [])

    def open(self, place: WorkerPlace) -> CaseWorker:
        """Open the source of label maps, load the networks, and return the worker."""
        place.tell("enters", "opening the mask source")
        source = open_source(
            self.run, place.device, lambda number, done, total: place.tell("generates", number, done, total)
        )
        place.tell("enters", "loading the networks")
        from maisi_aug.networks.pipeline import Pipeline, resolve_device

        device, precision = resolve_device(place.device), self.run.request.precision
        pipeline = Pipeline.load(self.run.bundle, device, compiler=self.compiler, precision=precision)
        writer = open_writer(
            self.run,
            CohortFolder(place.scratch),
            home=self.home,
            device=device.partition(":")[0],
            compiler=self.compiler,
            precision=pipeline.precision,
            num_threads=pipeline.num_threads,
        )
        maker = AttemptMaker(
            self.run, source, pipeline, lambda case_id, done, total: place.tell("steps", case_id, done, total)
        )
        return CaseWorker(maker, writer)


@dataclass
class CaseWorker:
    """Worker that makes attempts at cases in three overlapping stages: drawing label maps, sampling images, writing."""

    maker: AttemptMaker
    writer: CaseWriter
    _drawing: dict[tuple[int, int], Future[Attempt]] = field(default_factory=dict)
    _draw_pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "draw"))
    _write_pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "write"))

    def look_ahead(self, item: CaseItem) -> None:
        """Start drawing the label map of the next item; not for twins, which are drawn together later."""
        if self.maker.run.twins is not None:
            return
        (case,) = item.cases
        attempt = self.maker.begin(case, item.number)
        self._drawing[case.index, item.number] = self._draw_pool.submit(self.maker.draw_map, attempt)

    def work(self, item: CaseItem) -> Future[CaseResult]:
        """Sample the image of an item, and hand it to the writing thread; the future holds the result."""
        if self.maker.run.twins is not None:
            attempts = self.maker.draw_twins(item.cases, item.number)
            return self._write_pool.submit(lambda: CaseResult(write_group(attempts, item, self.writer)))
        (case,) = item.cases
        attempt = self._drawing.pop((case.index, item.number)).result()
        return self._write_pool.submit(self._finish, self.maker.draw_image(attempt))

    def _finish(self, attempt: Attempt) -> CaseResult:
        record = self.writer.finish(attempt)
        return CaseResult((record,), attempt.error, tuple(self.maker.source.skipped))

    def close(self) -> None:
        """Finish writing, also after Ctrl-C, without beginning new work."""
        self._draw_pool.shutdown(wait=True, cancel_futures=True)
        self._write_pool.shutdown(wait=True, cancel_futures=True)


def write_group(attempts: Sequence[Attempt], item: CaseItem, writer: CaseWriter) -> tuple[AttemptRecord, ...]:
    """Judge and write attempts at a group of cases, which are accepted together or not at all.

    Args:
        attempts: One attempt at every case of the group.
        item: The requested attempt. Cases that are not wanted were written by a stopped run, and are not written again.
        writer: Object that judges and writes attempts.
    """
    judged = [writer.judge(attempt) for attempt in attempts]
    failed = next((attempt for attempt in judged if attempt.reason), None)
    is_final = any(attempt.is_final for attempt in judged)
    records = []
    for attempt in judged:
        reason = attempt.reason
        if failed is not None and not reason:
            reason = f"Its twin {failed.case.case_id} failed: {failed.reason}"
        if attempt.case.index in item.wanted:
            records.append(writer.write(replace(attempt, reason=reason, is_final=is_final)))
    return tuple(records)
