"""Which labels of a cohort an export holds, and how they are numbered in the files of a training framework.

Labels are taken from the cohort's full label maps: a map may hold a tumour that its own case was not asked for, and
leaving that one as background would teach the wrong thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import ExportError
from maisi_aug.integrations.cohort_source import CohortSource
from maisi_aug.integrations.whole_folder import Notify, tell_nobody
from maisi_aug.labels import BACKGROUND_ID, BODY_ID
from maisi_aug.totalsegmentator_labels import totalsegmentator_class
from maisi_aug.volume_io import load_label_map


@dataclass(frozen=True, slots=True)
class LabelNumbering:
    """Vocabulary ids as the numbers of a training framework; everything else is background.

    Attributes:
        ids: Vocabulary ids.
        names: Their names.
        numbers: What they become; 1, 2, ... in their order when not given.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(1, len(self.ids) + 1)))

    def apply(self, label_map: NDArray[Any]) -> NDArray[np.uint8]:
        """Renumber an array of vocabulary ids, of any shape."""
        table = np.zeros(256, dtype=np.uint8)
        table[list(self.ids)] = self.numbers
        renumbered: NDArray[np.uint8] = table[label_map]
        return renumbered

    def to_dict(self) -> dict[str, int]:
        """Name -> number, background included."""
        return {"background": 0} | dict(zip(self.names, self.numbers, strict=True))

    def to_json(self) -> list[dict[str, Any]]:
        """The numbering for a mapping file, with TotalSegmentator's task and class for each label that it has."""
        return [
            {
                "label": number,
                "name": name,
                "vocabulary_id": label_id,
                "totalsegmentator": name_in_totalsegmentator(label_id),
            }
            for number, label_id, name in zip(self.numbers, self.ids, self.names, strict=True)
        ]


def name_in_totalsegmentator(label_id: int) -> str | None:
    """TotalSegmentator's task and class for a vocabulary id, for mapping files; None for a label that it lacks."""
    return "/".join(totalsegmentator_class(label_id) or ()) or None


def choose_labels(
    cohort: CohortSource,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    notify: Notify = tell_nobody,
) -> LabelNumbering:
    """The labels to export: those named, or else those that the cohort was asked for.

    Args:
        cohort: The cohort.
        labels: Names or ids.
        include_anatomy: Every label in the maps as well, except the body envelope.
        notify: Told of the maps that are read for it.

    Raises:
        ExportError: A label occurs in no case, or the cohort has no label maps.
        VocabularyError: An unknown label name.
    """
    require_label_maps(cohort)
    wanted = set(cohort.resolve_ids(labels) if labels else cohort.requested_ids)
    if include_anatomy or not wanted <= set(cohort.requested_ids):
        present = set(count_labels(cohort, notify))
        wanted |= present - {BODY_ID} if include_anatomy else set()
        if missing := sorted(wanted - present):
            raise ExportError(
                f"Labels to export: expected each in at least one case of {cohort.folder}, found none of "
                f"{', '.join(map(cohort.name_of, missing))}. Leave out what the cohort does not hold."
            )
    if not wanted:
        raise ExportError(
            f"{cohort.folder}: expected a label to export, found that the cohort was asked for none. Name one with "
            "--labels, or add --include-anatomy."
        )
    ids = tuple(sorted(wanted))
    return LabelNumbering(ids, tuple(map(cohort.name_of, ids)))


def require_label_maps(cohort: CohortSource) -> None:
    """Raise for a cohort of bare images.

    Raises:
        ExportError: No case has a label map.
    """
    if not any("anatomy" in case.files for case in cohort.cases):
        raise ExportError(
            f"{cohort.folder}: expected label maps, found images that were drawn without any (mask_source none). Make "
            "a cohort with another --mask-source."
        )


def count_labels(cohort: CohortSource, notify: Notify = tell_nobody) -> Counter[int]:
    """Every id in the cohort's label maps except background, and the number of cases that hold it."""
    counts: Counter[int] = Counter()
    for index, case in enumerate(cohort.cases):
        notify("reading labels", index, len(cohort.cases))
        label_map = load_label_map(cohort.require_file(case, "anatomy")).array
        counts.update(np.flatnonzero(np.bincount(label_map.ravel())).tolist())
    del counts[BACKGROUND_ID]
    return counts
