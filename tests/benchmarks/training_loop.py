"""How fast the training loop is, and what memory it takes, against a plain PyTorch loop over the same networks.

    python -m tests.benchmarks.training_loop --out results

Both sides make the same steps: the same networks, batches, loss, optimiser and gradient norm. The plain loop has its
batches ready; ours also draws them, averages the weights, checks the loss, logs, and is ready to stop. Speed is
measured in one process, a few steps of one side and then of the other, on a CPU as processor time of one thread, so
that neither other work counts nor threads that wait; memory in a process of its own for each side. What the loop sets
for the process as a whole, the allocator that keeps freed memory, serves the plain side as well.
``--device cuda`` measures full width at 256x256x256 voxels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal

import torch
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn

from maisi_aug.networks.building import build_network, build_scheduler, use_plain_layers
from maisi_aug.networks.conditioning import name_for_unet, to_label_bits, to_modality_tensor, to_spacing_tensor
from maisi_aug.training.cases.data import LatentSet
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.images.vae import VaeObjective
from maisi_aug.training.loop.amp import Precision
from maisi_aug.training.loop.run import TrainingRun, build_optimizer
from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig, VaeLossConfig
from tests.benchmarks.image_stages import draw_label_map, read_sides
from tests.benchmarks.measuring import Clock
from tests.benchmarks.pipeline import REPOSITORY, WIDTHS, describe_machine
from tests.builders.narrow_networks import scaled_header
from tests.builders.tiny_training import ArrayCase, ArrayStore

Side = Literal["ours", "ours, no average", "plain"]
SIDES: tuple[Side, ...] = ("ours", "ours, no average", "plain")
STAGES = ("vae", "controlnet")
LESION_ID = 26
LESION_WEIGHT = 100.0
# NV-Generate-CTMR, README: what training takes at 256x256x256.
PUBLISHED_MEMORY_GB = {"256x256x256": 8}
MOST_TIMES_SLOWER = 1.05


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        stage: "vae" or "controlnet".
        grid: Voxels, "IxJxK"; of a patch for the autoencoder.
        width: A key of ``WIDTHS``.
        device: "cpu" or "cuda".
        num_steps: Steps of a round.
        num_rounds: Rounds of each side.
    """

    stage: str
    grid: str
    width: str
    device: str
    num_steps: int
    num_rounds: int


class RoundOver(Exception):  # noqa: N818 - no error
    """Ends a round of our loop between two steps."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sides and write ``results_training_loop.json`` and ``results_training_loop.md``."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.training_loop", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="may repeat (default: all)")
    parser.add_argument("--grid", metavar="IxJxK", help="(default: 64x64x64; on cuda 256x256x256)")
    parser.add_argument("--width", choices=list(WIDTHS), help="(default: tiny; on cuda full)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        side, text = options.memory_of
        sys.stdout.write(f"{measure_memory(side, Case(**json.loads(text)))}\n")
        return
    with nullcontext() if options.device.startswith("cuda") else one_thread():
        measure_all(options)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_all(options: argparse.Namespace) -> None:
    """Measure the stages asked for, and write the results."""
    has_cuda = options.device.startswith("cuda")
    runs: list[dict[str, Any]] = []
    results = {"machine": describe_machine(options.device), "runs": runs}
    for stage in options.stage or STAGES:
        grid = options.grid or ("256x256x256" if has_cuda else "64x64x64")
        if stage == "vae" and not options.grid:
            grid = "128x128x128" if has_cuda else "32x32x32"
        width = options.width or ("full" if has_cuda else "tiny")
        case = Case(stage, grid, width, options.device, options.steps, options.rounds)
        seconds = measure_speed(case)
        memory = {side: read_memory(side, case) for side in SIDES}
        runs.append({**asdict(case), "seconds": seconds, "peak_bytes": memory})
        sys.stdout.write(to_table(runs[-1]) + "\n")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results_training_loop.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (options.out / "results_training_loop.md").write_text(to_markdown(results), encoding="utf-8")


def measure_speed(case: Case) -> dict[str, list[float]]:
    """Seconds of every step of each side, the sides taking turns; the first round of each warms up."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        makers = {side: build_side(side, case, Path(folder)) for side in SIDES}
        for number in range(case.num_rounds + 1):
            # Which side comes first changes from round to round, so that no side profits from its place.
            for side in (*SIDES[number % 3 :], *SIDES[: number % 3]):
                taken = makers[side](case.num_steps)
                if number > 0:
                    seconds[side] += taken
    return seconds


