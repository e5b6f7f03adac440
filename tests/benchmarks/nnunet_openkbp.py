"""OpenKBP's head-and-neck CTs as a raw dataset of nnU-Net, for ``nnunet_run``.

    python -m tests.benchmarks.nnunet_openkbp openkbp --out real --cases 6 --test-list test.txt
    python -m tests.benchmarks.nnunet_run --out run --like real/Dataset210_OpenKBP --name openkbp --cohort cohort

The labels are those that a bundle can be taught and that are large enough for a few hundred steps: parotids and
mandible. Images are linked, label maps written. The first two patients of the list become test cases, none of it is
trained on: give those that the bundle of the cohort has not seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maisi_aug.volumes.image_files import load_label_map
from tests.benchmarks.nnunet_raw import Part, add_case, describe_dataset

NUM_TEST_CASES = 2
LABELS = {"LeftParotid": "left parotid", "RightParotid": "right parotid", "Mandible": "mandible"}


def write_openkbp_dataset(source: Path, out: Path, num_cases: int, held_out: Sequence[str] = ()) -> Path:
    """Write the dataset.

    Args:
        source: Folder of OpenKBP.
        out: Where the dataset's folder goes.
        num_cases: Patients to train on.
        held_out: Patients to test on, the first two of them; none for the two that follow those trained on.
    """
    given = {name: int(value) for value, name in json.loads((source / "labels.json").read_text())["oar"].items()}
    folder = out / "Dataset210_OpenKBP"
    patients = [path.name.removesuffix("_ct.nii.gz") for path in sorted(source.glob("*_ct.nii.gz"))]
    others = [patient for patient in patients if patient not in held_out]
    tested = (held_out or others[num_cases:])[:NUM_TEST_CASES]
    parts: dict[Part, Sequence[str]] = {"Tr": others[:num_cases], "Ts": tested}
    for part, patient in ((part, patient) for part, patients in parts.items() for patient in patients):
        organs = load_label_map(source / f"{patient}_oar.nii.gz")
        masks = [organs.array == given[name] for name in LABELS]
        values = np.select(masks, range(1, len(LABELS) + 1), 0).astype(np.uint8)
        add_case(folder, part, patient, source / f"{patient}_ct.nii.gz", values, organs.grid)
    describe_dataset(folder, list(LABELS.values()), num_training=num_cases, licence="MIT, ababier/open-kbp")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--test-list", type=Path, help="text file with a patient in every line")
    given = parser.parse_args(arguments)
    held_out = given.test_list.read_text(encoding="utf-8").split() if given.test_list else ()
    print(write_openkbp_dataset(given.source, given.out, given.cases, held_out))


if __name__ == "__main__":
    main()
