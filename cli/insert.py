"""`maisi-aug insert`: lesions drawn into the user's own CTs, of which all else stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.shared.balance import Balance, BalanceOptions, find_balance, save_balance, select_lesion_rules
from maisi_aug.cli.shared.completion import complete_insertion_recipes
from maisi_aug.cli.shared.from_models import Given, with_options
from maisi_aug.cli.shared.run_options import AsJson, Device, NewCohort, Quiet
from maisi_aug.insertion.request import InsertConfig, build_insertion, load_insertion_recipe


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("insert")(with_options(insert))


def insert(
    flags: Annotated[Given, InsertConfig],
    balance_options: BalanceOptions,
    out: NewCohort,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_insertion_recipes,
            help="Recipe; options stand above it.",
            rich_help_panel="What to insert",
        ),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw lesions of given sizes into your own CTs; every voxel away from a lesion stays as it was.

    Example: maisi-aug insert --into CTS --labels "lung nodule:6-20mm" -n 20 --out cohort
    """
    from maisi_aug.cli.shared.progress import CohortProgress
    from maisi_aug.cli.synthesize import describe_summary
    from maisi_aug.insertion.cohort import insert_cohort
    from maisi_aug.insertion.config import resolve_insertion

    config = build_insertion(flags) if recipe is None else load_insertion_recipe(recipe, flags)
    config, balance = _balance(config, balance_options, is_quiet=quiet)
    with CohortProgress(is_quiet=quiet) as progress:
        cohort = resolve_insertion(config)
        for note in cohort.backgrounds.notes if not quiet else ():
            typer.echo(f"Note: {note}", err=True)
        summary = insert_cohort(cohort, out, device=device, listener=progress)
    if balance is not None:
        save_balance(balance, out)
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)


def _balance(config: InsertConfig, options: BalanceOptions, *, is_quiet: bool) -> tuple[InsertConfig, Balance | None]:
    """The configuration with the requests that balance a dataset.

    Rules that name the lesions say what the dataset calls them; CTs that have no labels have no use for them.
    """
    if options.against is None:
        return config, None
    from maisi_aug.cohort.balance import to_requests
    from maisi_aug.insertion.backgrounds import DATASET_NAME
    from maisi_aug.insertion.config import choose_painter

    vocabulary = choose_painter(config)[0].vocabulary
    rules = select_lesion_rules(config.map, config.labels, vocabulary)
    balance = find_balance(
        config.labels, options, rules, vocabulary=vocabulary, num_cases=config.num_cases, is_quiet=is_quiet
    )
    has_labels = config.into_labels is not None or (Path(config.into) / DATASET_NAME).is_file()
    kept = config.map if has_labels else tuple(rule for rule in config.map if rule not in rules)
    return InsertConfig.model_validate({**dict(config), "labels": to_requests(balance.labels), "map": kept}), balance
