"""How much faster, and with how much less memory, than the published way: every stage of both in one run.

    python -m tests.benchmarks.pipeline --out results

Each side runs in a process of its own, on the same random weights, label map and number of steps, and is measured stage
by stage. ``--own-steps`` takes fewer on our side, for bundles that have a proof that they draw the same. ``--source
diffusion`` has the label map generated first: random weights draw no anatomy, so that both sides clean up the same
spoilt phantom, and draw the image of the same given map. ``--device cuda`` measures 256x256x256 and 512x512x128 voxels
at full width.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, embedded_bundles, load_bundle
from maisi_aug.bundle_spec.decoding import PrecisionName
from maisi_aug.networks.acceleration import Compiler
from tests.benchmarks import image_stages, mask_stages
from tests.benchmarks.image_stages import Case
from tests.benchmarks.measuring import Clock
from tests.builders.narrow_networks import FULL_WIDTH, add_scaled_masks, scaled_header
from tests.builders.random_bundle import write_random_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTHS = {"full": FULL_WIDTH, "half": 2, "quarter": 4, "tiny": 8}
# What each side runs, one group of stages after the other.
Run = Callable[[Case, Path, Clock], dict[str, Any]]
IMAGE: Mapping[str, Run] = {"ours": image_stages.run_ours, "reference": image_stages.run_reference}
MASKS: Mapping[str, Run] = {"ours": mask_stages.run_ours, "reference": mask_stages.run_reference}
STAGES: Sequence[str] = (*mask_stages.STAGES, *image_stages.STAGES)
GRIDS = {"cpu": ["64x64x64"], "cuda": ["256x256x256", "512x512x128"]}
MASK_SIDES = {"cpu": 64, "cuda": 256}
# NV-Generate-CTMR, docs/inference.md: an A100 of 80 GB, image decode and sampling of rflow-ct.
PUBLISHED = {
    "256x256x256": "5 s + 3 s, 15.4 GB",
    "512x512x128": "8 s + 5 s, 15.7 GB",
    "512x512x512": "29 s + 19 s, 22.8 GB",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides and write ``results_pipeline.json`` and ``results_pipeline.md``."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--grid", action="append", metavar="IxJxK", help="multiples of 32; may repeat")
    parser.add_argument("--bundle", default="rflow-ct", help="rflow-ct, ddpm-ct or an embedded bundle")
    parser.add_argument(
        "--width", action="append", choices=list(WIDTHS), help="may repeat (default: quarter; on cuda full)"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--own-steps", type=int, help="steps of ours, by the multistep solver (default: --steps)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-ups", type=int, default=0, help="rounds before those that count")
    parser.add_argument("--window", metavar="IxJxK|whole", help="decoded at once (default: the bundle's)")
    parser.add_argument(
        "--precision", action="append", choices=["float32", "bfloat16", "float16"], help="of the reference; may repeat"
    )
    known = get_args(PrecisionName)
    parser.add_argument("--own-precision", choices=known, default="auto", help="of ours (default: auto)")
    parser.add_argument("--compile", choices=get_args(Compiler), default="none", help="of our networks (default: none)")
    parser.add_argument("--weights", type=Path, help="folder that keeps the random weights for a further run")
    parser.add_argument("--only", choices=list(IMAGE), help="one side alone")
    parser.add_argument("--source", action="append", choices=["given", "diffusion"], help="of the map; may repeat")
    parser.add_argument("--mask-time-steps", type=int, default=1000, help="of the mask scheduler, all of them taken")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        name, text = options.side
        sys.stdout.write(json.dumps(run_side(name, read_case(text))) + "\n")
        return
    kind = options.device.partition(":")[0]
    precisions = options.precision or ["float16" if kind == "cuda" else "float32"]
    widths = options.width or ["full" if kind == "cuda" else "quarter"]
    runs: list[dict[str, Any]] = []
    results: dict[str, Any] = {"machine": describe_machine(options.device), "runs": runs}
    with tempfile.TemporaryDirectory() as folder:
        sources = options.source or ["given"]
        for source, width, grid, precision in product(sources, widths, options.grid or GRIDS[kind], precisions):
            options.source, options.width, options.precision = source, width, precision
            case = prepare(options, grid, Path(folder))
            runs.append({"grid": grid, **describe(options), "sides": {}})
            for name in [options.only] if options.only else IMAGE:
                runs[-1]["sides"][name] = run_in_process(name, case)
                write_results(results, options.out)  # after every side, so that a time limit leaves what there is
            sys.stdout.write(to_table(runs[-1]) + "\n")
    if any("error" in side for run in runs for side in run["sides"].values()):
        raise SystemExit(1)


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``results_pipeline.json`` and ``results_pipeline.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results_pipeline.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results_pipeline.md").write_text(to_markdown(results), encoding="utf-8")


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that tell one run from another."""
    return {
        key: getattr(options, key)
        for key in (
            *("bundle", "source", "width", "steps", "device", "repeats", "warm_ups", "window", "precision"),
            *("own_precision", "compile", "own_steps"),
        )
    }


