"""Seconds and memory of a step of the sampler, several cases at once: ``python -m tests.benchmarks.batches``.

The U-Net and the ControlNet at full width with random weights, for the latents of an image. Whether a GPU has idle
units that a batch would fill decides whether drawing several cases at once would pay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maisi_aug.networks.building import compute_in
from maisi_aug.networks.conditioning import to_label_bits, to_modality_tensor, to_spacing_tensor
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.networks.sampling import Conditions, sample_latent
from maisi_aug.system.memory import is_out_of_memory
from tests.benchmarks.image_stages import SPACING_MM, draw_label_map, read_sides
from tests.benchmarks.measuring import Clock
from tests.benchmarks.pipeline import WIDTHS, find_random_bundle


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every batch and print a table; ``--out`` takes the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.batches", description=__doc__.splitlines()[0])
    parser.add_argument("--grid", default="256x256x256", metavar="IxJxK", help="of the image")
    parser.add_argument("--width", choices=list(WIDTHS), default="full")
    parser.add_argument("--batch", type=int, action="append", help="cases at once; may repeat (default: 1, 2 and 4)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--weights", type=Path, help="folder that keeps the random weights for a further run")
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        bundle = find_random_bundle(options.weights or Path(folder), "rflow-ct", options.width)
        pipeline = Pipeline.load(bundle, options.device, precision=options.precision)
    rows: dict[str, dict[str, Any]] = {}
    for batch in options.batch or (1, 2, 4):
        rows[str(batch)] = measure(pipeline, read_sides(options.grid), batch, options.steps)
        sys.stdout.write(f"{batch} at once: {json.dumps(rows[str(batch)])}\n")
        sys.stdout.flush()
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(pipeline: Pipeline, shape: tuple[int, int, int], batch: int, num_steps: int) -> dict[str, Any]:
    """Seconds of a step per case and peak memory, after one step that warms up."""
    device = pipeline.networks.device
    label_map = torch.from_numpy(draw_label_map(shape)).to(device)
    conditions = Conditions(
        to_label_bits(label_map.expand(batch, *shape)),
        to_modality_tensor(["ct"] * batch, device=device),
        to_spacing_tensor([SPACING_MM] * batch, device=device),
    )
    noise = torch.randn(batch, 4, *(side // 4 for side in shape), generator=torch.Generator().manual_seed(0))
    clock = Clock(device)
    try:
        with compute_in(pipeline.precision, device):
            for stage, steps in (("warm-up", 1), ("steps", num_steps)):
                clock.start(stage)
                sample_latent(pipeline.networks, conditions, noise.to(device), num_inference_steps=steps)
        clock.stop()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"error": "out of memory"}
    figures = clock.to_dict()["steps"]
    per_case = figures["seconds"] / num_steps / batch
    return {"seconds_per_step_and_case": round(per_case, 4), "peak_gb": round(figures["peak_bytes"] / 1e9, 2)}


if __name__ == "__main__":
    main()
