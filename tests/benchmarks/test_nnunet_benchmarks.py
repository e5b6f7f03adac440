from __future__ import annotations

import json
from pathlib import Path

import pytest

from maisi_aug.integrations.nnunet.real import load_real_dataset
from tests.benchmarks import nnunet_export
from tests.benchmarks.nnunet_chests import write_chest_dataset
from tests.benchmarks.nnunet_openkbp import write_openkbp_dataset


@pytest.mark.slow
def test_export_is_measured_and_copies_no_image(tmp_path: Path) -> None:
    nnunet_export.main(["--out", str(tmp_path), "--cases", "6", "--side", "16"])
    results = json.loads((tmp_path / "results_nnunet_export.json").read_text())
    assert (results["num_synthetic"], results["num_real"]) == (6, 20)
    assert results["dataset_image_bytes"] == 0 < results["cohort_image_bytes"]
    assert results["seconds"]["total"] == pytest.approx(sum(results["seconds"].values()) / 2, abs=0.1)


@pytest.mark.slow
def test_openkbp_becomes_a_dataset_of_nnunet(real_data: Path, tmp_path: Path) -> None:
    folder = write_openkbp_dataset(real_data / "openkbp", tmp_path, 1, ["pt_101", "pt_100", "pt_12"])
    dataset = load_real_dataset(folder)
    assert [target.name for target in dataset.targets] == ["left parotid", "right parotid", "mandible"]
    assert dataset.orientations == {"LPS": 1}
    assert [case.case_id for case in dataset.cases] == ["pt_105"]
    assert sorted(path.name for path in (folder / "labelsTs").iterdir()) == ["pt_100.nii.gz", "pt_101.nii.gz"]


@pytest.mark.slow
def test_chests_become_a_dataset_of_nnunet(real_data: Path, tmp_path: Path) -> None:
    dataset = load_real_dataset(write_chest_dataset(real_data / "chest-ct", tmp_path))
    assert [target.name for target in dataset.targets] == ["nodule"]
    names = sorted(path.name.removesuffix("_seg.nii.gz") for path in (real_data / "chest-ct").glob("*_seg.nii.gz"))
    assert sorted(case.case_id for case in dataset.cases) == names
    assert len(names) >= 4
