"""`maisi-aug cluster`: a cohort made by many jobs of a cluster."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

from maisi_aug.cli.shared.run_options import AsJson
from maisi_aug.errors import RequestError

SHARDABLE = ("synthesize", "insert")
"""Commands that make parts of a cohort."""
LOGS_SUFFIX = ".jobs"
_JOBS = "Options of each job"


def register(app: typer.Typer) -> None:
    """Add the group of commands ``cluster`` to the application."""
    group = typer.Typer(no_args_is_help=True, help="Make a cohort with many jobs on a cluster: submit.")

    @group.callback()
    def _keep_group() -> None:
        """Make a cohort with many jobs of a cluster: submit."""

    group.command("submit", context_settings={"allow_interspersed_args": False})(submit)
    app.add_typer(group, name="cluster")


def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND",
            help="Command to split into jobs, after --: synthesize or insert with its options.",
        ),
    ],
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=10_000, help="Number of jobs; each makes one shard.")],
    is_slurm: Annotated[
        bool, typer.Option("--slurm/--local", help="Submit Slurm jobs, or run local processes as a trial.")
    ] = True,
    minutes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Time limit of a job; a job that has not finished by then is queued again.",
            rich_help_panel=_JOBS,
        ),
    ] = 480,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs per job.", rich_help_panel=_JOBS)] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPU cores per job.", rich_help_panel=_JOBS)] = 4,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory per job, such as 32GB.", rich_help_panel=_JOBS)
    ] = "",
    partition: Annotated[
        str, typer.Option(metavar="NAME", help="Partition of the cluster.", rich_help_panel=_JOBS)
    ] = "",
    account: Annotated[str, typer.Option(metavar="NAME", help="Account to charge.", rich_help_panel=_JOBS)] = "",
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Largest number of jobs running at the same time.", rich_help_panel=_JOBS)
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Additional sbatch option; may repeat.", rich_help_panel=_JOBS),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sbatch file without submitting it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a cohort in parts, one per job; a preempted or timed-out job is queued again and continues.

    Example: maisi-aug cluster submit --slurm --jobs 32 -- synthesize --recipe lung -n 10000 --out cohort
    """
    from maisi_aug.integrations.slurm import JobLimits, read_others, submit_shards, write_sbatch

    if dry_run and not is_slurm:
        raise RequestError("--dry-run cannot be used with --local, which uses no sbatch file.")
    out = _read_command(command)
    logs = out.with_name(out.name + LOGS_SUFFIX).absolute()
    others = read_others(sbatch or [])
    limits = JobLimits(minutes, gpus, cpus, memory, partition, account, max_running, others=others)
    if dry_run:
        typer.echo(write_sbatch(logs, jobs, limits))
        return
    numbers = submit_shards(command, logs, jobs, limits, is_local=not is_slurm)
    status, merge = (shlex.join(["maisi-aug", "cohort", verb, str(out)]) for verb in ("status", "merge"))
    if as_json:
        typer.echo(json.dumps({"jobs": numbers, "folder": str(out), "logs": str(logs), "merge": merge}, indent=1))
        return
    named = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    typer.echo(f"{len(numbers)} jobs: {named}; logs in {logs}\nProgress: {status}\nWhen all jobs have ended: {merge}")


def _read_command(words: Sequence[str]) -> Path:
    """The folder that a command writes to, which is read as it will be in the job, so that a slip is found here.

    Raises:
        RequestError: It is none that makes parts, or says itself which.
    """
    from maisi_aug.cli.app import load_verb

    if words[0] not in SHARDABLE:
        raise RequestError(f"cluster submit: only synthesize or insert can follow --, found '{words[0]}'.")
    command: click.Command = load_verb(words[0])
    values = command.make_context(words[0], list(words[1:])).params
    if values["out"] is None:
        raise RequestError(f"{words[0]} --out: required here. Give a folder for the cohort.")
    for name in ("shard", "dry_run", "redraw_rejected"):
        if values.get(name):
            raise RequestError(f"--{name.replace('_', '-')} cannot be used in the command of a job.")
    return Path(values["out"])
