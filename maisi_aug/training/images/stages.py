"""The three stages of a training recipe, each resumable and in its own folder, and the resulting bundle."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.networks.utils import copy_model_state
from torch import nn

from maisi_aug import __version__
from maisi_aug.bundle_spec.bundle import Bundle, bind_slots, load_bundle
from maisi_aug.networks.building import build_network, build_scheduler, keep_decoder_output_precise, use_plain_layers
from maisi_aug.networks.weights import StateDict, write_bundle
from maisi_aug.system.content import read_json
from maisi_aug.system.progress import ReportStep
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import sha256_of, write_json_whole
from maisi_aug.training.cases.data import CaseStore, LatentSet
from maisi_aug.training.images.anchors import set_noise_share
from maisi_aug.training.images.case_sources import open_source
from maisi_aug.training.images.checks import require_divisible, require_same_settings
from maisi_aug.training.images.contrastive import LabelRemover
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.images.recipe import TrainingRecipe
from maisi_aug.training.images.stage_folder import StageFolder, StageOptions
from maisi_aug.training.images.start import hold_start, start_from_label_means
from maisi_aug.training.images.vae import VaeObjective
from maisi_aug.training.images.validation import FlowValidation, VaeValidation
from maisi_aug.training.images.wavelet import only_convolution, start_as_wavelet
from maisi_aug.training.loop.run import CHECKPOINT_NAME, LoopResult, Objective, Validate
from maisi_aug.training.loop.settings import LoopConfig
from maisi_aug.training.loop.stopping import TimeLimit

StageName = Literal["vae", "diffusion", "controlnet"]
STAGE_NAMES: tuple[StageName, ...] = ("vae", "diffusion", "controlnet")
MAX_VOXELS_KEPT = 160**3
"""Number of voxels above which the ControlNet's condition embedding is recomputed in the backward pass."""
LARGE_TENSOR = 1 << 16
"""Number of elements from which a tensor is stored in float16."""
START_ROLE = "controlnet_start"


@dataclass(frozen=True)
class _Prepared:
    """All that a stage's loop needs; the names are those of the networks' tensors in MAISI's layout."""

    loop: LoopConfig
    objective: Objective
    names: dict[str, dict[str, str]]
    validate: Validate | None


@dataclass(frozen=True)
class _Latents:
    """Training cases and held-out ones with their latents."""

    store: CaseStore
    training: LatentSet
    held_out_store: CaseStore | None
    held_out: LatentSet | None


