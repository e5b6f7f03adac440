"""`maisi-aug nnunet-trainer-path` and `maisi-aug nnunet-compact-plans`: what nnU-Net needs beside a dataset."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.shared.completion import complete_datasets
from maisi_aug.cli.shared.streams import tell
from maisi_aug.system.content import spells_number


def register(app: typer.Typer) -> None:
    """Add the commands ``nnunet-trainer-path`` and ``nnunet-compact-plans`` to the application."""
    app.command("nnunet-trainer-path")(trainer_path)
    app.command("nnunet-compact-plans")(compact_plans)


def trainer_path(
    env: Annotated[
        bool, typer.Option("--env", help="Print shell commands that set the environment, instead of the folder alone.")
    ] = False,
) -> None:
    """Print the folder of maisi-aug's trainers, for nnU-Net's variable nnUNet_extTrainer.

    A trainer's name contains its settings: nnUNetTrainerSynthetic50 draws half of all training cases from the synthetic
    ones. Fade after the number reduces that share to zero during training, CPU trains briefly in bfloat16, _250epochs
    and _100iterations set the length. nnUNetv2_predict needs the variable too.

    Example: eval "$(maisi-aug nnunet-trainer-path --env)"
    """
    from maisi_aug.banks.raw_datasets import RAW_VARIABLE
    from maisi_aug.integrations.nnunet.folders import OTHER_VARIABLES
    from maisi_aug.integrations.nnunet.trainer_settings import TRAINER_VARIABLE, trainer_folder

    folder = str(trainer_folder())
    if not env:
        typer.echo(folder)
        return
    others = [path for path in os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep) if path and path != folder]
    typer.echo(f"export {TRAINER_VARIABLE}={shlex.quote(os.pathsep.join([*others, folder]))}")
    for variable in (RAW_VARIABLE, *OTHER_VARIABLES):
        if not os.environ.get(variable):
            # On stderr: eval would swallow it.
            tell(f"Note: {variable} is not set, but nnU-Net needs it: export {variable}=FOLDER")


def compact_plans(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|NAME|ID",
            autocompletion=complete_datasets,
            help="Number, name or folder of the dataset, such as 503.",
        ),
    ],
    plans: Annotated[str | None, typer.Option(help="Plans to start from (default: the only existing ones).")] = None,
    side: Annotated[int, typer.Option(min=8, help="Side of a cube with as many voxels as the patch.")] = 64,
    features: Annotated[str, typer.Option(metavar="N,N,...", help="Channels of each stage.")] = "16,32,64,128",
    batch_size: Annotated[int, typer.Option(min=1, help="Patches per batch.")] = 2,
    preprocessed: Annotated[
        Path | None,
        typer.Option(help="Folder for preprocessed datasets (default: the environment variable nnUNet_preprocessed)."),
    ] = None,
) -> None:
    """Write plans that a CPU can train beside plans of nnU-Net, as PLANS_compact.

    Spacing and normalisation stay, so preprocessed cases can be used with both plans.

    Example: maisi-aug nnunet-compact-plans 503
    """
    from maisi_aug.integrations.nnunet.compact import find_only_plans, find_planned_dataset, write_compact_plans

    folder = find_planned_dataset(preprocessed, dataset)
    path = write_compact_plans(
        folder, plans or find_only_plans(folder), side=side, features=_parse_features(features), batch_size=batch_size
    )
    typer.echo(f"{path}: train with -p {path.stem}.")


def _parse_features(text: str) -> list[int]:
    parts = text.split(",")
    if not all(spells_number(part.strip()) for part in parts):
        raise typer.BadParameter(
            f"expected integers separated by commas, such as 16,32,64,128; found '{text}'.",
            param_hint="--features",
        )
    return [int(part) for part in parts]
