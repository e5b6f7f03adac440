"""From a resolved run to its files: label maps drawn ahead, images sampled, gates and files in the background.

Three stages work at the same time, each on its own attempt: a thread draws the next label maps, this thread samples
images, a thread judges and writes them. What an attempt becomes depends on its seed alone, never on the order in which
stages finish; a failed attempt goes back to the front of the queue as the next attempt of its case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from maisi_aug.cohort.folder import CONTACT_SHEET_NAME, CohortFolder, LostCase, find_lost, open_cohort
from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, Manifest, ManifestWriter
from maisi_aug.cohort.plan import CasePlan, spell_labels
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.generate.attempts import Attempt, AttemptMaker
from maisi_aug.generate.writer import CaseWriter, open_writer
from maisi_aug.pictures.preview import save_contact_sheet
from maisi_aug.sources.opening import open_source

if TYPE_CHECKING:
    from maisi_aug.networks.acceleration import Compiler

NUM_MAPS_AHEAD = 2
NUM_WRITES_BEHIND = 2
# The same in every folder: a cohort made again elsewhere has the same bytes.
COHORT_HEADER = (
    "maisi-aug synthesize --recipe cohort.yaml --out .",
    "Goes on with this cohort, from inside its folder.",
)


class Listener:
    """What a run tells while it works; does nothing unless a method is overridden."""

    def starts(self, num_cases: int, manifest: Manifest) -> None:
        """The cohort is open; the manifest holds what earlier runs have done."""

    def finds_lost(self, lost: Sequence[LostCase]) -> None:
        """Accepted cases have lost files and are drawn again; not told where there are none."""

    def enters(self, stage: str) -> None:
        """A stage that may take a while begins, such as loading the weights."""

    def steps(self, case_id: str, done: int, total: int) -> None:
        """The sampler has done another step."""

    def generates(self, number: int, done: int, total: int) -> None:
        """The mask networks have done another step of a label map, the first, second, ... for its case."""

    def records(self, record: AttemptRecord) -> None:
        """An attempt has ended and is in the manifest."""


@dataclass(frozen=True, slots=True)
class CohortSummary:
    """How a cohort turned out, earlier runs included.

    Attributes:
        folder: Where it is.
        num_cases: Cases of the plan.
        manifest: Every attempt, without the gates' figures.
        seconds: Wall-clock time of this run.
        num_new: Cases that this run has settled.
        num_lost: Those of them that were there before and had lost files.
        skipped: ``(name, reason)`` of the mask bank's files that could not be used.
    """

    folder: Path
    num_cases: int
    manifest: Manifest = field(repr=False)
    seconds: float
    num_new: int
    skipped: tuple[tuple[str, str], ...] = ()
    num_lost: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every case was accepted."""
        return len(self.manifest.accepted) == self.num_cases

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON types."""
        labels: dict[str, int] = {}
        for record in self.manifest.accepted:
            for name in dict.fromkeys(lesion.label for lesion in record.lesions):
                labels[name] = labels.get(name, 0) + 1
        return {
            "folder": str(self.folder),
            "num_cases": self.num_cases,
            "num_accepted": len(self.manifest.accepted),
            "num_rejected": len(self.manifest.rejected),
            "num_attempts": len(self.manifest.records),
            "first_attempt_rate": self.manifest.first_attempt_rate(),
            "num_new": self.num_new,
            "num_lost": self.num_lost,
            "seconds": round(self.seconds, 1),
            "accepted_per_label": labels,
            "skipped_bank_files": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "rejected": [{"case_id": r.case_id, "reason": r.reason} for r in self.manifest.rejected],
        }


def synthesize_cohort(
    run: CohortRun,
    folder: Path,
    *,
    device: str = "auto",
    compiler: Compiler = "none",
    listener: Listener | None = None,
    case_indices: Sequence[int] | None = None,
    verify: bool = False,
) -> CohortSummary:
    """Make a cohort, or go on with one that was begun with the same configuration.

    Going on with a larger ``max_attempts`` takes up again what was rejected, and draws again, to the same bytes, the
    cases that were accepted and whose files are gone. As long as no label map could be drawn for
    any case nothing is recorded, so that a bank that has been repaired finds every case open.

    Args:
        run: What to make.
        folder: Where to; new, empty, or this cohort's.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        compiler: Of the networks: ``none``, ``inductor`` or ``trt``.
        listener: Is told how the run goes.
        case_indices: Cases to make, in this order; all, in the order of the plan, when not given.
        verify: Compare the bytes of finished cases with the manifest, too, and draw altered ones again.

    Returns:
        What the manifest holds at the end; cases may have been rejected.

    Raises:
        CohortError: When the folder is not this cohort's, in use, or full.
        BundleError: When the weights, the device or the compiler cannot be used.
        RecipeError: When the device does not compute in the precision asked for.
        MissingExtraError: When the compiler is not installed.
        MemoryShortageError: When not even the smallest part of an image can be decoded.
        BankError: When the mask bank has no usable map, or none that any case needs.
        LesionError: When no case can be met, because its lesion fits into no host organ.
    """
    listener = listener or Listener()
    started, max_attempts, num_cases = perf_counter(), run.request.max_attempts, len(run.plan.cases)
    if not (folder / MANIFEST_NAME).exists():  # what cannot be computed leaves no folder behind
        _require_computable(run, device, compiler)
    opened = open_cohort(folder, run.to_document(), header=COHORT_HEADER, begun=run.begun)
    with opened as (place, writer, recorded):
        wanted = range(num_cases) if case_indices is None else case_indices
        chosen = frozenset(wanted)
        lost = [case for case in find_lost(folder, recorded, verify=verify) if case.record.case_index in chosen]
        manifest = recorded.without([case.record for case in lost]).reopen(max_attempts)
        listener.starts(num_cases, manifest)
        if lost:
            listener.finds_lost(lost)
        todo = [run.plan.cases[index] for index in wanted if index not in manifest.settled_indices]
        skipped: tuple[tuple[str, str], ...] = ()
        made: list[AttemptRecord] = []
        if todo:
            stages = _prepare(run, place, writer, device, compiler, listener)
            stages.maker.source.require_unchanged(record.mask_origin for record in recorded.records)
            made = stages.work_off(todo, manifest) if run.twins is None else stages.work_off_twins(todo, manifest)
            skipped = tuple(stages.maker.source.skipped)
        listener.enters("drawing the contact sheet")
        done = Manifest.from_records([*recorded.records, *made]).reopen(max_attempts)
        _draw_contact_sheet(place, run, done)
    listener.enters("done")
    num_new = len(done.settled_indices) - len(manifest.settled_indices)
    return CohortSummary(folder, num_cases, done, perf_counter() - started, num_new, skipped, len(lost))


def _require_computable(run: CohortRun, device: str, compiler: Compiler) -> None:
    """Raise where the device, the compiler or the precision cannot be used, before anything is written."""
    from maisi_aug.networks.acceleration import require_compiler
    from maisi_aug.networks.pipeline import choose_image_precision, resolve_device

    device = resolve_device(device)
    require_compiler(compiler, device)
    choose_image_precision(run.request.precision, run.bundle, device, compiler)


def _prepare(
    run: CohortRun,
    place: CohortFolder,
    manifest: ManifestWriter,
    device: str,
    compiler: Compiler,
    listener: Listener,
) -> _Stages:
    """Open the source of the label maps and load the networks."""
    listener.enters("opening the mask source")
    source = open_source(run, device, listener.generates)
    listener.enters("loading the networks")
    from maisi_aug.networks.pipeline import Pipeline, resolve_device

    device = resolve_device(device)
    pipeline = Pipeline.load(run.bundle, device, compiler=compiler, precision=run.request.precision)
    writer = open_writer(
        run,
        place,
        manifest,
        device=device.partition(":")[0],
        compiler=compiler,
        precision=pipeline.precision,
        num_threads=pipeline.num_threads,
    )
    return _Stages(AttemptMaker(run, source, pipeline, listener.steps), writer, listener)


def _draw_contact_sheet(place: CohortFolder, run: CohortRun, manifest: Manifest) -> None:
    names = (record.files["preview"].path for record in manifest.accepted if "preview" in record.files)
    if previews := [place.path / name for name in names]:
        labels = spell_labels(run.plan.requested_ids, run.bundle.vocabulary) if run.plan.requested_ids else ""
        subject = labels or ("all labels of the given maps" if run.request.has_maps else "no label map")
        title = f"{len(previews)} of {len(run.plan.cases)} cases: {subject}; bundle {run.bundle.name}"
        save_contact_sheet(place.path / CONTACT_SHEET_NAME, previews, title)


def settle_group(
    group: Sequence[CasePlan],
    todo: Sequence[CasePlan],
    manifest: Manifest,
    make: Callable[[Sequence[CasePlan], int], list[Attempt]],
    writer: CaseWriter,
    listener: Listener,
) -> list[AttemptRecord]:
    """Make attempts at the cases of a group until all of one are accepted or the budget is spent.

    Args:
        group: Cases that are accepted together or not at all.
        todo: Those of them that are not settled; the others are drawn again to the same bytes, and not written twice.
        manifest: Of earlier runs.
        make: Makes an attempt, of a number, at every case of a group.
        writer: Judges and writes.
        listener: Told of every record.
    """
    indices, made = {case.index for case in todo}, list[AttemptRecord]()
    number, status = max(manifest.next_attempt(index) for index in indices), "retried"
    while status == "retried":
        attempts = [writer.judge(attempt) for attempt in make(group, number)]
        failed = next((attempt for attempt in attempts if attempt.reason), None)
        is_final = any(attempt.is_final for attempt in attempts)
        for attempt in attempts:
            reason = attempt.reason
            if failed is not None and not reason:
                reason = f"Its twin {failed.case.case_id} failed: {failed.reason}"
            if attempt.case.index in indices:
                record = writer.write(replace(attempt, reason=reason, is_final=is_final))
                listener.records(record)
                made.append(record.keep_figures(()))
                status = record.status
        number += 1
    return made


@dataclass(frozen=True)
class _Stages:
    """The three stages and what they share."""

    maker: AttemptMaker
    writer: CaseWriter
    listener: Listener

    def work_off_twins(self, cases: Sequence[CasePlan], manifest: Manifest) -> list[AttemptRecord]:
        """Make attempts at the groups that cases belong to, until every case is settled."""
        run = self.maker.run
        assert run.twins is not None
        made, todo = list[AttemptRecord](), {case.index for case in cases}
        for group in run.twins.groups(run.plan):
            if own := [case for case in group if case.index in todo]:
                made += settle_group(group, own, manifest, self.maker.draw_twins, self.writer, self.listener)
        return made

    def work_off(self, cases: Sequence[CasePlan], manifest: Manifest) -> list[AttemptRecord]:
        """Make attempts until every case is settled.

        Returns:
            The attempts, without the gates' figures.

        Raises:
            LesionError, BankError: When no label map can be drawn for any case, or for one while all that are left ask
                for no less; nothing is recorded then.
        """
        waiting = deque(self.maker.begin(case, manifest.next_attempt(case.index)) for case in cases)
        open_cases = {case.index: case for case in cases}
        made: list[AttemptRecord] = []
        drawing: deque[Future[Attempt]] = deque()
        writing: deque[Future[AttemptRecord]] = deque()
        # Attempts without a label map, until one could be drawn: the fault may be the bank's and not theirs.
        held: dict[int, Attempt] = {}
        source = self.maker.source
        has_map = any(record.mask_origin for record in manifest.records) or not source.fails_as_a_whole
        draw_pool, write_pool = ThreadPoolExecutor(1, "draw"), ThreadPoolExecutor(1, "write")
        try:
            while waiting or drawing or writing:
                while waiting and len(drawing) < NUM_MAPS_AHEAD:
                    drawing.append(draw_pool.submit(self.maker.draw_map, waiting.popleft()))
                while writing and (writing[0].done() or len(writing) >= NUM_WRITES_BEHIND or not drawing):
                    record = writing.popleft().result()
                    self.listener.records(record)
                    made.append(record.keep_figures(()))
                    if record.status == "retried":
                        waiting.appendleft(self.maker.begin(open_cases[record.case_index], record.attempt + 1))
                        break
                    del open_cases[record.case_index]
                if drawing:
                    attempt = drawing.popleft().result()
                    held[attempt.case.index] = attempt
                    has_map = has_map or attempt.error is None
                    if not has_map and attempt.error is not None:
                        others = [open_cases[index] for index in open_cases.keys() - held.keys()]
                        if not source.leaves_hope(attempt.error, attempt.case, others):
                            raise attempt.error
                        continue
                    images = (self.maker.draw_image(ready) for ready in held.values())
                    writing += [write_pool.submit(self.writer.finish, image) for image in images]
                    held.clear()
        finally:
            # Also after Ctrl-C: what is being written is finished, nothing new is begun.
            draw_pool.shutdown(wait=True, cancel_futures=True)
            write_pool.shutdown(wait=True, cancel_futures=True)
        return made
