"""From a given label map to files: our pipeline, and the plain loop, on the same weights, map and number of steps."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, load_bundle
from maisi_aug.bundle_spec.decoding import DecodingConfig, PrecisionName
from maisi_aug.bundle_spec.solvers import PLAIN_SOLVER
from maisi_aug.gates.checks import check_organ_hu
from maisi_aug.networks.acceleration import Compiler
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.vocabulary.hu import reference_hu_ranges
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.benchmarks.measuring import Clock
from tests.oracles.reference_loop import ORGANS, ReferenceLoop, check_medians, encode, to_hu

STAGES = ("condition embedding", "sampling", "image decode", "quality gate", "writing")
SPACING_MM = (1.5, 1.5, 2.0)


@dataclass(frozen=True)
class Case:
    """What both sides are given; plain values, since each side is a process of its own.

    Attributes:
        bundle: Folder of a bundle.
        label_map: ``.npy`` file.
        steps: Of the sampler.
        device: ``cpu`` or ``cuda``.
        repeats: Rounds, of which the median counts.
        precision: What the reference computes in.
        window: Latent voxels decoded at once, on both sides; None for the bundle's, ``whole`` for all of them.
        source: ``given`` for a label map that is there, ``diffusion`` for one that is generated first.
        own_precision: What ours computes in.
        compiler: What ours is compiled by.
        warm_ups: Rounds before those that count.
        own_steps: Of our sampler, which then is the multistep solver; None for ``steps`` of the plain one, as the
            reference takes them.
    """

    bundle: str
    label_map: str
    steps: int
    device: str
    repeats: int
    precision: str
    window: tuple[int, int, int] | str | None = None
    source: str = "given"
    own_precision: PrecisionName = "auto"
    compiler: Compiler = "none"
    warm_ups: int = 0
    own_steps: int | None = None


class _EmbeddingTimer:
    """Adds up the seconds that the condition embedding takes, however often it is computed."""

    def __init__(self, controlnet: nn.Module, device: str) -> None:
        self.seconds, self.device, self.begun = 0.0, device, 0.0
        embedding = cast(nn.Module, controlnet.controlnet_cond_embedding)
        embedding.register_forward_pre_hook(lambda *_: self._begin())
        embedding.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._wait()
        self.begun = time.perf_counter()

    def _end(self) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self.begun

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def take(self) -> float:
        """The seconds since the last time."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def run_ours(case: Case, folder: Path, clock: Clock) -> dict[str, Any]:
    """Our pipeline as ``synthesize`` uses it; loading the weights is not timed."""
    label_map: NDArray[np.uint8] = np.load(case.label_map)
    pipeline = Pipeline.load(
        load_bundle(case.bundle), case.device, precision=case.own_precision, compiler=case.compiler
    )
    timer = _EmbeddingTimer(pipeline.networks.controlnet, case.device)
    grid = Grid.from_spacing(cast(tuple[int, int, int], label_map.shape), SPACING_MM)
    used: list[Any] = []
    for number in range(-case.warm_ups, case.repeats):
        if number == 0:
            clock.forget(STAGES)
        clock.start("sampling")
        image_hu = pipeline.synthesize_image(
            label_map,
            grid,
            seed=abs(number),
            num_inference_steps=case.steps if case.own_steps is None else case.own_steps,
            solver=PLAIN_SOLVER if case.own_steps is None else "multistep",
            decoding=DecodingConfig(window=case.window),  # type: ignore[arg-type]  # a list, from JSON
            report=lambda done, total: clock.start("image decode") if done == total else None,
            report_decoding=lambda settings: used.append(settings.to_dict()),
        )
        clock.start("quality gate")
        check_organ_hu(image_hu, label_map)
        clock.start("writing")
        save_image(folder / "image.nii.gz", image_hu, grid)
        save_label_map(folder / "label.nii.gz", label_map, grid)
        clock.stop()
        clock.move(timer.take(), origin="sampling", target="condition embedding")
    return {"decoding": used[-1]}


