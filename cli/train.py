"""`maisi-aug train vae|diffusion|controlnet|mask-vae|mask-diffusion`: rebuild a bundle from a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

RecipeOption = Annotated[str, typer.Option("--recipe", help="A training recipe's name or file.")]
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
        recipe: RecipeOption = "train-phantom-ct",
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
    recipe: str,
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

    settings = load_training_recipe(training_recipe_path(recipe))
    settings = settings if data is None else settings.with_prepared(data)
    num_steps = getattr(settings, stage).loop.num_steps
    device = resolve_device(device)
    processes = Processes.connect(device)
    with open_training_bar(is_shown=processes.is_main) as progress:

        def report_phase(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        folder = TrainingFolder(
            settings,
            out,
            device=processes.device_of(device),
            report_phase=report_phase,
            processes=processes,
            with_tensorboard=tensorboard,
        )
        task = progress.add_task(f"Training {stage}", total=num_steps)

        def report_step(step: int, figures: dict[str, float]) -> None:
            progress.update(task, completed=step, description=f"Training {stage}, loss {figures['loss']:.4f}")

        result = folder.train(stage, max_minutes=max_minutes, report_step=report_step)  # type: ignore[arg-type]
        path = folder.write_bundle().path if stage == "controlnet" else out / stage
    processes.leave()
    if not processes.is_main:
        return
    if not result.is_complete:
        typer.echo(f"{stage}: {result.num_steps_done} of {num_steps} steps; run again to go on.", err=True)
    typer.echo(path)


def open_training_bar(*, is_shown: bool) -> Progress:
    """A bar on stderr for each phase of a training; none where there is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=not (is_shown and console.is_terminal)
    )
