"""The cases of a finished cohort, one after the other, as pairs in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohort_source
from maisi_aug.integrations.reading.export_labels import LabelNumbering, choose_labels
from maisi_aug.integrations.reading.items import Pair
from maisi_aug.volumes.image_files import load_image, load_label_map


@dataclass(frozen=True)
class CohortPairs:
    """Reads a case when it is asked for.

    Attributes:
        cohort: The cohort.
        numbering: What its labels become.
    """

    cohort: CohortSource
    numbering: LabelNumbering

    def __len__(self) -> int:
        return len(self.cohort.cases)

    def load(self, index: int) -> Pair:
        """Read a case, its bytes compared with the manifest.

        Raises:
            ExportError: A file is missing or altered.
        """
        return load_pair(self.cohort, self.cohort.cases[index], self.numbering)


def load_pair(cohort: CohortSource, case: AttemptRecord, numbering: LabelNumbering) -> Pair:
    """Read the files of a case.

    Raises:
        ExportError: A file is missing or altered.
    """
    image = load_image(cohort.require_file(case, "image"))
    anatomy = load_label_map(cohort.require_file(case, "anatomy"))
    metadata = {"case_id": case.case_id, "request": case.request, "seed": case.seed}
    return Pair(image.array, numbering.apply(anatomy.array), image.grid, metadata)


def open_pairs(
    folder: Path | str,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> CohortPairs:
    """Open a finished cohort.

    Args:
        folder: Folder that ``synthesize`` wrote.
        labels: Names or ids, numbered 1, 2, ... in the order of their ids; those that the cohort was asked for when
            empty.
        include_anatomy: Every label in the maps as well, except the body envelope.
        numbers: Label name -> number instead, such as a real dataset's; 0 for background.

    Raises:
        CohortError: It is no cohort.
        ExportError: It is unfinished, or a label occurs nowhere.
        RequestError: ``numbers`` lack a label that the cohort was asked for, or do not fit otherwise.
        VocabularyError: An unknown label name.
    """
    cohort = load_cohort_source(Path(folder))
    return CohortPairs(cohort, choose_labels(cohort, labels, include_anatomy=include_anatomy, numbers=numbers))
