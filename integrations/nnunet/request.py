"""Request to add a cohort to a real nnU-Net dataset, checked before anything is written."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path

from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.cohort.mask_origin import RealMaps, origin_words
from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.dataset import channel_name
from maisi_aug.integrations.nnunet.folders import (
    RESULTS_VARIABLE,
    preprocessed_places,
    require_free_target,
    require_preprocessed_folder,
    require_raw_folder,
    require_unused_id,
)
from maisi_aug.integrations.nnunet.inserting import InsertSettings, parse_insertion
from maisi_aug.integrations.nnunet.labels import LabelMapping, map_labels
from maisi_aug.integrations.nnunet.plans import RealPlans, find_real_plans
from maisi_aug.integrations.nnunet.real import RealDataset, load_real_dataset
from maisi_aug.integrations.nnunet.splits import Fold, Folds, load_real_folds
from maisi_aug.integrations.reading.cohort_source import CohortSource, find_requested_ids, load_cohorts
from maisi_aug.integrations.reading.export_labels import require_label_maps
from maisi_aug.integrations.request import Link, NnunetExport


def choose_cases(
    cases: Sequence[AttemptRecord], *, num_real: int, ratio: float | None = None, max_per_label: int | None = None
) -> tuple[AttemptRecord, ...]:
    """Choose a part of a cohort's cases in which every label request keeps its share.

    The next case is always one of the request that is furthest behind its share of the cohort (Webster, 1832: the
    smallest ``(taken + 1/2) / cases``; ties go to the earlier request), in the order of the plan. Thus a part of a
    balanced cohort is balanced, too, and the same arguments choose the same cases.

    Args:
        cases: Accepted cases in the order of the plan.
        num_real: Number of cases of the real dataset.
        ratio: Synthetic cases per real case; None for all.
        max_per_label: Largest number of cases chosen per requested label.

    Returns:
        The chosen cases in the order of the plan; fewer than the ratio requests if there are not enough.

    Raises:
        ExportError: A number is out of range, or no case is left.
    """
    if ratio is not None and not (isfinite(ratio) and ratio > 0):
        raise ExportError(f"--ratio: must be above 0, found {ratio:g}. Give 1 for as many as real cases.")
    if max_per_label is not None and max_per_label < 1:
        raise ExportError(f"--max-per-label: must be at least 1, found {max_per_label}. Leave it out for no limit.")
    limit = len(cases) if ratio is None else count_wanted(ratio, num_real)
    sizes = Counter(case.request for case in cases)
    queues: dict[str, deque[AttemptRecord]] = {}
    for case in cases:
        queues.setdefault(case.request, deque()).append(case)
    chosen: list[AttemptRecord] = []
    counts: Counter[int] = Counter()
    taken = Counter[str]()
    while queues and len(chosen) < limit:
        request = min(queues, key=lambda request: (2 * taken[request] + 1) / sizes[request])
        case_taken = _take_next(queues[request], counts, max_per_label)
        if case_taken is None:
            del queues[request]
            continue
        chosen.append(case_taken)
        taken[request] += 1
        counts.update(case_taken.requested_ids)
    return tuple(sorted(chosen, key=lambda case: case.case_index))


def count_wanted(ratio: float, num_real: int) -> int:
    """Return the number of synthetic cases that a ratio requests.

    Args:
        ratio: Synthetic cases per real case.
        num_real: Number of real cases.

    Returns:
        The product, rounded; at least 1.
    """
    return max(1, round(ratio * num_real))


def _take_next(queue: deque[AttemptRecord], counts: Counter[int], max_per_label: int | None) -> AttemptRecord | None:
    """The first case of a queue that stays under the cap; those before it are dropped."""
    while queue:
        case = queue.popleft()
        if max_per_label is None or all(counts[label_id] < max_per_label for label_id in case.requested_ids):
            return case
    return None


STORED_ORIENTATION = "RAS"  # of every file that volume_io writes


@dataclass(frozen=True)
class LikeExport:
    """An export that adds a cohort to a real dataset: checked, but not written yet.

    Attributes:
        target: Folder of the new raw dataset.
        preprocessed_target: Folder of the new preprocessed dataset.
        real: Real dataset.
        cohort: Cohort to export.
        cases: Chosen synthetic cases.
        mapping: Labels of the cohort as values of the real dataset.
        folds: Folds of the real dataset.
        plans: Plans of the real dataset.
        link: How existing files enter the dataset.
        num_wanted: Number of synthetic cases that the ratio requests; None without a ratio.
        insertion: Lesions that the trainer inserts into real cases; None for none.
    """

    target: Path
    preprocessed_target: Path
    real: RealDataset
    cohort: CohortSource
    cases: tuple[AttemptRecord, ...]
    mapping: LabelMapping
    folds: Folds
    plans: RealPlans
    link: Link
    num_wanted: int | None = None
    insertion: InsertSettings | None = None

    @cached_property
    def synthetic_ids(self) -> dict[str, str]:
        """Case id in the cohort -> identifier in the dataset, which differs from those of all real cases."""
        prefix = "synthetic_"
        while any(case_id.startswith(prefix) for case_id in self.real.case_ids):
            prefix = "maisi_" + prefix
        return {case.case_id: prefix + case.case_id for case in self.cases}

    @cached_property
    def origins(self) -> dict[str, frozenset[str]]:
        """Identifier of each synthetic case -> real cases from whose label maps it was made."""
        known = RealMaps((case.case_id, case.label) for case in self.real.cases)
        return {self.synthetic_ids[case.case_id]: known.named_by(origin_words(case.mask_origin)) for case in self.cases}

    @cached_property
    def mixed_folds(self) -> list[Fold]:
        """Folds with synthetic cases in training only, the content of ``splits_final.json``."""
        return self.folds.with_synthetic(self.origins)

    @cached_property
    def orientation(self) -> str:
        """Axis orientation of synthetic files: that of most real ones, because nnU-Net trains on stored voxels."""
        if self.real.is_reoriented_on_reading:
            return STORED_ORIENTATION
        return self.real.orientations.most_common(1)[0][0]

    @property
    def is_turned(self) -> bool:
        """Whether synthetic images must be written anew, with other axes."""
        return self.orientation != STORED_ORIENTATION


def prepare_like_export(cohorts: Sequence[Path], request: NnunetExport) -> LikeExport:
    """Check everything about an export to a real dataset that can be checked without voxels; nothing is written.

    Args:
        cohorts: Folders of the cohorts.
        request: Options of the export, with ``like``.

    Returns:
        The export: real dataset, chosen cases, label mapping, folds and folders.

    Raises:
        CohortError: A folder is not a cohort.
        ExportError: A setting, the real dataset or the cohort is unsuitable.
        VocabularyError: A label name is unknown.
    """
    assert request.like is not None
    real = load_real_dataset(request.like)
    raw_folder = Path(os.path.abspath(require_raw_folder(request.out)))  # noqa: PTH100  links are kept
    preprocessed_folder = require_preprocessed_folder(request.preprocessed)
    target = require_free_target(raw_folder, request.dataset_id, request.name or f"{real.short_name}Synthetic")
    for folder in (real.folder.parent, preprocessed_folder, os.environ.get(RESULTS_VARIABLE)):
        if folder:
            require_unused_id(Path(folder), request.dataset_id)
    cohort = load_cohorts(cohorts)
    require_label_maps(cohort)
    if channel_name(cohort.cases) != "CT":
        raise ExportError(
            f"{cohort.folder}: needs CT images as in {real.name}, found {channel_name(cohort.cases)}. Make the "
            "cohort with --modality ct."
        )
    cases = choose_cases(
        cohort.cases, num_real=len(real.cases), ratio=request.ratio, max_per_label=request.max_per_label
    )
    places = preprocessed_places(real.name, preprocessed_folder)
    wanted = find_requested_ids(cases)
    export = LikeExport(
        target=target,
        preprocessed_target=preprocessed_folder / target.name,
        real=real,
        cohort=cohort,
        cases=cases,
        mapping=map_labels(real, cohort, request.map, request.absent, wanted),
        folds=load_real_folds(places, real.case_ids, raw=real.folder),
        plans=find_real_plans(places, request.plans),
        link=request.link,
        num_wanted=None if request.ratio is None else count_wanted(request.ratio, len(real.cases)),
        insertion=None if request.insert is None else parse_insertion(request.insert, real.description["labels"]),
    )
    export.mixed_folds  # noqa: B018  refuses a fold without a case to train on
    return export
