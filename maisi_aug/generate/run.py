"""Run a resolved cohort: open the folder, hand cases to an engine, and draw the picture of all at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from maisi_aug.cohort.folder import CONTACT_SHEET_NAME, CohortFolder, find_lost, open_cohort, open_scratch
from maisi_aug.cohort.manifest import MANIFEST_NAME, Manifest, is_cohort
from maisi_aug.cohort.plan import CasePlan, spell_labels
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.shards import Shard
from maisi_aug.generate.case_worker import CohortSpec
from maisi_aug.generate.driver import CaseDriver, CaseItem, Listener, Recorder, list_items
from maisi_aug.pictures.preview import save_contact_sheet
from maisi_aug.sources.opening import may_fail_as_a_whole, open_source
from maisi_aug.system.engine.work import Engine, InProcess
from maisi_aug.system.printed_text import spell_count

if TYPE_CHECKING:
    from maisi_aug.networks.acceleration import Compiler

# The same in every folder: a cohort made again elsewhere has the same bytes.
COHORT_HEADER = (
    "maisi-aug synthesize --recipe cohort.yaml --out .",
    "Continues this cohort; run it inside the folder.",
)


@dataclass(frozen=True, slots=True)
class CohortSummary:
    """Summary of a cohort after a run, including the results of earlier runs.

    Attributes:
        folder: Folder of the cohort.
        num_cases: Number of planned cases.
        manifest: Every attempt, without the gates' figures.
        seconds: Wall-clock seconds of this run.
        num_new: Number of cases that this run has accepted or rejected.
        num_lost: Number of accepted cases that had lost files and were drawn again.
        shard: Shard of the run, to whose cases all figures refer; None for the whole cohort.
        skipped: ``(name, reason)`` of files of the mask bank that could not be used.
        unfit_cts: ``(case, reason)`` of CTs that could not take lesions, for a cohort of inserted lesions.
    """

    folder: Path
    num_cases: int
    manifest: Manifest = field(repr=False)
    seconds: float
    num_new: int
    skipped: tuple[tuple[str, str], ...] = ()
    num_lost: int = 0
    shard: Shard | None = None
    unfit_cts: tuple[tuple[str, str], ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every case was accepted."""
        return len(self.manifest.accepted) == self.num_cases

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON-able dict; ``--json`` prints it."""
        labels: dict[str, int] = {}
        for record in self.manifest.accepted:
            for name in dict.fromkeys(lesion.label for lesion in record.lesions):
                labels[name] = labels.get(name, 0) + 1
        return {
            "folder": str(self.folder),
            **({} if self.shard is None else {"shard": str(self.shard)}),
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
            "unfit_cts": [{"case": name, "reason": reason} for name, reason in self.unfit_cts],
            "rejected": [{"case_id": r.case_id, "reason": r.reason} for r in self.manifest.rejected],
        }


def synthesize_cohort(
    run: CohortRun,
    folder: Path,
    *,
    device: str = "auto",
    engine: Engine | None = None,
    compiler: Compiler = "none",
    listener: Listener | None = None,
    case_indices: Sequence[int] | None = None,
    shard: Shard | None = None,
    verify: bool = False,
) -> CohortSummary:
    """Make a cohort, or continue one that was begun with the same configuration.

    Accepted cases whose files are missing are drawn again, to the same bytes; with a larger ``max_attempts``, rejected
    cases get further attempts. Until a label map could be drawn for any case, nothing is recorded, so that all cases
    are still open once a faulty bank has been repaired.

    Args:
        run: The cohort to make.
        folder: Folder to write to: new, empty, or this cohort's.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
        engine: Engine whose workers draw the cases; None to draw in this process, on ``device``.
        compiler: Compiler for the networks: ``none``, ``inductor`` or ``trt``.
        listener: Object whose methods are called as the run proceeds.
        case_indices: Indices of cases to make, in this order; None for all, in the order of the plan.
        shard: Make only every N-th case, while other processes make the rest; the contact sheet is drawn when they are
            merged.
        verify: Compare the bytes of finished cases with the manifest as well, and draw altered ones again.

    Returns:
        Summary of the manifest at the end; cases may have been rejected.

    Raises:
        CohortError: The folder is not this cohort's or is in use, or the disk is full.
        BundleError: The weights, the device or the compiler cannot be used.
        RecipeError: The device does not support the requested precision.
        MissingExtraError: The compiler is not installed.
        MemoryShortageError: Memory does not suffice for the smallest part of an image.
        BankError: The mask bank has no usable map, or none with the organs that any case needs.
        LesionError: The lesion of no case fits into a host organ.
        WorkerError: Processes of the engine are killed repeatedly.
    """
    listener, engine = listener or Listener(), engine or InProcess(device)
    started, max_attempts, num_cases = perf_counter(), run.request.max_attempts, len(run.plan.cases)
    if engine.devices and not is_cohort(folder):  # what cannot be computed leaves no folder behind
        _require_computable(run, engine.devices, compiler)
    groups, name = _list_groups(run, case_indices), MANIFEST_NAME
    if shard is not None:
        groups, name = shard.part_of(groups), shard.manifest_name
        num_cases = sum(map(len, groups))
    chosen = frozenset(case.index for group in groups for case in group)
    if case_indices is not None:
        chosen &= frozenset(case_indices)
    opened = open_cohort(folder, run.to_document(), header=COHORT_HEADER, begun=run.begun, manifest=name)
    with opened as (place, writer, recorded):
        recorded = recorded if shard is None else recorded.among(chosen)
        lost = [case for case in find_lost(folder, recorded, verify=verify) if case.record.case_index in chosen]
        manifest = recorded.without([case.record for case in lost]).reopen(max_attempts)
        listener.starts(num_cases, manifest)
        if lost:
            listener.finds_lost(lost)
        driver = CaseDriver(Recorder(place, writer), listener)
        if todo := chosen - manifest.settled_indices:
            driver.has_map = any(record.mask_origin for record in manifest.records) or not may_fail_as_a_whole(run)
            ask_source = cache(partial(open_source, run, "cpu"))  # opened when it is asked, and once
            driver.leaves_hope = lambda error, case, others: ask_source().leaves_hope(error, case, others)
            if recorded.records and run.bank.entries:
                ask_source().require_unchanged(record.mask_origin for record in recorded.records)
            items = list_items(groups, manifest, todo)
            items = items if len(engine.devices) == 1 else _longest_first(run, items)
            with open_scratch(folder, name) as scratch:
                driver.make(CohortSpec(run, folder, compiler), items, engine, scratch=scratch)
        done = Manifest.from_records([*recorded.records, *driver.recorder.made]).reopen(max_attempts)
        if shard is None:
            listener.enters("drawing the contact sheet")
            draw_contact_sheet(place, run, done)
    listener.enters("done")
    num_new = len(done.settled_indices) - len(manifest.settled_indices)
    skipped = tuple(driver.skipped.items())
    return CohortSummary(folder, num_cases, done, perf_counter() - started, num_new, skipped, len(lost), shard)


def _require_computable(run: CohortRun, devices: Sequence[str], compiler: Compiler) -> None:
    """Raise where a device, the compiler or the precision cannot be used, before anything is written."""
    from maisi_aug.networks.acceleration import require_compiler
    from maisi_aug.networks.pipeline import choose_image_precision, resolve_device

    for device in map(resolve_device, dict.fromkeys(devices)):
        require_compiler(compiler, device)
        choose_image_precision(run.request.precision, run.bundle, device, compiler)


def _list_groups(run: CohortRun, case_indices: Sequence[int] | None) -> list[tuple[CasePlan, ...]]:
    """Cases that are accepted together or not at all, in the order in which they are begun."""
    if run.twins is not None:
        return run.twins.groups(run.plan)
    indices = range(len(run.plan.cases)) if case_indices is None else case_indices
    return [(run.plan.cases[index],) for index in indices]


def _longest_first(run: CohortRun, items: Sequence[CaseItem]) -> list[CaseItem]:
    """Cases that keep the grid of their given map, the largest files first: none is begun when all others are done."""

    def count_bytes(item: CaseItem) -> int:
        entries = (run.bank.entries[case.map_index] for case in item.cases if case.map_index is not None)
        paths = (path for entry in entries for path in entry.label_paths)
        return sum(path.stat().st_size for path in paths if path.exists())

    return sorted(items, key=count_bytes, reverse=True) if run.request.follows_maps else list(items)


def draw_contact_sheet(place: CohortFolder, run: CohortRun, manifest: Manifest) -> None:
    """Write the contact sheet of a generated cohort: the previews of all accepted cases in one picture.

    Args:
        place: Folder of the cohort, which holds the previews; ``contact_sheet.png`` is written there.
        run: Resolved cohort, for the title.
        manifest: Attempts of the cohort; without an accepted one that has a preview nothing is written.

    Raises:
        VolumeError: The file cannot be written.
    """
    names = (record.files["preview"].path for record in manifest.accepted if "preview" in record.files)
    if previews := [place.path / name for name in names]:
        labels = spell_labels(run.plan.requested_ids, run.bundle.vocabulary) if run.plan.requested_ids else ""
        subject = labels or ("all labels of the given maps" if run.request.has_maps else "no label map")
        title = f"{len(previews)} of {spell_count(len(run.plan.cases), 'case')}: {subject}; bundle {run.bundle.name}"
        save_contact_sheet(place.path / CONTACT_SHEET_NAME, previews, title)
