from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import GridError, TrainingError
from maisi_aug.training.images.checks import (
    SETTINGS_NAME,
    require_divisible,
    require_fitting_data,
    require_same_settings,
)
from maisi_aug.training.loop.run import CHECKPOINT_NAME
from tests.builders.tiny_training import build_recipe


def begin(folder: Path, stage: str, **changes: Any) -> None:
    """Leave what a stage leaves that has begun."""
    require_same_settings(build_recipe(**changes), folder, stage)
    (folder / stage / CHECKPOINT_NAME).touch()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle__grid__shape": [32, 24, 20]}, "bundle.grid.shape: expected sides .* 8, found 32x24x20. Use 32x24x16"),
        ({"vae__loss__patch_shape": [16, 18, 16]}, "vae.loss.patch_shape: expected sides that are multiples of 4"),
        (
            {"vae__loss__large_patch_shape": [30, 24, 16], "vae__loss__large_patch_start_step": 2},
            "vae.loss.large_patch_shape: expected sides that are multiples of 4, found 30x24x16. Use 32x24x16",
        ),
        ({"controlnet__loss__crop_shape": [4, 3, 4]}, "controlnet.loss.crop_shape: expected sides .* 2, found 4x3x4"),
        ({"diffusion__loss__crop_shape": [5, 2, 2]}, "diffusion.loss.crop_shape: expected sides .* multiples of 2"),
    ],
    ids=["grid", "patch", "large patch", "controlnet", "diffusion"],
)
def test_shapes_that_the_networks_cannot_take_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        require_divisible(build_recipe(**changes))


def test_shapes_that_are_not_used_are_not_checked() -> None:
    require_divisible(build_recipe(vae__loss__large_patch_shape=[1, 2, 3]))
    require_divisible(build_recipe())


def test_data_on_another_grid_than_the_bundle_is_for_are_refused() -> None:
    recipe = build_recipe()
    require_fitting_data(recipe, recipe.bundle.grid, "mine")
    other = GridSpec(shape=(32, 24, 32), spacing_mm=recipe.bundle.grid.spacing_mm)
    with pytest.raises(TrainingError, match=r"^mine: expected the recipe's grid, 32x24x24 at .* found 32x24x32 at"):
        require_fitting_data(recipe, other, "mine")
    limits = {"sides": [[32], [24], [24, 32]], "spacing_mm": [[12, 12], [13, 13], [14, 14]]}
    known = build_recipe(bundle__grid_limits={**limits, "refuses_other_spacing": True})
    require_fitting_data(known, other, "mine")
    with pytest.warns(UserWarning, match=r"^mine: expected 24 or 32 voxels along K, found 32x24x40"):
        require_fitting_data(known, other.model_copy(update={"shape": (32, 24, 40)}), "mine")
    with pytest.raises(TrainingError, match=r"^mine: expected .*12 mm.*, found 32x24x32 at 9x"):
        require_fitting_data(known, other.model_copy(update={"spacing_mm": (9.0, 13.0, 14.0)}), "mine")


def test_same_recipe_goes_on(tmp_path: Path) -> None:
    begin(tmp_path, "vae")
    require_same_settings(build_recipe(), tmp_path, "vae")
    require_same_settings(build_recipe(), tmp_path, "diffusion")
    assert (tmp_path / "vae" / SETTINGS_NAME).exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vae__loss__kl_weight": 1.0}, "vae.loss.kl_weight"),
        ({"seed": 4}, "seed"),
        ({"data__seed": 4}, "data.seed"),
        ({"bundle__grid__spacing_mm": [2.0, 2.0, 2.0]}, "bundle.grid.spacing_mm"),
        ({"bundle__networks__autoencoder__latent_channels": 8}, "bundle.networks.autoencoder.latent_channels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stage", ["vae", "controlnet"])
def test_other_recipe_is_refused_by_the_stage_and_those_after_it(
    stage: str, changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    begin(tmp_path, "vae")
    with pytest.raises(TrainingError, match=f"stage vae was begun with other values of {field}\\. Use another"):
        require_same_settings(build_recipe(**changes), tmp_path, stage)


def test_later_stages_and_the_number_of_phantoms_may_still_change(tmp_path: Path) -> None:
    begin(tmp_path, "vae")
    changed = build_recipe(
        data__num_phantoms=9, controlnet__loss__lesion_weight=9.0, bundle__scheduler__sample_method="logit-normal"
    )
    require_same_settings(changed, tmp_path, "vae")
    begin(tmp_path, "controlnet", controlnet__loss__lesion_weight=9.0)
    with pytest.raises(
        TrainingError, match="stage controlnet was begun with other values of controlnet.loss.lesion_weight"
    ):
        require_same_settings(build_recipe(), tmp_path, "controlnet")


def test_stage_that_has_no_checkpoint_may_begin_anew(tmp_path: Path) -> None:
    require_same_settings(build_recipe(), tmp_path, "vae")
    require_same_settings(build_recipe(seed=9), tmp_path, "vae")
    assert json.loads((tmp_path / "vae" / SETTINGS_NAME).read_text(encoding="utf-8"))["seed"] == 9


def test_settings_of_an_older_version_get_todays_defaults(tmp_path: Path) -> None:
    begin(tmp_path, "controlnet")
    path = tmp_path / "controlnet" / SETTINGS_NAME
    settings = json.loads(path.read_text(encoding="utf-8"))
    del settings["controlnet.loss"]["whole_start_step"]
    del settings["latent_deviation"]
    del settings["controlnet.start"]
    path.write_text(json.dumps(settings), encoding="utf-8")
    require_same_settings(build_recipe(), tmp_path, "controlnet")


def test_stage_does_not_go_on_after_the_weights_that_it_was_begun_with_have_changed(tmp_path: Path) -> None:
    begin(tmp_path, "vae")
    (tmp_path / "vae" / "autoencoder.pt").write_bytes(b"half trained")
    begin(tmp_path, "diffusion")
    require_same_settings(build_recipe(), tmp_path, "diffusion")
    (tmp_path / "vae" / "autoencoder.pt").write_bytes(b"trained")
    require_same_settings(build_recipe(), tmp_path, "vae")
    with pytest.raises(TrainingError, match="stage diffusion was begun with other values of weights.vae/autoencoder"):
        require_same_settings(build_recipe(), tmp_path, "diffusion")
