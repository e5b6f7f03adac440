"""The networks of a bundle trained stage by stage: what ``train`` does, for the command line and for Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maisi_aug.api.displays import Progress, TrainingDisplay, show_training
from maisi_aug.api.keywords import build_model, require_known, takes_fields_of
from maisi_aug.errors import RecipeError
from maisi_aug.training.request import MaskDiffusionRequest, MaskTrainRequest, TrainRequest

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.training.images.recipe import TrainingRecipe
    from maisi_aug.training.images.stage_folder import StageOptions
    from maisi_aug.training.images.stages import TrainingFolder
    from maisi_aug.training.loop.run import LoopResult
    from maisi_aug.training.masks.data import MaskSplit
    from maisi_aug.training.masks.recipe import MaskTrainingRecipe
    from maisi_aug.training.masks.stages import MaskTrainingFolder

StageName = Literal["vae", "diffusion", "controlnet", "mask-vae", "mask-diffusion"]
REQUESTS: dict[StageName, type[TrainRequest | MaskTrainRequest]] = {
    "vae": TrainRequest,
    "diffusion": TrainRequest,
    "controlnet": TrainRequest,
    "mask-vae": MaskTrainRequest,
    "mask-diffusion": MaskDiffusionRequest,
}


@dataclass(frozen=True)
class TrainResult:
    """How far a stage came.

    Attributes:
        stage: Its name.
        path: Folder of the bundle after the last stage, else of the stage; of the run where time was up before it.
        num_steps: Optimiser steps that the recipe asks for.
        loop: Where its steps stand; None where time was up before the first.
        stopped_while: What was going on then, such as ``building phantoms, 3 of 40``; empty otherwise.
    """

    stage: str
    path: Path
    num_steps: int
    loop: LoopResult | None = field(default=None, repr=False)
    stopped_while: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether no more steps are to be made."""
        return self.loop is not None and self.loop.is_complete


