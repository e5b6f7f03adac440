"""`maisi-aug train vae|diffusion|controlnet|mask-vae|mask-diffusion`: rebuild a bundle from a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import MaxMinutes, NewRun, Tensorboard, TrainingDevice
from maisi_aug.cli.shared.streams import tell
from maisi_aug.system.printed_text import spell_count
from maisi_aug.training.request import MaskDiffusionRequest, MaskTrainRequest, TrainRequest

if TYPE_CHECKING:
    from maisi_aug.api.training import StageName, TrainResult

RESUMES = "An interrupted run continues from its checkpoint."
EXAMPLE = "\n\nExample: maisi-aug train {} --out runs/phantom-ct"


def register(app: typer.Typer) -> None:
    """Add the group of commands ``train`` to the application."""
    group = typer.Typer(
        name="train",
        no_args_is_help=True,
        help="Train the networks of a bundle, stage by stage, from a training recipe. On N GPUs: torchrun "
        "--nproc_per_node=N -m maisi_aug.cli.app train ...; each step then uses N batches.",
    )
    for stage, command, summary in (
        ("vae", _image_command("vae"), "Train the autoencoder on images."),
        ("diffusion", _image_command("diffusion"), "Train the diffusion U-Net on the autoencoder's latents."),
        ("controlnet", _image_command("controlnet"), "Train the ControlNet, then write the bundle."),
        ("mask-vae", train_mask_vae, "Experimental: train the autoencoder of label maps."),
        (
            "mask-diffusion",
            train_mask_diffusion,
            (
                "Experimental: train the diffusion U-Net on latents of label maps, conditioned on the sizes of organs "
                "and tumours, then write both mask networks into a bundle."
            ),
        ),
    ):
        group.command(stage, help=f"{summary} {RESUMES}{EXAMPLE.format(stage)}")(with_options(command))
    app.add_typer(group)


def _image_command(stage: StageName) -> Callable[..., None]:
    def command(
        request: TrainRequest,
        out: NewRun,
        max_minutes: MaxMinutes = None,
        device: TrainingDevice = "auto",
        tensorboard: Tensorboard = False,
    ) -> None:
        _train(stage, request, out, max_minutes, device, tensorboard)

    return command


def train_mask_vae(
    request: MaskTrainRequest,
    out: NewRun,
    max_minutes: MaxMinutes = None,
    device: TrainingDevice = "auto",
    tensorboard: Tensorboard = False,
) -> None:
    """Train the first stage of the mask networks."""
    _train("mask-vae", request, out, max_minutes, device, tensorboard)


def train_mask_diffusion(
    request: MaskDiffusionRequest,
    out: NewRun,
    max_minutes: MaxMinutes = None,
    device: TrainingDevice = "auto",
    tensorboard: Tensorboard = False,
) -> None:
    """Train the second stage of the mask networks, and write both into a bundle."""
    _train("mask-diffusion", request, out, max_minutes, device, tensorboard)


def _train(
    stage: StageName,
    request: TrainRequest | MaskTrainRequest,
    out: Path,
    max_minutes: float | None,
    device: str,
    tensorboard: bool,
) -> None:
    from maisi_aug.api.displays import TrainingDisplay
    from maisi_aug.api.training import train_stage

    result = train_stage(
        stage,
        request,
        out,
        device=device,
        max_minutes=max_minutes,
        display=TrainingDisplay(),
        with_tensorboard=tensorboard,
    )
    if result is not None:
        _tell(result)


def _tell(result: TrainResult) -> None:
    """Print the path of the result, and on stderr how far a stopped training has come."""
    if result.loop is None:
        tell(
            f"{result.stage}: time limit reached while {result.stopped_while}; run the same command again to continue."
        )
    elif not result.is_complete:
        steps = f"{result.loop.num_steps_done} of {spell_count(result.num_steps, 'step')}"
        tell(f"{result.stage}: {steps}; run the same command again to continue.")
    typer.echo(result.path)