class TrainingFolder(StageFolder):
    """Folder of a run that trains image networks by a recipe: data, latents, one sub-folder per stage, and the bundle.

    Args:
        recipe: Recipe of the training.
        folder: Folder of the run.
        how: Options of the run, see :class:`StageOptions`.
    """

    def __init__(self, recipe: TrainingRecipe, folder: Path, **how: Unpack[StageOptions]) -> None:
        super().__init__(folder, **how)
        self.recipe = recipe
        self.source = open_source(recipe, folder)
        self.slots = {**self.source.slots, **recipe.bundle.slots}
        self.vocabulary = bind_slots(self.slots)

    def train(
        self, stage: StageName, *, max_minutes: float | None = None, report_step: ReportStep | None = None
    ) -> LoopResult:
        """Train one stage, from its checkpoint if there is one, and save its averaged weights.

        The time limit includes building phantoms and encoding latents before the first step.

        Args:
            stage: Name of the stage.
            max_minutes: Wall-clock limit; None for no limit.
            report_step: Progress callback, called with (step, figures such as ``loss``).


        Raises:
            TrainingError: An earlier stage is missing, or the folder holds another configuration.
            GridError: The networks cannot use a shape.
        """
        limit = TimeLimit(max_minutes)
        require_divisible(self.recipe, self.source.shape)
        if self.processes.is_main:
            require_same_settings(self.recipe, self.folder, stage, identity=self.source.identity)
        prepared: _Prepared = getattr(self, f"_prepare_{stage}")()
        run = self._open_run(stage, prepared.objective, prepared.loop, prepared.validate)
        result = run.train(max_minutes=limit.minutes_left, report_step=report_step)
        if self.processes.is_main:
            self._keep(stage, result, prepared.names)
        self.processes.wait()
        return result

    def _keep(self, stage: StageName, result: LoopResult, names: dict[str, dict[str, str]]) -> None:
        for role, state in result.averaged_weights.items():
            is_shared = stage == "controlnet" and role == "diffusion_unet"
            kept = self._with_kept_noise(state) if is_shared else state
            self._save_weights(stage, role, self._move_to_start(role, _rename(kept, names[role])))
        best = {} if result.best_step is None else {"best_step": result.best_step, "best_loss": result.best_loss}
        summary = {"steps": result.num_steps_done, "complete": result.is_complete, **best}
        write_json_whole(self.folder / stage / "summary.json", summary)

    def write_bundle(self) -> Bundle:
        """Write the averaged weights of all stages as a bundle into the sub-folder ``bundle``.

        Raises:
            TrainingError: A stage has not been trained.
        """
        weights = {
            "autoencoder": self._load_weights("vae", "autoencoder"),
            "diffusion_unet": self._load_weights(self._unet_stage(), "diffusion_unet"),
            "controlnet": self._load_weights("controlnet", "controlnet"),
        }
        summaries = {stage: read_json(self.folder / stage / "summary.json") for stage in STAGE_NAMES}
        kept = {stage: summary["best_step"] for stage, summary in summaries.items() if "best_step" in summary}
        header = {
            "format": 1,
            **self.recipe.bundle.describe(),
            "slots": {name: slot.model_dump(mode="json") for name, slot in self.slots.items()},
            "scale_factor": self._open_latents().training.scale_factor,
            "provenance": {
                "trained_on": self.source.description,
                "steps": {stage: summary["steps"] for stage, summary in summaries.items()},
                **({"kept_steps": kept} if kept else {}),
                "unfinished": [stage for stage, summary in summaries.items() if not summary["complete"]],
                "versions": {"maisi-aug": __version__, "monai": version("monai"), "torch": version("torch")},
            },
        }
        with self.processes.main_first():
            if self.processes.is_main:
                stored = {role: _to_stored(state) for role, state in weights.items()}
                return write_bundle(self.folder / "bundle", header, stored, dtype=None)
        return load_bundle(self.folder / "bundle")

    def _move_to_start(self, role: str, state: StateDict) -> StateDict:
        """The weights to keep: those of the ControlNet as far towards its start as the recipe says."""
        share = self.recipe.controlnet.start_share
        if role != "controlnet" or share == 0:
            return state
        start = self._load_weights("controlnet", START_ROLE)
        return {key: torch.lerp(value, start[key], share) for key, value in state.items()}

    def _with_kept_noise(self, state: StateDict) -> StateDict:
        """The weights of a trained U-Net with the share of noise that the recipe keeps."""
        share = self.recipe.controlnet.kept_noise_share
        if share is None:
            return state
        unet, _ = self._build("diffusion_unet")
        unet.load_state_dict(state)
        set_noise_share(unet, only_convolution(unet.conv_in).in_channels, share)
        return unet.state_dict()

    def _unet_stage(self) -> StageName:
        return "controlnet" if self.recipe.controlnet.loss.train_unet else "diffusion"

    def _prepare_vae(self) -> _Prepared:
        autoencoder, names = self._build("autoencoder")
        stage = self.recipe.vae
        if stage.start == "wavelet":
            start_as_wavelet(autoencoder, gains=stage.wavelet_gains)
        keep_decoder_output_precise(autoencoder)
        names = dict(zip(autoencoder.state_dict(), names.values(), strict=True))
        store, held_out = self._open_stores()
        objective = VaeObjective(
            autoencoder,
            store,
            stage.loss,
            lesion_ids=self.vocabulary.tumor_ids,
            seed=self.recipe.seed,
            device=self.device,
            processes=self.processes,
        )
        is_large = stage.loss.large_patch_start_step is not None
        window = stage.loss.large_patch_shape if is_large else stage.loss.patch_shape
        validate = held_out and VaeValidation(
            autoencoder, held_out, window=window, device=self.device, processes=self.processes
        )
        return _Prepared(stage.loop, objective, {"autoencoder": names}, validate or None)

    def _prepare_diffusion(self) -> _Prepared:
        unet, names = self._build("diffusion_unet")
        return self._prepare_flow(unet, None, self._open_latents(), {"diffusion_unet": names})

    def _prepare_controlnet(self) -> _Prepared:
        unet, unet_names = self._build("diffusion_unet")
        unet.load_state_dict(self._load_weights("diffusion", "diffusion_unet"))
        controlnet, controlnet_names = self._build("controlnet")
        data = self._open_latents()
        with self.processes.main_first():
            if not (self.folder / "controlnet" / CHECKPOINT_NAME).is_file():
                self._start_controlnet(unet, controlnet, data.store, data.training)
                if self.processes.is_main:
                    self._save_weights("controlnet", START_ROLE, _rename(controlnet.state_dict(), controlnet_names))
            elif self.recipe.controlnet.start == "label-means":  # a checkpoint has only the weights that are trained
                start = self._load_weights("controlnet", START_ROLE)
                controlnet.load_state_dict({plain: start[name] for plain, name in controlnet_names.items()})
                hold_start(unet, controlnet, len(data.training.latents[0]))
        return self._prepare_flow(
            unet, controlnet, data, {"diffusion_unet": unet_names, "controlnet": controlnet_names}
        )

    def _start_controlnet(self, unet: nn.Module, controlnet: nn.Module, store: CaseStore, latents: LatentSet) -> None:
        if self.recipe.controlnet.start == "label-means":
            start_from_label_means(
                unet,
                controlnet,
                store,
                latents,
                vocabulary=self.vocabulary,
                seed=self.recipe.seed,
                faint_gain=self.recipe.controlnet.faint_gain,
                noise_share=self.recipe.controlnet.noise_share,
            )
        else:
            copy_model_state(controlnet, unet.state_dict())

    def _prepare_flow(
        self, unet: nn.Module, controlnet: nn.Module | None, data: _Latents, names: dict[str, dict[str, str]]
    ) -> _Prepared:
        stage = self.recipe.diffusion if controlnet is None else self.recipe.controlnet

        objective = FlowObjective(
            unet,
            controlnet,
            build_scheduler(self.recipe.bundle.scheduler),
            data.store,
            data.training,
            stage.loss,
            lesion_ids=self.vocabulary.tumor_ids,
            seed=derive_seed(self.recipe.seed, "unet" if controlnet is None else "controlnet"),
            device=self.device,
            label_weights={self.vocabulary.id_of(name): w for name, w in stage.loss.label_weights.items()},
            remover=LabelRemover(self.vocabulary),
            processes=self.processes,
        )
        validate = None
        if data.held_out_store is not None and data.held_out is not None:
            validate = FlowValidation(objective.on(data.held_out_store, data.held_out), processes=self.processes)
        return _Prepared(stage.loop, objective, names, validate)

    def _build(self, role: str) -> tuple[nn.Module, dict[str, str]]:
        """A network with plain layers, and its tensors' names in MAISI's layout by their plain names."""
        network, names = self._build_plain(role, self.recipe.bundle.networks[role], self.recipe.seed)
        if isinstance(network, ControlNetMaisi):
            # It trades time for memory, which small grids do not need.
            network.use_checkpointing = prod(self.source.shape) > MAX_VOXELS_KEPT
        return network, names

    def _open_stores(self) -> tuple[CaseStore, CaseStore | None]:
        with self.processes.main_first():
            return self.source.open(self.report_phase("Building phantoms"))

    def _open_latents(self) -> _Latents:
        store, held_out_store = self._open_stores()
        autoencoder = build_network(self.recipe.bundle.networks["autoencoder"], device=self.device)
        autoencoder.load_state_dict(self._load_weights("vae", "autoencoder"))
        use_plain_layers(autoencoder.eval())
        with self.processes.main_first():
            training, held_out = self.source.encode(
                autoencoder,
                weights_hash=sha256_of(self._weights_path("vae", "autoencoder")),
                deviation=self.recipe.latent_deviation,
                device=self.device,
                report=self.report_phase("Encoding latents"),
            )
        return _Latents(store, training, held_out_store, held_out)


def _to_stored(state: StateDict) -> dict[str, Any]:
    """Weights as they are stored: large tensors in float16, small ones as they are.

    Small ones cost little, and may be part of a signal path (:mod:`maisi_aug.training.images.anchors`).
    """
    return {key: value.half() if value.numel() >= LARGE_TENSOR else value for key, value in state.items()}


def _rename(state: StateDict, names: dict[str, str]) -> dict[str, Any]:
    return {names[key]: value for key, value in state.items()}
