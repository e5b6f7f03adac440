"""Checks before a stage trains: shapes that the networks can take, and a folder of the same recipe."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import grid_factor
from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.bundle_spec.grid_limits import GridSpec, spell_shortfalls
from maisi_aug.errors import MaisiAugWarning, TrainingError
from maisi_aug.system.content import read_json
from maisi_aug.system.whole_files import sha256_of, write_json_whole
from maisi_aug.training.images.recipe import TrainingRecipe
from maisi_aug.training.loop.run import CHECKPOINT_NAME
from maisi_aug.training.loop.settings import FlowLossConfig, VaeLossConfig
from maisi_aug.volumes.grid import Grid, Shape, spell_grid

SETTINGS_NAME = "settings.json"
# The networks that each stage trains, in the order of the stages.
STAGE_ROLES = {
    "vae": ("autoencoder",),
    "diffusion": ("diffusion_unet",),
    "controlnet": ("diffusion_unet", "controlnet"),
}
EARLIER_WEIGHTS = "weights"
WEIGHT_FILES = ("perceptual_weights", "perceptual_heads")
# How a stage began before its recipe could say.
STARTS = {"vae": "random", "controlnet": "encoder"}


def require_divisible(recipe: TrainingRecipe, data_shape: Shape | None = None) -> None:
    """Raise unless the grid, the patches of the autoencoder and the crops of the U-Net have divisible sides.

    Args:
        recipe: Recipe of the training.
        data_shape: Voxels of the training cases along I, J, K; None for the recipe's grid.

    Raises:
        GridError: The message names the field and the nearest suitable shape.
    """
    autoencoder, unet = recipe.bundle.networks["autoencoder"], recipe.bundle.networks["diffusion_unet"]
    in_image, in_latent = latent_factor(autoencoder), grid_factor(autoencoder, unet) // latent_factor(autoencoder)
    _require_multiple(recipe.bundle.grid.shape, in_image * in_latent, "bundle.grid.shape")
    if data_shape is not None:
        _require_multiple(data_shape, in_image * in_latent, "data")
    _require_multiple(recipe.vae.loss.patch_shape, in_image, "vae.loss.patch_shape")
    if recipe.vae.loss.large_patch_start_step is not None:
        _require_multiple(recipe.vae.loss.large_patch_shape, in_image, "vae.loss.large_patch_shape")
    for name, stage in (("diffusion", recipe.diffusion), ("controlnet", recipe.controlnet)):
        if stage.loss.crop_shape is not None:
            _require_multiple(stage.loss.crop_shape, in_latent, f"{name}.loss.crop_shape")


def require_fitting_data(recipe: TrainingRecipe, data: GridSpec, subject: str) -> None:
    """Raise unless the recipe's bundle supports the grid of prepared cases; warn outside of its limits.

    Args:
        recipe: Recipe of the training; without ``grid_limits`` its bundle supports one grid.
        data: Grid of the cases.
        subject: Name of the cases in messages.

    Raises:
        TrainingError: The message names both grids.
    """
    own, limits = recipe.bundle.grid, recipe.bundle.grid_limits
    if limits is None:
        if not data.is_like(own):
            raise TrainingError(
                f"{subject}: expected the recipe's grid, {spell_grid(own.shape, own.spacing_mm)}, found "
                f"{spell_grid(data.shape, data.spacing_mm)}. Prepare the data with that grid, or change bundle.grid in "
                "a copy of the recipe."
            )
        return
    lacking = spell_shortfalls(Grid.from_spacing(data.shape, data.spacing_mm), limits, subject)
    if lacking is None:
        return
    sentence, is_refused = lacking
    if is_refused:
        raise TrainingError(
            f"{sentence}. Prepare the data with the recipe's grid, {spell_grid(own.shape, own.spacing_mm)}, or change "
            "bundle.grid and bundle.grid_limits in a copy of the recipe."
        )
    warnings.warn(f"{sentence}. The bundle will be marked as not trained on such grids.", MaisiAugWarning, stacklevel=2)


def _require_multiple(shape: Shape, factor: int, field: str) -> None:
    Grid.from_spacing(shape, (1.0, 1.0, 1.0)).require_multiple_of(factor, subject=f"Training recipe, {field}")


def require_same_settings(
    recipe: TrainingRecipe, folder: Path, stage: str, *, identity: Mapping[str, Any] | None = None
) -> None:
    """Raise unless a recipe agrees with the settings that a run's folder was started with; record those of a stage.

    The number of phantoms may change, because phantom ``i`` does not depend on it, and the loop compares its own
    settings. The weights of earlier stages must be unchanged, because latents depend on them.

    Args:
        recipe: Recipe of the training.
        folder: Folder of the run.
        stage: Stage to train.
        identity: Identity of the training cases; None for the seed of the recipe's phantoms.

    Raises:
        TrainingError: The message names the stage and the fields that differ.
    """
    for name in STAGE_ROLES:
        path = folder / name / SETTINGS_NAME
        has_begun = (folder / name / CHECKPOINT_NAME).exists()
        wanted = _settings_of(recipe, name, identity)
        if name == stage:
            wanted[EARLIER_WEIGHTS] = _hash_earlier_weights(folder, name)
        if has_begun and path.exists():
            known = read_json(path)
            if name == stage:
                known.setdefault(EARLIER_WEIGHTS, wanted[EARLIER_WEIGHTS])
            else:
                known.pop(EARLIER_WEIGHTS, None)
            before = dict(_flat(_with_defaults(known, name)))
            after = dict(_flat(wanted))
            differing = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            if differing:
                raise TrainingError(
                    f"Training folder {folder}: stage {name} was begun with other values of {', '.join(differing)}. "
                    "Use another folder, or the original recipe to continue."
                )
        elif name == stage:
            write_json_whole(path, wanted)
        if name == stage:
            return


def _hash_earlier_weights(folder: Path, stage: str) -> dict[str, str]:
    earlier = list(STAGE_ROLES)[: list(STAGE_ROLES).index(stage)]
    paths = [path for name in earlier for path in sorted((folder / name).glob("*.pt")) if path.name != CHECKPOINT_NAME]
    return {f"{path.parent.name}/{path.stem}": sha256_of(path) for path in paths}


def _settings_of(recipe: TrainingRecipe, stage: str, identity: Mapping[str, Any] | None) -> dict[str, Any]:
    content = recipe.model_dump(mode="json")
    bundle = content["bundle"]
    settings = {
        "seed": content["seed"],
        **({"data.seed": content["data"].get("seed")} if identity is None else identity),
        f"{stage}.loss": _with_hashes(content[stage]["loss"]),
        **({f"{stage}.start": content[stage]["start"]} if stage in STARTS else {}),
        "bundle.grid": bundle["grid"],
        "bundle.slots": bundle["slots"],
        "bundle.networks": {role: bundle["networks"][role] for role in STAGE_ROLES[stage]},
    }
    if stage == "vae":
        return settings
    return {**settings, "bundle.scheduler": bundle["scheduler"], "latent_deviation": content["latent_deviation"]}


def _with_hashes(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a loss with the hashes of the files that they name, which may move."""
    return {
        key: f"sha256:{sha256_of(value)}" if key in WEIGHT_FILES and value and Path(value).is_file() else value
        for key, value in loss.items()
    }


def _with_defaults(settings: dict[str, Any], stage: str) -> dict[str, Any]:
    """Settings with the fields that a newer version has added, at their defaults."""
    key = f"{stage}.loss"
    loss = (VaeLossConfig if stage == "vae" else FlowLossConfig).model_validate(settings[key])
    added: dict[str, Any] = {} if stage == "vae" else {"latent_deviation": 1.0}
    if stage in STARTS:
        added[f"{stage}.start"] = STARTS[stage]
    return {**added, **settings, key: loss.model_dump(mode="json")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
