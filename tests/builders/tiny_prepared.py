"""A prepared folder of small cases: a liver, a gland that MAISI does not know, and bright nodules in the liver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.preparation.prepared import PreparedCase
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_training import BODY, LIVER, SHAPE, SPACING_MM, tiny_grid

GLAND, NODULE = 133, 134
HU = {0: -1000, BODY: 20, LIVER: 110, GLAND: 45, NODULE: 210}


def build_labels(seed: int, *, with_gland: bool = True, with_nodule: bool = True) -> NDArray[np.uint8]:
    """A body with a liver, a gland of a few voxels more or less, and a nodule of very different sizes."""
    rng = np.random.default_rng(seed)
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    label_map[4:28, 3:21] = BODY
    label_map[6:18, 5:15, 4:16] = LIVER
    if with_gland:
        i, j, k = rng.integers((20, 6, 14), (22, 8, 16))
        label_map[i : i + 4, j : j + 4, k : k + 4 + seed % 2] = GLAND
    if with_nodule:
        side = 2 + seed % 4
        i, j, k = rng.integers((7, 6, 5), (10, 8, 8))
        label_map[i : i + side, j : j + side, k : k + side] = NODULE
    return label_map


def write_prepared(folder: Path, *, num_cases: int = 6, grid: Grid | None = None, **changes: Any) -> Path:
    """Write the folder as ``maisi-aug prepare`` does.

    Args:
        folder: Of the data.
        num_cases: A patient each, dealt out into three folds.
        grid: Of the cases; that of the tiny bundle when not given.
        changes: Of ``dataset.yaml``, or ``with_gland`` and ``with_nodule``.
    """
    parts = {name: changes.pop(name) for name in ("with_gland", "with_nodule") if name in changes}
    grid = grid or tiny_grid()
    cases = []
    for seed in range(num_cases):
        label_map = build_labels(seed, **parts)
        image_hu = np.vectorize(HU.__getitem__, otypes=[np.int16])(label_map)
        paths = {role: folder / f"{role}s" / f"p{seed}.nii.gz" for role in ("image", "label")}
        save_image(paths["image"], image_hu, grid)
        save_label_map(paths["label"], label_map, grid)
        ids, counts = np.unique(label_map, return_counts=True)
        cases.append(
            PreparedCase(
                id=f"p{seed}",
                patient=f"p{seed}",
                fold=seed % 3,
                modality="ct",
                shape=SHAPE,
                spacing_mm=grid.spacing_mm,
                voxels=dict(zip(ids.tolist(), counts.tolist(), strict=True)),
                image_sha256=sha256_of(paths["image"]),
                label_sha256=sha256_of(paths["label"]),
                image_source=f"p{seed}_ct.nii.gz",
                label_sources=(f"p{seed}_seg.nii.gz",),
                key=f"{seed:064x}",
            )
        )
    spec = {
        "format": 1,
        "name": "lab",
        "grid": {"shape": list(SHAPE), "spacing_mm": list(grid.spacing_mm)},
        "labels": {"liver": LIVER, "gland": GLAND, "bright nodule": NODULE, "body": BODY},
        "new_labels": {"gland": {"id": GLAND, "hosts": []}, "bright nodule": {"id": NODULE, "hosts": [LIVER]}},
        "num_folds": 3,
        **changes,
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    (folder / "cases.jsonl").write_text("".join(case.model_dump_json() + "\n" for case in cases))
    return folder


def write_tiny_base(folder: Path, **changes: Any) -> Bundle:
    """Random weights on the grid of the cases."""
    from tests.builders.random_bundle import write_random_bundle

    grid = {"shape": list(SHAPE), "spacing_mm": list(SPACING_MM)}
    return write_random_bundle(folder, {**build_header(), "grid": grid, **changes}, seed=0)
