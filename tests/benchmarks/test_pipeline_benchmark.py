from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import image_stages, mask_stages, pipeline
from tests.benchmarks.image_stages import Case


def test_both_sides_are_measured_stage_by_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, case: Case) -> dict[str, object]:
        return pipeline.run_side(name, pipeline.read_case(json.dumps(vars(case))))

    monkeypatch.setattr(pipeline, "run_in_process", run)
    words = ["--grid", "32x64x32", "--width", "tiny", "--steps", "2", "--repeats", "2", "--window", "whole"]
    words += ["--source", "given", "--source", "diffusion", "--mask-time-steps", "3"]
    pipeline.main(["--out", str(tmp_path), *words])
    results = json.loads((tmp_path / "results_pipeline.json").read_text())
    expected = (image_stages.STAGES, (*mask_stages.STAGES, *image_stages.STAGES))
    for run_of_source, stages in zip(results["runs"], expected, strict=True):
        for side in run_of_source["sides"].values():
            assert set(side["stages"]) == set(stages)
            assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 0 for stage in side["stages"].values())
    text = (tmp_path / "results_pipeline.md").read_text()
    assert "## rflow-ct at tiny width, 32x64x32, 2 steps, cpu, label map given" in text
    assert "## rflow-ct at tiny width, 32x64x32, 2 steps, cpu, label map generated in 3 and 3 steps" in text
    assert all(f"| {stage} |" in text for stage in (*pipeline.STAGES, "total"))
    assert capsys.readouterr().out.startswith("| stage |")
