"""How long cleaning up a label map takes: ``python -m tests.benchmarks.cleanup [--side 256] [--out FILE.json]``.

Two maps of ``side``^3 voxels: a phantom with islands, holes, stray tumours, floating pieces and specks of any label, as
a poor mask generator might draw, and labels drawn at random for each voxel, which no map is worse than. Seconds are
those of one thread, the best of several runs. A table goes to stderr, JSON to stdout or to a file.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import build_label_map
from maisi_aug.sources.map_cleanup import clean_label_map
from maisi_aug.vocabulary.labels import BODY_ID, FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid

EXTENT_MM = 384.0
HEPATIC_TUMOR = 26
TARGET_SECONDS = 15.0
NUM_BLOCKS = 400
SHARE_OF_SPECKS = 0.01
IDS = np.array([label.id for label in FULL_VOCABULARY], dtype=np.uint8)


def build_noisy_phantom(side: int, seed: int) -> NDArray[np.uint8]:
    """A phantom ``(side, side, side)`` of 384 mm with 400 blocks of wrong labels, up to 15 mm wide, and 1% specks."""
    grid = Grid.from_spacing((side, side, side), (EXTENT_MM / side,) * 3)
    label_map = build_label_map(seed=seed, grid=grid).label_map.copy()
    rng = np.random.default_rng(seed)
    wrong = np.concatenate((IDS, np.repeat(FULL_VOCABULARY.tumor_ids, 8), np.repeat((0, BODY_ID), 20)))
    for label_id in rng.choice(wrong, NUM_BLOCKS):
        widths = rng.integers(1, max(2, side // 26), 3)
        corner = rng.integers(0, side - widths)
        label_map[tuple(slice(c, c + w) for c, w in zip(corner, widths, strict=True))] = label_id
    specks = (rng.random(label_map.shape) < SHARE_OF_SPECKS) & (label_map > 0)
    label_map[specks] = rng.choice(IDS, int(specks.sum()))
    return label_map


def time_cleanup(name: str, label_map: NDArray[np.uint8], num_runs: int) -> dict[str, Any]:
    """Clean a map several times, and once what came out."""
    spacing = EXTENT_MM / label_map.shape[0]
    spacing_mm = (spacing, spacing, spacing)
    seconds, wall = [], []
    for _ in range(num_runs):
        started, began = time.process_time(), time.perf_counter()
        cleaned = clean_label_map(label_map, spacing_mm=spacing_mm, keep_tumor_ids=(HEPATIC_TUMOR,))
        seconds.append(time.process_time() - started)
        wall.append(time.perf_counter() - began)
    again = clean_label_map(cleaned, spacing_mm=spacing_mm, keep_tumor_ids=(HEPATIC_TUMOR,))
    return {
        "map": name,
        "shape": list(label_map.shape),
        "num_labels_before": int(np.unique(label_map).size),
        "num_labels_after": int(np.unique(cleaned).size),
        "share_changed": float((cleaned != label_map).mean()),
        "num_changed_by_a_second_cleaning": int(np.count_nonzero(again != cleaned)),
        "cpu_seconds": min(seconds),
        "wall_seconds": min(wall),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    """Time both maps, and fail where one takes longer than the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256, help="voxels along each axis")
    parser.add_argument("--runs", type=int, default=3, help="times that each map is cleaned")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the JSON; stdout without it")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    maps = {
        "noisy phantom": build_noisy_phantom(arguments.side, arguments.seed),
        "random labels": rng.choice(IDS, (arguments.side,) * 3),
    }
    rows = [time_cleanup(name, label_map, arguments.runs) for name, label_map in maps.items()]
    print(f"{'map':<15}{'labels':>12}{'changed':>9}{'again':>7}{'cpu s':>8}{'wall s':>8}{'GB':>6}", file=sys.stderr)
    for row in rows:
        labels = f"{row['num_labels_before']} -> {row['num_labels_after']}"
        print(
            f"{row['map']:<15}{labels:>12}{row['share_changed']:>9.2%}{row['num_changed_by_a_second_cleaning']:>7}"
            f"{row['cpu_seconds']:>8.2f}{row['wall_seconds']:>8.2f}{row['peak_memory_gb']:>6.2f}",
            file=sys.stderr,
        )
    text = json.dumps(rows, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    if arguments.side <= 256 and max(row["cpu_seconds"] for row in rows) > TARGET_SECONDS:
        sys.exit(f"Cleaning: expected at most {TARGET_SECONDS:g} s a map, found more. See the table above.")


if __name__ == "__main__":
    main()
