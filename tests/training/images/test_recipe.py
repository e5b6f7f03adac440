from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, BundleSpec, load_bundle
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.cohort.recipe_files import list_training_recipes, training_kind
from maisi_aug.errors import RecipeError
from maisi_aug.training.images.checks import require_divisible
from maisi_aug.training.images.recipe import (
    BundleHeader,
    PhantomData,
    PreparedData,
    load_training_recipe,
    training_recipe_path,
)
from tests.builders.tiny_training import build_recipe_content, write_recipe

SHIPPED = [info.path for info in list_training_recipes() if training_kind(info.path) == "training"]


def test_training_recipes_are_all_tested() -> None:
    assert [path.stem for path in SHIPPED] == [
        "train-ddpm-ct",
        "train-lung-nodule-ct",
        "train-phantom-ct",
        "train-rflow-ct",
        "train-small-base",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_says_how_it_is_run(path: Path) -> None:
    recipe = load_training_recipe(training_recipe_path(path.stem))
    require_divisible(recipe)
    text = path.read_text(encoding="utf-8")
    for stage in ("vae", "diffusion", "controlnet"):
        (line,) = (row for row in text.splitlines() if row.startswith(f"#   maisi-aug train {stage} "))
        assert f" --recipe {path.stem} " in line
        assert " --out " in line


@pytest.mark.parametrize("name", ["rflow-ct", "ddpm-ct"])
def test_full_width_recipe_trains_nvidias_networks_with_maisis_settings(name: str) -> None:
    recipe = load_training_recipe(training_recipe_path(f"train-{name}"))
    header = known_bundles()[name].header
    assert recipe.bundle.networks == header["networks"]
    assert recipe.bundle.scheduler == header["scheduler"]
    assert recipe.bundle.name == f"own-{name}"
    vae, diffusion, controlnet = recipe.vae, recipe.diffusion, recipe.controlnet
    assert controlnet.loss.contrastive_weight == (0.01 if name == "rflow-ct" else 0.0)
    assert (vae.loop.optimizer, vae.loop.learning_rate, vae.loop.decay_power) == ("adam", 1e-4, 0.0)
    assert (vae.loss.patch_shape, vae.loss.large_patch_shape) == ((64, 64, 64), (128, 128, 128))
    weights = (vae.loss.perceptual_weight, vae.loss.kl_weight, vae.loss.adversarial_weight, vae.loss.window_weight)
    assert weights == (0.3, 1e-7, 0.1, 0.0)
    assert (vae.loss.perceptual_slice_share, vae.loss.zoom_range) == (0.2, (0.5, 1.5))
    assert (diffusion.loop.optimizer, controlnet.loop.optimizer) == ("adam", "adamw")
    for stage in (diffusion, controlnet):
        assert (stage.loop.learning_rate, stage.loop.decay_power, stage.loop.mixed_precision) == (1e-5, 2.0, True)
    assert (controlnet.loss.lesion_weight, controlnet.loss.train_unet) == (100.0, False)
    assert recipe.data == PreparedData(prepared="prepared/ct", validation_fold=0)
    assert recipe.latent_deviation == 1.0


def test_prepared_folder_takes_the_place_of_the_recipes_data() -> None:
    full = load_training_recipe(training_recipe_path("train-rflow-ct")).with_prepared(Path("mine"))
    assert full.data == PreparedData(prepared="mine", validation_fold=0)
    phantoms = load_training_recipe(training_recipe_path("train-phantom-ct")).with_prepared(Path("mine"))
    assert phantoms.data == PreparedData(prepared="mine")


def test_words_about_phantoms_are_not_said_of_other_data() -> None:
    bundle = load_training_recipe(training_recipe_path("train-phantom-ct")).with_prepared(Path("mine")).bundle
    assert bundle.name == "own-phantom-ct"
    assert bundle.licence == "Own weights; the licence of the training data applies."
    assert "phantoms" not in bundle.description + bundle.advice + bundle.advice_without_map
    full = load_training_recipe(training_recipe_path("train-rflow-ct"))
    assert full.with_prepared(Path("mine")).bundle == full.bundle


def test_definitions_that_are_given_count_more_than_those_taken_over(tmp_path: Path) -> None:
    header = {"like": "rflow-ct", "name": "mine", "description": "d", "licence": "l", "num_inference_steps": 7}
    recipe = load_training_recipe(write_recipe(tmp_path / "mine.yaml", bundle=header))
    assert (recipe.bundle.num_inference_steps, recipe.bundle.decode_window) == (7, (48, 48, 64))
    path = write_recipe(tmp_path / "wrong.yaml", bundle={**header, "like": "rflow-us"})
    with pytest.raises(RecipeError, match="Bundle 'rflow-us': cannot be downloaded; known bundles are"):
        load_training_recipe(path)


def test_bundle_without_a_controlnet_leaves_its_definition_to_be_given(tmp_path: Path) -> None:
    header = {"like": "rflow-mr", "name": "mine", "description": "d", "licence": "l"}
    path = write_recipe(tmp_path / "wrong.yaml", bundle=header)
    with pytest.raises(
        RecipeError, match=r"bundle\.networks: expected .* controlnet, found autoencoder, diffusion_unet"
    ):
        load_training_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vae__loop__validation_steps": 5},
            "vae.loop.validation_steps: needs held-out cases, which data.validation_fold",
        ),
        ({"controlnet__loss__label_weights": {"livver": 9.0}}, "'livver'"),
        (
            {"diffusion__loss__contrastive_weight": 0.01},
            "diffusion.loss.contrastive_weight: applies to a ControlNet; set only",
        ),
        (
            {"controlnet__loss__contrastive_weight": 0.01, "bundle__scheduler__class": "DDPMScheduler"},
            "controlnet.loss.contrastive_weight: applies to rectified flow, not to ddpm;",
        ),
        ({"data": {"prepared": "x", "validation_fold": -1}}, "data.validation_fold: expected greater"),
        ({"data": {"prepared": 3}}, "data.prepared: expected a valid string"),
    ],
)
def test_data_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load_training_recipe(write_recipe(tmp_path / "mine.yaml", **changes))


