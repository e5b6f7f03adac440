"""OpenKBP's head-and-neck CTs as a raw dataset of nnU-Net, for ``nnunet_run``.

    python -m tests.benchmarks.nnunet_openkbp ../shared/data/openkbp --out real --cases 6
    python -m tests.benchmarks.nnunet_run --out run --like real/Dataset210_OpenKBP --name openkbp --cohort cohort \\
        --label "hepatic tumor=background"

Spinal cord and oesophagus are the two structures that MAISI's vocabulary names too. Images are linked, label maps
written; two further patients become test cases.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi_aug.orientation import axis_codes, turn_volume
from maisi_aug.volume_io import load_label_map, load_stored_grid, save_label_map

NUM_TEST_CASES = 2
LABELS = {"SpinalCord": "spinal cord", "Esophagus": "esophagus"}


def write_openkbp_dataset(source: Path, out: Path, num_cases: int) -> Path:
    """Write the dataset; label maps keep the voxel axes of their images."""
    given = {name: int(value) for value, name in json.loads((source / "labels.json").read_text())["oar"].items()}
    folder = out / "Dataset210_OpenKBP"
    patients = [path.name.removesuffix("_ct.nii.gz") for path in sorted(source.glob("*_ct.nii.gz"))]
    for number, patient in enumerate(patients[: num_cases + NUM_TEST_CASES]):
        part = "Tr" if number < num_cases else "Ts"
        image = (source / f"{patient}_ct.nii.gz").resolve()
        place = folder / f"images{part}" / f"{patient}_0000.nii.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(image)
        organs = load_label_map(source / f"{patient}_oar.nii.gz")
        values = np.select([organs.array == given[name] for name in LABELS], [1, 2], 0).astype(np.uint8)
        turned = turn_volume(values, organs.grid, axis_codes(load_stored_grid(image).affine))
        save_label_map(folder / f"labels{part}" / f"{patient}.nii.gz", *turned)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: value for value, name in enumerate(LABELS.values(), start=1)}},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
        "licence": "MIT, ababier/open-kbp",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=6)
    given = parser.parse_args(arguments)
    print(write_openkbp_dataset(given.source, given.out, given.cases))


if __name__ == "__main__":
    main()
