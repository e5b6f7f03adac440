"""`maisi-aug train mask-vae|mask-diffusion`: train the networks that generate label maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.bars import add_phase, add_training, open_bars
from maisi_aug.cli.train import (
    DataOption,
    DeviceOption,
    MinutesOption,
    OutOption,
    RecipeOption,
    TensorboardOption,
    tell_result,
)

if TYPE_CHECKING:
    from maisi_aug.training.data import ReportPhase
    from maisi_aug.training.mask_data import MaskSplit
    from maisi_aug.training.mask_recipe import MaskTrainingRecipe
    from maisi_aug.training.mask_stages import MaskStageName

DEFAULT_RECIPE = "train-phantom-ct-masks"
BankOption = Annotated[
    str | None,
    typer.Option("--mask-bank", help="Label maps to train on, as for synthesize; without it, phantoms.", metavar="DIR"),
]
LabelsOption = Annotated[
    str | None,
    typer.Option("--mask-labels", help="What the bank's ids mean, as for synthesize.", metavar="NAME|FILE"),
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Bundle with image networks that the mask networks are added to.")
]


def register_mask_stages(group: typer.Typer) -> None:
    """Add the two commands to the group ``train``."""

    @group.command(
        "mask-vae", help="Train the autoencoder of label maps. Interrupted runs go on from their checkpoint."
    )
    def mask_vae(
        out: OutOption,
        recipe: RecipeOption = DEFAULT_RECIPE,
        data: DataOption = None,
        mask_bank: BankOption = None,
        mask_labels: LabelsOption = None,
        max_minutes: MinutesOption = None,
        device: DeviceOption = "auto",
        tensorboard: TensorboardOption = False,
    ) -> None:
        _train("mask-vae", recipe, out, (data, mask_bank, mask_labels), max_minutes, device, tensorboard, None)

    @group.command(
        "mask-diffusion",
        help="Train the diffusion U-Net on the latents of label maps, told the sizes of organs and tumours, then write "
        "both mask networks into a bundle. Interrupted runs go on from their checkpoint.",
    )
    def mask_diffusion(
        out: OutOption,
        recipe: RecipeOption = DEFAULT_RECIPE,
        base: BaseOption = None,
        data: DataOption = None,
        mask_bank: BankOption = None,
        mask_labels: LabelsOption = None,
        max_minutes: MinutesOption = None,
        device: DeviceOption = "auto",
        tensorboard: TensorboardOption = False,
    ) -> None:
        _train("mask-diffusion", recipe, out, (data, mask_bank, mask_labels), max_minutes, device, tensorboard, base)


def _train(
    stage: MaskStageName,
    recipe_name: str,
    out: Path,
    source: tuple[Path | None, str | None, str | None],
    max_minutes: float | None,
    device: str,
    tensorboard: bool,
    base_name: str | None,
) -> None:
    """Run one stage with a progress bar on stderr; prints where the result lies.

    Under ``torchrun`` or ``accelerate launch`` all processes train together, and the first one reports.
    """
    from maisi_aug.pipeline import resolve_device
    from maisi_aug.training.mask_export import require_base, write_mask_bundle
    from maisi_aug.training.mask_recipe import load_mask_recipe
    from maisi_aug.training.mask_stages import MaskTrainingFolder
    from maisi_aug.training.processes import Processes
    from maisi_aug.training.recipe import training_recipe_path

    recipe = load_mask_recipe(training_recipe_path(recipe_name))
    is_last = stage == "mask-diffusion"
    base = require_base(base_name, recipe) if is_last else None
    device = resolve_device(device)
    processes = Processes.connect(device)
    num_steps = (recipe.diffusion if is_last else recipe.vae).loop.num_steps
    with open_bars(is_shown=processes.is_main, is_telling=processes.is_main) as bars:
        report_phase = partial(add_phase, bars)
        with processes.main_first():
            split = _open(recipe, source, out, report_phase)
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
        result = folder.train(stage, max_minutes=max_minutes, report_step=report_step)
        path = out / stage if base is None else write_mask_bundle(folder, base)
    processes.leave()
    if processes.is_main:
        tell_result(stage, result, path, num_steps=num_steps)


def _open(
    recipe: MaskTrainingRecipe,
    source: tuple[Path | None, str | None, str | None],
    out: Path,
    report_phase: ReportPhase,
) -> MaskSplit:
    """The label maps that the options name."""
    from maisi_aug.training.mask_data import open_bank, open_phantoms, open_prepared

    data, mask_bank, mask_labels = source
    if data is not None and mask_bank is not None:
        raise typer.BadParameter("expected either --data or --mask-bank, found both. Leave one out.")
    if mask_labels is not None and mask_bank is None:
        raise typer.BadParameter("--mask-labels: expected a --mask-bank whose ids it explains, found none.")
    if data is not None:
        from maisi_aug.training.prepared import PreparedStore

        return open_prepared(recipe, PreparedStore.from_folder(data))
    if mask_bank is None:
        return open_phantoms(recipe, out, report=report_phase("Building phantoms"))
    from maisi_aug.folder_bank import FolderBank
    from maisi_aug.grid import Grid
    from maisi_aug.labels import MAISI

    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    bank = FolderBank(mask_bank, vocabulary=MAISI, grid=grid, mapping=mask_labels or "auto")
    split = open_bank(recipe, bank, out, report=report_phase("Reading label maps"))
    for name, reason in bank.skipped:
        typer.echo(f"{name} is left out: {reason}", err=True)
    return split
