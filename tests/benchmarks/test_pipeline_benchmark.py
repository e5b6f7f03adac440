from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import pipeline
from tests.benchmarks.image_stages import STAGES, Case


def test_both_sides_are_measured_stage_by_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, case: Case) -> dict[str, object]:
        return pipeline.run_side(name, pipeline.read_case(json.dumps(vars(case))))

    monkeypatch.setattr(pipeline, "run_in_process", run)
    words = ["--grid", "32x64x32", "--width", "tiny", "--steps", "2", "--repeats", "2", "--window", "whole"]
    pipeline.main(["--out", str(tmp_path), *words])
    results = json.loads((tmp_path / "results_pipeline.json").read_text())
    for side in results["runs"][0]["sides"].values():
        assert set(side["stages"]) == set(STAGES)
        assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 0 for stage in side["stages"].values())
    text = (tmp_path / "results_pipeline.md").read_text()
    assert "## rflow-ct at tiny width, 32x64x32, 2 steps, cpu" in text
    assert all(f"| {stage} |" in text for stage in (*STAGES, "total"))
    assert capsys.readouterr().out.startswith("| stage |")
