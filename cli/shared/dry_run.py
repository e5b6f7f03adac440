"""Output of `plan` and `synthesize --dry-run`: every case, the given maps, the balance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maisi_aug.cli.shared.balance import print_balance
from maisi_aug.cli.shared.streams import open_table_console
from maisi_aug.system.printed_text import clean_message, spell_count

if TYPE_CHECKING:
    from maisi_aug.api.balancing import Balance
    from maisi_aug.cohort.request import CohortRequest
    from maisi_aug.cohort.resolve import CohortRun
    from maisi_aug.sources.given import MapOutlook
    from maisi_aug.vocabulary.labels import Vocabulary
    from maisi_aug.volumes.grid import Shape, Spacing

MAX_ROWS = 60


def print_plan_table(cohort: CohortRun) -> None:
    """Print a table of the planned cases with their requests and lesions, and the sources of percentiles."""
    from rich.table import Table

    from maisi_aug.cohort.plan import spell_labels

    sides = " x ".join(map(str, cohort.grid.shape))
    spacing = " x ".join(f"{side:g}" for side in cohort.grid.spacing_mm)
    config, num_cases = cohort.request, len(cohort.plan.cases)
    title = (
        f"{spell_count(num_cases, 'case')}, seed {config.seed}, bundle {cohort.bundle.name}, {sides} at {spacing} mm"
    )
    if cohort.mask_steps:
        maps = f", {cohort.mask_steps} steps"
    else:
        maps = f", bank {_spell_bank(cohort)}" if config.has_maps else ""
    kept = f"; keep {spell_labels(cohort.plan.requested_ids, cohort.bundle.vocabulary)}" if config.anatomy else ""
    table = Table(title=title, caption=f"label maps: {config.mask_source}{maps}{kept}")
    for heading in ("case", "request", "lesion"):
        table.add_column(heading)
    for heading in ("percentile", "mL", "mm"):
        table.add_column(heading, justify="right")
    shown = cohort.plan.cases[:MAX_ROWS]
    for case in shown:
        first = (case.case_id, case.request)
        for lesion in case.lesions:
            percentile = "" if lesion.percentile is None else f"{lesion.percentile:.2f}"
            table.add_row(*first, lesion.label, percentile, f"{lesion.requested_ml:.3g}", f"{lesion.requested_mm:.1f}")
            first = ("", "")
        if not case.lesions:
            table.add_row(*first, "", "", "", "")
    if len(shown) < num_cases:
        table.add_row("...", f"and {num_cases - len(shown)} more (use --json to list all)", "", "", "", "")
    console = open_table_console()
    console.print(table)
    for label, source in sorted(cohort.plan.size_sources.items()):
        console.print(f"Percentiles of {label}: {source}", markup=False, highlight=False, soft_wrap=True)


MAX_NAMES = 4


def _spell_bank(cohort: CohortRun) -> str:
    """The mask bank by its name, or by its path: from the working folder if it lies in there, absolute if not."""
    bank, here = str(cohort.configuration["mask_bank"]), Path.cwd()
    return str(Path(bank).relative_to(here)) if Path(bank).is_relative_to(here) else bank


def print_given_table(cohort: CohortRun, outlooks: Sequence[MapOutlook]) -> None:
    """Print a table of given label maps with their grids, those of their images, and labels; list unusable maps."""
    from rich.table import Table

    num_cases, vocabulary = len(cohort.plan.cases), cohort.bundle.vocabulary
    title = f"{spell_count(num_cases, 'case')}, seed {cohort.seed}, bundle {cohort.bundle.name}"
    table = Table(title=title, caption=f"label maps: given, unchanged, bank {_spell_bank(cohort)}")
    for heading in ("map", "images", "its grid", "grid of the image", "labels"):
        table.add_column(heading)
    for place, outlook in enumerate(outlooks[:MAX_ROWS]):
        num_images = len(range(place, num_cases, len(outlooks)))
        table.add_row(outlook.name, str(num_images), *_describe(outlook, vocabulary))
    if len(outlooks) > MAX_ROWS:
        table.add_row("...", f"and {len(outlooks) - MAX_ROWS} more (use --json to list all)", "", "", "")
    open_table_console().print(table)
    faults = [outlook for outlook in outlooks if outlook.fault]
    if faults:
        typer.echo(f"Not usable: {len(faults)} of {len(outlooks)} maps; their cases will be rejected:")
        names_of: dict[str, list[str]] = {}
        for outlook in faults:
            names_of.setdefault(outlook.fault.removeprefix(f"{outlook.name}: "), []).append(outlook.name)
        for fault, names in names_of.items():
            typer.echo(f"  {clean_message(f'{_name_some(names)}: {fault}')}")
    warned = [outlook for outlook in outlooks if outlook.warning]
    if warned:
        typer.echo(clean_message(f"Note: {warned[0].name}: {warned[0].warning}"))
    if len(warned) > 1:
        others = _name_some([outlook.name for outlook in warned[1:]])
        typer.echo(clean_message(f"Also unlike what the bundle was trained on: {others} (details with --json)."))


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"


def _describe(outlook: MapOutlook, vocabulary: Vocabulary) -> tuple[str, str, str]:
    if outlook.own is None or outlook.shape is None or outlook.spacing_mm is None:
        return "not usable", "", ""
    image = "the same" if outlook.change == "none" else f"{_spell(outlook.shape, outlook.spacing_mm)}, {outlook.change}"
    tumours = [label_id for label_id in outlook.label_ids if label_id in vocabulary.tumor_ids]
    shown = [*tumours, *(label_id for label_id in outlook.label_ids if label_id not in tumours)][:MAX_NAMES]
    names = ", ".join(map(vocabulary.name_of, shown))
    num_more = len(outlook.label_ids) - len(shown)
    return _spell(outlook.own.shape, outlook.own.spacing_mm), image, names + (f" and {num_more} more" * (num_more > 0))


def _spell(shape: Shape, spacing_mm: Spacing) -> str:
    return f"{' x '.join(map(str, shape))} at {' x '.join(f'{side:.4g}' for side in spacing_mm)} mm"


def show_plan(
    config: CohortRequest,
    balance: Balance | None,
    out: Path | None,
    *,
    may_resume: bool,
    as_json: bool,
    is_quiet: bool,
) -> None:
    """Print the plan of a cohort, as a table or as JSON.

    Args:
        config: Request of the cohort.
        balance: Balance against a real dataset; None without one.
        out: Folder that the cohort would be written to; checked as in a run.
        may_resume: Whether ``out`` may hold the cohort already.
        as_json: Print JSON.
        is_quiet: Show no progress.
    """
    from maisi_aug.api.progress import CohortProgress
    from maisi_aug.api.synthesis import look_ahead

    with CohortProgress(is_quiet=is_quiet) as progress:
        outlook = look_ahead(config, out, may_resume=may_resume, listener=progress)
    cohort, outlooks = outlook.cohort, outlook.maps
    if not cohort.bundle.is_fetched:
        typer.echo(
            f"Note: {cohort.bundle.name} is not on this machine yet. Download it first: maisi-aug bundles pull "
            f"{cohort.bundle.name}",
            err=True,
        )
    if as_json:
        maps = {"maps": [outlook.to_json(cohort.bundle.vocabulary) for outlook in outlooks]} if outlooks else {}
        balanced = {} if balance is None else {"balance": balance.to_json()}
        typer.echo(json.dumps({**cohort.to_document(), "plan": cohort.plan.to_json(), **maps, **balanced}, indent=1))
        return
    if outlooks:
        print_given_table(cohort, outlooks)
    else:
        print_plan_table(cohort)
        if balance is not None:
            print_balance(balance)
    if cohort.bundle.completes_maps and cohort.request.has_maps:
        typer.echo("Unlabelled tissue is completed from procedural anatomy for the networks; files keep their labels.")


def view_plan(config: CohortRequest, *, is_quiet: bool) -> None:
    """Show the label maps of a plan in the browser until Ctrl-C."""
    from maisi_aug.api.progress import CohortProgress
    from maisi_aug.api.synthesis import look_ahead
    from maisi_aug.cli.shared.streams import tell
    from maisi_aug.evaluation.review.serving import ViewOptions, require_view, serve

    require_view()
    with CohortProgress(is_quiet=is_quiet) as progress:
        outlook = look_ahead(config, listener=progress)
    tell("Ctrl-C stops.")
    serve(ViewOptions(plan=outlook.cohort), tell=typer.echo, opens_browser=True)
