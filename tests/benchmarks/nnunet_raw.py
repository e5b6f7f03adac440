"""A raw dataset of nnU-Net from public CTs: images are linked, label maps written on their voxel axes.

The datasets of ``nnunet_chests`` and ``nnunet_openkbp`` are made with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_stored_grid, save_label_map
from maisi_aug.volumes.orientation import axis_codes, turn_volume

Part = Literal["Tr", "Ts"]


def add_case(folder: Path, part: Part, name: str, image: Path, label_map: NDArray[np.uint8], grid: Grid) -> None:
    """Add a case to a dataset; its label map gets the voxel axes of the image, which it may not have been read with.

    Args:
        folder: Folder of the dataset, made if it is missing.
        part: ``Tr`` for training, ``Ts`` for test.
        name: Name of the case.
        image: CT, which is linked.
        label_map: ``(I, J, K)`` classes, 0 for the background.
        grid: Grid of the label map.
    """
    link = folder / f"images{part}" / f"{name}_0000.nii.gz"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(image.resolve())
    turned = turn_volume(label_map, grid, axis_codes(load_stored_grid(image).affine))
    save_label_map(folder / f"labels{part}" / f"{name}.nii.gz", *turned)


def describe_dataset(folder: Path, labels: Sequence[str], *, num_training: int, licence: str) -> None:
    """Write the ``dataset.json`` of CTs.

    Args:
        folder: Folder of the dataset.
        labels: Names of the classes from 1.
        num_training: Training cases.
        licence: Licence and source of the images.
    """
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: value for value, name in enumerate(labels, start=1)}},
        "numTraining": num_training,
        "file_ending": ".nii.gz",
        "licence": licence,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