def run_reference(case: Case, folder: Path, clock: Clock) -> dict[str, Any]:
    """The published way, without any of our code between label map and files; loading the weights is not timed."""
    label_map: NDArray[np.uint8] = np.load(case.label_map)
    bundle = load_bundle(case.bundle)
    states = {role: safetensors.torch.load_file(bundle.weight_path(role)) for role in NETWORK_ROLES}
    definitions = {role: bundle.definition(role) for role in NETWORK_ROLES}
    loop = ReferenceLoop(
        definitions, states, bundle.spec.scheduler, scale_factor=bundle.spec.scale_factor, device=case.device
    )
    del states
    timer = _EmbeddingTimer(loop.networks["controlnet"], case.device)
    bounds = {bounds.name: bounds for bounds in reference_hu_ranges()}
    bounds = {organ: bounds[organ] for organ in ORGANS if organ in bounds}
    window = bundle.spec.decode_window if case.window is None else case.window
    shape = (1, 4, *(side // bundle_factor(definitions) for side in label_map.shape))
    affine = np.diag([*SPACING_MM, 1.0])
    for number in range(-case.warm_ups, case.repeats):
        if number == 0:
            clock.forget(STAGES)
        clock.start("sampling")
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(abs(number))).to(case.device)
        regions = (
            ("abdomen", "abdomen")
            if bundle.definition("diffusion_unet").get("include_top_region_index_input")
            else None
        )
        with in_precision(case):
            latent = loop.sample(noise, encode(label_map, SPACING_MM, "ct", regions, case.device), num_steps=case.steps)
            clock.start("image decode")
            image = loop.decode(latent, None if window == "whole" else window)  # type: ignore[arg-type]
        image_hu = to_hu(image, label_map)
        clock.start("quality gate")
        check_medians(
            image_hu, label_map, lambda organ, median: bounds[organ].low_hu <= median <= bounds[organ].high_hu
        )
        clock.start("writing")
        nib.save(nib.Nifti1Image(image_hu, affine), folder / "image.nii.gz")
        nib.save(nib.Nifti1Image(label_map, affine), folder / "label.nii.gz")
        clock.stop()
        clock.move(timer.take(), origin="sampling", target="condition embedding")
    return {"decoding": {"num_splits": definitions["autoencoder"].get("num_splits", 1)}}


def bundle_factor(definitions: dict[str, dict[str, Any]]) -> int:
    """Voxels along a side that make one latent voxel."""
    return int(2 ** (len(definitions["autoencoder"]["num_channels"]) - 1))


def in_precision(case: Case) -> Any:
    """NVIDIA's scripts use float16 on a GPU; what they say of CUDA leaves a CPU in float32."""
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if case.precision == "float32":
        return nullcontext()
    return torch.autocast(case.device.partition(":")[0], dtype=dtypes[case.precision])


def read_sides(text: str) -> tuple[int, int, int]:
    """``64x64x32``."""
    i, j, k = (int(side) for side in text.split("x"))
    return i, j, k


def draw_label_map(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A body with an organ of every kind that the quality check looks at, and a tumour."""
    label_map = np.zeros(shape, dtype=np.uint8)
    steps = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))

    def put(label_id: int, centre: tuple[float, float, float], radius: float) -> None:
        distance = np.square((steps - np.reshape(centre, (3, 1, 1, 1))) / radius).sum(0)
        label_map[distance < 1] = label_id

    put(200, (0, 0, 0), 0.95)
    for number, label_id in enumerate((28, 29, 30, 31, 32, 1, 3, 4, 5, 14, 33, 34, 63, 93, 120)):
        angle = 2 * np.pi * number / 15
        put(label_id, (0.6 * np.cos(angle), 0.6 * np.sin(angle), 0.5 * (number % 3 - 1)), 0.22)
    put(26, (0.6 * np.cos(2 * np.pi / 3), 0.6 * np.sin(2 * np.pi / 3), 0.5), 0.08)
    return label_map
