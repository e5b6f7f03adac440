"""`maisi-aug cohort`: how far a cohort is, whether it is whole, and shards made one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.shared.run_options import AsJson
from maisi_aug.system.printed_text import spell_count

if TYPE_CHECKING:
    from maisi_aug.api.cohorts import CohortStatus, RunningJob

Folder = Annotated[Path, typer.Argument(metavar="COHORT", help="Folder of the cohort.")]


def register(app: typer.Typer) -> None:
    """Add the group of commands ``cohort`` to the application."""
    group = typer.Typer(no_args_is_help=True, help="Manage cohorts that are made in parts: status, merge, verify.")
    group.command("status")(status)
    group.command("merge")(merge)
    group.command("verify")(verify)
    app.add_typer(group, name="cohort")


def status(cohort: Folder, as_json: AsJson = False) -> None:
    """Show the progress of a cohort with all its shards, and the processes working on it.

    Example: maisi-aug cohort status cohort
    """
    from maisi_aug.api.cohorts import cohort_status

    found = cohort_status(cohort)
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else _describe_status(found))


def merge(
    cohorts: Annotated[
        list[Path],
        typer.Argument(metavar="COHORT", help="A folder in which all shards worked, or one folder per shard."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder for shards that have a folder each; files are hard-linked."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge shards into one cohort, as if one process had made it; no shard may be running.

    Example: maisi-aug cohort merge cohort
    """
    from maisi_aug.api.cohorts import merge_cohort
    from maisi_aug.cli.synthesize import describe_summary

    summary = merge_cohort(*cohorts, out=out).summary
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)


def verify(cohort: Folder, as_json: AsJson = False) -> None:
    """Compare every file of a cohort with its manifest, all shards together; exit code 1 if any is missing or altered.

    Example: maisi-aug cohort verify cohort
    """
    from maisi_aug.api.cohorts import verify_cohort

    found = verify_cohort(cohort)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        typer.echo(_describe_status(found.status))
        for case in found.lost:
            faults = [f"{path} is missing" for path in case.missing] + [f"{path} was altered" for path in case.altered]
            typer.echo(f"{case.record.case_id}: {', '.join(faults)}")
        typer.echo("Every file is intact." if not found.lost else "To repair: run the same command with --verify.")
    if not found.is_whole:
        raise typer.Exit(1)


def _describe_status(found: CohortStatus) -> str:
    facts = found.to_json()
    lines = [
        f"{found.folder}: {facts['num_accepted']} of {spell_count(facts['num_cases'], 'case')} accepted, "
        f"{facts['num_rejected']} "
        f"rejected, {facts['num_open']} open; {facts['num_attempts']} attempts."
    ]
    if found.shards:
        lines.append(f"Unmerged shards: {len(found.shards)}.")
    lines += [_describe_job(job) for job in found.running]
    if found.running:
        left = facts["seconds_left"]
        rest = "" if left is None else f", about {left / 60:.0f} min left"
        lines.append(f"Overall {facts['cases_a_minute']:.1f} cases a minute{rest}.")
    elif facts["num_open"]:
        lines.append("No process is working on it.")
    return "\n".join(lines)


def _describe_job(job: RunningJob) -> str:
    retried = f", {job.num_retried} attempts failed" if job.num_retried else ""
    return (
        f"  {job.manifest}: process {job.pid} on {job.host}, {job.cases_a_minute:.1f} cases a minute, {job.num_left} "
        f"left{retried}; last heard of {job.seconds_since_sign:.0f} s ago"
    )
