from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle import embedded_bundles
from maisi_aug.recipe import list_recipes
from tests.tiny_bundle import write_tiny_bundle

Run = Callable[..., Any]
NUM_RECIPES = 3


def test_recipes_are_listed_with_the_command_that_runs_them(run_cli: Run) -> None:
    outcome = run_cli("recipes", "list")
    assert outcome.code == 0
    rows = json.loads(run_cli("recipes", "list", "--json").stdout)
    assert len(rows) == len(list_recipes()) == NUM_RECIPES
    for row in rows:
        assert row["name"] in outcome.stdout
        assert row["command"] in outcome.stdout
        assert row["command"].startswith(f"maisi-aug synthesize --recipe {row['name']} ")


@pytest.mark.parametrize("name", [info.name for info in list_recipes()])
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
    assert "found one that exists" in again.stderr


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
    assert "expected label requests that can be met, found 2 that cannot:" in outcome.stderr
    assert "labels[0]: " in outcome.stderr
    assert "Did you mean 'hepatic tumor'" in outcome.stderr
    assert "labels[1]: " in outcome.stderr
    assert "labels[2]: " not in outcome.stderr


def test_misspelt_keys_are_told_with_their_place(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("labels: [liver]\nsead: 3\nnum_case: 4\n")
    outcome = run_cli("recipes", "validate", path)
    assert outcome.code == 2
    assert "sead: expected a known key, found 'sead'. Did you mean 'seed'" in outcome.stderr
    assert "num_case: expected a known key, found 'num_case'. Did you mean 'num_cases'" in outcome.stderr


def test_modality_that_no_network_knows_is_refused(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("labels: [liver]\nmodality: mr\n")
    outcome = run_cli("recipes", "validate", path)
    assert outcome.code == 2
    assert "modality: expected 'ct', 'ct_contrast' or 'ct_wo_contrast', found 'mr'." in outcome.stderr


def test_training_recipe_is_no_cohort_recipe(run_cli: Run) -> None:
    outcome = run_cli("recipes", "validate", "train-phantom-ct")
    assert outcome.code == 2
    assert "train-phantom-ct: expected a recipe's name or a YAML file" in outcome.stderr
