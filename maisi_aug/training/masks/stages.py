"""The two stages of the mask generator's training, each in a folder of its own, each resumable, and their bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import build_network, build_scheduler, use_plain_layers
from maisi_aug.system.content import read_json
from maisi_aug.system.progress import ReportStep
from maisi_aug.system.whole_files import sha256_of, write_json_whole
from maisi_aug.training.cases.data import load_or_encode
from maisi_aug.training.images.stage_folder import StageFolder, StageOptions
from maisi_aug.training.loop.run import CHECKPOINT_NAME, LoopResult, Objective
from maisi_aug.training.loop.stopping import TimeLimit
from maisi_aug.training.masks.data import MaskSplit, hash_of
from maisi_aug.training.masks.label_maps import LabelMaps, VariedMaps
from maisi_aug.training.masks.noise import MaskNoiseObjective, MaskNoiseValidation, SizedLatents
from maisi_aug.training.masks.recipe import MaskTrainingRecipe
from maisi_aug.training.masks.sizes import MapFigures, measure_maps
from maisi_aug.training.masks.vae import MaskVaeObjective, MaskVaeValidation, encode_classes, require_mask_autoencoder
from maisi_aug.volumes.grid import voxel_volume_ml

MaskStageName = Literal["mask-vae", "mask-diffusion"]
MASK_STAGES: dict[MaskStageName, str] = {"mask-vae": "mask_autoencoder", "mask-diffusion": "mask_diffusion_unet"}
"""The network that each stage trains, in the order of the stages."""
SETTINGS_NAME = "settings.json"
SUMMARY_NAME = "summary.json"
Validate = MaskVaeValidation | MaskNoiseValidation


class MaskTrainingFolder(StageFolder):
    """Folder of a run that trains mask networks by a recipe: label maps, latents and one sub-folder per stage.

    Args:
        recipe: Recipe of the training.
        split: Label maps to learn from and to hold out.
        folder: Folder of the run.
        how: Options of the run, see :class:`StageOptions`.
    """

    def __init__(self, recipe: MaskTrainingRecipe, split: MaskSplit, folder: Path, **how: Unpack[StageOptions]) -> None:
        super().__init__(folder, **how)
        self.recipe = recipe
        self.split = split

    def train(
        self, stage: MaskStageName, *, max_minutes: float | None = None, report_step: ReportStep | None = None
    ) -> LoopResult:
        """Train one stage, from its checkpoint if there is one, save its averaged weights, and evaluate them.

        The time limit includes the preparation before the first step.

        Args:
            stage: Name of the stage.
            max_minutes: Wall-clock limit; None for no limit.
            report_step: Progress callback, called with (step, figures such as ``loss``).

        Raises:
            TrainingError: The first stage is missing, or the folder holds another configuration or other maps.
            GridError: The networks cannot use a shape.
            BundleError: The networks are not of the kind of MAISI's mask generator.
        """
        limit = TimeLimit(max_minutes)
        self.recipe.require_divisible()
        require_mask_autoencoder(self.recipe.networks["mask_autoencoder"])
        if self.processes.is_main:
            self._require_same_settings(stage)
        role = MASK_STAGES[stage]
        network, names = self._build_plain(role, self.recipe.networks[role], self.recipe.seed)
        settings = self.recipe.vae if stage == "mask-vae" else self.recipe.diffusion
        prepare = self._prepare_vae if stage == "mask-vae" else self._prepare_diffusion
        objective, validate = prepare(network)
        run = self._open_run(stage, objective, settings.loop, validate)
        result = run.train(max_minutes=limit.minutes_left, report_step=report_step)
        kept = result.averaged_weights[role]
        network.load_state_dict(kept)
        with run.precision.autocast(), torch.no_grad():
            figures = validate()
        if self.processes.is_main:
            self._save_weights(stage, role, {names[key]: value for key, value in kept.items()})
            held_out: dict[str, Any] = dict(figures)
            if isinstance(validate, MaskVaeValidation):
                held_out["dice_per_label"] = validate.dice_per_label
            summary = {
                "steps": result.num_steps_done,
                "complete": result.is_complete,
                "best_step": result.best_step,
                "held_out": held_out,
            }
            write_json_whole(self.folder / stage / SUMMARY_NAME, summary)
        self.processes.wait()
        return result

    def _prepare_vae(self, autoencoder: nn.Module) -> tuple[Objective, Validate]:
        with self.processes.main_first():
            figures = self._measure(self.split.training, "training", self.split.key)
        objective = MaskVaeObjective(
            autoencoder,
            self.split.training,
            self.recipe.vae.loss,
            counts=figures.counts,
            spacing_mm=self.recipe.grid.spacing_mm,
            seed=self.recipe.seed,
            device=self.device,
        )
        held_out = self.split.held_out
        return objective, MaskVaeValidation(autoencoder, held_out, device=self.device, processes=self.processes)

    def _prepare_diffusion(self, unet: nn.Module) -> tuple[Objective, Validate]:
        cases, held_out, scale_factor = self.encode()
        scheduler = build_scheduler(self.recipe.scheduler)
        assert isinstance(scheduler, DDPMScheduler)  # the recipe takes no other
        objective = MaskNoiseObjective(
            unet,
            scheduler,
            cases,
            self.recipe.diffusion.loss,
            scale_factor=scale_factor,
            seed=self.recipe.seed,
            device=self.device,
        )
        return objective, MaskNoiseValidation(objective, held_out, processes=self.processes)

    def encode(self) -> tuple[SizedLatents, SizedLatents, float]:
        """Return latents and sizes of training maps (with variants) and of held-out maps, and the scale factor.

        Raises:
            TrainingError: The autoencoder has not been trained.
        """
        autoencoder = build_network(self.recipe.networks["mask_autoencoder"], device=self.device)
        autoencoder.load_state_dict(self.load_weights("mask-vae"))
        use_plain_layers(autoencoder.eval())
        found = []
        with self.processes.main_first():
            organ_volumes = self.measure().organ_volumes_ml()
            for name, maps, key in (
                ("training", self._varied(), self._varied_key()),
                ("held-out", self.split.held_out, self.split.key),
            ):
                sizes = self._measure(maps, name, key).to_sizes(organ_volumes)
                found.append(SizedLatents(self._encode(autoencoder, maps, name, key), sizes))
        deviation = torch.cat([latent.float().flatten() for latent in found[0].latents]).std()
        return found[0], found[1], 1.0 / float(deviation)

    def measure(self) -> MapFigures:
        """Return voxels and volumes of the training maps with their variants."""
        return self._measure(self._varied(), "training", self._varied_key())

    def _varied(self) -> LabelMaps:
        return VariedMaps(
            self.split.training,
            self.recipe.data.num_variants,
            self.recipe.diffusion.warp,
            spacing_mm=self.recipe.grid.spacing_mm,
            seed=self.recipe.data.seed,
        )

    def _varied_key(self) -> str:
        if self.recipe.data.num_variants == 1:
            return self.split.key
        return hash_of([self.split.key, self.recipe.data.num_variants, self.recipe.diffusion.warp.model_dump()])

    def _measure(self, maps: LabelMaps, name: str, key: str) -> MapFigures:
        voxel_ml = voxel_volume_ml(self.recipe.grid.spacing_mm)
        path = self.folder / f"figures-{key}-{name}.npz"
        return measure_maps(maps, path, voxel_ml=voxel_ml, report=self.report_phase(f"Measuring {name} maps"))

    def _encode(self, autoencoder: nn.Module, maps: LabelMaps, name: str, key: str) -> list[Tensor]:
        weights_hash = sha256_of(self._require_weights("mask-vae", "mask_autoencoder"))
        folder = self.folder / f"mask-latents-{weights_hash[:12]}-{key}"
        paths = [folder / f"{name}-{index:05d}.npy" for index in range(len(maps))]
        return load_or_encode(
            paths,
            lambda index: encode_classes(autoencoder, maps[index], device=self.device)[0],
            report=self.report_phase(f"Encoding {name} maps"),
        )

    def _require_same_settings(self, stage: MaskStageName) -> None:
        """Check that a folder was begun with the same recipe, maps and first stage; the loop compares its own settings.

        Raises:
            TrainingError: The message names the fields that differ.
        """
        settings = self._settings_of(stage)
        path = self.folder / stage / SETTINGS_NAME
        has_begun = (self.folder / stage / CHECKPOINT_NAME).exists()
        if not (has_begun and path.exists()):
            write_json_whole(path, settings)
            return
        before = read_json(path)
        differing = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if differing:
            raise TrainingError(
                f"Training folder {self.folder}: stage {stage} was begun with other values of "
                f"{', '.join(differing)}. Use another folder, or the original recipe and label maps to continue."
            )

    def _settings_of(self, stage: MaskStageName) -> dict[str, Any]:
        content = self.recipe.model_dump(mode="json")
        shared = {"seed": content["seed"], "grid": content["grid"], "label maps": self.split.key}
        role = MASK_STAGES[stage]
        shared[f"networks.{role}"] = content["networks"][role]
        if stage == "mask-vae":
            return {**shared, "vae.loss": content["vae"]["loss"]}
        return {
            **shared,
            "data.num_variants": content["data"]["num_variants"],
            "diffusion.loss": content["diffusion"]["loss"],
            "diffusion.warp": content["diffusion"]["warp"],
            "scheduler": content["scheduler"],
            "weights of mask-vae": sha256_of(self._require_weights("mask-vae", "mask_autoencoder")),
        }

    def load_weights(self, stage: MaskStageName) -> dict[str, Tensor]:
        """Return the saved weights of a stage, with MAISI's tensor names.

        Raises:
            TrainingError: The stage has not been trained.
        """
        return self._load_weights(stage, MASK_STAGES[stage])
