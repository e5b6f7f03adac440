"""Chest CTs with nodules as a raw dataset of nnU-Net, for ``nnunet_run``.

    python -m tests.benchmarks.nnunet_chests chest-ct --out real
    maisi-aug insert --into background --labels "lung nodule:8-20mm" -n 2 --painter procedural --out cohort
    python -m tests.benchmarks.nnunet_run --out run --like real/Dataset211_Chests --name chests --cohort cohort \\
        --map "nodule=lung tumor" --insert "nodule=lung nodule:6-20mm@0.5"

Every ``NAME_ct.nii.gz`` with a ``NAME_seg.nii.gz`` becomes a case, in which 1 is a nodule or tumour of the lung. CTs
without labels are backgrounds for the cohort. Images are linked, label maps written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi_aug.volumes.image_files import load_label_map
from tests.benchmarks.nnunet_raw import add_case, describe_dataset


def write_chest_dataset(source: Path, out: Path) -> Path:
    """Write the dataset.

    Args:
        source: Folder with the chest CTs and their label maps.
        out: Where the dataset's folder goes.

    Returns:
        The dataset's folder.
    """
    folder = out / "Dataset211_Chests"
    paths = sorted(source.glob("*_seg.nii.gz"))
    for path in paths:
        name = path.name.removesuffix("_seg.nii.gz")
        labels = load_label_map(path)
        nodule = (labels.array == 1).astype(np.uint8)
        add_case(folder, "Tr", name, path.with_name(f"{name}_ct.nii.gz"), nodule, labels.grid)
    describe_dataset(folder, ["nodule"], num_training=len(paths), licence="CC BY 3.0, LIDC-IDRI and 4D-Lung")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run this module's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    print(write_chest_dataset(given.source, given.out))


if __name__ == "__main__":
    main()