def prepare(options: argparse.Namespace, grid: str, folder: Path) -> Case:
    """Write what both sides read: random weights, unless the bundle comes with its own, and a label map."""
    label_map = folder / f"{grid}.npy"
    np.save(label_map, image_stages.draw_label_map(image_stages.read_sides(grid)))
    if options.bundle in embedded_bundles():
        bundle = load_bundle(options.bundle)
    elif options.source == "given" and options.bundle == "rflow-ct":
        bundle = find_random_bundle(options.weights or folder, options.bundle, options.width)
    elif (folder / options.source / options.width / BUNDLE_FILE).is_file():
        bundle = load_bundle(folder / options.source / options.width)
    else:
        bundle = write_narrow_bundle(options, folder / options.source / options.width)
    window = options.window if options.window in (None, "whole") else image_stages.read_sides(options.window)
    return Case(
        str(bundle.path),
        str(label_map),
        options.steps,
        options.device,
        options.repeats,
        options.precision,
        window,
        options.source,
        options.own_precision,
        options.compile,
        options.warm_ups,
        options.own_steps,
    )


def find_random_bundle(folder: Path, name: str, width: str) -> Bundle:
    """A known bundle's image networks at a width with random weights; those of an earlier run where there are some."""
    place = folder / f"{name}-{width}"
    if (place / BUNDLE_FILE).is_file():
        return load_bundle(place)
    return write_random_bundle(place, scaled_header(name, divisor=WIDTHS[width]), seed=0)


def write_narrow_bundle(options: argparse.Namespace, folder: Path) -> Bundle:
    """The bundle's networks at the width asked for, with random weights; with those of masks where they are needed."""
    divisor = WIDTHS[options.width]
    header = scaled_header(options.bundle, divisor=divisor)
    if header["scheduler"]["class"] == "DDPMScheduler":
        header = scaled_header(options.bundle, divisor=divisor, num_inference_steps=options.steps)
    if options.source == "diffusion":
        side = MASK_SIDES[options.device.partition(":")[0]]
        header = add_scaled_masks(header, folder, divisor=divisor, side=side, num_train_steps=options.mask_time_steps)
    return write_random_bundle(folder, header, seed=0)


def run_in_process(name: str, case: Case) -> dict[str, Any]:
    """One side, measured from its first import on, or its error, which leaves the other side alone."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.pipeline",
        "--out",
        ".",
        "--side",
        name,
        json.dumps(asdict(case)),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    side: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return side


def read_case(text: str) -> Case:
    """What ``run_in_process`` hands over; JSON has lists for tuples."""
    values = json.loads(text)
    window = values["window"]
    return Case(**{**values, "window": tuple(window) if isinstance(window, list) else window})


def run_side(name: str, case: Case) -> dict[str, Any]:
    """All stages of one side in this process."""
    clock = Clock(case.device)
    notes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in (MASKS, IMAGE) if case.source == "diffusion" else (IMAGE,):
            notes |= group[name](case, Path(folder), clock)
    return {"stages": clock.to_dict(), **notes}


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on; a load above the number of cores makes them worthless."""
    return {
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "has_bfloat16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "load_average_before": round(os.getloadavg()[0], 1),
    }


