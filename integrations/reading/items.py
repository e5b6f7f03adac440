"""Images with their label maps as the items of MONAI and TorchIO: one, or all cases of a finished cohort.

Both get axes ``C I J K`` in RAS+ and the affine, so that their own transforms that need millimetres are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.errors import MissingExtraError
from maisi_aug.integrations.reading.cohort_source import CohortSource, load_cohort_source
from maisi_aug.integrations.reading.export_labels import LabelNumbering, choose_labels
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map

Item = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Pair:
    """Image and label map of a case in memory, for training.

    Attributes:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` label map with the label numbers of the training.
        grid: Grid of image and label map.
        metadata: Origin of the case, as JSON values.
    """

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    grid: Grid
    metadata: Mapping[str, Any] = field(default_factory=dict)


def to_monai_item(pair: Pair) -> Item:
    """Convert a case to a MONAI item: ``image`` (float32 HU) and ``label`` (uint8) as MetaTensors ``(1, I, J, K)``.

    The metadata are further entries of the item.
    """
    import torch
    from monai.data import MetaTensor

    affine = torch.from_numpy(pair.grid.affine.copy())
    item: Item = dict(pair.metadata)
    for name, array in (("image", pair.image_hu.astype(np.float32)), ("label", pair.label_map)):
        tensor = torch.from_numpy(np.ascontiguousarray(array[None]))
        meta = {"original_affine": affine.clone(), "spatial_shape": np.asarray(pair.grid.shape), "space": "RAS"}
        item[name] = MetaTensor(tensor, affine=affine.clone(), meta=meta)
    return item


def to_subject(pair: Pair) -> Any:
    """Convert a case to a TorchIO ``Subject`` with ``image``, ``label`` and the metadata, for TorchIO 0.20 to 2.

    Raises:
        MissingExtraError: TorchIO is not installed.
    """
    import torch

    torchio = import_torchio()
    affine = pair.grid.affine.copy()
    image = torch.from_numpy(np.ascontiguousarray(pair.image_hu[None]).astype(np.float32))
    label = torch.from_numpy(np.ascontiguousarray(pair.label_map[None]).copy())
    is_second = int(torchio.__version__.partition(".")[0]) >= 2

    def build(kind: Any, tensor: Any) -> Any:
        """Return an image from a tensor; TorchIO 1 takes it by keyword, TorchIO 2 as the first argument."""
        return kind(tensor, affine=affine) if is_second else kind(tensor=tensor, affine=affine)

    images = {"image": build(torchio.ScalarImage, image), "label": build(torchio.LabelMap, label)}
    return torchio.Subject(**images, **dict(pair.metadata))


def import_torchio() -> Any:
    """Import and return the module ``torchio``.

    Raises:
        MissingExtraError: TorchIO is not installed.
    """
    try:
        import torchio
    except ImportError as error:
        raise MissingExtraError(
            "TorchIO subjects: the package of the extra 'torchio' is missing. Install it with: pip install "
            "'maisi-aug[torchio]'."
        ) from error
    return torchio


@dataclass(frozen=True)
class CohortPairs:
    """Cases of a finished cohort, read on request by index.

    Attributes:
        cohort: Cohort with its accepted cases.
        numbering: Numbers of the labels.
    """

    cohort: CohortSource
    numbering: LabelNumbering

    def __len__(self) -> int:
        return len(self.cohort.cases)

    def load(self, index: int) -> Pair:
        """Read a case, after comparing its bytes with the manifest.

        Args:
            index: Position of the case among the accepted ones, from 0.

        Raises:
            ExportError: A file is missing or altered.
        """
        return load_pair(self.cohort, self.cohort.cases[index], self.numbering)


def load_pair(cohort: CohortSource, case: AttemptRecord, numbering: LabelNumbering) -> Pair:
    """Read image and label map of a case of a cohort, with labels renumbered.

    Args:
        cohort: Cohort of the case.
        case: Accepted case with a label map.
        numbering: Numbers of the labels; all others become background.

    Returns:
        ``image_hu`` (``(I, J, K)`` int16), ``label_map`` (``(I, J, K)`` uint8 numbers), ``grid`` and ``metadata``
        (``case_id``, ``request``, ``seed``).

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
    """Open a finished cohort as cases that are read on request.

    Args:
        folder: Folder of the cohort.
        labels: Names or ids of labels, numbered 1, 2, ... in the order of ids; if empty, those requested for the
            cohort.
        include_anatomy: Also include every other label in the maps, except the body.
        numbers: Label name -> number instead, such as a real dataset's; 0 for background.

    Raises:
        CohortError: The folder is not a cohort.
        ExportError: The cohort is unfinished, or a label occurs nowhere.
        RequestError: ``numbers`` lack a label requested for the cohort, or are otherwise invalid.
        VocabularyError: A label name is unknown.
    """
    cohort = load_cohort_source(Path(folder))
    return CohortPairs(cohort, choose_labels(cohort, labels, include_anatomy=include_anatomy, numbers=numbers))
