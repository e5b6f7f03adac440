"""The two stages of the mask generator's training, each in a folder of its own, each resumable, and their bundle."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks import build_network, build_scheduler, use_plain_layers
from maisi_aug.seeds import derive_seed
from maisi_aug.training.data import ReportProgress
from maisi_aug.training.label_maps import LabelMaps, VariedMaps
from maisi_aug.training.loop import LoopResult, Objective, ReportStep, TrainingRun
from maisi_aug.training.mask_data import MaskSplit
from maisi_aug.training.mask_noise import MaskNoiseObjective, SizedLatents
from maisi_aug.training.mask_recipe import MaskTrainingRecipe
from maisi_aug.training.mask_sizes import MapFigures, measure_maps
from maisi_aug.training.mask_vae import (
    MaskVaeObjective,
    encode_classes,
    measure_reconstruction,
    require_mask_autoencoder,
)
from maisi_aug.weights import StateDict
from maisi_aug.whole_files import sha256_of, write_text_whole, write_whole

MaskStageName = Literal["mask-vae", "mask-diffusion"]
MASK_STAGES: dict[MaskStageName, str] = {"mask-vae": "mask_autoencoder", "mask-diffusion": "mask_diffusion_unet"}
"""The network that each stage trains, in the order of the stages."""
SETTINGS_NAME = "settings.json"
SUMMARY_NAME = "summary.json"
VALIDATION_NAME = "validation.jsonl"
ReportPhase = Callable[[str], ReportProgress]
Validate = Callable[[nn.Module], dict[str, Any]]


class MaskTrainingFolder:
    """A run of a recipe in a folder: label maps, latents, one folder a stage."""

    def __init__(
        self, recipe: MaskTrainingRecipe, split: MaskSplit, folder: Path, *, device: str, report_phase: ReportPhase
    ) -> None:
        self.recipe = recipe
        self.split = split
        self.folder = folder
        self.device = device
        self.report_phase = report_phase

    def train(
        self, stage: MaskStageName, *, max_minutes: float | None = None, report_step: ReportStep | None = None
    ) -> LoopResult:
        """Train a stage, from its checkpoint where there is one, and keep its averaged weights.

        Validation figures of the averaged weights go to ``validation.jsonl`` every so often and at the end.

        Raises:
            TrainingError: When the first stage is missing, or the folder holds another configuration or other maps.
            GridError: For shapes that the networks cannot take.
            BundleError: For networks that are not like MAISI's mask generator's.
        """
        self.recipe.require_divisible()
        require_mask_autoencoder(self.recipe.networks["mask_autoencoder"])
        self._require_same_settings(stage)
        role = MASK_STAGES[stage]
        network, names = self._build(role)
        settings = self.recipe.vae if stage == "mask-vae" else self.recipe.diffusion
        prepare = self._prepare_vae if stage == "mask-vae" else self._prepare_diffusion
        objective, validate = prepare(network)
        run = TrainingRun(objective, settings.loop, self.folder / stage, device=self.device)
        judge = _Validation(run, role, validate, settings.validate_steps)
        result = run.train(max_minutes=max_minutes, report_step=judge.wrap(report_step))
        averaged = result.averaged_weights[role]
        self._save_weights(stage, {names[key]: value for key, value in averaged.items()})
        summary = {"steps": result.num_steps_done, "complete": result.is_complete, "validation": judge.finish()}
        write_text_whole(self.folder / stage / SUMMARY_NAME, json.dumps(summary, indent=1) + "\n")
        return result

    def _prepare_vae(self, autoencoder: nn.Module) -> tuple[Objective, Validate]:
        objective = MaskVaeObjective(
            autoencoder,
            self.split.training,
            self.recipe.vae.loss,
            counts=self._measure(self.split.training, "training").counts,
            spacing_mm=self.recipe.grid.spacing_mm,
            seed=self.recipe.seed,
            device=self.device,
        )

        def validate(network: nn.Module) -> dict[str, Any]:
            dice = measure_reconstruction(network, self.split.held_out, device=self.device)
            return {"dice": round(float(np.mean(list(dice.values()))), 4), "dice_per_label": dice}

        return objective, validate

    def _prepare_diffusion(self, unet: nn.Module) -> tuple[Objective, Validate]:
        cases, held_out, scale_factor = self.encode()
        objective = MaskNoiseObjective(
            unet,
            build_scheduler(self.recipe.scheduler),  # type: ignore[arg-type]  # the recipe has checked its class
            cases,
            self.recipe.diffusion.loss,
            scale_factor=scale_factor,
            seed=self.recipe.seed,
            device=self.device,
        )
        return objective, lambda network: objective.validate(network, held_out)

    def encode(self) -> tuple[SizedLatents, SizedLatents, float]:
        """Latents and sizes of the training maps with their variants, those of the held-out maps, and the scale factor.

        Raises:
            TrainingError: When the autoencoder has not been trained.
        """
        autoencoder = build_network(self.recipe.networks["mask_autoencoder"], device=self.device)
        autoencoder.load_state_dict(self.load_weights("mask-vae"))
        use_plain_layers(autoencoder.eval())
        varied = self._varied()
        organ_volumes = self.measure().organ_volumes_ml()
        found = []
        for name, maps in (("training", varied), ("held-out", self.split.held_out)):
            sizes = self._measure(maps, name).to_sizes(organ_volumes)
            found.append(SizedLatents(self._encode(autoencoder, maps, name), sizes))
        deviation = torch.cat([latent.float().flatten() for latent in found[0].latents]).std()
        return found[0], found[1], 1.0 / float(deviation)

    def measure(self) -> MapFigures:
        """Figures of the training maps with their variants."""
        return self._measure(self._varied(), "training")

    def _varied(self) -> LabelMaps:
        return VariedMaps(
            self.split.training,
            self.recipe.data.num_variants,
            self.recipe.diffusion.warp,
            spacing_mm=self.recipe.grid.spacing_mm,
            seed=self.recipe.data.seed,
        )

    def _measure(self, maps: LabelMaps, name: str) -> MapFigures:
        path = self.folder / f"figures-{self.split.key}-{name}-{len(maps)}.npz"
        voxel_ml = float(np.prod(self.recipe.grid.spacing_mm)) / 1000
        return measure_maps(maps, path, voxel_ml=voxel_ml, report=self.report_phase(f"Measuring {name} maps"))

    def _encode(self, autoencoder: nn.Module, maps: LabelMaps, name: str) -> list[Tensor]:
        weights_hash = sha256_of(self._weights_path("mask-vae"))
        folder = self.folder / f"mask-latents-{weights_hash[:12]}-{self.split.key}"
        report, latents = self.report_phase(f"Encoding {name} maps"), []
        for index in range(len(maps)):
            path = folder / f"{name}-{index:05d}.npy"
            if not path.exists():
                latent = encode_classes(autoencoder, maps[index], device=self.device)[0]
                buffer = io.BytesIO()
                np.save(buffer, latent.half().cpu().numpy())
                write_whole(path, buffer.getvalue())
            latents.append(torch.from_numpy(np.load(path, allow_pickle=False)))
            report(index + 1, len(maps))
        return latents

    def _build(self, role: str) -> tuple[nn.Module, dict[str, str]]:
        """A network with plain layers, and its tensors' names in MAISI's layout by their plain names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("initial weights", self.recipe.seed, role))
            network = build_network(self.recipe.networks[role], device=self.device)
        original_names = list(network.state_dict())
        use_plain_layers(network)
        network.to(memory_format=torch.channels_last_3d)
        return network, dict(zip(network.state_dict(), original_names, strict=True))

    def _require_same_settings(self, stage: MaskStageName) -> None:
        """Check that a folder was begun with the same recipe, maps and first stage; the loop compares its own settings.

        Raises:
            TrainingError: Naming the fields that differ.
        """
        settings = self._settings_of(stage)
        path = self.folder / stage / SETTINGS_NAME
        if not path.exists():
            write_text_whole(path, json.dumps(settings, indent=1) + "\n")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if differing:
            raise TrainingError(
                f"Training folder {self.folder}: expected the recipe and the label maps that stage {stage} was begun "
                f"with, found other values of {', '.join(differing)}. Use another folder, or the same recipe to go on."
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
            "weights of mask-vae": sha256_of(self._weights_path("mask-vae")),
        }

    def _weights_path(self, stage: MaskStageName) -> Path:
        path = self.folder / stage / f"{MASK_STAGES[stage]}.pt"
        if stage == "mask-vae" and not path.exists():
            raise TrainingError(
                f"Training folder {self.folder}: expected the weights of stage {stage} in {path.name}, found none. "
                f"Run 'maisi-aug train {stage}' first."
            )
        return path

    def _save_weights(self, stage: MaskStageName, state: StateDict) -> None:
        buffer = io.BytesIO()
        torch.save({key: value.cpu() for key, value in state.items()}, buffer)
        write_whole(self.folder / stage / f"{MASK_STAGES[stage]}.pt", buffer.getvalue())

    def load_weights(self, stage: MaskStageName) -> dict[str, Tensor]:
        """The averaged weights of a stage, in MAISI's names.

        Raises:
            TrainingError: When it has not been trained.
        """
        path = self.folder / stage / f"{MASK_STAGES[stage]}.pt"
        if not path.exists():
            raise TrainingError(
                f"Training folder {self.folder}: expected the weights of stage {stage} in {path.name}, found none. "
                f"Run 'maisi-aug train {stage}' first."
            )
        state: dict[str, Tensor] = torch.load(path, map_location=self.device, weights_only=True)
        return state


class _Validation:
    """Judges the averaged weights of a run every so often; what it does changes nothing in the run."""

    def __init__(self, run: TrainingRun, role: str, validate: Validate, every: int) -> None:
        self._run = run
        self._role = role
        self._validate = validate
        self._every = every
        self._twin = copy.deepcopy(run.objective.networks[role]).eval().requires_grad_(False)
        self._last: tuple[int, dict[str, Any]] | None = None

    def wrap(self, report_step: ReportStep | None) -> ReportStep:
        """A callback of the loop that validates when it is time, and passes on."""

        def report(step: int, figures: dict[str, float]) -> None:
            if step % self._every == 0:
                self._judge(step)
            if report_step is not None:
                report_step(step, figures)

        return report

    def finish(self) -> Mapping[str, Any]:
        """Figures of the weights as they are now."""
        if self._last is None or self._last[0] != self._run.step:
            self._judge(self._run.step)
        assert self._last is not None
        return self._last[1]

    def _judge(self, step: int) -> None:
        self._twin.load_state_dict(self._run.averages[self._role])
        figures = self._validate(self._twin)
        self._last = (step, figures)
        with (self._run.folder / VALIDATION_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **figures}) + "\n")
