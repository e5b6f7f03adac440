"""Cases, folders and configurations small enough that a whole benchmark takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.evaluation.benchmark.config import BenchmarkConfig, build_benchmark_config
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map

SHAPE = (22, 18, 13)
SPACING_MM = (2.0, 2.2, 3.0)
LABELS = {"background": 0, "liver": 1, "tumor": 2}


def draw_case(seed: int, *, has_tumor: bool = True) -> tuple[NDArray[np.int16], NDArray[np.uint8], Grid]:
    """A box of liver with a small tumor in it, noise over both."""
    rng = np.random.default_rng(seed)
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    i, j, k = rng.integers(1, 5), rng.integers(1, 4), rng.integers(1, 3)
    label_map[i : i + 15, j : j + 12, k : k + 9] = 1
    if has_tumor:
        a, b, c = i + rng.integers(2, 8), j + rng.integers(2, 6), k + rng.integers(1, 4)
        label_map[a : a + 4, b : b + 4, c : c + 3] = 2
    image_hu = np.array([-80, 100, 20])[label_map] + rng.normal(0, 10, SHAPE)
    image_hu[0] = -1000  # air: no lesion begins there
    return image_hu.round().astype(np.int16), label_map, grid


def write_dataset(folder: Path, num_cases: int, *, first_seed: int = 0, **changes: Any) -> Path:
    """An nnU-Net raw dataset of tiny cases; the last of every five has no tumor."""
    for number in range(num_cases):
        image_hu, label_map, grid = draw_case(first_seed + number, has_tumor=number % 5 != 4)
        name = f"case_{first_seed + number:03d}"
        save_image(folder / "imagesTr" / f"{name}_0000.nii.gz", image_hu, grid)
        save_label_map(folder / "labelsTr" / f"{name}.nii.gz", label_map, grid)
    document = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def write_pairs(folder: Path, num_cases: int, *, first_seed: int = 100) -> Path:
    """A folder of pairs with ``labels.json``."""
    for number in range(num_cases):
        image_hu, label_map, grid = draw_case(first_seed + number)
        name = f"made_{number:04d}"
        save_image(folder / "images" / f"{name}.nii.gz", image_hu, grid)
        save_label_map(folder / "labels" / f"{name}.nii.gz", label_map, grid)
    (folder / "labels.json").write_text(json.dumps({"1": "liver", "2": "tumor"}))
    return folder


def build_config(folder: Path, *, num_real: int = 6, num_synthetic: int = 4, **changes: Any) -> BenchmarkConfig:
    """Six real and four synthetic cases in a folder, two steps of training."""
    real, synthetic = folder / "Dataset900_Tiny", folder / "made"
    if not real.exists():
        write_dataset(real, num_real)
        write_pairs(synthetic, num_synthetic)
    fields: dict[str, Any] = {
        "real": str(real),
        "synthetic": {"synthetic": str(synthetic)},
        "arms": ("real", "real+synthetic:1"),
        "num_seeds": 1,
        "num_steps": 2,
        "num_train": 2,
    }
    return build_benchmark_config(**{**fields, **changes})
