"""The dry run of `synthesize --mask-source given`: which maps there are, and the grid that each is drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from maisi_aug.cli.tables import open_table_console

if TYPE_CHECKING:
    from maisi_aug.given_maps import MapOutlook
    from maisi_aug.grid import Shape, Spacing
    from maisi_aug.labels import Vocabulary
    from maisi_aug.resolve import ResolvedCohort

MAX_ROWS = 60
MAX_NAMES = 4


def look_at_cohort(cohort: ResolvedCohort, *, is_quiet: bool) -> list[MapOutlook]:
    """Read the maps of a cohort's plan behind a bar.

    Raises:
        BankError: None of the maps can be used.
    """
    from maisi_aug.cli.bars import count_up
    from maisi_aug.given_maps import look_at_maps, open_given_source

    with count_up("reading label maps", is_quiet=is_quiet) as report:
        return look_at_maps(open_given_source(cohort), cohort.plan.cases, report)


def print_given_table(cohort: ResolvedCohort, outlooks: Sequence[MapOutlook]) -> None:
    """Show each map with its own grid, that of its image, and its labels; name those that cannot be used."""
    from rich.table import Table

    num_cases, vocabulary = len(cohort.plan.cases), cohort.bundle.vocabulary
    title = f"{num_cases} cases, seed {cohort.config.seed}, bundle {cohort.bundle.name}"
    table = Table(title=title, caption=f"label maps: given, as they are, bank {cohort.config.mask_bank}")
    for heading in ("map", "images", "its grid", "grid of the image", "labels"):
        table.add_column(heading)
    for place, outlook in enumerate(outlooks[:MAX_ROWS]):
        num_images = len(range(place, num_cases, len(outlooks)))
        table.add_row(outlook.name, str(num_images), *_describe(outlook, vocabulary))
    if len(outlooks) > MAX_ROWS:
        table.add_row("...", f"and {len(outlooks) - MAX_ROWS} more (all of them with --json)", "", "", "")
    open_table_console().print(table)
    faults = [outlook for outlook in outlooks if outlook.fault]
    if faults:
        typer.echo(f"Cannot be used: {len(faults)} of {len(outlooks)} maps; their cases will be rejected:")
        for outlook in faults:
            typer.echo(f"  {outlook.fault}")


def _describe(outlook: MapOutlook, vocabulary: Vocabulary) -> tuple[str, str, str]:
    if outlook.own is None or outlook.shape is None or outlook.spacing_mm is None:
        return "cannot be used", "", ""
    image = "the same" if outlook.change == "none" else f"{_spell(outlook.shape, outlook.spacing_mm)}, {outlook.change}"
    tumours = [label_id for label_id in outlook.label_ids if label_id in vocabulary.tumor_ids]
    shown = [*tumours, *(label_id for label_id in outlook.label_ids if label_id not in tumours)][:MAX_NAMES]
    names = ", ".join(map(vocabulary.name_of, shown))
    num_more = len(outlook.label_ids) - len(shown)
    return _spell(outlook.own.shape, outlook.own.spacing_mm), image, names + (f" and {num_more} more" * (num_more > 0))


def _spell(shape: Shape, spacing_mm: Spacing) -> str:
    return f"{' x '.join(map(str, shape))} at {' x '.join(f'{side:.4g}' for side in spacing_mm)} mm"
