from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec.bundle import embedded_bundles
from maisi_aug.cohort.recipe_files import list_insertion_recipes, list_recipes, list_training_recipes
from tests.builders.tiny_bundle import write_tiny_bundle

Run = Callable[..., Any]
NUM_RECIPES, NUM_INSERTION_RECIPES, NUM_TRAINING_RECIPES = 3, 2, 6
NAMES = [info.name for info in (*list_recipes(), *list_insertion_recipes(), *list_training_recipes())]


def test_recipes_are_listed_with_the_commands_that_run_them(run_cli: Run) -> None:
    outcome = run_cli("recipes", "list")
    assert outcome.code == 0
    rows = json.loads(run_cli("recipes", "list", "--json").stdout)
    kinds = [("cohort", NUM_RECIPES), ("insertion", NUM_INSERTION_RECIPES), ("training", NUM_TRAINING_RECIPES)]
    assert [row["kind"] for row in rows] == [kind for kind, count in kinds for _ in range(count)]
    for row in rows:
        assert row["name"] in outcome.stdout
        assert all(f"{command}\n" in outcome.stdout for command in row["commands"])
        stage = "mask-vae" if row["name"].endswith("-masks") else "vae"
        verb = {"cohort": "synthesize", "insertion": "insert"}.get(row["kind"], f"train {stage}")
        assert row["commands"][0].startswith(f"maisi-aug {verb} --recipe {row['name']} ")


def test_recipes_for_training_stand_under_a_heading_of_their_own(run_cli: Run) -> None:
    cohorts, _, training = run_cli("recipes", "list").stdout.partition("Bundles (train):\n")
    assert cohorts.startswith("Cohorts (synthesize):\n  liver\n")
    assert "six-tumours" in cohorts
    assert "maisi-aug train" not in cohorts
    assert training.startswith("  train-ddpm-ct\n")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_shown_as_it_is(run_cli: Run, name: str, repository: Path) -> None:
    assert run_cli("recipes", "show", name).stdout == (repository / "recipes" / f"{name}.yaml").read_text()


def test_copied_recipe_can_be_edited_and_validated(run_cli: Run, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    copied = run_cli("recipes", "copy", "six-tumours", tmp_path)
    assert copied.code == 0
    path = tmp_path / "six-tumours.yaml"
    assert f"maisi-aug recipes validate {path}" in copied.stdout
    path.write_text(path.read_text() + f"bundle: {tmp_path / 'tiny'}\n")
    valid = run_cli("recipes", "validate", path)
    assert (valid.code, valid.stderr) == (0, "")
    assert "valid, 60 cases for 6 label requests" in valid.stdout
    assert json.loads(run_cli("recipes", "validate", path, "--json").stdout)["num_cases"] == 60
    again = run_cli("recipes", "copy", "six-tumours", path)
    assert again.code == 2
    assert "already exists" in again.stderr


@pytest.mark.skipif("phantom-ct" not in embedded_bundles(), reason="the embedded bundle has no weights yet")
@pytest.mark.parametrize("name", [info.name for info in list_recipes()])
def test_recipe_of_the_package_is_valid_for_its_bundle(run_cli: Run, name: str) -> None:
    outcome = run_cli("recipes", "validate", name)
    assert (outcome.code, outcome.stderr) == (0, "")


def test_everything_that_is_wrong_with_the_labels_is_told_at_once(run_cli: Run, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    path = tmp_path / "mine.yaml"
    labels = ["hepatic tumr:0.3@40%", "lung tumor:1.5", "liver@60%"]
    path.write_text(json.dumps({"labels": labels, "bundle": str(tmp_path / "tiny")}))
    outcome = run_cli("recipes", "validate", path)
    assert outcome.code == 2
    assert "2 label requests cannot be met:" in outcome.stderr
    assert "labels[0]: " in outcome.stderr
    assert "Did you mean 'hepatic tumor'" in outcome.stderr
    assert "labels[1]: " in outcome.stderr
    assert "labels[2]: " not in outcome.stderr


def test_misspelt_keys_are_told_with_their_place(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("labels: [liver]\nsead: 3\nnum_case: 4\n")
    outcome = run_cli("recipes", "validate", path)
    assert outcome.code == 2
    assert "sead: unknown key 'sead'. Did you mean 'seed'" in outcome.stderr
    assert "num_case: unknown key 'num_case'. Did you mean 'num_cases'" in outcome.stderr


def test_modality_that_no_network_knows_is_refused(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("labels: [liver]\nmodality: mr\n")
    outcome = run_cli("recipes", "validate", path)
    assert outcome.code == 2
    assert "modality: expected 'ct', 'ct_contrast', 'ct_wo_contrast', 'mri', 'mri_t1'" in outcome.stderr
    assert "found 'mr'." in outcome.stderr


def test_copied_training_recipe_can_be_edited_and_validated(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert run_cli("recipes", "copy", "train-phantom-ct", path).code == 0
    valid = run_cli("recipes", "validate", path)
    assert (valid.code, valid.stderr) == (0, "")
    assert f"{path}: valid, trains the bundle 'phantom-ct' on " in valid.stdout
    assert json.loads(run_cli("recipes", "validate", path, "--json").stdout)["kind"] == "training"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_phantoms:", "num_fantoms:", "data.num_fantoms: "),
        ("shape: [128, 112, 80]", "shape: [129, 112, 80]", "bundle.grid.shape: expected sides that are multiples of"),
    ],
    ids=["key", "shape"],
)
def test_training_recipe_that_cannot_be_trained_is_refused(
    run_cli: Run, tmp_path: Path, repository: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    text = (repository / "recipes" / "train-phantom-ct.yaml").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    outcome = run_cli("recipes", "validate", path)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.stderr


def test_cohort_cannot_be_made_with_a_training_recipe(run_cli: Run) -> None:
    outcome = run_cli("synthesize", "--recipe", "train-phantom-ct", "--dry-run")
    assert outcome.code == 2
    assert "Run it with 'maisi-aug train vae --recipe train-phantom-ct'." in outcome.stderr
