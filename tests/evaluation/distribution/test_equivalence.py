from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.distribution import equivalence
from maisi_aug.evaluation.distribution.equivalence import (
    QUANTITIES,
    count_verdicts,
    draw_chart,
    measure_equivalence,
    to_report,
)
from maisi_aug.system.progress import report_nothing
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, save_image
from tests.builders.made_cases import GRID, write_cohort, write_folder

RunCli = Callable[..., Any]


def find_row(document: dict[str, Any], label: str, quantity: str) -> dict[str, Any]:
    return next(row for row in document["rows"] if (row["label"], row["quantity"]) == (label, quantity))


def test_cohort_with_brighter_organs_differs_there_and_not_in_size(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", range(1, 13)))
    other = write_folder(tmp_path / "other", range(30, 42))
    for path in (other / "images").iterdir():
        image = load_image(path)
        save_image(path, image.array + 60, image.grid)
    document = measure_equivalence(real, find_case_set(other), spacing_mm=6.0, notify=report_nothing)
    assert {row["label"] for row in document["rows"]} == {"liver", "spleen", "hepatic tumor"}
    assert len(document["rows"]) == 3 * len(QUANTITIES)
    brighter = find_row(document, "liver", "median HU")
    assert brighter["verdict"] == "different"
    assert brighter["difference"] == pytest.approx(60, abs=8)
    assert brighter["wasserstein"] == pytest.approx(60, abs=8)
    assert brighter["wasserstein_floor"] < 10
    assert find_row(document, "liver", "size, log mL")["verdict"] != "different"
    assert sum(count_verdicts(document).values()) == len(document["rows"])
    report = to_report(json.loads(json.dumps(document)))
    assert "## liver, 12 real and 12 synthetic cases" in report
    assert "cannot tell" in report
    assert "liver: median HU" in draw_chart(document)


def test_other_voxels_are_said(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", range(1, 7)))
    fine = Grid.from_spacing(tuple(2 * side for side in GRID.shape), tuple(step / 2 for step in GRID.spacing_mm))  # type: ignore[arg-type]
    other = find_case_set(write_folder(tmp_path / "other", range(30, 36), grid=fine))
    document = measure_equivalence(real, other, spacing_mm=6.0, notify=report_nothing)
    assert any("Voxel sizes differ: 3.00 x 3.00 x 4.00 mm" in note for note in document["notes"])


def test_no_common_label_is_a_sentence(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", [1, 2], labelled=False))
    with pytest.raises(EvaluationError, match="no label occurs in at least 6 cases of each"):
        measure_equivalence(real, real, spacing_mm=6.0, notify=report_nothing)


def test_few_cases_of_many_labels_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "MAX_NAMED", 1)
    real = find_case_set(write_folder(tmp_path / "real", [1, 2]))
    with pytest.raises(EvaluationError, match=r"of each: \w[\w ]* \(2 and 2\) and \d more\. Add cases"):
        measure_equivalence(real, real, spacing_mm=6.0, notify=report_nothing)


def test_commands_write_reports_and_charts(run_cli: RunCli, tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", range(1, 11))
    cohort = write_cohort(tmp_path / "cohort", range(30, 40))
    for command in ("equivalence", "distribution"):
        out = tmp_path / command
        outcome = run_cli("evaluate", command, real, cohort, "--spacing", "6", "--out", out, "--json")
        assert outcome.code == 0, outcome.stderr
        assert json.loads(outcome.stdout)["measurement"] == command
        assert sorted(path.name for path in out.iterdir()) == [f"{command}.{end}" for end in ("json", "md", "svg")]
