"""`maisi-aug train vae|diffusion|controlnet|mask-vae|mask-diffusion`: rebuild a bundle from a training recipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.api.bars import add_phase, add_training, open_bars, show_loading
from maisi_aug.cli.shared.completion import complete_bundles, complete_training_recipes

if TYPE_CHECKING:
    from maisi_aug.training.cases.data import ReportPhase
    from maisi_aug.training.loop.run import LoopResult
    from maisi_aug.training.loop.stopping import TimeIsUp
    from maisi_aug.training.masks.data import MaskSplit
    from maisi_aug.training.masks.recipe import MaskTrainingRecipe
    from maisi_aug.training.masks.stages import MaskStageName

DEFAULT_RECIPE = "train-phantom-ct"
RecipeOption = Annotated[
    str,
    typer.Option("--recipe", autocompletion=complete_training_recipes, help="A training recipe's name or file."),
]
ImageRecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        autocompletion=complete_training_recipes,
        help="A training recipe's name or file; train-phantom-ct when neither it nor --data is given.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: phantoms, stages and the bundle.")]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        min=0.0,
        help="Stop after so long, phantoms included; go on with the same command.",
    ),
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
    from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit

    limit = TimeLimit(max_minutes)
    with show_loading():
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path
        from maisi_aug.training.images.stages import TrainingFolder
        from maisi_aug.training.loop.processes import Processes

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
        typer.echo(f"{stage}: the time was up while {what}; run again to go on.", err=True)
    elif not result.is_complete:
        typer.echo(f"{stage}: {result.num_steps_done} of {num_steps} steps; run again to go on.", err=True)
    typer.echo(path)


DEFAULT_MASK_RECIPE = "train-phantom-ct-masks"
BankOption = Annotated[
    str | None,
    typer.Option("--mask-bank", help="Label maps to train on, as for synthesize; without it, phantoms.", metavar="DIR"),
]
LabelsOption = Annotated[
    str | None,
    typer.Option("--mask-labels", help="What the bank's ids mean, as for synthesize.", metavar="NAME|FILE"),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        autocompletion=complete_bundles,
        help="Bundle with image networks that the mask networks are added to.",
    ),
]


def register_mask_stages(group: typer.Typer) -> None:
    """Add the two commands to the group ``train``."""

    @group.command(
        "mask-vae", help="Train the autoencoder of label maps. Interrupted runs go on from their checkpoint."
    )
    def mask_vae(
        out: OutOption,
        recipe: RecipeOption = DEFAULT_MASK_RECIPE,
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
        recipe: RecipeOption = DEFAULT_MASK_RECIPE,
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
    from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit

    limit = TimeLimit(max_minutes)
    with show_loading():
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.images.recipe import training_recipe_path
        from maisi_aug.training.loop.processes import Processes
        from maisi_aug.training.masks.export import require_base, write_mask_bundle
        from maisi_aug.training.masks.recipe import load_mask_recipe
        from maisi_aug.training.masks.stages import MaskTrainingFolder

    recipe = load_mask_recipe(training_recipe_path(recipe_name))
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
            result = folder.train(stage, max_minutes=limit.minutes_left, report_step=report_step)
            path = out / stage if base is None else write_mask_bundle(folder, base)
        except TimeIsUp as stop:
            result, path = stop, out
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
    from maisi_aug.training.masks.data import open_bank, open_phantoms, open_prepared

    data, mask_bank, mask_labels = source
    if data is not None and mask_bank is not None:
        raise typer.BadParameter("expected either --data or --mask-bank, found both. Leave one out.")
    if mask_labels is not None and mask_bank is None:
        raise typer.BadParameter("--mask-labels: expected a --mask-bank whose ids it explains, found none.")
    if data is not None:
        from maisi_aug.training.cases.prepared import PreparedStore

        return open_prepared(recipe, PreparedStore.from_folder(data))
    if mask_bank is None:
        return open_phantoms(recipe, out, report=report_phase("Building phantoms"))
    from maisi_aug.banks.folder_bank import FolderBank
    from maisi_aug.vocabulary.labels import MAISI
    from maisi_aug.volumes.grid import Grid

    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    bank = FolderBank(mask_bank, vocabulary=MAISI, grid=grid, mapping=mask_labels or "auto")
    split = open_bank(recipe, bank, out, report=report_phase("Reading label maps"))
    for name, reason in bank.skipped:
        typer.echo(f"{name} is left out: {reason}", err=True)
    return split
