"""Measurements and benchmarks from Python: the same as the commands', in objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maisi_aug as ma
from maisi_aug.errors import RecipeError, RequestError
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.made_cases import GRID, HEPATIC_TUMOR, LIVER, build_case, write_cohort, write_folder
from tests.builders.tiny_benchmark import write_dataset, write_pairs


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("measured") / "cohort", [1, 2, 3])


def test_measurement_is_saved_later_as_at_once(cohort: Path, tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", [4, 5, 6])
    at_once = ma.evaluate.hu(cohort, reference=real, out=tmp_path / "at_once", progress=False)
    later = ma.evaluate.hu(str(cohort), reference=str(real), progress=False)
    assert (later.files, later.figures) == ((), at_once.figures)
    names = [path.name for path in later.save(tmp_path / "later")]
    assert names == [path.name for path in at_once.files]
    assert set(names) == {"hu.json", "hu.md", "hu.svg", "hu_ranges.json"}
    for name in names:
        assert (tmp_path / "at_once" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()
    assert later._repr_markdown_() == later.text


def test_segmenter_is_matched_by_a_mapping(cohort: Path, tmp_path: Path) -> None:
    values = np.zeros(256, dtype=np.uint8)
    values[[LIVER, HEPATIC_TUMOR]] = 1, 2
    for seed in (1, 2):
        save_label_map(tmp_path / f"case_000{seed}.nii.gz", values[build_case(seed)[1]], GRID)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "lesion": 2}}))
    seen: list[tuple[str, int, int]] = []
    measured = ma.evaluate.agreement(
        cohort, predictions=tmp_path, map={"lesion": "hepatic tumor"}, progress=lambda *words: seen.append(words)
    )
    assert [row["mean"] for row in measured.figures["labels"]] == [1.0, 1.0]
    assert measured.num_skipped == 1  # of three cases, two have predictions
    assert seen[-1] == ("cases", 3, 3)


@pytest.mark.parametrize(
    ("function", "fields", "message"),
    [
        (ma.evaluate.hu, {"reference": "a", "ranges": "b"}, "hu: --reference and --ranges"),
        (ma.evaluate.agreement, {}, "agreement: .*--model .* --predictions"),
        (ma.evaluate.agreement, {"model": "m", "folds": "0;1"}, "folds: .*0;1"),
        (ma.evaluate.lesions, {"num_workers": 0}, "lesions: num_workers: .*0"),
    ],
)
def test_options_are_checked_as_on_the_command_line(function: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        function("cohort", **fields)


def test_benchmark_takes_names_and_folders_as_python_has_them(tmp_path: Path) -> None:
    real, made = write_dataset(tmp_path / "Dataset900_Tiny", 5), write_pairs(tmp_path / "made", 2)
    options: dict[str, Any] = {"num_train": 2, "num_steps": 2, "num_seeds": 1, "device": "cpu", "progress": False}
    options |= {"synthetic": made, "labels": "tumor", "mapping": {"tumor": "tumor"}, "arms": ["real", "synthetic-only"]}
    outlook = ma.plan_benchmark(real, **options)
    assert outlook.figures["labels"] == ["tumor"]
    planned = ma.benchmark(real, out=tmp_path / "bench", plan_only=True, **options)
    assert [(state.arm, state.status) for state in planned.states] == [
        ("real", "waiting"),
        ("synthetic-only", "waiting"),
    ]
    assert (len(planned.commands), planned.is_complete) == (2, False)
    told: list[tuple[str, int, int]] = []
    trained = ma.run_arm(tmp_path / "bench", "real", device="cpu", progress=lambda *report: told.append(report))
    assert trained.status == "done"
    assert told == [("real, seed 0", 1, 2), ("real, seed 0", 2, 2)], "one stage is one bar"
    assert ma.benchmark(str(real), out=str(tmp_path / "bench"), **options).is_complete


def test_stage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="vae, diffusion, controlnet, mask-vae, mask-diffusion"):
        ma.train("unet", out=tmp_path)  # type: ignore[arg-type]
