"""Training of the networks of a bundle, stage by stage, for the command line and for Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maisi_aug.api.displays import Progress, TrainingDisplay, show_training
from maisi_aug.api.finetuning import PREPARED_FOLDER
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
    """Result of one stage of training.

    Attributes:
        stage: Name of the stage.
        path: Folder of the bundle after the last stage, otherwise of the stage; of the run if the time limit was
            reached before the first step.
        num_steps: Number of optimiser steps that the recipe requests.
        loop: Steps done so far; None if the time limit was reached before the first step.
        stopped_while: What the run was doing when it was stopped, such as ``building phantoms, 3 of 40``; otherwise
            empty.
    """

    stage: str
    path: Path
    num_steps: int
    loop: LoopResult | None = field(default=None, repr=False)
    stopped_while: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all optimiser steps of the stage are done."""
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
    and ``mask-diffusion``, which adds networks for label maps to the bundle ``base``. The mask stages are experimental:
    no settings are known here with which they learn plausible anatomy.

    >>> import maisi_aug as ma
    >>> ma.train("vae", recipe="train-phantom-ct", mask_bank="maps", out="run")
    Traceback (most recent call last):
    maisi_aug.errors.RecipeError: train: mask_bank: ...

    Args:
        stage: ``vae``, ``diffusion``, ``controlnet``, ``mask-vae`` or ``mask-diffusion``. ``diffusion`` needs the
            finished ``vae`` in ``out``, and so on.
        out: Folder of the run: new, or one that an earlier call began, which is continued. A stage writes checkpoint,
            log and weights to ``out/STAGE``; the last stage writes the bundle to ``out/bundle``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Time limit, after which the state is saved and the call returns; the same call continues.
        with_tensorboard: Whether to log for TensorBoard as well; needs the extra ``tensorboard``.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``: a text and two numbers.
        **fields: The keywords listed below; image stages take only ``recipe``, ``data`` and ``embedded_by``, and only
            ``mask-diffusion`` takes ``base``.

    Returns:
        ``path`` (folder of the bundle after the last stage, otherwise of the stage), ``is_complete``, ``num_steps`` and
        ``loop`` (steps done so far); None in all processes of ``torchrun`` except the first.

    Raises:
        RecipeError: Stage or keyword is unknown, or recipe or fields are invalid.
        TrainingError: An earlier stage is missing, or ``out`` was begun with another recipe or other data.
        MaisiAugError: The request cannot be met for another reason; the message is the one that the command prints.
    """
    require_known(train, fields)
    if stage not in REQUESTS:
        raise RecipeError(f"train: unknown stage '{stage}'; expected one of {', '.join(REQUESTS)}.")
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
    """Train one stage of a bundle's networks, with all processes of ``torchrun`` or ``accelerate launch``.

    Args:
        stage: Name of the stage.
        request: Recipe and data of the stage.
        out: Folder of the run.
        device: Device of the networks.
        max_minutes: Time limit; calling again continues.
        display: Shows progress.
        with_tensorboard: Whether to log for TensorBoard as well.

    Returns:
        Path of the result and progress; None in all processes except the first.

    Raises:
        MaisiAugError: The request is invalid.
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
            result = TrainResult(stage, out, asked.num_steps, stopped_while=str(stop))
    processes.leave()
    return result if processes.is_main else None


@dataclass(frozen=True)
class _ImageStage:
    """Stage of the networks that generate images."""

    name: Literal["vae", "diffusion", "controlnet"]
    recipe: TrainingRecipe
    request: TrainRequest

    @classmethod
    def read(cls, name: Literal["vae", "diffusion", "controlnet"], request: TrainRequest) -> _ImageStage:
        from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path

        recipe = load_training_recipe(training_recipe_path(request.recipe_name))
        is_embedded = _is_embedded(request)
        return cls(name, recipe if request.data is None or is_embedded else recipe.with_prepared(request.data), request)

    @property
    def num_steps(self) -> int:
        steps: int = getattr(self.recipe, self.name).loop.num_steps
        return steps

    def open(self, out: Path, display: TrainingDisplay, how: StageOptions) -> TrainingFolder:
        from maisi_aug.training.images.stages import TrainingFolder

        if not _is_embedded(self.request):
            return TrainingFolder(self.recipe, out, **how)
        with how["processes"].main_first():
            prepared = _open_embeddings(self.request, out / PREPARED_FOLDER, display, how)
        return TrainingFolder(self.recipe.with_prepared(prepared), out, **how)

    def finish(self, folder: TrainingFolder, out: Path) -> Path:
        """Write the bundle after the last stage, and return the folder of the result."""
        return folder.write_bundle().path if self.name == "controlnet" else out / self.name


def _is_embedded(request: TrainRequest) -> bool:
    """Whether the data is a list of embeddings.

    Raises:
        RecipeError: The bundle whose autoencoder made them is missing, or there is one without such a list.
    """
    from maisi_aug.training.cases.embeddings import is_embedded_list

    is_embedded = request.data is not None and is_embedded_list(request.data)
    if not is_embedded and request.embedded_by is not None:
        raise RecipeError("--embedded-by can only be used with a JSON list of embeddings as --data.")
    if is_embedded and request.embedded_by is None:
        raise RecipeError(
            f"--embedded-by: expected the bundle whose autoencoder made the embeddings of {request.data}, found none."
        )
    return is_embedded


def _open_embeddings(request: TrainRequest, folder: Path, display: TrainingDisplay, how: StageOptions) -> Path:
    """The folder of a list's cases, which the main process prepares unless it is there."""
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.training.cases.embeddings import prepare_embeddings

    assert request.data is not None
    assert request.embedded_by is not None
    if how["processes"].is_main:
        prepare_embeddings(
            request.data,
            folder,
            load_bundle(request.embedded_by),
            device=how["device"],
            report=how["report_phase"]("Reading embeddings"),
            say=display.say,
        )
    return folder


@dataclass(frozen=True)
class _MaskStage:
    """Stage of the networks that generate label maps."""

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
        """Return the label maps that the options name."""
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
            display.say(f"{name} was left out: {reason}")
        return split

    def finish(self, folder: MaskTrainingFolder, out: Path) -> Path:
        """Write the bundle after the last stage, and return the folder of the result."""
        from maisi_aug.training.masks.export import write_mask_bundle

        return out / self.name if self.base is None else write_mask_bundle(folder, self.base)
