from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.evaluation.benchmark import nnunet as benchmark_nnunet
from maisi_aug.evaluation.benchmark.arm_job import ArmJob
from maisi_aug.evaluation.benchmark.nnunet import DATASET, READY_NAME
from maisi_aug.evaluation.benchmark.plan import CaseRef
from maisi_aug.evaluation.benchmark.run import Benchmark, open_benchmark, run_arm
from maisi_aug.volumes.image_files import load_label_map, save_label_map
from tests.builders.tiny_benchmark import build_config


def hide_lesions(config_real: str) -> None:
    """Make every tumor a part of its liver."""
    for label in sorted((Path(config_real) / "labelsTr").iterdir()):
        label_map = load_label_map(label)
        save_label_map(label, np.minimum(label_map.array, 1), label_map.grid)


@pytest.fixture
def without_nnunet(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Leave nnU-Net's planning and training out, which take minutes; returns what it was asked to prepare."""
    asked: list[Mapping[str, Any]] = []

    def prepare(
        folder: Path, dataset: str, description: Mapping[str, Any], *, folds: Sequence[Sequence[str]], **_: Any
    ) -> str:
        asked.append({"cases": sorted(description["dataset"]), "folds": folds})
        return "plans"

    def predict(job: ArmJob, model: Path) -> None:
        for ref in job.test_refs:
            case, _ = job.find_case(ref)
            given = load_label_map(case.label)
            save_label_map(job.predictions / f"{case.case_id}.nii.gz", given.array.astype(np.uint8), given.grid)

    monkeypatch.setattr(benchmark_nnunet, "prepare_nnunet_folds", prepare)
    monkeypatch.setattr(benchmark_nnunet, "train_nnunet_fold", lambda *_, **__: Path("model"))
    monkeypatch.setattr(benchmark_nnunet, "_predict", predict)
    return asked


def begin(tmp_path: Path, **changes: Any) -> Benchmark:
    return open_benchmark(tmp_path / "bench", build_config(tmp_path, engine="nnunet", **changes))


@pytest.mark.parametrize("order", [("real", "copy-paste:1"), ("copy-paste:1", "real")])
def test_arm_without_its_cases_fails_alone(
    tmp_path: Path, without_nnunet: list[Mapping[str, Any]], order: tuple[str, str]
) -> None:
    benchmark = begin(tmp_path, arms=("real", "copy-paste:1"))
    hide_lesions(benchmark.plan.config.real)
    states = {arm: run_arm(benchmark, arm, 0, device="cpu") for arm in order}
    assert (states["real"].status, states["real"].reason) == ("done", "")
    assert states["copy-paste:1"].status == "failed"
    assert (
        "Arm 'copy-paste:1': 2 of its training cases could not be prepared; the first," in states["copy-paste:1"].reason
    )
    assert "Copy-paste: no other training case has a lesion" in states["copy-paste:1"].reason
    assert len(without_nnunet) == 1
    assert len(without_nnunet[0]["cases"]) == 2


def test_synthetic_case_that_is_gone_fails_its_arms_alone(
    tmp_path: Path, without_nnunet: list[Mapping[str, Any]]
) -> None:
    benchmark = begin(tmp_path, arms=("real", "real+synthetic:1", "real-duplicated"))
    gone = benchmark.plan.find_case(next(ref for ref in benchmark.plan.arms["real+synthetic:1"] if ref[0] != "real"))
    gone.image.unlink()
    found = [run_arm(benchmark, state.arm, 0, device="cpu").status for state in benchmark.states]
    assert found == ["done", "failed", "done"]
    assert f"synthetic__{gone.case_id}" not in without_nnunet[0]["cases"]
    assert [len(fold) for fold in without_nnunet[0]["folds"]] == [2, 3, 4]


def test_case_that_is_planned_on_is_needed_by_every_arm(
    tmp_path: Path, without_nnunet: list[Mapping[str, Any]]
) -> None:
    benchmark = begin(tmp_path)
    ref: CaseRef = ("real", benchmark.plan.split.train[0])
    benchmark.plan.find_case(ref).image.unlink()
    assert [run_arm(benchmark, state.arm, 0, device="cpu").status for state in benchmark.states] == ["failed"] * 2
    assert not (benchmark.folder / "nnunet" / READY_NAME).exists()
    assert without_nnunet == []


@pytest.mark.slow
def test_nnunet_trains_the_arms_that_have_their_cases(tmp_path: Path) -> None:
    benchmark = begin(tmp_path, arms=("real", "copy-paste:1"))
    hide_lesions(benchmark.plan.config.real)
    assert [run_arm(benchmark, state.arm, 0, device="cpu").status for state in benchmark.states] == ["done", "failed"]
    splits = json.loads((benchmark.folder / f"nnunet/preprocessed/{DATASET}/splits_final.json").read_text())
    assert [len(split["train"]) for split in splits] == [2, 2]
