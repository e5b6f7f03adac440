r"""Train the segmenter that judges synthetic images, on real ones alone, and measure its Dice on held-out ones.

    python -m maisi_aug.evaluation.studies.train_segmenter --out runs/segmenter --max-minutes 25
    python -m maisi_aug.evaluation.studies.train_segmenter --data prepared --label mandible --fold 0 \
        --out runs/segmenter

Phantoms are built for it; with ``--data`` it learns the labels of a prepared folder, from all folds but one.

An interrupted run continues from its checkpoint when the command is repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.evaluation.benchmark.patch_networks import Variation
from maisi_aug.evaluation.output.files import run_command, to_markdown
from maisi_aug.evaluation.studies.segmenter import (
    Segmenter,
    SegmenterConfig,
    build_network,
    load_segmenter,
    save_segmenter,
    to_channels,
)
from maisi_aug.evaluation.studies.tissues import mean_dice, measure_dice, to_class_map
from maisi_aug.networks.pipeline import resolve_device
from maisi_aug.phantom import Phantom, build_phantom
from maisi_aug.preparation.prepared import PreparedDataset
from maisi_aug.system.progress import Report, ReportStep, report_nothing
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.system.whole_files import write_json_whole, write_text_whole
from maisi_aug.training.cases.data import CaseStore, PhantomStore
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.finetune.slot_choice import find_source
from maisi_aug.training.images.patches import LesionPlaces
from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path
from maisi_aug.training.loop.processes import WHOLE, Share
from maisi_aug.training.loop.run import Stateless, TrainingRun
from maisi_aug.volumes.grid import Grid

REGIONS: Final[tuple[Literal["chest", "abdomen", "pelvis", "any"], ...]] = ("chest", "abdomen", "pelvis", "any")


def held_out_seed(seed: int, index: int) -> int:
    """Return the seed of held-out phantom ``index``, derived from the seed of a study.

    The name of the stream is included, so that no training run draws the same patients, whatever its seed.
    """
    return derive_seed("held-out phantom", seed, index)


def build_held_out_phantom(seed: int, index: int, grid: Grid) -> Phantom:
    """Build held-out phantom ``index`` of a seed, with lesions; body regions alternate."""
    return build_phantom(seed=held_out_seed(seed, index), grid=grid, region=REGIONS[index % len(REGIONS)])


CONFIG_NAME: Final = "segmenter.json"
DICE_NAME: Final = "held_out_dice.json"
NUM_HELD_OUT: Final = 20
# More than bundles do, so that a blur or a shift of a few HU does not decide what the segmenter sees.
VARIATION: Final = Variation(share=0.5, max_blur_voxels=0.9, max_noise_hu=15.0, max_shift_hu=20.0, max_gain=0.1)


class SegmenterObjective(Stateless):
    """Training objective of the independent segmenter: soft Dice plus cross-entropy on patches."""

    def __init__(self, network: nn.Module, store: CaseStore, config: SegmenterConfig, *, device: str) -> None:
        self.network = network
        self.store = store
        self.config = config
        self.device = device
        self.tissues = config.tissues
        # Lesions are a thousandth of the voxels, and the last class: unweighted, they are learnt last of all.
        focused = [config.lesion_weight if tissue in config.focus else 1.0 for tissue in self.tissues]
        weight = torch.tensor([1.0, *focused])
        self.criterion = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, weight=weight
        ).to(device)
        self.lesions = LesionPlaces(store, [label_id for tissue in config.focus for label_id in tissue.label_ids])

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that are trained: the segmenter."""
        return {"segmenter": self.network}

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a share of a step's patches, with figures to log."""
        images_hu, classes = self.draw_batch(step, share)
        scores = self.network(to_channels(images_hu.to(self.device))).float()
        loss: Tensor = self.criterion(scores, classes[:, None].to(self.device))
        return loss, {}

    def draw_batch(self, step: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Draw a share of a step's patches: ``(B, I, J, K)`` float32 HU and ``(B, I, J, K)`` uint8 classes."""
        rng = numpy_generator(derive_seed("segmenter batch", self.config.seed, step), "patches")
        num_patches = self.config.batch_count * share.count
        patches = [self._draw_patch(int(rng.integers(len(self.store))), rng) for _ in range(num_patches)]
        own = patches[share.slice_of(self.config.batch_count)]
        images_hu, classes = (np.stack(arrays) for arrays in zip(*own, strict=True))
        return torch.from_numpy(images_hu), torch.from_numpy(classes)

    def _draw_patch(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        case_shape = self.store.facts(index).shape
        shape = np.minimum(self.config.patch_shape, case_shape)
        limits = np.asarray(case_shape) - shape
        corner = rng.integers(0, limits + 1)
        lesion_voxels = self.lesions[index]
        if len(lesion_voxels) and rng.random() < self.config.lesion_share:
            corner = np.clip(lesion_voxels[rng.integers(len(lesion_voxels))] - rng.integers(0, shape), 0, limits)
        box = tuple(slice(int(start), int(start + side)) for start, side in zip(corner, shape, strict=True))
        # No mirroring: left and right are how liver and spleen are distinguished.
        image_hu = VARIATION.apply(self.store.image_hu(index, box), rng)
        return image_hu, to_class_map(self.store.label_map(index, box), self.tissues)


def train_segmenter(
    config: SegmenterConfig,
    folder: Path,
    *,
    device: str,
    max_minutes: float | None = None,
    num_workers: int | None = None,
    report_phantoms: Report = report_nothing,
    report_step: ReportStep | None = None,
) -> Segmenter:
    """Build the training phantoms, train the independent segmenter or continue, and save averaged weights.

    Args:
        config: Training configuration; a folder keeps the first one.
        folder: Folder of the run.
        device: ``cpu`` or ``cuda``.
        max_minutes: Stop after this many minutes; a later call continues.
        num_workers: Number of processes that build phantoms; None for one per core.
        report_phantoms: Progress callback, called with (phantoms built, phantoms in all).
        report_step: Progress callback, called with (step, figures such as ``loss``).

    Raises:
        TrainingError: The folder holds a run of another configuration.
    """
    _require_same_config(folder, config)
    phantoms = PhantomStore(
        folder,
        seed=derive_seed("segmenter phantoms", config.seed),
        shape=config.grid.shape,
        spacing_mm=config.grid.spacing_mm,
    )
    phantoms.ensure(config.num_phantoms, report=report_phantoms, num_workers=num_workers)
    return train_on(config, phantoms, folder, device=device, max_minutes=max_minutes, report_step=report_step)


def train_on(
    config: SegmenterConfig,
    store: CaseStore,
    folder: Path,
    *,
    device: str,
    max_minutes: float | None = None,
    report_step: ReportStep | None = None,
) -> Segmenter:
    """Train the independent segmenter on the cases of a store, or continue, and save averaged weights.

    Args:
        config: Training configuration; a folder keeps the first one.
        store: Training cases with their label maps.
        folder: Folder of the run.
        device: ``cpu`` or ``cuda``.
        max_minutes: Stop after this many minutes; a later call continues.
        report_step: Progress callback, called with (step, figures such as ``loss``).

    Raises:
        TrainingError: The folder holds a run of another configuration.
    """
    _require_same_config(folder, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("segmenter weights", config.seed))
        network = build_network(config).to(device)
    objective = SegmenterObjective(network, store, config, device=device)
    result = TrainingRun(objective, config.loop, folder, device=device).train(
        max_minutes=max_minutes, report_step=report_step
    )
    save_segmenter(folder, result.averaged_weights["segmenter"], config, num_steps=result.num_steps_done)
    return load_segmenter(folder, device=device)


def _require_same_config(folder: Path, config: SegmenterConfig) -> None:
    path = folder / CONFIG_NAME
    text = config.to_text()
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise TrainingError(
            f"Segmenter {folder}: its {CONFIG_NAME} has another configuration. Use another folder, or the original "
            "options to continue."
        )
    write_text_whole(path, text)


def measure_held_out_dice(
    segmenter: Segmenter, *, seed: int, num_cases: int, report: Report = report_nothing
) -> dict[str, float | None]:
    """Return the mean Dice of every tissue over held-out phantoms; None for a tissue that none of them has."""
    grid = Grid.from_spacing(segmenter.config.grid.shape, segmenter.config.grid.spacing_mm)
    phantoms = (build_held_out_phantom(seed, index, grid) for index in range(num_cases))
    return _mean_dice_on(segmenter, ((one.label_map, one.image_hu) for one in phantoms), num_cases, report)


def describe_data(dataset: PreparedDataset, labels: Sequence[str], fold: int) -> dict[str, Any]:
    """Return the part of a segmenter's configuration that describes prepared training cases.

    Args:
        dataset: All prepared cases.
        labels: Names of the labels to segment; if empty, the new labels of the data.
        fold: Held-out fold.

    Raises:
        TrainingError: The data lack a label, or have no new label.
    """
    names = list(labels) or list(dataset.spec.new_labels)
    if not names:
        raise TrainingError(f"{dataset.path}: has no new labels to tell apart. Name some with --label NAME.")
    found = [find_source(name, dataset) for name in names]
    keys = hashlib.sha256("".join(case.key for case in dataset.select(exclude_fold=fold).cases).encode()).hexdigest()
    return {
        "labels": {label.name: label.id for label in found},
        "dataset": {"name": dataset.spec.name, "cases_sha256": keys[:16], "held_out_fold": str(fold)},
    }


def measure_dice_on(
    segmenter: Segmenter, store: CaseStore, *, report: Report = report_nothing
) -> dict[str, float | None]:
    """Return the mean Dice of every tissue over the cases of a store; None for a tissue that none of them has."""
    pairs = ((store.label_map(index), store.image_hu(index)) for index in range(len(store)))
    return _mean_dice_on(segmenter, pairs, len(store), report)


def _mean_dice_on(
    segmenter: Segmenter, pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.int16]]], num_cases: int, report: Report
) -> dict[str, float | None]:
    rows = []
    for done, (label_map, image_hu) in enumerate(pairs, start=1):
        expected = to_class_map(label_map, segmenter.tissues)
        rows.append(measure_dice(expected, segmenter.segment(image_hu), segmenter.tissues))
        report(done, num_cases)
    return {tissue.name: mean_dice(rows, tissue.name) for tissue in segmenter.tissues}


