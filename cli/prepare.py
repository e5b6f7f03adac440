"""`maisi-aug prepare`: a lab's own CTs and label maps as training cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import RUN, AsJson, Quiet
from maisi_aug.cli.shared.streams import tell
from maisi_aug.preparation.request import PrepareConfig
from maisi_aug.system.printed_text import spell_count

if TYPE_CHECKING:
    from maisi_aug.preparation.run import PreparePlan, PrepareResult


def register(app: typer.Typer) -> None:
    """Add the command ``prepare`` to the application."""
    app.command("prepare")(with_options(prepare))


def prepare(
    config: PrepareConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for prepared cases; continued if unfinished.")],
    device: Annotated[
        str, typer.Option(help="Device for TotalSegmentator: auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)
    ] = "auto",
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Change an existing folder to these options; cases that are no longer given are removed.",
            rich_help_panel=RUN,
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes (default: one per core).", rich_help_panel=RUN)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the meaning of every label, and stop.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Prepare your own CTs and label maps for training: one grid, one vocabulary, body, folds, pictures.

    Where labels overlap, later ones in this order win: body, --tissue, --organs, your labels, lesions.
    A scan larger than the grid is cropped around the new labels; a smaller one is padded with air.
    The same command continues a stopped run, and prepares only new cases.

    Example: maisi-aug prepare --images ct --labels masks --map "1=kidney tumor" --organs totalseg --out prepared
    """
    from maisi_aug.api.preparing import Preparation
    from maisi_aug.api.progress import count_stages

    with count_stages(is_quiet=quiet) as report:
        preparation = Preparation.open(config, out, device=device, report=report, num_workers=workers)
        for note in preparation.notes:
            tell(f"Note: {note}")
        if dry_run:
            _show_plan(preparation.plan, as_json=as_json)
            return
        result = preparation.run(update=update)
    _show_result(result, as_json=as_json)
    if result.problems:
        raise typer.Exit(1)


def _show_plan(plan: PreparePlan, *, as_json: bool) -> None:
    """Print the meaning of every label, and the grid."""
    from maisi_aug.volumes.grid import spell_grid

    settings, vocabulary = plan.settings, plan.meanings.vocabulary
    rows = [
        {"label": str(label), "id": label_id, "name": vocabulary.name_of(label_id) if label_id else "dropped"}
        for label, label_id in plan.meanings.ids.items()
    ]
    if as_json:
        grid = {"shape": settings.shape, "spacing_mm": settings.spacing_mm}
        typer.echo(json.dumps({"num_cases": len(plan.tasks), "grid": grid, "labels": rows}, indent=1))
        return
    num_patients = len(set(plan.patients.values()))
    typer.echo(
        f"{spell_count(len(plan.tasks), 'case')} of {spell_count(num_patients, 'patient')} on "
        f"{spell_grid(settings.shape, settings.spacing_mm)}."
    )
    for row in rows:
        is_new = " (new)" if row["name"] in plan.meanings.new_labels else ""
        typer.echo(f"  {row['label']} -> {row['name']}{is_new}" + (f", id {row['id']}" if row["id"] else ""))


def _show_result(result: PrepareResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.summary, indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(_describe(result)))
    for case_id, problem in result.problems.items():
        tell(f"Not prepared: {case_id}: {problem}")


def _describe(result: PrepareResult) -> list[str]:
    summary, folder = result.summary, result.dataset.path
    sizes = ", ".join(str(row["cases"]) for row in summary["folds"])
    cases, patients = _count(summary["num_cases"], "case"), _count(summary["num_patients"], "patient")
    lines = [f"{folder}: {cases} of {patients}, {sizes} in the folds."]
    for row in summary["labels"]:
        is_new = " (new)" if row["is_new"] else ""
        volumes = f"{row['ml_min']:g}-{row['ml_max']:g} mL, median {row['ml_median']:g} mL"
        volumes = volumes if row["cases"] > 1 else f"{row['ml_median']:g} mL"
        lines.append(f"  {row['id']:>3}  {row['name']}{is_new}: {_count(row['cases'], 'case')}, {volumes}")
    num_noted = len(summary["notes"])
    if num_noted:
        lines.append(f"Notes: {_count(num_noted, 'case')}, see {folder / 'summary.md'}.")
    return [*lines, f"Pictures: {folder / 'contact_sheet.png'}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
