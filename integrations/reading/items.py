"""One image with its label map as the items of MONAI and TorchIO.

Both get axes ``C I J K`` in RAS+ and the affine, so that their own transforms that need millimetres are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import MissingExtraError
from maisi_aug.volumes.grid import Grid

Item = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Pair:
    """An image and its label map in memory.

    Attributes:
        image_hu: ``(I, J, K)`` in HU.
        label_map: ``(I, J, K)`` in the numbers that the training wants.
        grid: Of both.
        metadata: Where the case comes from; plain values.
    """

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    grid: Grid
    metadata: Mapping[str, Any] = field(default_factory=dict)


def to_monai_item(pair: Pair) -> Item:
    """``image`` and ``label`` as MetaTensors ``(1, I, J, K)``, float32 HU and uint8, beside the metadata."""
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
    """A TorchIO ``Subject`` with ``image``, ``label`` and the metadata, for TorchIO 0.20 to 2.

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
        """Version 1 takes a tensor by keyword, version 2 as the first argument."""
        return kind(tensor, affine=affine) if is_second else kind(tensor=tensor, affine=affine)

    images = {"image": build(torchio.ScalarImage, image), "label": build(torchio.LabelMap, label)}
    return torchio.Subject(**images, **dict(pair.metadata))


def import_torchio() -> Any:
    """The module ``torchio``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import torchio
    except ImportError as error:
        raise MissingExtraError(
            "TorchIO subjects: expected the package of the extra 'torchio', found none. Install it with: pip install "
            "'maisi-aug[torchio]'."
        ) from error
    return torchio
