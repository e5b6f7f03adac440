"""The light engine: a compact U-Net, trained on patches for a fixed number of steps, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.evaluation.benchmark.config import Augmentation, Preset
from maisi_aug.evaluation.benchmark.data import AIR_HU, LoadedCase, TrainingPlan
from maisi_aug.evaluation.benchmark.patch_networks import (
    WINDOW_OVERLAP,
    BalancedDiceCrossEntropy,
    StrongVariation,
    Variation,
    build_unet,
    score_windows,
)
from maisi_aug.networks.building import mixed_precision
from maisi_aug.system.progress import ReportStep
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.training.loop.processes import WHOLE, Share
from maisi_aug.training.loop.run import Stateless, TrainingRun
from maisi_aug.training.loop.settings import LoopConfig
from maisi_aug.volumes.grid import Grid

FOREGROUND_SHARE: Final = 0.67
NUM_TIMED_STEPS: Final = 3
VARIATION: Final = Variation(share=0.3, max_blur_voxels=0.8, max_noise_hu=15.0, max_shift_hu=15.0, max_gain=0.1)

LoadCase = Callable[[int], LoadedCase]


@dataclass(frozen=True)
class TrainingSet:
    """Training cases of an arm, from which patches are drawn.

    Attributes:
        num_cases: Number of cases.
        load: Function that returns a case by its index; may be called often.
        num_classes: Number of classes, including the background.
    """

    num_cases: int
    load: LoadCase
    num_classes: int


@dataclass(frozen=True, eq=False)
class PatchObjective(Stateless):
    """Training objective of MONAI's U-Net: loss on patches of an arm's cases, all equally likely."""

    network: nn.Module
    cases: TrainingSet
    plan: TrainingPlan
    preset: Preset
    seed: int
    device: str
    criterion: nn.Module = field(default_factory=BalancedDiceCrossEntropy)
    strong: StrongVariation | None = None
    _places: dict[int, list[NDArray[np.intp]]] = field(default_factory=dict)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that are trained: the U-Net."""
        return {"unet": self.network}

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a share of a step's patches, with figures to log.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            Scalar loss with gradients, and name -> figure to log.
        """
        images, classes = self.draw_batch(step, share)
        scores = self.network(images.to(self.device)).float()
        loss: Tensor = self.criterion(scores, classes.to(self.device))
        return loss, {}

    def draw_batch(self, step: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Draw the patches of a step: ``(B, 1, I, J, K)`` float32 images and ``(B, I, J, K)`` uint8 classes.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.
        """
        rng = numpy_generator(derive_seed("benchmark batch", self.seed, step), "patches")
        chosen = rng.integers(self.cases.num_cases, size=self.preset.batch_count * share.count)
        patches = [self._draw_patch(int(index), rng) for index in chosen][share.slice_of(self.preset.batch_count)]
        images, classes = (np.stack(arrays) for arrays in zip(*patches, strict=True))
        batch = torch.from_numpy(images)[:, None].contiguous(memory_format=torch.channels_last_3d)
        return batch, torch.from_numpy(classes)

    def _draw_patch(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        case = self.cases.load(index)
        shape, side = np.asarray(case.classes.shape), np.asarray(self.plan.patch_shape)
        limits = np.maximum(shape - side, 0)
        corner = rng.integers(0, limits + 1)
        places = self._find_places(index, case)
        if places and rng.random() < FOREGROUND_SHARE:
            chosen = places[rng.integers(len(places))]  # a label first, so that small ones are seen as often as large
            corner = np.clip(chosen[rng.integers(len(chosen))] - rng.integers(0, side), 0, limits)
        if self.strong is None:
            image_hu, classes = _cut(case, corner, side)
            return self.plan.normalise(VARIATION.apply(image_hu, rng)), classes
        image_hu, classes = _cut(
            case, corner - (np.asarray(self.strong.wide_shape) - side) // 2, self.strong.wide_shape
        )
        return self.strong.apply(self.plan.normalise(image_hu), classes, rng)

    def _find_places(self, index: int, case: LoadedCase) -> list[NDArray[np.intp]]:
        """Voxels of every label of a case, at most a few thousand of each."""
        if index not in self._places:
            found = [np.argwhere(case.classes == number) for number in range(1, self.cases.num_classes)]
            self._places[index] = [voxels[:: len(voxels) // 4000 + 1] for voxels in found if len(voxels)]
        return self._places[index]


def _cut(
    case: LoadedCase, corner: NDArray[np.intp], side: Sequence[int] | NDArray[np.intp]
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A box of a case; air where it reaches beyond."""
    first = np.maximum(corner, 0)
    last = np.minimum(corner + side, case.classes.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    room = np.stack([first - corner, corner + side - last], axis=1).tolist()
    return np.pad(case.image_hu[box], room, constant_values=AIR_HU), np.pad(case.classes[box], room)


def train_unet(
    cases: TrainingSet,
    plan: TrainingPlan,
    preset: Preset,
    folder: Path,
    *,
    num_steps: int,
    seed: int,
    device: str,
    augmentation: Augmentation = "light",
    max_minutes: float | None = None,
    report_step: ReportStep | None = None,
) -> nn.Module | None:
    """Train an arm, or continue where it was stopped.

    Args:
        cases: Its training cases.
        plan: The same in all arms.
        preset: Size of the network.
        folder: Gets the checkpoint.
        num_steps: Optimiser steps, the same in all arms.
        seed: Seed of the weights and the batches.
        device: "cpu" or "cuda".
        augmentation: How patches are varied.
        max_minutes: Stop after this many minutes; a later call continues.
        report_step: Called after each step.

    Returns:
        The network with averaged weights in evaluation mode; None if the time limit was reached before the last step.

    Raises:
        TrainingError: The loss is no longer finite, or the folder holds another training's checkpoint.
    """
    loop = LoopConfig(
        num_steps=num_steps,
        learning_rate=preset.learning_rate,
        num_warmup_steps=min(50, max(1, num_steps // 10)),
        average_decay=0.99,
        checkpoint_minutes=1.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("benchmark weights", seed))
        network = build_unet(preset.widths, num_channels=1, num_classes=cases.num_classes).to(device)
    objective = PatchObjective(
        network, cases, plan, preset, seed=seed, device=device, strong=_build_strong(augmentation, plan)
    )
    result = TrainingRun(objective, loop, folder, device=device).train(max_minutes=max_minutes, report_step=report_step)
    if not result.is_complete:
        return None
    network.load_state_dict(result.averaged_weights["unet"])
    return network.eval()


@torch.inference_mode()
def predict_case(
    network: nn.Module, case: LoadedCase, plan: TrainingPlan, *, target: Grid, device: str
) -> NDArray[np.uint8]:
    """Segment a case at the planned spacing, and resample the result to the grid of its own label map.

    Args:
        network: Network in evaluation mode.
        case: Case at the planned spacing; its classes are not used.
        plan: Preprocessing that the network was trained with.
        target: Grid of the case's own label map.
        device: Device that the network is on.

    Returns:
        ``(I, J, K)`` classes on the target grid.
    """
    image = torch.from_numpy(plan.normalise(case.image_hu))[None, None].to(device)
    air = float(plan.normalise(np.array([AIR_HU]))[0])
    scores = score_windows(network, image, plan.patch_shape, fill=air, device=device)
    shares = scores[0].float().softmax(dim=0).cpu().numpy()
    return _take_likeliest(shares, case.grid, target)


def _take_likeliest(shares: NDArray[np.float32], grid: Grid, target: Grid) -> NDArray[np.uint8]:
    """The likeliest class on another grid, one class at a time, so that one volume at a time is held there."""
    from maisi_aug.volumes.resampling import resample_image

    best = resample_image(shares[0], grid, target, fill=1.0)
    classes = np.zeros(target.shape, dtype=np.uint8)
    for number, share in enumerate(shares[1:], start=1):
        here = resample_image(share, grid, target, fill=0.0)
        wins = here > best
        classes[wins] = number
        best[wins] = here[wins]
    return classes


def _build_strong(augmentation: Augmentation, plan: TrainingPlan) -> StrongVariation | None:
    return StrongVariation(plan.patch_shape) if augmentation == "strong" else None


def measure_step_seconds(
    plan: TrainingPlan, preset: Preset, num_classes: int, *, device: str, augmentation: Augmentation = "light"
) -> float:
    """Measure the seconds of one training step on noise, for estimates of a benchmark's duration.

    Args:
        plan: Plan with the patches' shape.
        preset: Size of the network.
        num_classes: Number of classes, including the background.
        device: Name of the torch device that trains.
        augmentation: How patches are varied.
    """
    rng = np.random.default_rng(0)
    noise = LoadedCase(
        rng.integers(-100, 100, plan.patch_shape).astype(np.int16),
        rng.integers(0, num_classes, plan.patch_shape).astype(np.uint8),
        Grid.from_spacing(plan.patch_shape, plan.spacing_mm),
    )
    network = build_unet(preset.widths, num_channels=1, num_classes=num_classes).to(device)
    cases = TrainingSet(1, lambda index: noise, num_classes)
    objective = PatchObjective(
        network, cases, plan, preset, seed=0, device=device, strong=_build_strong(augmentation, plan)
    )
    times = []
    for step in range(1 + NUM_TIMED_STEPS):
        started = perf_counter()
        with mixed_precision(device):
            loss, _ = objective.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]
        times.append(perf_counter() - started)
    return float(np.median(times[1:]))


def count_windows(shape: Sequence[int], plan: TrainingPlan) -> int:
    """Return the number of windows in which a case is segmented, for estimates of a benchmark's duration.

    Args:
        shape: Number of voxels of the case along I, J, K, at the planned spacing.
        plan: Plan whose ``patch_shape`` is the shape of a window; neighbouring windows overlap by ``WINDOW_OVERLAP``.
    """
    steps = [max(1, int(np.ceil(s / p / (1 - WINDOW_OVERLAP)))) for s, p in zip(shape, plan.patch_shape, strict=True)]
    return int(np.prod(steps))
