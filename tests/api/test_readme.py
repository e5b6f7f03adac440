"""The Python of README.md, run word for word: blocks one after the other, in the same place.

NVIDIA's weights and a CUDA device are stood in for: ``rflow-ct`` is a bundle of its very networks, an eighth as wide,
with random weights, for a grid that they draw in a second; where there is no CUDA device, ``"cuda"`` is the CPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import maisi_aug as ma
from maisi_aug.bundle_spec.bundle import pulled_bundles_folder
from maisi_aug.networks import pipeline
from maisi_aug.phantom import build_label_map
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.narrow_networks import scaled_header
from tests.builders.random_bundle import write_random_bundle

BLOCK = re.compile(r"^```python(?: \w+)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
GRID = Grid.from_spacing((64, 64, 64), (6.0, 5.0, 5.0))


def read_blocks(repository: Path) -> list[str]:
    return BLOCK.findall((repository / "README.md").read_text(encoding="utf-8"))


@pytest.fixture
def rflow_ct(user_folder: Path) -> Path:
    """NVIDIA's networks in the place of what ``bundles pull rflow-ct`` fetches."""
    header = scaled_header("rflow-ct", num_inference_steps=2)
    grid = {"shape": list(GRID.shape), "spacing_mm": list(GRID.spacing_mm)}
    limits = {"sides": [[64]] * 3, "spacing_mm": [[4.0, 8.0]] * 3}
    folder = pulled_bundles_folder() / "rflow-ct"
    write_random_bundle(folder, {**header, "grid": grid, "grid_limits": limits}, seed=0)
    return folder


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU under the name of a CUDA device, where there is none."""
    resolve = pipeline.resolve_device
    if not torch.cuda.is_available():
        monkeypatch.setattr(pipeline, "resolve_device", lambda text: resolve("cpu" if text == "cuda" else text))


@pytest.mark.usefixtures("rflow_ct", "cuda")
def test_python_of_the_readme_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = read_blocks(repository)
    assert len(blocks) >= 1
    assert "ma.synthesize(" in blocks[0]
    assert "ma.Pipeline.from_bundle(" in blocks[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    save_label_map("patient_seg.nii.gz", build_label_map(seed=7, grid=GRID, region="abdomen").label_map, GRID)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["cohort"].summary.is_complete
    assert (tmp_path / "nnUNet_raw" / "Dataset501_SynLiver" / "dataset.json").is_file()
    case = names["case"]
    assert case.lesions[0].diameter_mm == pytest.approx(15, rel=0.1)
    assert case.image.shape == case.label_map.shape == case.shape
    assert {verdict.gate for verdict in case.verdicts} >= {"presence", "geometry", "lesion size"}
    assert ma.load_cohort("out").summary.num_cases == 1
    assert names["ds"][0]["image"].shape[0] == 1
