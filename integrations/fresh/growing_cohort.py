"""A cohort that is still being written, as a dataset: train on its first cases while the others are made.

    from maisi_aug.integrations.fresh.growing_cohort import GrowingCohort
    cases = GrowingCohort("cohort", num_items=100, transform=my_dict_transforms)
    for epoch in range(100):
        cases.set_epoch(epoch)
        for batch in DataLoader(cases, batch_size=2): ...

The rule. Epoch 0 shows the first ``num_items`` cases of the plan in their order, epoch ``e`` as many at random of the
first ``(e + 1) * num_items``. An item whose case is not there yet waits for it, as long as a process is writing; a case
that a gate or a reviewer rejected is replaced by the next one of the plan. So the same seed and epoch give the same
cases, however fast the cohort grows.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.cohort.folder import read_cohort_document
from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, ManifestReader, is_cohort
from maisi_aug.cohort.review import judge_record, load_review
from maisi_aug.errors import CohortError, RequestError
from maisi_aug.integrations.reading.cohort_source import CohortSource, is_being_written
from maisi_aug.integrations.reading.export_labels import LabelNumbering, number_labels, require_numbers_alone
from maisi_aug.integrations.reading.items import Item, load_pair, to_monai_item, to_subject
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import MAISI

POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
"""Seconds without any writer after which waiting for a case ends; synthesize may be restarting meanwhile."""


class GrowingCohort:
    """Map-style dataset of a cohort on disk that may still be growing."""

    def __init__(
        self,
        folder: Path | str,
        *,
        num_items: int,
        labels: Sequence[str] = (),
        numbers: Mapping[str, int] | None = None,
        seed: int = 0,
        wait_seconds: float = 3600.0,
        transform: Callable[[Item], Any] | None = None,
        as_subjects: bool = False,
    ) -> None:
        """Open the cohort; cases need not be there yet.

        Args:
            folder: Folder that ``synthesize`` writes.
            num_items: Items of an epoch.
            labels: Names or ids, numbered 1, 2, ... in the order of their ids; those requested for the cohort when
                empty.
            numbers: Label name -> number instead, such as a real dataset's; 0 for background.
            seed: Decides which cases an epoch shows.
            wait_seconds: Longest wait for a case.
            transform: Applied to every item.
            as_subjects: Items are TorchIO subjects instead of dictionaries of MetaTensors.

        Raises:
            CohortError: The folder is not a cohort.
            RequestError: ``num_items`` is too small, there is no label to train on, or ``numbers`` do not fit.
            VocabularyError: An unknown label name.
        """
        self._folder = Path(folder)
        document = read_cohort_document(self._folder)
        if document is None:
            raise CohortError(
                f"{self._folder}: no cohort has been begun here. Start synthesize with --out {self._folder} first."
            )
        if num_items < 1:
            raise RequestError(f"num_items: must be 1 or more, found {num_items}. Choose another number.")
        self.numbering = _number(self._folder, document, labels, numbers)
        self.num_planned = int(document["configuration"]["num_cases"])
        self.transform, self._convert = transform, to_subject if as_subjects else to_monai_item
        self._num_items, self._seed, self._wait_seconds = num_items, seed, wait_seconds
        self._epoch = multiprocessing.get_context("spawn").Value("q", 0)
        self._manifest = ManifestReader(self._folder / MANIFEST_NAME, gates=())
        self._last: dict[int, AttemptRecord] = {}
        self._settled: dict[int, AttemptRecord] = {}

    def __len__(self) -> int:
        return self._num_items

    @property
    def epoch(self) -> int:
        """Epoch whose items are returned."""
        return int(self._epoch.value)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch before iterating over a loader."""
        self._epoch.value = epoch

    def case_indices(self, epoch: int) -> list[int]:
        """Return the index of the planned case for every item of an epoch, before rejected cases are replaced."""
        reach = min(self.num_planned, (epoch + 1) * self._num_items)
        if epoch == 0 or reach <= self._num_items:
            order = list(range(reach))
        else:
            order = numpy_generator(self._seed, f"growing/{epoch}").permutation(reach).tolist()
        return [order[item % len(order)] for item in range(self._num_items)]

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain for loop
        record = self._wait_for(self.case_indices(self.epoch)[index])
        source = CohortSource(self._folder, (record,), self.num_planned, MAISI)
        item = self._convert(load_pair(source, record, self.numbering))
        return item if self.transform is None else self.transform(item)

    def _wait_for(self, case_index: int) -> AttemptRecord:
        """The record of a case, or of the next one that is accepted.

        Raises:
            CohortError: The case is not made in time, no process is making it, or no case is accepted.
        """
        ends_at, watch = time.monotonic() + self._wait_seconds, _WriterWatch(self._folder)
        for step in range(self.num_planned):
            wanted = (case_index + step) % self.num_planned
            while (record := self._read().get(wanted)) is None:
                if time.monotonic() > ends_at:
                    raise CohortError(
                        f"{self._folder}: waited {self._wait_seconds:g} s for case {wanted + 1} of "
                        f"{self.num_planned}, {len(self._read())} are done. Is synthesize still running?"
                    )
                if watch.has_ended() and wanted not in self._read():
                    raise CohortError(
                        f"{self._folder}: case {wanted + 1} of {self.num_planned} will not be made: "
                        f"{len(self._read())} "
                        f"are done, and no process is running. Run synthesize again with --out {self._folder} to "
                        "continue."
                    )
                time.sleep(POLL_SECONDS)
            if judge_record(record, load_review(self._folder).rejections()).status == "accepted":
                return record
        raise CohortError(f"{self._folder}: all cases were rejected. Look at previews/.")

    def _read(self) -> dict[int, AttemptRecord]:
        """The last record of every settled case, as far as the manifest goes by now; its lines are read once."""
        if is_cohort(self._folder):
            for record in self._manifest.read_on():
                last = self._last.get(record.case_index)
                if last is None or record.attempt >= last.attempt:
                    self._last[record.case_index] = record
                    self._settled.pop(record.case_index, None)
                    if record.status != "retried":
                        self._settled[record.case_index] = record
        return self._settled


class _WriterWatch:
    """Whether the process that writes a cohort has ended: no process holds its lock, now and some time ago."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._checked_at, self._was_idle = folder, time.monotonic(), False

    def has_ended(self) -> bool:
        """Check the lock at intervals only, because checking holds it for a moment."""
        if time.monotonic() - self._checked_at < GRACE_SECONDS / 2:
            return False
        self._checked_at = time.monotonic()
        was_idle, self._was_idle = self._was_idle, is_being_written(self._folder) is False
        return was_idle and self._was_idle


def _number(
    folder: Path, document: Mapping[str, Any], labels: Sequence[str], numbers: Mapping[str, int] | None
) -> LabelNumbering:
    """Number the labels that were requested for the cohort, or those chosen."""
    names = {int(row["id"]): str(row["name"]) for row in document["requested"]}
    if labels or numbers is not None:
        vocabulary = load_bundle(str(document["configuration"]["bundle"])).vocabulary
        if numbers is not None:
            require_numbers_alone(labels)
            return number_labels(vocabulary, numbers, sorted(names), vocabulary.name_of)
        names = {vocabulary.id_of(name): vocabulary.label(name).name for name in labels}
    if not names:
        raise RequestError(
            f"{folder}: the cohort was made without label requests, so that it has no labels to train on. Pass labels."
        )
    return LabelNumbering(tuple(sorted(names)), tuple(names[label_id] for label_id in sorted(names)))
