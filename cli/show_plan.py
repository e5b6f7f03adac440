"""What `plan` and `synthesize --dry-run` print: every case, the given maps, the balance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maisi_aug.cli.balance_table import print_balance
from maisi_aug.cli.given_table import look_at_cohort, print_given_table
from maisi_aug.cli.plan_table import print_plan_table
from maisi_aug.source_rules import GIVEN

if TYPE_CHECKING:
    from maisi_aug.cli.balance_options import Balance
    from maisi_aug.recipe import CohortConfig


def require_folder(out: Path, *, may_resume: bool) -> None:
    """Raise unless a folder is new, empty or, where a run may go on, a cohort's."""
    from maisi_aug.cohort import read_cohort_document
    from maisi_aug.errors import CohortError

    if read_cohort_document(out) is not None and not may_resume:
        raise CohortError(f"{out}: expected a new folder because of --no-resume, found a cohort. Choose another --out.")


def show_plan(
    config: CohortConfig,
    balance: Balance | None,
    out: Path | None,
    *,
    may_resume: bool,
    as_json: bool,
    is_quiet: bool,
) -> None:
    """Print the plan of a cohort, as a table or as JSON.

    Args:
        config: The cohort.
        balance: With a real dataset, if there is one.
        out: Where the cohort would go; checked as a run would check it.
        may_resume: Whether ``out`` may hold the cohort already.
        as_json: Print JSON.
        is_quiet: Show no progress.
    """
    from maisi_aug.cli.progress import CohortProgress
    from maisi_aug.cohort import find_cohort
    from maisi_aug.resolve import resolve_cohort

    if out is not None:
        require_folder(out, may_resume=may_resume)
    with CohortProgress(is_quiet=is_quiet) as progress:
        cohort = resolve_cohort(config, out, report_file=progress.measures)
        if out is not None:
            find_cohort(out, cohort.to_document())  # raises where the run would be refused
        outlooks = look_at_cohort(cohort, is_quiet=is_quiet) if config.mask_source == GIVEN else []
    if as_json:
        maps = {"maps": [outlook.to_json(cohort.bundle.vocabulary) for outlook in outlooks]} if outlooks else {}
        balanced = {} if balance is None else {"balance": balance.to_json()}
        typer.echo(json.dumps({**cohort.to_document(), "plan": cohort.plan.to_json(), **maps, **balanced}, indent=1))
    elif outlooks:
        print_given_table(cohort, outlooks)
    else:
        print_plan_table(cohort)
        if balance is not None:
            print_balance(balance)
