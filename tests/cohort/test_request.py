from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.cohort.recipe_files import (
    FIRST_STAGES,
    copy_recipe,
    find_recipe,
    list_insertion_recipes,
    list_recipes,
    list_training_recipes,
    read_recipe,
    training_kind,
)
from maisi_aug.cohort.request import CohortRequest, build_request, differences, load_recipe
from maisi_aug.errors import RecipeError

NUM_RECIPES = 3
IMAGE_STAGES = ("training", ("vae", "diffusion", "controlnet"))
TRAINING_STAGES = {
    "train-ddpm-ct": IMAGE_STAGES,
    "train-lung-nodule-ct": IMAGE_STAGES,
    "train-phantom-ct": IMAGE_STAGES,
    "train-phantom-ct-masks": ("mask-training", ("mask-vae", "mask-diffusion")),
    "train-rflow-ct": IMAGE_STAGES,
    "train-small-base": IMAGE_STAGES,
}


def write_recipe(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_all_problems_are_reported_together_with_their_places() -> None:
    values = {
        "labels": ["liver", 3],
        "num_cases": "4",
        "sead": 1,
        "shape": [1, 2],
        "size_label": "x",
        "gates": {"size_tol": 3, "organ_hu": 1},
    }
    with pytest.raises(RecipeError) as caught:
        build_request(values, source="mine.yaml")
    assert str(caught.value).splitlines() == [
        "mine.yaml: this recipe has 7 problems:",
        "  labels[1]: expected a valid string, found 3.",
        "  num_cases: expected a valid integer, found '4'.",
        "  shape[2]: a value is required. Set it in the recipe or as an option.",
        "  size_label: expected a valid integer, found 'x'.",
        "  gates.organ_hu: expected a valid boolean, found 1.",
        "  gates.size_tol: unknown key 'size_tol'. Did you mean 'size_tolerance'?",
        "  sead: unknown key 'sead'. Did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "labels: a value is required"),
        ({"labels": []}, "labels: at least one lesion or organ is required"),
        ({"labels": "liver"}, "labels: expected a list, found 'liver'"),
        ({"labels": ["liver"], "num_cases": 0}, "num_cases: expected greater than 0, found 0"),
        ({"labels": ["liver"], "seed": True}, "seed: expected a valid integer, found True"),
        ({"labels": ["liver"], "guidance_scale": float("nan")}, "guidance_scale: expected .*, found nan"),
        ({"labels": ["liver"], "mask_source": "magic"}, "mask_source: expected 'plant', 'bank', .*, found 'magic'"),
        (
            {"labels": ["liver"], "modality": "mr"},
            "modality: expected 'ct', 'ct_contrast', 'ct_wo_contrast', 'mri', .*, found 'mr'",
        ),
        ({"labels": ["liver"], "body_region": ["abdomen", "thorax"]}, "the uppermost region before the lowest"),
        ({"labels": ["liver"], "body_region": ["chest"]}, r"body_region\[0\]: expected 'head', 'thorax', 'abdomen' or"),
        ({"labels": ["liver"], "spacing_mm": [1, 1, 0]}, r"spacing_mm\[2\]: expected greater than 0, found 0"),
        ({"labels": ["liver"], "anatomy": []}, "anatomy: expected .* at least 1 item"),
        ({"labels": ["liver"], "anatomy": 5}, "anatomy: expected a list, found 5"),
        ({"labels": ["liver"], "allow_unseen_grid": 1}, "allow_unseen_grid: expected a valid boolean, found 1"),
        ({"labels": ["liver"], "preset": ""}, "preset: expected .* at least 1 character"),
        (
            {"labels": ["liver"], "size_label": 2},
            "size_reference and size_label must be given together; size_reference is missing",
        ),
        (
            {"labels": ["liver"], "mask_source": "bank"},
            "mask_source 'bank': requires a mask_bank with lesions, but the phantoms have",
        ),
        ({"labels": ["liver"], "zzz": 2}, "zzz: unknown key 'zzz'. Known keys: labels, num_cases"),
    ],
)
def test_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_request(values)


@pytest.mark.parametrize("modality", ["ct", "ct_contrast", "ct_wo_contrast", "mri", "mri_swi_skull_stripped"])
def test_networks_know_every_modality_that_can_be_asked_for(modality: str) -> None:
    from maisi_aug.vocabulary.modalities import MODALITY_CODES

    assert build_request({"labels": ["liver"], "modality": modality}).modality in MODALITY_CODES


def test_configuration_survives_the_way_to_yaml_and_back() -> None:
    config = build_request(
        {"labels": ["hepatic tumor:0.3"], "shape": [128, 96, 80], "spacing_mm": [3, 3.2, 3.2], "gates": None}
    )
    assert build_request(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert config.shape == (128, 96, 80)


def test_flags_stand_above_the_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "labels: [liver]\nnum_cases: 9\nseed: 3\n")
    config = load_recipe(path, {"num_cases": 2, "seed": None, "labels": ["lung tumor"]})
    assert (config.labels, config.num_cases, config.seed) == (("lung tumor",), 2, 3)


