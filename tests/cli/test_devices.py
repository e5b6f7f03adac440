"""A device that cannot be used is refused before anything is written, by every command that makes a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map

DEVICE = "cuda:99"
"""None that a machine with GPUs has either."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four CTs of one's own with a label map each."""
    folder = tmp_path_factory.mktemp("pairs")
    grid = Grid.from_spacing((24, 20, 16), (6.0, 6.5, 8.0))
    for number in range(4):
        label_map = np.zeros(grid.shape, np.uint8)
        label_map[8:14, 6 + number : 12, 5:10] = 1
        image_hu = np.full(grid.shape, -1000, np.int16)
        image_hu[3:21, 3:17] = 40
        save_image(folder / "images" / f"case_{number}.nii.gz", image_hu, grid)
        save_label_map(folder / "labels" / f"case_{number}.nii.gz", label_map, grid)
    return folder


COMMANDS = {
    "synthesize": ["synthesize", "--labels", "hepatic tumor:0.5", "-n", "1", "--out", "OUT"],
    "train vae": ["train", "vae", "--out", "OUT"],
    "train mask-vae": ["train", "mask-vae", "--out", "OUT"],
    "benchmark run": ["benchmark", "run", "--real", "PAIRS", "--label", "liver=1", "--out", "OUT"],
    "evaluate fid": ["evaluate", "fid", "PAIRS", "PAIRS", "--out", "OUT"],
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_device_that_cannot_be_used_leaves_no_folder(
    name: str, pairs: Path, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    places = {"OUT": str(tmp_path / "out"), "PAIRS": str(pairs)}
    outcome = run_cli(*(places.get(word, word) for word in COMMANDS[name]), "--device", DEVICE)
    assert outcome.code == 1
    assert f"Device '{DEVICE}': torch cannot use it" in outcome.stderr
    assert not (tmp_path / "out").exists()