def test_shipped_grid_is_what_was_promised() -> None:
    grid = load_training_recipe(training_recipe_path("train-phantom-ct")).bundle.grid
    extent_mm = [side * step for side, step in zip(grid.shape, grid.spacing_mm, strict=True)]
    assert min(extent_mm[:2]) >= 300
    assert grid.shape[2] >= 64
    assert max(grid.spacing_mm) <= 4.0


def test_header_holds_every_field_of_a_bundle_that_training_does_not_make() -> None:
    # No recipe trains mask networks, so that none says how they are run; steps are proven of weights that are there.
    made = {"format", "scale_factor", "weights", "provenance", "mask_generation", "proven_steps"} | {
        "base",
        "sizes",
        "hu_ranges",
        "mask_bank",
    }
    assert set(BundleHeader.model_fields) == set(BundleSpec.model_fields) - made


def test_file_of_the_users_own_is_found(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml")
    assert training_recipe_path(str(path)) == path
    assert load_training_recipe(path).data == PhantomData(num_phantoms=2, seed=5)


def test_unknown_recipe_is_refused_with_the_closest() -> None:
    with pytest.raises(RecipeError, match="'train-fantom-ct': not a file or one of train-ddpm-ct, train-lu"):
        training_recipe_path("train-fantom-ct")
    with pytest.raises(RecipeError, match="Did you mean 'train-phantom-ct'"):
        training_recipe_path("train-fantom-ct")


def test_all_problems_are_told_together_with_their_place(tmp_path: Path) -> None:
    content = build_recipe_content(vae__loop__num_steps=-1, data__number=3, bundle__licence=7)
    del content["bundle"]["networks"]["controlnet"]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_training_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"Training recipe {path}: ")
    for place in ("vae.loop.num_steps: ", "data.number: ", "bundle.licence: ", "bundle.networks: "):
        assert place in message
    assert f"expected {', '.join(NETWORK_ROLES)}, found autoencoder, diffusion_unet" in message


@pytest.mark.parametrize("text", [b"kind: [training", b"\xff\xfe\x00"], ids=["yaml", "utf-8"])
def test_file_that_is_no_yaml_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match="broken.yaml: cannot be read as YAML:"):
        load_training_recipe(path)


def test_cohort_recipe_is_no_training_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "cohort.yaml", kind="cohort")
    with pytest.raises(RecipeError, match="kind: expected a text like .*training.*, found .cohort"):
        load_training_recipe(path)


def test_start_from_label_means_needs_a_unet_that_trains(tmp_path: Path) -> None:
    content = build_recipe_content(controlnet__start="label-means", controlnet__loss__train_unet=False)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError, match="controlnet: .*needs loss.train_unet: true"):
        load_training_recipe(path)


def test_gain_needs_a_start_from_label_means(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", controlnet__faint_gain=1.4)
    with pytest.raises(RecipeError, match="controlnet: .*faint_gain: applies to start: label-means only"):
        load_training_recipe(path)


def test_share_of_noise_needs_a_start_from_label_means_which_keeps_its_weights(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "noise.yaml", controlnet__noise_share=0.1)
    with pytest.raises(RecipeError, match="controlnet: .*noise_share: applies to start: label-means only"):
        load_training_recipe(path)
    path = write_recipe(tmp_path / "decay.yaml", controlnet__start="label-means", controlnet__loss__train_unet=True)
    with pytest.raises(RecipeError, match="loop.weight_decay: start: label-means keeps weights unchanged and needs 0"):
        load_training_recipe(path)


def test_embedded_bundle_is_the_one_of_its_recipe() -> None:
    wanted = load_training_recipe(training_recipe_path("train-phantom-ct"))
    bundle = load_bundle("phantom-ct")
    header = wanted.bundle.describe()
    assert {key: bundle.spec.model_dump(mode="json")[key] for key in header} == header
    steps = {stage: getattr(wanted, stage).loop.num_steps for stage in ("vae", "diffusion", "controlnet")}
    assert bundle.spec.provenance["steps"] == steps
    assert bundle.spec.provenance["unfinished"] == []
