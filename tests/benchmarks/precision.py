"""How far half precision moves images of the embedded bundle's trained weights, against float32.

float16 is emulated on processors that do not compute in it: what enters and leaves every convolution and linear layer,
and its weights, are rounded to float16, and sums are in float32, as on the tensor cores of a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.networks.building import HALF_TYPES, compute_in, computes_in
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.phantom import build_label_map

ORGANS = {"liver": 1, "spleen": 3, "right kidney": 5}
FIRST_SEED = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw held-out phantoms in every precision and print how far each is from float32."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=6, help="phantoms (default: 6)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="of the sampler (default: the bundle's)")
    options = parser.parse_args(arguments)
    bundle = load_bundle("phantom-ct")
    pipeline = Pipeline.load(bundle, options.device, precision="float32")
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {}
    for name in HALF_TYPES:
        if computes_in(name, options.device):
            ways[name] = lambda name=name: compute_in(name, options.device)  # type: ignore[misc]
        else:
            ways[f"{name}, emulated"] = lambda name=name: emulate(pipeline, HALF_TYPES[name])  # type: ignore[misc]
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for seed in range(FIRST_SEED, FIRST_SEED + options.num):
        label_map = build_label_map(seed=seed, grid=bundle.grid, region="abdomen").label_map

        def draw(label_map: NDArray[np.uint8] = label_map, seed: int = seed) -> NDArray[np.int16]:
            return pipeline.synthesize_image(label_map, bundle.grid, seed=seed, num_inference_steps=options.steps)

        exact = draw()
        for title, way in ways.items():
            with way():
                image_hu = draw()
            found[title].append(compare(image_hu, exact, label_map))
    sys.stdout.write(f"| {options.num} phantoms | mean absolute difference in the body, HU | ")
    sys.stdout.write(" | ".join(f"median of the {organ}, HU" for organ in ORGANS) + " |\n|" + "---|" * 5 + "\n")
    for title, rows in found.items():
        first, *others = np.mean(rows, axis=0)
        sys.stdout.write(f"| {title} | {first:.2f} | " + " | ".join(f"{value:+.1f}" for value in others) + " |\n")


def compare(image_hu: NDArray[np.int16], exact: NDArray[np.int16], label_map: NDArray[np.uint8]) -> list[float]:
    """Mean absolute difference inside the body, then the difference of each organ's median."""
    body = label_map > 0
    mean = float(np.abs(image_hu.astype(int) - exact)[body].mean())
    masks = [label_map == organ for organ in ORGANS.values()]
    return [mean, *(float(np.median(image_hu[mask]) - np.median(exact[mask])) for mask in masks)]


@contextmanager
def emulate(pipeline: Pipeline, dtype: torch.dtype) -> Iterator[None]:
    """Round the weights, inputs and outputs of every convolution and linear layer to a type."""

    def rounded(value: Any) -> Any:
        return value.to(dtype).float() if torch.is_tensor(value) and value.is_floating_point() else value

    handles, kept = [], []
    networks = pipeline.networks
    for network in (networks.autoencoder, networks.diffusion_unet, networks.controlnet):
        for layer in network.modules():
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
                kept.append((layer, layer.weight.data))
                layer.weight.data = rounded(layer.weight.data)
                handles.append(layer.register_forward_pre_hook(lambda _, inputs: tuple(map(rounded, inputs))))
                handles.append(layer.register_forward_hook(lambda _, inputs, output: rounded(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in kept:
            layer.weight.data = weight


if __name__ == "__main__":
    main()
