"""`maisi-aug recipes`: list the recipes of the package, and check a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.shared.completion import complete_all_recipes
from maisi_aug.cohort.recipe_files import (
    copy_recipe,
    find_recipe,
    is_insertion_recipe,
    list_insertion_recipes,
    list_recipes,
    list_training_recipes,
    training_kind,
)
from maisi_aug.cohort.request import CohortRequest, load_recipe
from maisi_aug.errors import RecipeError
from maisi_aug.system.printed_text import spell_count

if TYPE_CHECKING:
    from maisi_aug.cohort.resolve import CohortRun

recipes_app = typer.Typer(no_args_is_help=True, help="List, show, copy and validate recipes for cohorts and training.")

_HEADINGS = {
    "cohort": "Cohorts (synthesize)",
    "insertion": "Lesions in your own CTs (insert)",
    "training": "Bundles (train)",
}

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE", autocompletion=complete_all_recipes, help="Name of a packaged recipe, or a YAML file."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group of commands ``recipes`` to the application."""
    app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes() -> None:
    """List, show, copy and validate recipes: of cohorts for synthesize, of bundles for train."""


@recipes_app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the recipes of the package.

    Example: maisi-aug recipes list
    """
    groups = {"cohort": list_recipes(), "insertion": list_insertion_recipes(), "training": list_training_recipes()}
    if as_json:
        rows = [
            {"name": i.name, "kind": kind, "summary": i.summary, "commands": list(i.commands), "path": str(i.path)}
            for kind, infos in groups.items()
            for i in infos
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    for kind, infos in groups.items():
        typer.echo(f"{_HEADINGS[kind]}:")
        for info in infos:
            typer.echo("\n    ".join((f"  {info.name}", info.summary, *info.commands)))


@recipes_app.command("show")
def show_command(name: RecipeName) -> None:
    """Print a recipe; its first comment has the command that runs it.

    Example: maisi-aug recipes show six-tumours
    """
    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("copy")
def copy_command(
    name: RecipeName,
    target: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="File to write, or folder in which to write NAME.yaml.")
    ] = Path(),
) -> None:
    """Copy a recipe to edit it.

    Example: maisi-aug recipes copy six-tumours mine.yaml
    """
    path = copy_recipe(name, target)
    typer.echo(f"{path}\nEdit it, then: maisi-aug recipes validate {path}")


@recipes_app.command("validate")
def validate_command(
    name: RecipeName, as_json: Annotated[bool, typer.Option("--json", help="Print the resolved recipe.")] = False
) -> None:
    """Check a recipe: every key, value, label and size, without making anything.

    Example: maisi-aug recipes validate six-tumours
    """
    kind = training_kind(find_recipe(name))
    if kind is not None:
        (_validate_training if kind == "training" else _validate_masks)(name, as_json=as_json)
        return
    if is_insertion_recipe(find_recipe(name)):
        _validate_insertion(name, as_json=as_json)
        return
    config = load_recipe(name)
    cohort = require_plannable(config, source=name)
    if as_json:
        typer.echo(json.dumps(config.to_dict(), indent=1))
        return
    typer.echo(
        f"{name}: valid, {spell_count(len(cohort.plan.cases), 'case')} for "
        f"{spell_count(len(config.labels), 'label request')}."
    )


def _validate_insertion(name: str, *, as_json: bool) -> None:
    from maisi_aug.cohort.grammar import parse_requests
    from maisi_aug.insertion.config import choose_painter
    from maisi_aug.insertion.request import load_insertion_recipe

    config = load_insertion_recipe(name, {"into": "CTS"})
    parse_requests(config.labels, vocabulary=choose_painter(config)[0].vocabulary)
    if as_json:
        typer.echo(config.model_dump_json(indent=1, exclude={"into"}))
        return
    typer.echo(
        f"{name}: valid, {spell_count(config.num_cases, 'case')} for "
        f"{spell_count(len(config.labels), 'label request')} in the CTs of --into."
    )


def _validate_training(name: str, *, as_json: bool) -> None:
    from maisi_aug.training.images.checks import require_divisible
    from maisi_aug.training.images.recipe import PreparedData, load_training_recipe

    recipe = load_training_recipe(find_recipe(name))
    require_divisible(recipe)
    if as_json:
        typer.echo(recipe.model_dump_json(indent=1))
        return
    data = recipe.data
    cases = f"the cases of {data.prepared}" if isinstance(data, PreparedData) else f"{data.num_phantoms} phantoms"
    typer.echo(f"{name}: valid, trains the bundle '{recipe.bundle.name}' on {cases}.")


def _validate_masks(name: str, *, as_json: bool) -> None:
    from maisi_aug.training.masks.recipe import load_mask_recipe
    from maisi_aug.volumes.grid import spell_grid

    recipe = load_mask_recipe(find_recipe(name))
    recipe.require_divisible()
    if as_json:
        typer.echo(recipe.model_dump_json(indent=1))
        return
    grid = recipe.grid
    typer.echo(f"{name}: valid, trains networks that generate {spell_grid(grid.shape, grid.spacing_mm)} label maps.")


def require_plannable(config: CohortRequest, *, source: str) -> CohortRun:
    """Plan a recipe; its requests are first checked one by one, so that all problems are reported at once.

    Raises:
        RecipeError: The message lists every label request that cannot be met.
    """
    from maisi_aug.api.progress import CohortProgress
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.cohort.grammar import find_problems
    from maisi_aug.cohort.resolve import resolve

    problems = find_problems(config.labels, load_bundle(config.bundle).vocabulary)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise RecipeError(f"{source}: {spell_count(len(problems), 'label request')} cannot be met:{listed}")
    with CohortProgress(is_quiet=False) as progress:
        return resolve(config, report_file=progress.measures)