def to_table(run: dict[str, Any]) -> str:
    """One run as a Markdown table, in which a side that failed or was left out has dashes."""
    sides = [run["sides"].get(name, {}) for name in ("reference", "ours")]
    found: list[dict[str, dict[str, float]]] = [dict(side.get("stages", {})) for side in sides]
    for stages in found:
        if stages:
            stages["total"] = _add_up(stages)
    lines = [
        "| stage | reference, s | ours, s | times faster | reference, GB | ours, GB |",
        "|---|---|---|---|---|---|",
    ]
    for stage in (*STAGES, "total"):
        theirs, mine = (stages.get(stage) for stages in found)
        if theirs or mine:
            faster = f"{theirs['seconds'] / max(mine['seconds'], 1e-9):.1f}" if theirs and mine else "-"
            seconds = [f"{side['seconds']:.3g}" if side else "-" for side in (theirs, mine)]
            peaks = [f"{side['peak_bytes'] / 1e9:.2f}" if side else "-" for side in (theirs, mine)]
            lines.append(f"| {' | '.join([stage, *seconds, faster, *peaks])} |")
    errors = [f"{name} failed: {side['error']}" for name, side in run["sides"].items() if "error" in side]
    return "\n".join([*lines, *(f"\n{error}" for error in errors)])


def _add_up(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "peak_bytes": max(stage["peak_bytes"] for stage in stages.values()),
    }


def describe_source(run: dict[str, Any]) -> str:
    """Where the label map came from, and in how many steps on either side."""
    if run["source"] == "given":
        return "label map given"
    steps = [run["sides"].get(name, {}).get("mask_steps", "-") for name in ("reference", "ours")]
    return f"label map generated in {steps[0]} and {steps[1]} steps"


def to_markdown(results: Mapping[str, Any]) -> str:
    """All runs, and what they were measured on."""
    machine = results["machine"]
    parts = [
        "# Ours against the published way, stage by stage",
        "Written by `python -m tests.benchmarks.pipeline`. Random weights, the same label map, steps and windows on "
        "both sides, each in its own process; the median of the rounds; peak memory of the process, weights and "
        "libraries included, or of the GPU. The reference is `tests/oracles/reference_loop.py`, before it "
        "`tests/oracles/reference_masks.py` where the label map is generated. NVIDIA's scripts ask for autocast on "
        "CUDA devices only: on a CPU they compute in float32. A reference under bfloat16 autocast is a stricter one.",
        f"Machine: {machine['device']}, {machine['cpu_count']} cores, {machine['torch_threads']} threads, torch "
        f"{machine['torch']}; load average before: {machine['load_average_before']}.",
    ]
    for run in results["runs"]:
        published = (
            f" Published for an A100 (decode + sampling): {PUBLISHED[run['grid']]}." if run["grid"] in PUBLISHED else ""
        )
        steps = f"{run['steps']} steps"
        if run.get("own_steps") is not None:
            steps += f" against {run['own_steps']} of multistep"
        parts += [
            f"## {run['bundle']} at {run['width']} width, {run['grid']}, {steps}, {run['device']}, "
            + describe_source(run),
            f"Reference in {run['precision']}; ours in {run['own_precision']}"
            + ("" if run["compile"] == "none" else f", compiled by {run['compile']}")
            + f", decoded as {json.dumps(run['sides'].get('ours', {}).get('decoding'))}."
            + published,
            to_table(run),
        ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