def print_steps(every: int, num_steps: int) -> ReportStep:
    """Return a progress callback that prints the mean loss over a number of steps on stderr."""
    losses: list[float] = []

    def report(step: int, figures: dict[str, float]) -> None:
        losses.append(figures["loss"])
        if step % every == 0:
            print(f"step {step} of {num_steps}, loss {np.mean(losses):.4f}", file=sys.stderr, flush=True)
            losses.clear()

    return report


def print_progress(what: str) -> Report:
    """Return a progress callback that prints a line on stderr for each finished item."""
    return lambda done, total: print(f"{what} {done} of {total}", file=sys.stderr, flush=True)


def _default(field: str) -> Any:
    return SegmenterConfig.model_fields[field].default


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.studies.train_segmenter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--data", type=Path, help="prepared folder to train on, instead of phantoms")
    parser.add_argument(
        "--label", action="append", default=[], help="with --data: labels to tell apart (default: its new labels)"
    )
    parser.add_argument("--fold", type=int, default=0, help="with --data: the fold to leave out and to measure on")
    parser.add_argument("--recipe", default="train-phantom-ct", help="training recipe whose grid and slots to take")
    parser.add_argument("--num-phantoms", type=int, default=_default("num_phantoms"))
    parser.add_argument("--num-steps", type=int, default=_default("loop").num_steps)
    parser.add_argument("--seed", type=int, default=_default("seed"))
    parser.add_argument(
        "--max-minutes", type=float, help="stop after this many minutes; the same command continues later"
    )
    parser.add_argument("--num-workers", type=int, help="processes that build phantoms; one a core by default")
    parser.add_argument("--num-held-out", type=int, default=NUM_HELD_OUT, help="held-out phantoms to measure on")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: train, measure, print Dice by tissue; return the exit code."""
    options = _parse(arguments)
    return run_command(lambda: _train_on_phantoms(options) if options.data is None else _train_on_data(options))


def _train_on_data(options: argparse.Namespace) -> None:
    store = PreparedStore.from_folder(options.data)
    config = SegmenterConfig(
        grid=store.spec.grid,
        slots={},
        seed=options.seed,
        loop=_default("loop").model_copy(update={"num_steps": options.num_steps}),
        **describe_data(store.dataset, options.label, options.fold),
    )
    segmenter = train_on(
        config,
        store.select(exclude_fold=options.fold),
        options.out,
        device=resolve_device(options.device),
        max_minutes=options.max_minutes,
        report_step=print_steps(50, options.num_steps),
    )
    held_out = store.select(folds=[options.fold])
    dice = measure_dice_on(segmenter, held_out, report=print_progress("held-out case"))
    _show(options.out, segmenter, dice, f"Dice on {len(held_out)} held-out cases")


def _train_on_phantoms(options: argparse.Namespace) -> None:
    header = load_training_recipe(training_recipe_path(options.recipe)).bundle
    config = SegmenterConfig(
        grid=header.grid,
        slots=header.slots,
        seed=options.seed,
        num_phantoms=options.num_phantoms,
        loop=_default("loop").model_copy(update={"num_steps": options.num_steps}),
    )
    segmenter = train_segmenter(
        config,
        options.out,
        device=resolve_device(options.device),
        max_minutes=options.max_minutes,
        num_workers=options.num_workers,
        report_phantoms=print_progress("phantom"),
        report_step=print_steps(50, options.num_steps),
    )
    dice = measure_held_out_dice(
        segmenter, seed=options.seed, num_cases=options.num_held_out, report=print_progress("held-out phantom")
    )
    _show(options.out, segmenter, dice, f"Dice on {options.num_held_out} held-out phantoms")


def _show(folder: Path, segmenter: Segmenter, dice: Mapping[str, float | None], heading: str) -> None:
    write_json_whole(folder / DICE_NAME, {"num_steps": segmenter.num_steps, "dice": dice})
    print(to_markdown(["tissue", heading], dice.items()))


if __name__ == "__main__":
    sys.exit(main())
