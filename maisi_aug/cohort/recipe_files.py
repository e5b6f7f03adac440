"""Recipes as YAML files: those that come with the package, and the user's own. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from maisi_aug.errors import RecipeError, did_you_mean
from maisi_aug.system.content import ContentError
from maisi_aug.system.whole_files import write_text_whole

FIRST_STAGES = {"training": "vae", "mask-training": "mask-vae"}
"""The stage that a training begins with, by the kind of its recipe."""
INSERTION: Final = "insertion"
"""Kind of the recipes for ``maisi-aug insert``."""


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """Return the fields of a cohort recipe, not yet validated: by name from the package, or from a YAML file.

    The ``cohort.yaml`` of a cohort is a recipe too: it makes the same cohort again.

    Raises:
        RecipeError: There is no such recipe, it is not a YAML mapping, or it is for training.
    """
    path = find_recipe(name_or_path)
    document = _read_document(path)
    if document.get("kind") in FIRST_STAGES:
        raise RecipeError(
            f"{name_or_path}: this is a training recipe, not a cohort recipe. Run it with 'maisi-aug train "
            f"{FIRST_STAGES[document['kind']]} --recipe {name_or_path}'."
        )
    if document.get("kind") == INSERTION:
        raise RecipeError(
            f"{name_or_path}: this recipe is for lesions in your own CTs. Run it with 'maisi-aug insert --recipe "
            f"{name_or_path} --into CTS --out cohort'."
        )
    return _configuration_of(document)


def read_insertion_recipe(name_or_path: str) -> dict[str, Any]:
    """Return the fields of a recipe for ``insert``, not yet validated: a packaged one, YAML file or ``cohort.yaml``.

    Raises:
        RecipeError: There is no such recipe, or it is for something else.
    """
    document = _read_document(find_recipe(name_or_path))
    fields = _configuration_of(document)
    if not _is_for_insertion(document):
        raise RecipeError(
            f"{name_or_path}: not a recipe for insert, which has 'kind: {INSERTION}'. List recipes with 'maisi-aug "
            "recipes list'."
        )
    return {name: value for name, value in fields.items() if name != "kind"}


def is_for_insertion(name_or_path: str) -> bool:
    """Whether a recipe, or the ``cohort.yaml`` of a cohort, is for ``maisi-aug insert``.

    Raises:
        RecipeError: When there is no such recipe, or it cannot be read.
    """
    return _is_for_insertion(_read_document(find_recipe(name_or_path)))


def _is_for_insertion(document: dict[Any, Any]) -> bool:
    is_cohort = "configuration" in document and "into" in _configuration_of(document)
    return document.get("kind") == INSERTION or is_cohort


def _configuration_of(document: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(document.get("configuration"), dict):
        document = document["configuration"]
    return {str(key): value for key, value in document.items()}


def is_insertion_recipe(path: Path) -> bool:
    """Whether a recipe file is for ``maisi-aug insert``.

    Raises:
        RecipeError: The file cannot be read.
    """
    return _read_document(path).get("kind") == INSERTION


def training_kind(path: Path) -> str | None:
    """Return the kind of a training recipe, a key of ``FIRST_STAGES``; None for recipes of other commands.

    Raises:
        RecipeError: The file cannot be read.
    """
    kind = _read_document(path).get("kind")
    return kind if kind in FIRST_STAGES else None


def _read_document(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file consists of."""
    from maisi_aug.system import yaml_content  # not for the options of commands, which are fields of models

    try:
        document = yaml_content.read_yaml(path)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error}. Check the file.") from None
    except ContentError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}. Correct the file.") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"a {type(document).__name__}"
        raise RecipeError(f"{path}: expected a mapping of fields, found {found}. Start with 'labels:'.")
    return document


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """A recipe that comes with the package.

    Attributes:
        name: Name to pass as ``--recipe``.
        path: The YAML file.
        commands: Command lines of the file's first comment, in the order in which they are run.
        summary: The rest of that comment, joined to one line.
    """

    name: str
    path: Path
    commands: tuple[str, ...]
    summary: str


def list_recipes() -> list[RecipeInfo]:
    """Return the cohort recipes of the package, ordered by name."""
    return _list_recipes_of("maisi-aug synthesize ")


def list_insertion_recipes() -> list[RecipeInfo]:
    """Return the recipes of the package for inserting lesions into the user's own CTs, ordered by name."""
    return _list_recipes_of("maisi-aug insert ")


def list_training_recipes() -> list[RecipeInfo]:
    """Return the training recipes of the package, ordered by name."""
    return _list_recipes_of("maisi-aug train ")


def _list_recipes_of(verb: str) -> list[RecipeInfo]:
    folder = Path(str(files("maisi_aug.recipes")))
    infos = [_read_info(path) for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)]
    return [info for info in infos if info.commands and info.commands[0].startswith(verb)]


def _read_info(path: Path) -> RecipeInfo:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    comments = [line.removeprefix("#").strip() for line in lines]
    commands = tuple(comment for comment in comments if comment.startswith("maisi-aug "))
    # A line that introduces commands ends in a colon, which makes no sense once they are left out.
    rest = (re.sub(":$", ".", comment) for comment in comments if comment not in commands)
    return RecipeInfo(path.stem, path, commands, " ".join(rest).strip())


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe, given by the name of a packaged one or by path.

    Raises:
        RecipeError: There is no such recipe.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    listed = (*list_recipes(), *list_insertion_recipes(), *list_training_recipes())
    by_name = {info.name: info.path for info in listed}
    if name_or_path in by_name:
        return by_name[name_or_path]
    hint = did_you_mean(name_or_path, by_name) or f" Known recipes: {', '.join(by_name)}."
    raise RecipeError(f"{name_or_path}: neither a recipe's name nor a YAML file.{hint}")


def copy_recipe(name: str, target: Path) -> Path:
    """Copy a packaged recipe to edit it; the commands in its first comment are changed to run the copy.

    Args:
        name: Name of the recipe.
        target: File to write, or a folder to write ``NAME.yaml`` into.

    Returns:
        The file written.

    Raises:
        RecipeError: The target exists.
    """
    source = find_recipe(name)
    path = target / source.name if target.is_dir() else target
    if path.exists():
        raise RecipeError(f"{path}: already exists. Choose another name or remove the file.")
    opening = source.read_text(encoding="utf-8")
    text = opening.replace(f"--recipe {source.stem} ", f"--recipe {path} ")
    write_text_whole(path, text)
    return path