def measure_memory(side: Side, case: Case) -> int:
    """Peak memory of one side alone: resident memory of this process, or allocated memory of the GPU."""
    clock = Clock(case.device)
    with tempfile.TemporaryDirectory() as folder:
        clock.start("steps")
        build_side(side, case, Path(folder))(2)
        clock.stop()
    return clock.peak_bytes["steps"]


def read_memory(side: Side, case: Case) -> int:
    """The same, from a process of its own."""
    module = "tests.benchmarks.training_loop"
    command = [sys.executable, "-m", module, "--out", ".", "--memory-of", side, json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def build_side(side: Side, case: Case, folder: Path) -> Callable[[int], list[float]]:
    """A function that makes steps of one side and gives the seconds of each."""
    objective = build_vae(case) if case.stage == "vae" else build_controlnet(case)
    decay = 0.999 if side == "ours" else 0.0
    # As in the embedded recipe: on CPUs bfloat16 gradients of the ControlNet are not always numbers.
    is_mixed = case.stage == "vae" or case.device.startswith("cuda")
    loop = LoopConfig(
        num_steps=10**6, learning_rate=1e-5, num_warmup_steps=0, average_decay=decay, mixed_precision=is_mixed
    )
    if side == "plain":
        losses = plain_vae(objective) if isinstance(objective, VaeObjective) else plain_controlnet(objective)
        return plain_steps(objective, losses, loop, case)
    return our_steps(TrainingRun(objective, loop, folder / side, device=case.device), case)


def our_steps(run: TrainingRun, case: Case) -> Callable[[int], list[float]]:
    """Steps of our loop, as ``maisi-aug train`` makes them."""

    def make(num_steps: int) -> list[float]:
        last = run.step + num_steps
        seconds: list[float] = []
        begun = read_clock(case.device)

        def report(step: int, figures: dict[str, float]) -> None:
            nonlocal begun
            now = read_clock(case.device)
            seconds.append(now - begun)
            begun = now
            if step == last:
                raise RoundOver

        try:
            run.train(report_step=report)
        except RoundOver:
            return seconds
        raise AssertionError("the loop ended by itself")

    return make


def plain_steps(
    objective: VaeObjective | FlowObjective, losses: Iterator[Callable[[], Tensor]], loop: LoopConfig, case: Case
) -> Callable[[int], list[float]]:
    """Steps of a plain loop."""
    parameters = [p for network in objective.networks.values() for p in network.parameters()]
    optimizer = build_optimizer(parameters, loop)
    precision = Precision(case.device, is_mixed=loop.mixed_precision)

    def make(num_steps: int) -> list[float]:
        seconds = []
        for _ in range(num_steps):
            loss_of_batch = next(losses)  # the batch is ready before the clock starts
            begun = read_clock(case.device)
            optimizer.zero_grad(set_to_none=True)
            with precision.autocast():
                loss = loss_of_batch()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            seconds.append(read_clock(case.device) - begun)
        return seconds

    return make


def plain_vae(objective: VaeObjective) -> Iterator[Callable[[], Tensor]]:
    """Losses of the autoencoder's batches: L1 and Kullback-Leibler."""
    autoencoder: Any = objective.autoencoder
    step = 0
    while True:
        image = objective.patches.draw(step).to(objective.device)
        step += 1

        def loss(image: Tensor = image) -> Tensor:
            mean, sigma = autoencoder.encode(image)
            rebuilt = autoencoder.decode(mean + sigma * torch.randn_like(mean)).float()
            mean, sigma = mean.float(), sigma.float()
            divergence = 0.5 * (mean**2 + sigma**2 - torch.log(sigma**2 + 1e-8) - 1).sum() / len(image)
            total: Tensor = (rebuilt - image).abs().mean() + 1e-7 * divergence
            return total

        yield loss


def plain_controlnet(objective: FlowObjective) -> Iterator[Callable[[], Tensor]]:
    """Losses of the ControlNet's batches: L1 on the velocity, lesions weighted."""
    assert isinstance(objective.scheduler, RFlowScheduler)
    device = objective.device
    step = 0
    while True:
        batch = objective._draw_batches(step)[0]
        noise, timesteps = (tensor.to(device) for tensor in objective._draw_noise(step, batch.clean))
        clean = batch.clean.to(device)
        noisy = objective.scheduler.add_noise(original_samples=clean, noise=noise, timesteps=timesteps)
        label_maps = torch.from_numpy(batch.label_maps).to(device)
        weight, _ = objective._weights(label_maps, clean.shape)
        bits = to_label_bits(label_maps)
        modality = to_modality_tensor(batch.modalities, device=device)
        told = name_for_unet(modality, to_spacing_tensor(batch.spacings_mm, device=device), None)
        tensors = (noisy, timesteps, clean - noise, weight, bits, modality)
        step += 1

        def loss(tensors: tuple[Tensor, ...] = tensors, told: dict[str, Tensor] = told) -> Tensor:
            noisy, timesteps, target, weight, bits, modality = tensors
            assert objective.controlnet is not None
            down, middle = objective.controlnet(
                x=noisy, timesteps=timesteps, controlnet_cond=bits, class_labels=modality
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            error = (objective.unet(x=noisy, timesteps=timesteps, **told, **residuals).float() - target).abs()
            total: Tensor = (error * weight).sum() / (weight.sum() * error.shape[1])
            return total

        yield loss


def build_vae(case: Case) -> VaeObjective:
    """The autoencoder's objective on one random image."""
    autoencoder = build("autoencoder", case)
    config = VaeLossConfig(patch_shape=read_sides(case.grid), initial_log_variance=0.0, window_weight=0.0)
    return VaeObjective(
        autoencoder, build_store(case, margin=16), config, lesion_ids=(LESION_ID,), seed=0, device=case.device
    )


def build_controlnet(case: Case) -> FlowObjective:
    """The ControlNet's objective beside a frozen U-Net, on one random case."""
    store = build_store(case)
    sides = [side // 4 for side in read_sides(case.grid)]
    latent = torch.randn(4, *sides, generator=torch.Generator().manual_seed(0)).half()
    return FlowObjective(
        build("diffusion_unet", case),
        build("controlnet", case),
        build_scheduler(scaled_header("rflow-ct")["scheduler"]),
        store,
        LatentSet([latent], 1.0),
        FlowLossConfig(lesion_weight=LESION_WEIGHT),
        lesion_ids=(LESION_ID,),
        seed=0,
        device=case.device,
    )


def build(role: str, case: Case) -> nn.Module:
    """One network as the stages build it; its weights are the same on all sides."""
    torch.manual_seed(0)
    network = build_network(scaled_header("rflow-ct", divisor=WIDTHS[case.width])["networks"][role], device=case.device)
    use_plain_layers(network)
    return network.to(memory_format=torch.channels_last_3d)


def build_store(case: Case, *, margin: int = 0) -> ArrayStore:
    """A random image with a label map that has a lesion."""
    i, j, k = (side + margin for side in read_sides(case.grid))
    label_map = draw_label_map((i, j, k))
    label_map[i // 2 : i // 2 + 4, j // 2 : j // 2 + 4, k // 2 : k // 2 + 4] = LESION_ID
    image_hu = torch.randint(-1000, 1000, (i, j, k), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    return ArrayStore([ArrayCase(image_hu.numpy(), label_map, (1.5, 1.5, 1.5), "ct")])


def read_clock(device: str) -> float:
    """Seconds: of a CPU the processor time of this process, else of a watch."""
    if not device.startswith("cuda"):
        return process_time()
    torch.cuda.synchronize(device)
    return perf_counter()


def to_table(run: dict[str, Any]) -> str:
    """One run as a Markdown table."""
    plain = median(run["seconds"]["plain"])
    lines = ["| loop | s a step | steps/s | times the plain loop | peak, GB |", "|---|---|---|---|---|"]
    for side in SIDES:
        seconds = median(run["seconds"][side])
        peak = run["peak_bytes"][side] / 1e9
        lines.append(f"| {side} | {seconds:.4f} | {1 / seconds:.3g} | {seconds / plain:.3f} | {peak:.2f} |")
    return "\n".join(lines)


def to_markdown(results: dict[str, Any]) -> str:
    """All runs, and what they were measured on."""
    machine = results["machine"]
    parts = [
        "# The training loop against a plain one",
        "Written by `python -m tests.benchmarks.training_loop`. The same networks with random weights, batches, loss "
        "and optimiser; the plain loop has its batches ready. Median of all steps, the sides taking turns in one "
        "process; on a CPU the processor time of one thread. Peak memory of a process of its own, libraries included, "
        "or of the GPU.",
        f"Machine: {machine['device']}, {machine['cpu_count']} cores, {machine['torch_threads']} threads, torch "
        f"{machine['torch']}; load average before: {machine['load_average_before']}.",
    ]
    for run in results["runs"]:
        published = PUBLISHED_MEMORY_GB.get(run["grid"]) if run["stage"] == "controlnet" else None
        note = f" Published for this size: {published} GB." if published else ""
        parts += [f"## {run['stage']} at {run['width']} width, {run['grid']}, {run['device']}", to_table(run) + note]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
