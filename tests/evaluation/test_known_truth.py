from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.evaluation import known_truth
from maisi_aug.evaluation.known_truth import DUPLICATED, MIXED, SHIFT_VOXELS, SHIFTED, judge, write_shifted
from maisi_aug.volume_io import load_image, load_label_map
from tests.tiny_benchmark import build_config
from tests.tiny_cohort import HEPATIC_TUMOR, write_cohort


def row(arm: str, verdict: str, *, is_loss: bool = False, **changes: str) -> dict[str, Any]:
    return {"arm": arm, "baseline": "real", "metric": "dice", "verdict": verdict, "is_loss": is_loss, **changes}


RIGHT = [
    row(f"{MIXED}:4", "gain"),
    row(f"{MIXED}:4", "undecided at this size"),
    row(f"{SHIFTED}:4", "no gain", is_loss=True),
    row(DUPLICATED, "no gain"),
]


def test_right_verdicts_are_told_from_wrong_ones() -> None:
    assert all(met for _, _, met in judge({"comparisons": RIGHT}))
    for number, wrong in (
        (0, row(f"{MIXED}:4", "no gain")),
        (1, row(f"{MIXED}:4", "no gain", is_loss=True)),
        (2, row(f"{SHIFTED}:4", "gain")),
        (3, row(DUPLICATED, "gain")),
    ):
        rows = [wrong if place == number else found for place, found in enumerate(RIGHT)]
        assert [met for _, _, met in judge({"comparisons": rows})].count(False) == 1


def test_other_metrics_and_baselines_do_not_count() -> None:
    others = [row(DUPLICATED, "gain", metric="nsd"), row(DUPLICATED, "gain", baseline="copy-paste")]
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
    assert [arm for arm, _, _ in document["expectations"]] == [MIXED, MIXED, SHIFTED, DUPLICATED]
    assert (tmp_path / "run/report/known_truth.md").read_text() in printed.out
