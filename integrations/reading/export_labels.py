"""Labels of a cohort that an export contains, and their numbers in the files of a training framework.

Labels are taken from the cohort's full label maps: a map may hold a tumour that was not requested for its own case, and
leaving that one as background would teach the wrong thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import ExportError, RequestError
from maisi_aug.integrations.reading.cohort_source import CohortSource
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, Vocabulary
from maisi_aug.vocabulary.totalsegmentator import totalsegmentator_class
from maisi_aug.volumes.image_files import load_label_map

MAX_NUMBER = 255  # of label maps in uint8


@dataclass(frozen=True, slots=True)
class LabelNumbering:
    """Numbering of labels for a training framework; ids that are not listed become background.

    Attributes:
        ids: Vocabulary ids of the labels.
        names: Names of the labels.
        numbers: Numbers of the labels (default: 1, 2, ... in their order).
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.numbers:
            object.__setattr__(self, "numbers", tuple(range(1, len(self.ids) + 1)))

    def apply(self, label_map: NDArray[Any]) -> NDArray[np.uint8]:
        """Convert an array of vocabulary ids, of any shape, to label numbers."""
        table = np.zeros(256, dtype=np.uint8)
        table[list(self.ids)] = self.numbers
        renumbered: NDArray[np.uint8] = table[label_map]
        return renumbered

    def to_dict(self) -> dict[str, int]:
        """Return label name -> number, including the background."""
        return {"background": 0} | dict(zip(self.names, self.numbers, strict=True))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the numbering as JSON-able rows, with TotalSegmentator's task and class if there are any."""
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
    """Return TotalSegmentator's task and class for a vocabulary id; None if it has none."""
    return "/".join(totalsegmentator_class(label_id) or ()) or None


def number_labels(
    vocabulary: Vocabulary, numbers: Mapping[str, int], requested_ids: Sequence[int], name_of: Callable[[int], str]
) -> LabelNumbering:
    """Return a numbering that follows given numbers, such as those of a real dataset.

    Args:
        vocabulary: Names of the ids in the label maps.
        numbers: Label name or id -> number, 0 for labels that become background; may include ``background``.
        requested_ids: Labels requested for the cases; each needs a number.
        name_of: Function that returns the name of an id.

    Raises:
        RequestError: A number is invalid in a label map, or a requested label has none.
        VocabularyError: A label name is unknown.
    """
    require_numbers(numbers)
    found: dict[int, int] = {}
    for name, number in numbers.items():
        label_id = BACKGROUND_ID if _is_background(name) else vocabulary.id_of(name)
        if found.setdefault(label_id, number) != number:
            raise RequestError(
                f"numbers, '{name}': the label has another number already, {found[label_id]}. Keep one of the two."
            )
    missing = [name_of(label_id) for label_id in requested_ids if label_id not in found]
    if missing:
        raise RequestError(
            f"numbers: '{missing[0]}', which was requested for the cases, has no number. Add it, with 0 to make it "
            "background."
        )
    ids = tuple(sorted(label_id for label_id, number in found.items() if number))
    if not ids:
        raise RequestError("numbers: at least one label needs a number above 0. Add one to train on.")
    return LabelNumbering(ids, tuple(map(name_of, ids)), tuple(found[label_id] for label_id in ids))


def require_numbers(numbers: Mapping[str, Any]) -> None:
    """Raise unless all label numbers can be stored in a uint8 label map.

    Raises:
        RequestError: The message names a number that cannot.
    """
    for name, number in numbers.items():
        highest = 0 if _is_background(name) else MAX_NUMBER
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= highest:
            expected = f"an integer from 0 to {MAX_NUMBER}" if highest else "0"
            raise RequestError(f"numbers, '{name}': expected {expected}, found {number!r}. Correct the number.")


def _is_background(name: str) -> bool:
    return name.strip().casefold() == "background"


def choose_labels(
    cohort: CohortSource,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    numbers: Mapping[str, int] | None = None,
    notify: ReportStage = report_nothing,
) -> LabelNumbering:
    """Return the numbering of the labels to export: those named, otherwise those requested for the cohort.

    Args:
        cohort: Cohort to export.
        labels: Names or ids of labels; if empty, those requested for the cohort.
        include_anatomy: Also export every other label in the maps, except the body.
        numbers: Label name -> number instead, see :func:`number_labels`.
        notify: Progress callback, called with (stage, maps read, maps in all).

    Raises:
        ExportError: A label occurs in no case, or the cohort has no label maps.
        RequestError: ``numbers`` are invalid, or are combined with other choices of labels.
        VocabularyError: A label name is unknown.
    """
    require_label_maps(cohort)
    if numbers is not None:
        require_numbers_alone(labels, include_anatomy=include_anatomy)
        numbering = number_labels(cohort.vocabulary, numbers, cohort.requested_ids, cohort.name_of)
        if not set(numbering.ids) <= set(cohort.requested_ids):
            _require_present(cohort, set(numbering.ids), count_labels(cohort, notify))
        return numbering
    wanted = set(cohort.resolve_ids(labels) if labels else cohort.requested_ids)
    if include_anatomy or not wanted <= set(cohort.requested_ids):
        present = count_labels(cohort, notify)
        wanted |= set(present) - {BODY_ID} if include_anatomy else set()
        _require_present(cohort, wanted, present)
    if not wanted:
        raise ExportError(
            f"{cohort.folder}: the cohort was made without label requests, so that there is no label to export. Name "
            "one with --labels, or add --include-anatomy."
        )
    ids = tuple(sorted(wanted))
    return LabelNumbering(ids, tuple(map(cohort.name_of, ids)))


def _require_present(cohort: CohortSource, wanted: Set[int], present: Mapping[int, int]) -> None:
    if missing := sorted(wanted - present.keys()):
        raise ExportError(
            f"Labels to export: no case of {cohort.folder} has {', '.join(map(cohort.name_of, missing))}. Leave out "
            "labels that the cohort does not contain."
        )


def require_numbers_alone(labels: Sequence[str], *, include_anatomy: bool = False) -> None:
    """Raise if labels are chosen in addition to ``numbers``, which already choose them.

    Args:
        labels: Names of labels to export; must be empty.
        include_anatomy: Whether to export every other label; must be False.

    Raises:
        RequestError: The message names the surplus argument.
    """
    if labels or include_anatomy:
        idle = "labels" if labels else "include_anatomy"
        raise RequestError(f"{idle}: cannot be used together with numbers, which decide the labels. Leave one out.")


def require_label_maps(cohort: CohortSource) -> None:
    """Raise for a cohort of images without label maps.

    Raises:
        ExportError: No case has a label map.
    """
    if not any("anatomy" in case.files for case in cohort.cases):
        raise ExportError(
            f"{cohort.folder}: the images were drawn without label maps (mask_source none). Make a cohort with "
            "another --mask-source."
        )


def count_labels(cohort: CohortSource, notify: ReportStage = report_nothing) -> Counter[int]:
    """Return vocabulary id -> number of a cohort's cases that contain it, without the background.

    Args:
        cohort: Cohort whose label maps are read.
        notify: Progress callback, called with (stage, maps read, maps in all).

    Raises:
        ExportError: A file is missing or altered.
    """
    counts: Counter[int] = Counter()
    for index, case in enumerate(cohort.cases):
        notify("reading labels", index, len(cohort.cases))
        label_map = load_label_map(cohort.require_file(case, "anatomy")).array
        counts.update(np.flatnonzero(np.bincount(label_map.ravel())).tolist())
    del counts[BACKGROUND_ID]
    return counts
