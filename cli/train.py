"""`maisi-aug train vae|diffusion|controlnet|mask-vae|mask-diffusion`: rebuild a bundle from a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maisi_aug.api.bars import add_phase, add_training, open_bars, show_loading
from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import MaxMinutes, NewRun, Tensorboard, TrainingDevice
from maisi_aug.cli.shared.streams import tell
from maisi_aug.training.request import MaskDiffusionRequest, MaskTrainRequest, TrainRequest

if TYPE_CHECKING:
    from maisi_aug.system.progress import ReportPhase
    from maisi_aug.training.loop.run import LoopResult
    from maisi_aug.training.loop.stopping import TimeIsUp
    from maisi_aug.training.masks.data import MaskSplit
    from maisi_aug.training.masks.recipe import MaskTrainingRecipe
    from maisi_aug.training.masks.stages import MaskStageName


RESUMES = "An interrupted run continues from its checkpoint."
EXAMPLE = "\n\nExample: maisi-aug train {} --out runs/phantom-ct"


def register(app: typer.Typer) -> None:
    """Add the group ``train``."""
    group = typer.Typer(
        name="train",
        no_args_is_help=True,
        help="Train the networks of a bundle, stage by stage, from a training recipe. On N GPUs: "
        "torchrun --nproc_per_node=N -m maisi_aug.cli.app train ..., which multiplies the batch of a step by N.",
    )
    for stage, summary in (
        ("vae", "Train the autoencoder on images."),
        ("diffusion", "Train the diffusion U-Net on the autoencoder's latents."),
        ("controlnet", "Train the ControlNet, then write the bundle."),
    ):
        group.command(stage, help=f"{summary} {RESUMES}{EXAMPLE.format(stage)}")(with_options(_stage_command(stage)))
    for mask_stage, command, summary in (
        ("mask-vae", train_mask_vae, "Train the autoencoder of label maps."),
        (
            "mask-diffusion",
            train_mask_diffusion,
            "Train the diffusion U-Net on the latents of label maps, told the sizes of organs and tumours, then write "
            "both mask networks into a bundle.",
        ),
    ):
        group.command(mask_stage, help=f"{summary} {RESUMES}{EXAMPLE.format(mask_stage)}")(with_options(command))
    app.add_typer(group)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        request: TrainRequest,
        out: NewRun,
        max_minutes: MaxMinutes = None,
        device: TrainingDevice = "auto",
        tensorboard: Tensorboard = False,
    ) -> None:
        train_stage(stage, request, out, max_minutes=max_minutes, device=device, tensorboard=tensorboard)

    return command


def train_stage(
    stage: str, request: TrainRequest, out: Path, *, max_minutes: float | None, device: str, tensorboard: bool
) -> None:
    """Run one stage with a progress bar on stderr; prints where the result lies.

    Under ``torchrun`` or ``accelerate launch`` all processes train together, and the first one reports.
    """
    from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit

    limit = TimeLimit(max_minutes)
    with show_loading():
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path
        from maisi_aug.training.images.stages import TrainingFolder
        from maisi_aug.training.loop.processes import Processes

    settings = load_training_recipe(training_recipe_path(request.recipe_name))
    settings = settings if request.data is None else settings.with_prepared(request.data)
    num_steps = getattr(settings, stage).loop.num_steps
    device = resolve_device(device)
    processes = Processes.connect(device)
    result: LoopResult | TimeIsUp
    with open_bars(is_shown=processes.is_main, is_telling=processes.is_main) as bars:
        folder = TrainingFolder(
            settings,
            out,
            device=processes.device_of(device),
            report_phase=limit.limit(partial(add_phase, bars)),
            processes=processes,
            with_tensorboard=tensorboard,
        )
        report_step = add_training(bars, f"Training {stage}", num_steps)
        try:
            result = folder.train(stage, max_minutes=limit.minutes_left, report_step=report_step)  # type: ignore[arg-type]
            path = folder.write_bundle().path if stage == "controlnet" else out / stage
        except TimeIsUp as stop:
            result, path = stop, out
    processes.leave()
    if processes.is_main:
        tell_result(stage, result, path, num_steps=num_steps)


def tell_result(stage: str, result: LoopResult | TimeIsUp, path: Path, *, num_steps: int) -> None:
    """Print where the result of a stage lies, and on stderr what is missing of a training that was stopped."""
    from maisi_aug.training.loop.stopping import TimeIsUp

    if isinstance(result, TimeIsUp):
        what = f"{result.phase[0].lower()}{result.phase[1:]}, {result.done} of {result.total}"
        tell(f"{stage}: the time was up while {what}; run again to go on.")
    elif not result.is_complete:
        tell(f"{stage}: {result.num_steps_done} of {num_steps} steps; run again to go on.")
    typer.echo(path)


def train_mask_vae(
    request: MaskTrainRequest,
    out: NewRun,
    max_minutes: MaxMinutes = None,
    device: TrainingDevice = "auto",
    tensorboard: Tensorboard = False,
) -> None:
    """Train the first stage of the mask networks."""
    _train("mask-vae", request, None, out, max_minutes, device, tensorboard)


def train_mask_diffusion(
    request: MaskDiffusionRequest,
    out: NewRun,
    max_minutes: MaxMinutes = None,
    device: TrainingDevice = "auto",
    tensorboard: Tensorboard = False,
) -> None:
    """Train the second stage of the mask networks, and write both into a bundle."""
    _train("mask-diffusion", request, request.base, out, max_minutes, device, tensorboard)


def _train(
    stage: MaskStageName,
    request: MaskTrainRequest,
    base_name: str | None,
    out: Path,
    max_minutes: float | None,
    device: str,
    tensorboard: bool,
) -> None:
    """Run one stage with a progress bar on stderr; prints where the result lies.

    Under ``torchrun`` or ``accelerate launch`` all processes train together, and the first one reports.
    """
    from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit

    limit = TimeLimit(max_minutes)
    with show_loading():
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.images.recipe import training_recipe_path
        from maisi_aug.training.loop.processes import Processes
        from maisi_aug.training.masks.export import require_base, write_mask_bundle
        from maisi_aug.training.masks.recipe import load_mask_recipe
        from maisi_aug.training.masks.stages import MaskTrainingFolder

    recipe = load_mask_recipe(training_recipe_path(request.recipe))
    is_last = stage == "mask-diffusion"
    base = require_base(base_name, recipe) if is_last else None
    device = resolve_device(device)
    processes = Processes.connect(device)
    num_steps = (recipe.diffusion if is_last else recipe.vae).loop.num_steps
    result: LoopResult | TimeIsUp
    with open_bars(is_shown=processes.is_main, is_telling=processes.is_main) as bars:
        report_phase = limit.limit(partial(add_phase, bars), uninterrupted=("Measuring",))
        try:
            with processes.main_first():
                split = _open(recipe, request, out, report_phase)
            folder = MaskTrainingFolder(
                recipe,
                split,
                out,
                device=processes.device_of(device),
                report_phase=report_phase,
                processes=processes,
                with_tensorboard=tensorboard,
            )
            report_step = add_training(bars, f"Training {stage}", num_steps)
            result = folder.train(stage, max_minutes=limit.minutes_left, report_step=report_step)
            path = out / stage if base is None else write_mask_bundle(folder, base)
        except TimeIsUp as stop:
            result, path = stop, out
    processes.leave()
    if processes.is_main:
        tell_result(stage, result, path, num_steps=num_steps)


def _open(recipe: MaskTrainingRecipe, request: MaskTrainRequest, out: Path, report_phase: ReportPhase) -> MaskSplit:
    """The label maps that the options name."""
    from maisi_aug.training.masks.data import open_bank, open_phantoms, open_prepared

    if request.data is not None:
        from maisi_aug.training.cases.prepared import PreparedStore

        return open_prepared(recipe, PreparedStore.from_folder(request.data))
    if request.mask_bank is None:
        return open_phantoms(recipe, out, report=report_phase("Building phantoms"))
    from maisi_aug.banks.folder_bank import FolderBank
    from maisi_aug.vocabulary.labels import MAISI
    from maisi_aug.volumes.grid import Grid

    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    bank = FolderBank(request.mask_bank, vocabulary=MAISI, grid=grid, mapping=request.mask_labels or "auto")
    split = open_bank(recipe, bank, out, report=report_phase("Reading label maps"))
    for name, reason in bank.skipped:
        tell(f"{name} is left out: {reason}")
    return split
