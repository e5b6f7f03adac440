"""A finished cohort as a MONAI dataset.

from maisi_aug.integrations.monai import CohortDataset
dataset = CohortDataset("cohort", transform=my_dict_transforms)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset
from monai.transforms import apply_transform

from maisi_aug.integrations.reading.cohort_pairs import open_pairs
from maisi_aug.integrations.reading.items import Item, to_monai_item


class CohortDataset(Dataset):  # type: ignore[misc]  # MONAI has no types here
    """Items ``{"image", "label", "case_id", "request", "seed"}``; images are MetaTensors with their affine.

    Label numbers are ``dataset.numbering.to_dict()``. Dictionary transforms of MONAI start from the loaded tensors:
    leave ``LoadImaged`` and ``EnsureChannelFirstd`` out.
    """

    def __init__(
        self,
        folder: Path | str,
        transform: Callable[[Item], Any] | None = None,
        *,
        labels: Sequence[str] = (),
        include_anatomy: bool = False,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        """Open the cohort.

        Args:
            folder: Folder that ``synthesize`` wrote.
            transform: Applied to every item.
            labels: Names or ids to keep; those that the cohort was asked for when empty.
            include_anatomy: Every label in the maps as well, except the body envelope.
            numbers: Label name -> number instead, such as a real dataset's; 0 for background.

        Raises:
            CohortError: It is no cohort.
            ExportError: It is unfinished, or a label occurs nowhere.
            RequestError: ``numbers`` lack a label that the cohort was asked for, or do not fit otherwise.
            VocabularyError: An unknown label name.
        """
        self._pairs = open_pairs(folder, labels, include_anatomy=include_anatomy, numbers=numbers)
        self.numbering = self._pairs.numbering
        super().__init__([{"case_id": case.case_id} for case in self._pairs.cohort.cases], transform)

    def _transform(self, index: int) -> Any:
        item = to_monai_item(self._pairs.load(index))
        return item if self.transform is None else apply_transform(self.transform, item)
