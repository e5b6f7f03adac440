from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.volumes.image_files import save_label_map
from tests.builders.made_cases import GRID, HEPATIC_TUMOR, LIVER, build_case, write_cohort, write_folder

RunCli = Callable[..., Any]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort", [1, 2, 3])


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fid_prints_and_saves_its_figures(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    real, out = write_folder(tmp_path / "real", [7, 8], labelled=False), tmp_path / "out"
    words = ["evaluate", "fid", real, cohort, "--shape", "40x36", "--every", "9", "--device", "cpu"]
    assert run_cli(*words).code == 2  # a shape of two sides
    words[5] = "40x36x34"
    outcome = run_cli(*words, "--out", out, "--json")
    assert outcome.code == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    assert document["protocol"] == {
        "spacing_mm": None,
        "shape": [40, 36, 34],
        "centre_share": 1.0,
        "every": 9,
        "resampling": "centred",
    }
    assert document == json.loads((out / "fid.json").read_text())
    assert files_of(out) == ["fid.json", "fid.md", "fid.svg"]
    assert "![fid](fid.svg)" in (out / "fid.md").read_text()
    again = run_cli(*words, "--out", out)
    assert again.code == 0  # an earlier result is replaced
    assert "# 2.5D FID: 3 synthetic against 2 real cases" in again.stdout


def test_fid_under_torchrun_is_told_of_devices(run_cli: RunCli, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    outcome = run_cli("evaluate", "fid", cohort, cohort)
    assert outcome.code == 2
    assert "evaluate fid: expected one process, found 4 of torchrun. Name the GPUs instead: --devices" in outcome.stderr


@pytest.mark.slow
def test_workers_find_the_same_figures(run_cli: RunCli, bundle_path: Path, tmp_path: Path) -> None:
    sets = [write_folder(tmp_path / name, seeds) for name, seeds in (("a", range(10)), ("b", range(20, 30)))]
    few = write_folder(tmp_path / "few", range(3))
    one, two = ["--workers", "1"], ["--workers", "2"]
    for words, *ways in (
        (["distribution", *sets], one, two),
        (["equivalence", *sets], one, two),
        (["memorization", sets[0], "--train", sets[1]], one, two),
        (["reconstruction", few, "--bundle", bundle_path], ["--device", "cpu"], ["--devices", "cpu,cpu"]),
    ):
        alone, shared = (run_cli("evaluate", *words, *more, "--json") for more in ways)
        assert (alone.code, shared.code) == (0, 0), shared.stderr
        first, second = ({**json.loads(found.stdout), "peak_memory_gb": None} for found in (alone, shared))
        assert first == second


def test_hu_of_reference_cases_can_be_used_again(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    real, out = write_folder(tmp_path / "real", [4, 5, 6]), tmp_path / "out"
    first = run_cli("evaluate", "hu", cohort, "--reference", real, "--out", out, "--json")
    assert first.code == 0, first.stderr
    assert files_of(out) == ["hu.json", "hu.md", "hu.svg", "hu_ranges.json"]
    second = run_cli("evaluate", "hu", cohort, "--ranges", out / "hu_ranges.json", "--json")
    assert json.loads(first.stdout)["labels"] == json.loads(second.stdout)["labels"]
    published = run_cli("evaluate", "hu", cohort)
    assert "MAISI's published ranges" in published.stdout
    both = run_cli("evaluate", "hu", cohort, "--reference", real, "--ranges", out / "hu_ranges.json")
    assert (both.code, "--reference and --ranges cannot be used together" in both.stderr) == (2, True)


def test_lesions_are_measured_and_drawn(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    outcome = run_cli("evaluate", "lesions", cohort, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert "## Calibration of the diameter" in outcome.stdout
    assert files_of(tmp_path / "out") == [
        "lesion_sizes.svg",
        "lesion_visibility.svg",
        "lesions.json",
        "lesions.md",
    ]


def test_agreement_of_ready_predictions(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    values = np.zeros(256, dtype=np.uint8)
    values[[LIVER, HEPATIC_TUMOR]] = 1, 2
    for seed in (1, 2):
        save_label_map(predictions / f"case_000{seed}.nii.gz", values[build_case(seed)[1]], GRID)
    names = {"background": 0, "liver": 1, "lesion": 2}
    (predictions / "dataset.json").write_text(json.dumps({"labels": names}))
    words = ["evaluate", "agreement", cohort, "--predictions", predictions, "--map", "lesion=hepatic tumor"]
    outcome = run_cli(*words, "--out", tmp_path / "out", "--json")
    document = json.loads(outcome.stdout)
    assert [row["mean"] for row in document["labels"]] == [1.0, 1.0]
    assert [case["case"] for case in document["skipped"]] == ["case_0003"]
    assert outcome.code == 1  # a case without a prediction is not passed over
    assert files_of(tmp_path / "out") == ["agreement.json", "agreement.md", "agreement.svg"]
    neither = run_cli("evaluate", "agreement", cohort)
    assert (neither.code, "Either --model or --predictions is required, but not both" in neither.stderr) == (2, True)


def test_agreement_needs_a_trained_model(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    outcome = run_cli("evaluate", "agreement", cohort, "--model", tmp_path, "--device", "cpu")
    assert (outcome.code, "expected one trained nnU-Net model" in outcome.stderr) == (1, True)
    folds = run_cli("evaluate", "agreement", cohort, "--model", tmp_path, "--folds", "0;1", "--device", "cpu")
    assert (folds.code, "--folds: expected numbers such as 0,1,2" in folds.stderr) == (2, True)


def test_memorization_shows_the_nearest_pairs(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    train, held_out = (write_folder(tmp_path / name, seeds) for name, seeds in (("train", [1, 11, 12]), ("test", [13])))
    words = ["evaluate", "memorization", cohort, "--train", train, "--held-out", held_out, "--out", tmp_path / "out"]
    outcome = run_cli(*words)
    assert outcome.code == 0, outcome.stderr
    assert "## Images: 1 of 3 repeat a training case" in outcome.stdout
    assert files_of(tmp_path / "out") == [
        "closest_pairs.png",
        "memorization.json",
        "memorization.md",
        "memorization.svg",
    ]
    assert "![closest pairs](closest_pairs.png)" in (tmp_path / "out" / "memorization.md").read_text()


def test_volumes_without_a_label_map_are_measured_and_empty_files_named(run_cli: RunCli, tmp_path: Path) -> None:
    sets = [write_folder(tmp_path / name, seeds) for name, seeds in (("a", range(4)), ("b", range(10, 14)))]
    for folder, first in zip(sets, (0, 10), strict=True):
        (folder / "labels" / f"real_{first + 1:02d}.nii.gz").unlink()
        (folder / "images" / f"real_{first + 2:02d}.nii.gz").write_bytes(b"")
    outcome = run_cli("evaluate", "memorization", sets[0], "--train", sets[1], "--json")
    document = json.loads(outcome.stdout)
    assert (document["num_cases"], document["train"]["num_cases"], outcome.code) == (3, 3, 1)
    assert [case["case"] for case in document["skipped"]] == ["labels/real_02.nii.gz"]
    assert [case["case"] for case in document["train"]["skipped"]] == ["labels/real_12.nii.gz"]
    outcome = run_cli("evaluate", "fid", *sets, "--no-cache", "--device", "cpu", "--json")
    document = json.loads(outcome.stdout)
    assert [document[side]["num_cases"] for side in ("real", "synthetic")] == [3, 3]
    assert "1 real cases could not be read and are left out: labels/real_02.nii.gz." in document["notes"]


def test_foreign_files_are_not_replaced(run_cli: RunCli, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "lesions.json").write_text("[1, 2]")
    outcome = run_cli("evaluate", "lesions", cohort, "--out", tmp_path)
    assert (outcome.code, "already exists and is not an earlier result of this measurement" in outcome.stderr) == (
        1,
        True,
    )
    assert (tmp_path / "lesions.json").read_text() == "[1, 2]"
    outcome = run_cli("evaluate", "lesions", cohort, "--out", tmp_path / "lesions.json")
    assert (outcome.code, "this is a file, not a folder" in outcome.stderr) == (1, True)


@pytest.mark.parametrize("name", ["fid", "hu", "lesions", "agreement", "memorization"])
def test_help_teaches_with_an_example(run_cli: RunCli, name: str) -> None:
    outcome = run_cli("evaluate", name, "--help")
    assert outcome.code == 0
    assert f"maisi-aug evaluate {name}" in " ".join(outcome.stdout.split())