@takes_fields_of(MaskDiffusionRequest)
def train(
    stage: StageName,
    *,
    out: str | Path,
    device: str = "auto",
    max_minutes: float | None = None,
    with_tensorboard: bool = False,
    progress: Progress = True,
    **fields: Any,
) -> TrainResult | None:
    """Train a stage of a bundle's networks from a training recipe; ``maisi-aug train``.

    The stages of one run share ``out``: ``vae``, ``diffusion``, ``controlnet``, which ends in a bundle; or ``mask-vae``
    and ``mask-diffusion``, which adds networks for label maps to the bundle ``base``.

    >>> import maisi_aug as ma
    >>> ma.train("vae", recipe="train-phantom-ct", mask_bank="maps", out="run")
    Traceback (most recent call last):
    maisi_aug.errors.RecipeError: train: mask_bank: ...

    Args:
        stage: Its name.
        out: Folder of the run: new, or one that an earlier call began, which is continued.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Stop after so long; the same call continues.
        with_tensorboard: Also log for TensorBoard.
        progress: True for bars on a terminal or in a notebook, False for none, or something to call with
            ``(stage, done, total)``.
        **fields: See below; the image stages take ``recipe`` and ``data`` alone, and ``mask-diffusion`` takes ``base``.

    Returns:
        Where the result lies and how far it came; None in all processes of ``torchrun`` but the first.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    require_known(train, fields)
    if stage not in REQUESTS:
        raise RecipeError(f"train: expected a stage of {', '.join(REQUESTS)}, found '{stage}'.")
    return train_stage(
        stage,
        build_model(REQUESTS[stage], fields, source="train", error=RecipeError),
        Path(out),
        device=device,
        max_minutes=max_minutes,
        display=show_training(progress),
        with_tensorboard=with_tensorboard,
    )


def train_stage(
    stage: StageName,
    request: TrainRequest | MaskTrainRequest,
    out: Path,
    *,
    device: str,
    max_minutes: float | None,
    display: TrainingDisplay,
    with_tensorboard: bool,
) -> TrainResult | None:
    """Train a stage; under ``torchrun`` or ``accelerate launch`` all processes together.

    Args:
        stage: Its name.
        request: What is asked for.
        out: Folder of the run.
        device: Where the networks run.
        max_minutes: Wall-clock limit; the same call continues.
        display: Shows how it comes along.
        with_tensorboard: Also log for TensorBoard.

    Raises:
        MaisiAugError: What is asked for cannot be made.
    """
    from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit

    limit = TimeLimit(max_minutes)
    with display.show_loading():
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.loop.processes import Processes

        reads = _ImageStage.read if isinstance(request, TrainRequest) else _MaskStage.read
        asked = reads(stage, request)  # type: ignore[arg-type]
    device = resolve_device(device)
    processes = Processes.connect(device)
    display = display if processes.is_main else TrainingDisplay(is_shown=False)
    with display:
        how: StageOptions = {
            "device": processes.device_of(device),
            "report_phase": limit.limit(display.add_phase, uninterrupted=("Measuring",)),
            "processes": processes,
            "with_tensorboard": with_tensorboard,
        }
        try:
            folder = asked.open(out, display, how)
            report_step = display.add_training(f"Training {stage}", asked.num_steps)
            loop = folder.train(stage, max_minutes=limit.minutes_left, report_step=report_step)  # type: ignore[arg-type]
            result = TrainResult(stage, asked.finish(folder, out), asked.num_steps, loop)  # type: ignore[arg-type]
        except TimeIsUp as stop:
            phase = f"{stop.phase[0].lower()}{stop.phase[1:]}, {stop.done} of {stop.total}"
            result = TrainResult(stage, out, asked.num_steps, stopped_while=phase)
    processes.leave()
    return result if processes.is_main else None


@dataclass(frozen=True)
class _ImageStage:
    """A stage of the networks that draw images."""

    name: Literal["vae", "diffusion", "controlnet"]
    recipe: TrainingRecipe

    @classmethod
    def read(cls, name: Literal["vae", "diffusion", "controlnet"], request: TrainRequest) -> _ImageStage:
        from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path

        recipe = load_training_recipe(training_recipe_path(request.recipe_name))
        return cls(name, recipe if request.data is None else recipe.with_prepared(request.data))

    @property
    def num_steps(self) -> int:
        steps: int = getattr(self.recipe, self.name).loop.num_steps
        return steps

    def open(self, out: Path, display: TrainingDisplay, how: StageOptions) -> TrainingFolder:
        from maisi_aug.training.images.stages import TrainingFolder

        return TrainingFolder(self.recipe, out, **how)

    def finish(self, folder: TrainingFolder, out: Path) -> Path:
        """The bundle, after the last stage."""
        return folder.write_bundle().path if self.name == "controlnet" else out / self.name


@dataclass(frozen=True)
class _MaskStage:
    """A stage of the networks that generate label maps."""

    name: Literal["mask-vae", "mask-diffusion"]
    request: MaskTrainRequest
    recipe: MaskTrainingRecipe
    base: Bundle | None

    @classmethod
    def read(cls, name: Literal["mask-vae", "mask-diffusion"], request: MaskTrainRequest) -> _MaskStage:
        from maisi_aug.training.images.recipe import training_recipe_path
        from maisi_aug.training.masks.export import require_base
        from maisi_aug.training.masks.recipe import load_mask_recipe

        recipe = load_mask_recipe(training_recipe_path(request.recipe))
        base = require_base(request.base, recipe) if isinstance(request, MaskDiffusionRequest) else None
        return cls(name, request, recipe, base)

    @property
    def num_steps(self) -> int:
        return (self.recipe.vae if self.base is None else self.recipe.diffusion).loop.num_steps

    def open(self, out: Path, display: TrainingDisplay, how: StageOptions) -> MaskTrainingFolder:
        from maisi_aug.training.masks.stages import MaskTrainingFolder

        with how["processes"].main_first():
            split = self._open_maps(out, display, how)
        return MaskTrainingFolder(self.recipe, split, out, **how)

    def _open_maps(self, out: Path, display: TrainingDisplay, how: StageOptions) -> MaskSplit:
        """The label maps that the options name."""
        from maisi_aug.training.masks.data import open_bank, open_phantoms, open_prepared

        request, recipe = self.request, self.recipe
        if request.data is not None:
            from maisi_aug.training.cases.prepared import PreparedStore

            return open_prepared(recipe, PreparedStore.from_folder(request.data))
        if request.mask_bank is None:
            return open_phantoms(recipe, out, report=how["report_phase"]("Building phantoms"))
        from maisi_aug.banks.folder_bank import FolderBank
        from maisi_aug.vocabulary.labels import MAISI
        from maisi_aug.volumes.grid import Grid

        grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
        bank = FolderBank(request.mask_bank, vocabulary=MAISI, grid=grid, mapping=request.mask_labels or "auto")
        split = open_bank(recipe, bank, out, report=how["report_phase"]("Reading label maps"))
        for name, reason in bank.skipped:
            display.say(f"{name} is left out: {reason}")
        return split

    def finish(self, folder: MaskTrainingFolder, out: Path) -> Path:
        """The bundle, after the last stage."""
        from maisi_aug.training.masks.export import write_mask_bundle

        return out / self.name if self.base is None else write_mask_bundle(folder, self.base)
