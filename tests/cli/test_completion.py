from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.core import TyperGroup

from maisi_aug.bundle_spec.bundle import list_bundles
from maisi_aug.cli.app import VERBS, load_verb
from maisi_aug.cli.shared.completion import (
    complete_all_recipes,
    complete_anatomy,
    complete_bundles,
    complete_insertion_recipes,
    complete_known_bundles,
    complete_labels,
    complete_presets,
    complete_recipes,
    complete_training_recipes,
)
from maisi_aug.cohort.grammar import parse_requests
from maisi_aug.vocabulary.labels import FULL_VOCABULARY


def context(**params: Any) -> Any:
    typed = SimpleNamespace(name="COMMANDLINE")
    return SimpleNamespace(params=params, get_parameter_source=lambda name: typed if name in params else None)


def values(complete: Callable[..., Any], typed: str, **params: Any) -> list[str]:
    found = complete(context(**params), typed)
    assert all(what for _, what in found)
    return [value for value, _ in found]


def test_labels_are_offered_as_a_shell_can_have_them_and_are_understood() -> None:
    offered = values(complete_labels, "")
    assert {"hepatic_tumor", "kidney_tumor", "liver", "left_kidney"} <= set(offered)
    assert not [name for name in offered if " " in name]
    assert offered[0] == "lung_tumor", "lesions come first"
    for name in offered:
        parse_requests([name], vocabulary=FULL_VOCABULARY)


def test_everyday_names_are_offered_once_they_are_begun() -> None:
    assert "liver_tumor" not in values(complete_labels, "")
    assert values(complete_labels, "liver_t") == ["liver_tumor"]
    assert values(complete_labels, "Liver_t") == ["Liver_tumor"]
    assert values(complete_labels, "hepatic t") == ["hepatic tumor"], "in quotation marks"


def test_next_lesion_of_a_case_is_offered_after_a_plus() -> None:
    assert values(complete_labels, "liver_tumor:20mm+bone_le") == ["liver_tumor:20mm+bone_lesion"]
    assert values(complete_anatomy, "liver,splee") == ["liver,spleen"]


def test_labels_are_those_of_the_bundle_that_the_line_names(tmp_path: Path) -> None:
    assert values(complete_labels, "kidney_tu", bundle="phantom-ct") == ["kidney_tumor"]
    assert values(complete_labels, "kidney_tu", bundle=str(tmp_path)) == [], "a folder that is no bundle"


def test_bundles_recipes_and_presets_are_offered() -> None:
    assert values(complete_bundles, "") == [bundle.name for bundle in list_bundles()]
    assert values(complete_bundles, "ph") == ["phantom-ct"]
    assert values(complete_known_bundles, "") == ["rflow-ct", "ddpm-ct", "rflow-mr", "rflow-mr-brain"]
    assert "six-tumours" in values(complete_recipes, "")
    assert not [name for name in values(complete_recipes, "") if name.startswith("train")]
    assert "train-phantom-ct" in values(complete_training_recipes, "train-")
    kinds = (complete_recipes, complete_insertion_recipes, complete_training_recipes)
    every = [name for complete in kinds for name in values(complete, "")]
    assert values(complete_all_recipes, "") == every
    assert values(complete_presets, "80g") == ["80g-512x512x512", "80g-512x512x768"]
    assert values(complete_presets, "", bundle="phantom-ct") == [], "it takes none"


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from walk(child, f"{path} {name}")
    else:
        yield path, command


def test_every_option_that_names_a_bundle_recipe_or_preset_is_completed() -> None:
    """By its metavar, so that a new one is not forgotten."""
    wanted = {"NAME|FOLDER", "NAME[:SIZE][@SHARE]", "NAME[,NAME]"}
    missing, num_completed = [], 0
    for verb in VERBS:
        for path, command in walk(load_verb(verb), verb):
            for param in command.params:
                is_named = param.metavar in wanted or {"--bundle", "--recipe", "--base"} & set(param.opts)
                is_completed = param._custom_shell_complete is not None
                num_completed += is_completed
                if is_named and not is_completed:
                    missing.append(f"{path} {param.opts[0]}")
    assert missing == []
    assert num_completed >= 20


def ask_shell(words: str, position: int, repository: Path, shell: str = "bash") -> list[str]:
    """What the installed script of a shell gets for a line."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(position)} if shell == "bash" else {"_TYPER_COMPLETE_ARGS": words}
    environment = {**os.environ, **asked, "_MAISI_AUG_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(
        [sys.executable, "-m", "maisi_aug"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("maisi-aug synthesize --bundle ph", 3, ["phantom-ct"]),
        ("maisi-aug synthesize --labels hepatic_tu", 3, ["hepatic_tumor"]),
        ("maisi-aug plan --guid", 2, ["--guidance-scale"]),
        ("maisi-aug bundles pull d", 3, ["ddpm-ct"]),
        ("maisi-aug train vae --recipe train-sm", 4, ["train-small-base"]),
        ("maisi-aug synthesize --preset 32", 3, ["32g-512x512x512"]),
    ],
)
def test_bash_is_answered(words: str, position: int, expected: list[str], repository: Path) -> None:
    assert ask_shell(words, position, repository) == expected


def test_zsh_is_told_what_a_value_is(repository: Path) -> None:
    (line,) = [line for line in ask_shell("maisi-aug recipes show six", 0, repository, "zsh") if "six-tumours" in line]
    assert "six-tumours" in line
