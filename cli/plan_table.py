"""The dry run of `synthesize`: every case of the plan with its lesions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maisi_aug.cli.tables import open_table_console
from maisi_aug.source_rules import NO_MAP

if TYPE_CHECKING:
    from maisi_aug.resolve import ResolvedCohort

MAX_ROWS = 60


def print_plan_table(cohort: ResolvedCohort) -> None:
    """Show each case with its request and its lesions, and what percentiles refer to."""
    from rich.table import Table

    from maisi_aug.anatomy import spell_labels

    sides = " x ".join(map(str, cohort.grid.shape))
    spacing = " x ".join(f"{side:g}" for side in cohort.grid.spacing_mm)
    config, num_cases = cohort.config, len(cohort.plan.cases)
    title = f"{num_cases} cases, seed {config.seed}, bundle {cohort.bundle.name}, {sides} at {spacing} mm"
    if config.mask_steps is not None:
        maps = f", {config.mask_steps} steps"
    else:
        maps = "" if config.mask_source == NO_MAP else f", bank {config.mask_bank}"
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
            table.add_row(*first, lesion.label, percentile, f"{lesion.volume_ml:.3g}", f"{lesion.diameter_mm:.1f}")
            first = ("", "")
        if not case.lesions:
            table.add_row(*first, "", "", "", "")
    if len(shown) < num_cases:
        table.add_row("...", f"and {num_cases - len(shown)} more (all of them with --json)", "", "", "", "")
    console = open_table_console()
    console.print(table)
    for label, source in sorted(cohort.plan.size_sources.items()):
        console.print(f"Percentiles of {label}: {source}", markup=False, highlight=False, soft_wrap=True)
