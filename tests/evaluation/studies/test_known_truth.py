from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.evaluation.benchmark.cases import find_real_cases
from maisi_aug.evaluation.studies import known_truth
from maisi_aug.evaluation.studies.known_truth import (
    DUPLICATED,
    FURTHER,
    LABELS,
    MIXED,
    SHIFT_VOXELS,
    SHIFTED,
    judge,
    write_real_cases,
    write_shifted,
)
from maisi_aug.generate.phantoms import PhantomSettings
from maisi_aug.volumes.image_files import load_image, load_label_map
from tests.builders.tiny_benchmark import build_config
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort


def row(arm: str, label: str, verdict: str, *, is_loss: bool = False, **changes: str) -> dict[str, Any]:
    found = {"arm": arm, "label": label, "baseline": "real", "metric": "dice", "verdict": verdict, "is_loss": is_loss}
    return {**found, **changes}


RIGHT = [
    row(f"{MIXED}:4", "tumor", "gain"),
    row(f"{FURTHER}:4", "tumor", "gain"),
    row(f"{FURTHER}:4", "liver", "undecided"),
    row(f"{SHIFTED}:4", "tumor", "no gain", is_loss=True),
    row(DUPLICATED, "tumor", "no gain"),
]


def test_right_verdicts_are_told_from_wrong_ones() -> None:
    assert all(met for _, _, met in judge({"comparisons": RIGHT}))
    for number, wrong in (
        (0, row(f"{MIXED}:4", "tumor", "no gain")),
        (0, row(f"{MIXED}:4", "liver", "gain")),
        (1, row(f"{FURTHER}:4", "tumor", "undecided")),
        (2, row(f"{FURTHER}:4", "liver", "no gain", is_loss=True)),
        (3, row(f"{SHIFTED}:4", "tumor", "gain")),
        (4, row(DUPLICATED, "liver", "gain")),
    ):
        rows = [wrong if place == number else found for place, found in enumerate(RIGHT)]
        assert [met for _, _, met in judge({"comparisons": rows})].count(False) == 1


def test_other_metrics_and_baselines_do_not_count() -> None:
    others = [row(DUPLICATED, "tumor", "gain", metric="nsd"), row(DUPLICATED, "liver", "gain", baseline="copy-paste")]
    assert judge({"comparisons": [*RIGHT, *others]}) == judge({"comparisons": RIGHT})


def test_nothing_finished_meets_nothing() -> None:
    assert not any(met for _, _, met in judge({"comparisons": []}))


def test_shifted_cases_keep_their_images_and_move_their_labels(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    for _ in range(2):  # the second time nothing is left to do
        assert write_shifted(cohort, tmp_path / "shifted") == 2
    for name in ("case_0001.nii.gz", "case_0002.nii.gz"):
        image, before = (load_image(folder / "images" / name).array for folder in (tmp_path / "shifted", cohort))
        np.testing.assert_array_equal(image, before)
        moved = load_label_map(tmp_path / "shifted" / "labels" / name)
        anatomy = load_label_map(cohort / "anatomy" / name)
        np.testing.assert_array_equal(moved.array, np.roll(anatomy.array, SHIFT_VOXELS, axis=(0, 1, 2)))
        assert moved.grid.is_close(anatomy.grid)


def test_patients_to_train_on_are_healthy_and_those_to_test_on_are_named(tmp_path: Path) -> None:
    settings = PhantomSettings(seed=3, region="abdomen", shape=(32, 24, 16), spacing_mm=(12.0, 13.0, 16.0))
    healthy = replace(settings, seed=4, has_lesions=False)
    for _ in range(2):  # the second time nothing is left to do
        tested = write_real_cases(tmp_path, healthy, 1, settings, 2)
    assert tested == ("test_phantom_0001", "test_phantom_0002")
    source = find_real_cases(tmp_path / "real", LABELS)
    assert [case.case_id for case in source.cases] == [*tested, "train_phantom_0001"]
    assert not np.isin(load_label_map(source.cases[-1].label).array, LABELS["tumor"]).any()


def test_report_says_which_expectations_were_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tiny cases in place of phantoms and cohort; after two steps nothing can have been shown."""
    config = build_config(tmp_path, arms=("real", "real+synthetic:1", "real-duplicated"))
    monkeypatch.setattr(known_truth, "build_known_truth", lambda folder, **options: config)
    assert known_truth.main(["--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr()
    assert "## Known truth" in printed.out
    assert "real-duplicated, seed 0: done" in printed.err
    document = json.loads((tmp_path / "run/report/known_truth.json").read_text())
    assert [arm for arm, _, _ in document["expectations"]] == [MIXED, FURTHER, FURTHER, SHIFTED, DUPLICATED]
    assert (tmp_path / "run/report/known_truth.md").read_text() in printed.out