def test_flags_can_complete_a_recipe_that_lacks_labels(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "num_cases: 9\n")
    assert load_recipe(path, {"labels": ["liver"]}).num_cases == 9


def test_cohort_file_is_a_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "bundle:\n  name: phantom-ct\nconfiguration:\n  labels: [liver]\n  seed: 8\n")
    assert load_recipe(path).seed == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- liver\n", "expected a mapping of fields, found a list"),
        ("", "expected a mapping of fields, found nothing"),
        ("labels: [liver\nseed: 1\n", "not valid YAML: .* on line 2"),
        ("labels: [liver]\nseed: 1\nseed: 2\n", "the key 'seed' is given twice on line 3"),
        (
            "labels: !!python/object/apply:os.system ['true']\n",
            "not valid YAML: could not determine a constructor",
        ),
    ],
)
def test_unreadable_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(write_recipe(tmp_path, text))


def test_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"mine\.yaml: not valid YAML: .*invalid start byte"):
        read_recipe(str(tmp_path / "mine.yaml"))


def test_misspelt_recipe_offers_the_closest() -> None:
    with pytest.raises(RecipeError, match=r"livr: neither a recipe's name nor a YAML file\. Did you mean 'liver'\?"):
        find_recipe("livr")


def test_package_has_its_recipes() -> None:
    assert [info.name for info in list_recipes()] == ["liver", "lung", "six-tumours"]
    assert [info.name for info in list_insertion_recipes()] == ["insert-lung-nodules", "insert-nodule-twins"]
    assert [info.name for info in list_training_recipes()] == list(TRAINING_STAGES)


@pytest.mark.parametrize("info", list_recipes(), ids=lambda info: info.name)
def test_recipe_of_the_package_is_valid_and_opens_with_its_command(info: Any) -> None:
    assert len(list_recipes()) == NUM_RECIPES
    assert isinstance(load_recipe(info.name), CohortRequest)
    (command,) = info.commands
    assert command.startswith(f"maisi-aug synthesize --recipe {info.name} ")
    assert info.summary.endswith(".")
    assert training_kind(info.path) is None


@pytest.mark.parametrize("info", list_training_recipes(), ids=lambda info: info.name)
def test_training_recipe_of_the_package_tells_its_commands(info: Any) -> None:
    kind, stages = TRAINING_STAGES[info.name]
    expected = [f"maisi-aug train {stage} --recipe {info.name} " for stage in stages]
    assert len(info.commands) == len(expected)
    assert all(command.startswith(start) for command, start in zip(info.commands, expected, strict=True))
    assert all(" --out runs/" in command for command in info.commands)
    assert info.summary.endswith(".")
    assert ":" not in info.summary
    assert find_recipe(info.name) == info.path
    assert training_kind(info.path) == kind
    assert FIRST_STAGES[kind] == stages[0]


def test_training_recipe_makes_no_cohort() -> None:
    with pytest.raises(RecipeError, match="train-phantom-ct: this is a training recipe, not a cohort recipe"):
        load_recipe("train-phantom-ct")


def test_copied_recipe_names_itself_in_its_command(tmp_path: Path) -> None:
    path = copy_recipe("liver", tmp_path)
    assert path == tmp_path / "liver.yaml"
    assert path.read_text().startswith(f"# maisi-aug synthesize --recipe {path} ")
    assert load_recipe(str(path)) == load_recipe("liver")
    with pytest.raises(RecipeError, match="liver.yaml: already exists"):
        copy_recipe("liver", tmp_path)


def test_every_command_of_a_copied_training_recipe_runs_the_copy(tmp_path: Path) -> None:
    text = copy_recipe("train-phantom-ct", tmp_path / "mine.yaml").read_text()
    assert text.count(f" --recipe {tmp_path / 'mine.yaml'} ") == 3
    assert "--recipe train-phantom-ct" not in text


def test_differences_name_field_old_and_new() -> None:
    assert differences({"seed": 1, "num_cases": 4}, {"seed": 2, "num_cases": 4, "shape": None}) == ["seed: 1 -> 2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gates": [3]}, "gates: expected texts such as organ-hu=off, found 3"),
        ({"gates": [{"organ_hu": False}]}, "gates: expected texts such as organ-hu=off, found"),
        ({"mask_source": "diffusion", "size_of": [["liver"]]}, "size_of: expected texts such as liver:0.5, found"),
        ({"size_reference": "lab", "size_label": [2]}, "size_label: expected texts such as 2, found 2"),
    ],
)
def test_lists_that_hold_no_texts_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        build_request({"labels": ["hepatic tumor"], **values})
