"""`maisi-aug insert`: lesions drawn into the user's own CTs, of which all else stays as it was."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from maisi_aug.api.balancing import Balance, BalanceOptions, balance_insertion
from maisi_aug.api.bars import count_up
from maisi_aug.api.engines import EngineOptions, Where
from maisi_aug.cli.shared.balance import parse_lesion_map
from maisi_aug.cli.shared.completion import complete_insertion_recipes
from maisi_aug.cli.shared.from_models import Given, with_options
from maisi_aug.cli.shared.run_options import (
    AsJson,
    Device,
    Devices,
    JsonLines,
    NewCohort,
    Quiet,
    RedrawRejected,
    ShardOption,
    Verify,
)
from maisi_aug.insertion.request import InsertConfig, build_insertion, load_insertion_recipe


def register(app: typer.Typer) -> None:
    """Add the command ``insert`` to the application."""
    app.command("insert")(with_options(insert))


def insert(
    flags: Annotated[Given, InsertConfig],
    balance_options: BalanceOptions,
    engine: EngineOptions,
    out: NewCohort,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_insertion_recipes,
            help="Recipe name or YAML file; options override it.",
            rich_help_panel="What to insert",
        ),
    ] = None,
    device: Device = "auto",
    devices: Devices = None,
    shard: ShardOption = None,
    verify: Verify = False,
    redraw_rejected: RedrawRejected = False,
    as_json: AsJson = False,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Draw lesions of given sizes into your own CTs; every voxel away from a lesion stays as it was.

    Example: maisi-aug insert --into CTS --labels "lung nodule:6-20mm" -n 20 --out cohort
    """
    from maisi_aug.api.insertion import make_insertion
    from maisi_aug.api.progress import follow_run
    from maisi_aug.cli.synthesize import describe_summary

    where = Where.read(device, devices, shard, engine)
    config = build_insertion(flags) if recipe is None else load_insertion_recipe(recipe, flags)
    config, balance = _balance(config, balance_options, is_quiet=quiet)
    with follow_run(is_quiet=quiet or json_lines, as_lines=json_lines) as progress:
        summary = make_insertion(
            config,
            out,
            balance=balance,
            where=where,
            verify=verify,
            redraw_rejected=redraw_rejected,
            listener=progress,
        )
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)


def _balance(config: InsertConfig, options: BalanceOptions, *, is_quiet: bool) -> tuple[InsertConfig, Balance | None]:
    if options.against is None:
        return config, None
    with count_up("measuring lesions", is_quiet=is_quiet) as report:
        return balance_insertion(
            config,
            options,
            lambda rules: lambda targets, vocabulary: parse_lesion_map(rules, targets, vocabulary),
            report=report,
        )
