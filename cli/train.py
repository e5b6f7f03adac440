"""`maisi-aug train vae|diffusion|controlnet|mask-vae|mask-diffusion`: rebuild a bundle from a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.bars import add_phase, add_training, open_bars

if TYPE_CHECKING:
    from maisi_aug.training.loop import LoopResult

DEFAULT_RECIPE = "train-phantom-ct"
RecipeOption = Annotated[str, typer.Option("--recipe", help="A training recipe's name or file.")]
ImageRecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="A training recipe's name or file; train-phantom-ct when neither it nor --data is given.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: phantoms, stages and the bundle.")]
MinutesOption = Annotated[
    float | None, typer.Option("--max-minutes", min=0.0, help="Stop after so long; the same command goes on later.")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Train on this folder, made by 'maisi-aug prepare', in place of the recipe's data."),
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Also log for TensorBoard, in the stage's folder.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]


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
        group.command(stage, help=f"{summary} Interrupted runs go on from their checkpoint.")(_stage_command(stage))
    from maisi_aug.cli.train_masks import register_mask_stages  # which takes its options from here

    register_mask_stages(group)
    app.add_typer(group)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        out: OutOption,
        recipe: ImageRecipeOption = None,
        data: DataOption = None,
        max_minutes: MinutesOption = None,
        device: DeviceOption = "auto",
        tensorboard: TensorboardOption = False,
    ) -> None:
        train_stage(
            stage, recipe=recipe, out=out, max_minutes=max_minutes, data=data, device=device, tensorboard=tensorboard
        )

    return command


def train_stage(
    stage: str,
    *,
    recipe: str | None,
    out: Path,
    max_minutes: float | None,
    data: Path | None,
    device: str,
    tensorboard: bool,
) -> None:
    """Run one stage with a progress bar on stderr; prints where the result lies.

    Under ``torchrun`` or ``accelerate launch`` all processes train together, and the first one reports.
    """
    from maisi_aug.pipeline import resolve_device
    from maisi_aug.training.processes import Processes
    from maisi_aug.training.recipe import load_training_recipe, training_recipe_path
    from maisi_aug.training.stages import TrainingFolder

    if recipe is None and data is not None:
        raise typer.BadParameter(
            f"--recipe: expected one for the prepared cases of --data, found none, and {DEFAULT_RECIPE} is for "
            "phantoms. Add --recipe train-rflow-ct, train-ddpm-ct or, for two CPU cores, train-small-base."
        )
    settings = load_training_recipe(training_recipe_path(recipe or DEFAULT_RECIPE))
    settings = settings if data is None else settings.with_prepared(data)
    num_steps = getattr(settings, stage).loop.num_steps
    device = resolve_device(device)
    processes = Processes.connect(device)
    with open_bars(is_shown=processes.is_main, is_telling=processes.is_main) as bars:
        folder = TrainingFolder(
            settings,
            out,
            device=processes.device_of(device),
            report_phase=partial(add_phase, bars),
            processes=processes,
            with_tensorboard=tensorboard,
        )
        report_step = add_training(bars, f"Training {stage}", num_steps)
        result = folder.train(stage, max_minutes=max_minutes, report_step=report_step)  # type: ignore[arg-type]
        path = folder.write_bundle().path if stage == "controlnet" else out / stage
    processes.leave()
    if processes.is_main:
        tell_result(stage, result, path, num_steps=num_steps)


def tell_result(stage: str, result: LoopResult, path: Path, *, num_steps: int) -> None:
    """Print where the result of a stage lies, and on stderr what is missing of a training that was stopped."""
    if not result.is_complete:
        typer.echo(f"{stage}: {result.num_steps_done} of {num_steps} steps; run again to go on.", err=True)
    typer.echo(path)
