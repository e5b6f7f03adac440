from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from maisi_aug.bundle import NETWORK_ROLES, BundleSpec, load_bundle
from maisi_aug.errors import RecipeError
from maisi_aug.training.checks import require_divisible
from maisi_aug.training.recipe import BundleHeader, load_training_recipe, training_recipe_path
from tests.tiny_training import build_recipe_content, write_recipe

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SHIPPED = sorted((REPOSITORY / "recipes").glob("train-*.yaml"))


def test_training_recipes_are_all_tested() -> None:
    assert [path.stem for path in SHIPPED] == ["train-phantom-ct"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_says_how_it_is_run(path: Path) -> None:
    recipe = load_training_recipe(training_recipe_path(path.stem))
    require_divisible(recipe)
    text = path.read_text(encoding="utf-8")
    for stage in ("vae", "diffusion", "controlnet"):
        assert f"#   maisi-aug train {stage} --recipe {path.stem} --out " in text
    assert recipe.bundle.licence == "Apache-2.0"
    assert recipe.bundle.slots["kidney tumor"].id == 129


def test_shipped_grid_is_what_was_promised() -> None:
    grid = load_training_recipe(training_recipe_path("train-phantom-ct")).bundle.grid
    extent_mm = [side * step for side, step in zip(grid.shape, grid.spacing_mm, strict=True)]
    assert min(extent_mm[:2]) >= 300
    assert grid.shape[2] >= 64
    assert max(grid.spacing_mm) <= 4.0


def test_header_holds_every_field_of_a_bundle_that_training_does_not_make() -> None:
    # No recipe trains mask networks, so that none says how they are run.
    made = {"format", "scale_factor", "weights", "provenance", "mask_generation"}
    assert set(BundleHeader.model_fields) == set(BundleSpec.model_fields) - made


def test_file_of_the_users_own_is_found(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "mine.yaml")
    assert training_recipe_path(str(path)) == path
    assert load_training_recipe(path).data.num_phantoms == 2


def test_unknown_recipe_is_refused_with_the_closest() -> None:
    with pytest.raises(RecipeError, match="'train-fantom-ct': expected a file or one of train-phantom-ct, found neith"):
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
    with pytest.raises(RecipeError, match="broken.yaml: expected readable YAML, found: "):
        load_training_recipe(path)


def test_cohort_recipe_is_no_training_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "cohort.yaml", kind="cohort")
    with pytest.raises(RecipeError, match="kind: String should match pattern"):
        load_training_recipe(path)


def test_start_from_label_means_needs_a_unet_that_trains(tmp_path: Path) -> None:
    content = build_recipe_content(controlnet__start="label-means", controlnet__loss__train_unet=False)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError, match="controlnet: .*needs loss.train_unet: true"):
        load_training_recipe(path)


def test_gain_needs_a_start_from_label_means(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", controlnet__faint_gain=1.4)
    with pytest.raises(RecipeError, match="controlnet: .*faint_gain: .*needs start: label-means"):
        load_training_recipe(path)


def test_embedded_bundle_is_the_one_of_its_recipe() -> None:
    wanted = load_training_recipe(training_recipe_path("train-phantom-ct"))
    bundle = load_bundle("phantom-ct")
    header = wanted.bundle.model_dump(mode="json")
    assert {key: bundle.spec.model_dump(mode="json")[key] for key in header} == header
    steps = {stage: getattr(wanted, stage).loop.num_steps for stage in ("vae", "diffusion", "controlnet")}
    assert bundle.spec.provenance["steps"] == steps
    assert bundle.spec.provenance["unfinished"] == []
