"""How long 2.5D FID takes: ``python -m tests.benchmarks.fid --folder FOLDER [--num-volumes 100] [--side 128]``.

Two sets of made CT volumes, smooth bodies with noise, are measured by the command that a user types, in as many
processes as asked for, with an empty cache and again with the full one. Minutes, processor minutes and
the memory of the largest process go to stdout as JSON, or to a file. Volumes that are there already are used again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image

SPACING_MM = 3.0


def write_volumes(folder: Path, *, num_volumes: int, side: int, seed: int, contrast_hu: float) -> None:
    """Ellipsoids of soft tissue with bright and dark balls in them; ``contrast_hu`` tells one set from another."""
    rng = np.random.default_rng(seed)
    grid = Grid.from_spacing((side, side, side), (SPACING_MM,) * 3)
    axes = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32),) * 3, indexing="ij", sparse=True)
    for number in range(num_volumes):
        path = folder / f"volume_{number:03d}.nii.gz"
        if path.is_file():
            continue
        radii = rng.uniform(0.6, 0.9, 3)
        body = sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)) < 1
        image = np.where(body, 40.0, -1000.0).astype(np.float32)
        for _ in range(40):
            centre, radius = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.05, 0.25)
            ball = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True)) < radius**2
            image[ball & body] += rng.choice([-1.0, 1.0]) * contrast_hu
        image += rng.normal(0, 15, image.shape).astype(np.float32) * body
        save_image(path, np.rint(image).astype(np.int16), grid)


def run(folder: Path, cache: Path, *, num_processes: int, options: Sequence[str]) -> dict[str, Any]:
    """One measurement, as a user runs it."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "maisi_aug", "evaluate", "fid", str(folder / "real"), str(folder / "synthetic")]
    devices = ",".join(["cpu"] * num_processes)
    done = subprocess.run(
        [*command, "--cache", str(cache), "--devices", devices, "--json", "--quiet", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(done.stdout)
    return {
        "minutes": (time.perf_counter() - began) / 60,
        "processor_minutes": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60,
        "largest_process_gib": after.ru_maxrss / 2**20,
        "fid": document["planes"]["mean"]["fid"],
        "num_cached": document["real"]["num_cached"] + document["synthetic"]["num_cached"],
        "num_slices": document["planes"]["mean"]["num_real_slices"]
        + document["planes"]["mean"]["num_synthetic_slices"],
    }


def main() -> None:
    """Make the volumes, measure twice, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fid", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the volumes")
    parser.add_argument("--num-volumes", type=int, default=100)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file; stdout without it")
    options, rest = parser.parse_known_args()
    for seed, (name, contrast_hu) in enumerate((("real", 30.0), ("synthetic", 45.0))):
        write_volumes(
            options.folder / name,
            num_volumes=options.num_volumes,
            side=options.side,
            seed=seed,
            contrast_hu=contrast_hu,
        )
    cache = options.folder / "features"
    shutil.rmtree(cache, ignore_errors=True)
    runs = {
        name: run(options.folder, cache, num_processes=options.processes, options=rest) for name in ("first", "cached")
    }
    document = {
        "volumes": f"2 x {options.num_volumes} of {options.side}^3",
        "processes": options.processes,
        "options": rest,
        "cache_mb": sum(path.stat().st_size for path in cache.iterdir()) / 1e6,
        **runs,
    }
    text = json.dumps(document, indent=1)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
