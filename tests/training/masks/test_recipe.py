from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.recipe_files import FIRST_STAGES
from maisi_aug.errors import GridError, RecipeError
from maisi_aug.training.images.recipe import training_recipe_path
from maisi_aug.training.masks.recipe import MASK_KIND, load_mask_recipe
from tests.builders.tiny_mask_training import build_mask_recipe, write_mask_recipe


def test_kind_is_one_that_the_command_line_knows() -> None:
    assert MASK_KIND in FIRST_STAGES


def test_recipe_of_the_package_can_be_trained() -> None:
    load_mask_recipe(training_recipe_path("train-phantom-ct-masks")).require_divisible()


def test_recipe_is_read(tmp_path: Path) -> None:
    assert load_mask_recipe(write_mask_recipe(tmp_path / "one.yaml")) == build_mask_recipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"networks__mask_diffusion_unet__in_channels": 3},
            "needs 4 channels in and out, like the latents of the autoencoder, found 3 and 4",
        ),
        (
            {"networks__controlnet": {}},
            "networks: expected mask_autoencoder and mask_diffusion_unet, found",
        ),
        (
            {"scheduler__clip_sample": True},
            "scheduler: .*must be a DDPMScheduler that predicts noise and clips nothing",
        ),
        (
            {"scheduler__class": "RFlowScheduler"},
            "the scheduler must be a DDPMScheduler that predicts noise and clips nothing,",
        ),
        (
            {"vae__loss__kl_wait": 1},
            "vae.loss.kl_wait: unknown key .* Did you mean 'kl_weight'",
        ),
        ({"kind": "training"}, "not a recipe for mask networks"),
    ],
)
def test_wrong_recipe_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_mask_recipe(write_mask_recipe(tmp_path / "one.yaml", **changes))


def test_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("seed: [1\n")
    with pytest.raises(RecipeError, match="one.yaml: cannot be read as YAML:"):
        load_mask_recipe(tmp_path / "one.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid__shape": [32, 24, 20]}, r"grid\.shape: .* found 32x24x20"),
        ({"vae__loss__patch_shape": [16, 16, 14]}, r"vae\.loss\.patch_shape: .* found 16x16x14"),
        ({"vae__loss__large_patch_shape": [16, 18, 16]}, r"vae\.loss\.large_patch_shape: .* found 16x18x16"),
    ],
)
def test_shapes_that_the_networks_cannot_take_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        build_mask_recipe(**changes).require_divisible()
