from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import training_loop
from tests.benchmarks.training_loop import SIDES, Case


def test_all_sides_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Case] = []

    def measure(side: training_loop.Side, case: Case) -> int:
        measured.append(case)
        return training_loop.measure_memory(side, case) if case.stage == "vae" else 10**9

    monkeypatch.setattr(training_loop, "read_memory", measure)
    num_threads = torch.get_num_threads()
    training_loop.main(["--out", str(tmp_path), "--grid", "32x32x32", "--steps", "1", "--rounds", "1"])
    assert torch.get_num_threads() == num_threads
    results = json.loads((tmp_path / "results_training_loop.json").read_text())
    assert [run["stage"] for run in results["runs"]] == ["vae", "controlnet"]
    for run in results["runs"]:
        assert set(run["seconds"]) == set(SIDES)
        assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in run["seconds"].values())
        assert all(peak > 0 for peak in run["peak_bytes"].values())
    assert len(measured) == 2 * len(SIDES)
    text = (tmp_path / "results_training_loop.md").read_text()
    assert "## controlnet at tiny width, 32x32x32, cpu" in text
    assert capsys.readouterr().out.count("| plain |") == 2
