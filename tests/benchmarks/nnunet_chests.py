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
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi_aug.volumes.image_files import load_label_map, load_stored_grid, save_label_map
from maisi_aug.volumes.orientation import axis_codes, turn_volume


def write_chest_dataset(source: Path, out: Path) -> Path:
    """Write the dataset; label maps keep the voxel axes of their images.

    Args:
        source: Folder with the chest CTs and their label maps.
        out: Where the dataset's folder goes.
    """
    folder = out / "Dataset211_Chests"
    paths = sorted(source.glob("*_seg.nii.gz"))
    for path in paths:
        name = path.name.removesuffix("_seg.nii.gz")
        image = path.with_name(f"{name}_ct.nii.gz").resolve()
        place = folder / "imagesTr" / f"{name}_0000.nii.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(image)
        labels = load_label_map(path)
        nodule = (labels.array == 1).astype(np.uint8)
        turned = turn_volume(nodule, labels.grid, axis_codes(load_stored_grid(image).affine))
        save_label_map(folder / "labelsTr" / f"{name}.nii.gz", *turned)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "nodule": 1},
        "numTraining": len(paths),
        "file_ending": ".nii.gz",
        "licence": "CC BY 3.0, LIDC-IDRI and 4D-Lung",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
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
