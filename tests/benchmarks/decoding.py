"""One latent decoded in several ways: seconds, peak memory, and how far the image lies from the undivided one.

    python -m tests.benchmarks.decoding --side 128 --width half

``reference`` is the published way, MAISI's own layers in MONAI's overlapping windows. 128^3 voxels stand for 512^3, so
that the window is a quarter of one that NVIDIA publishes for 512^3 (80x80x80 latent voxels on a GPU of 80 GB, 64x64x48
on one of 24 GB; ``maisi_aug/data/presets.yaml``). Each way runs in a process of its own, on the same random weights; on
a CPU processor seconds count, which a busy machine stretches less than others. Peak memory is without the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.bundle_spec.decoding import ComputeType, DecodingConfig
from maisi_aug.networks.building import compute_in
from maisi_aug.networks.decoder import estimate_decode_bytes
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.networks.weights import load_weight_file
from tests.benchmarks.image_stages import read_sides
from tests.benchmarks.measuring import Clock
from tests.benchmarks.pipeline import REPOSITORY, WIDTHS, find_random_bundle
from tests.oracles.reference_loop import ReferenceLoop

WAYS = ("whole", "exact", "windows", "reference")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every way and print a table; ``--out`` takes the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decoding", description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="of the image, voxels")
    parser.add_argument("--width", choices=list(WIDTHS), default="half")
    parser.add_argument("--window", default="20x20x20", metavar="IxJxK", help="of the reference, latent voxels")
    parser.add_argument("--own-window", default="16x16x16", metavar="IxJxK", help="of ours, multiples of 16")
    parser.add_argument("--memory", type=float, metavar="GB", help="that an exact decoding may take")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--way", action="append", choices=WAYS, help="may repeat (default: all)")
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--weights", type=Path, help="folder that keeps the random weights for a further run")
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.images:
        sys.stdout.write(json.dumps(measure(options, options.way[0])) + "\n")
        return
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.weights = find_random_bundle(options.weights or Path(folder), "rflow-ct", options.width).path
        for way in options.way or WAYS:
            rows[way] = run_in_process(options, way, folder)
            if "error" not in rows[way] and Path(folder, "whole.npy").is_file():
                whole, image = (np.load(Path(folder, f"{name}.npy")) for name in ("whole", way))
                rows[way]["largest_difference"] = float(np.abs(whole - image).max())
            sys.stdout.write(f"{way}: {json.dumps(rows[way])}\n")
            sys.stdout.flush()
            if options.out:  # after every way, so that a time limit leaves what there is
                options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if any("error" in row for row in rows.values()):
        raise SystemExit(1)


def run_in_process(options: argparse.Namespace, way: str, folder: str) -> dict[str, Any]:
    """One way's figures, or its error, which leaves the other ways alone."""
    taken = {"side", "width", "window", "own_window", "memory", "device", "precision", "weights"}
    flags = [
        text
        for key, value in vars(options).items()
        if key in taken and value is not None
        for text in (f"--{key.replace('_', '-')}", str(value))
    ]
    command = [sys.executable, "-m", "tests.benchmarks.decoding", *flags, "--way", way, "--images", folder]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """Decode a small latent to warm up, then the one that is measured, and leave the image in the folder."""
    bundle = load_bundle(options.weights)
    precision: ComputeType = options.precision
    latent = torch.randn(1, 4, *[options.side // 4] * 3, generator=torch.Generator().manual_seed(0)).to(options.device)
    notes: dict[str, Any] = {}
    if way == "reference":
        role = "autoencoder"
        loop = ReferenceLoop(
            {role: bundle.definition(role)},
            {role: {key: value.float() for key, value in load_weight_file(bundle, role).items()}},
            bundle.spec.scheduler,
            device=options.device,
        )

        def decode(part: Tensor) -> Tensor:
            return loop.decode(part, read_sides(options.window))
    else:
        pipeline = Pipeline.load(bundle, options.device, precision=precision)
        config = {
            "whole": DecodingConfig(num_splits=1),
            "exact": DecodingConfig(memory_gb=options.memory),
            "windows": DecodingConfig(window=read_sides(options.own_window)),
        }[way]

        def decode(part: Tensor) -> Tensor:
            image, used = pipeline.decoder.decode(part, config)
            sides = part.shape[2], part.shape[3], part.shape[4]
            kind = (options.device.partition(":")[0], "float32" if precision == "float32" else "half")
            notes["decoding"] = str(used)
            notes["predicted_gb"] = estimate_decode_bytes(pipeline.decoder.definition, used, sides, kind=kind) / 1e9
            return image

    with torch.no_grad(), compute_in(precision, options.device):
        decode(latent[..., :16, :16, :16].contiguous())
        clock = Clock(options.device)
        clock.start("rest")
        clock.stop()
        before, begun = clock.peak_bytes["rest"], time.process_time()
        clock.start("decode")
        image = decode(latent)
        clock.stop()
    used = time.process_time() - begun
    np.save(options.images / f"{way}.npy", image.cpu().numpy())
    figures = clock.to_dict()["decode"]
    seconds = figures["seconds"] if options.device.startswith("cuda") else used
    return {"seconds": round(seconds, 2), "peak_gb": round((figures["peak_bytes"] - before) / 1e9, 3), **notes}


if __name__ == "__main__":
    main()
