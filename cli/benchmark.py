"""`maisi-aug benchmark run|arm`: does a synthetic cohort help a segmentation network, by fair arms and intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.api.bars import show_stages
from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import RUN, AsJson, MaxMinutes, TrainingDevice
from maisi_aug.cli.shared.streams import tell
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig

if TYPE_CHECKING:
    from maisi_aug.evaluation.benchmark.run import ArmState, Benchmark


def register(app: typer.Typer) -> None:
    """Add the group ``benchmark``."""
    group = typer.Typer(
        name="benchmark",
        no_args_is_help=True,
        help="Measure whether synthetic cases help: fair arms, several seeds, intervals, a verdict per label.",
    )
    group.command("run")(with_options(run))
    group.command("arm")(arm)
    app.add_typer(group)


def run(
    config: BenchmarkConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the benchmark.", rich_help_panel=RUN)],
    device: TrainingDevice = "auto",
    max_minutes: MaxMinutes = None,
    plan_only: Annotated[
        bool,
        typer.Option("--plan-only", help="Write the plan and print every arm's command.", rich_help_panel=RUN),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show arms, cases, steps and time; write nothing.", rich_help_panel=RUN)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the same network on every arm's cases for the same number of steps and compare them on held-out patients.

    Example: maisi-aug benchmark run --real nnUNet_raw/Dataset003_Liver --synthetic cohort --out bench
    """
    from maisi_aug.evaluation.benchmark.text import list_commands

    config = config.with_paths_found()
    if dry_run:
        _show_plan(config, out, device=device, as_json=as_json)
        return
    if not plan_only:  # whose trainings run elsewhere
        _require_device(device)
    benchmark = _open(out, config)
    for warning in benchmark.plan.warnings:
        tell(f"Note: {warning}")
    if plan_only:
        typer.echo("\n".join(list_commands(out, config)))
        return
    _run_all(benchmark, device=device, max_minutes=max_minutes)
    _show_figures(benchmark, as_json=as_json)


def arm(
    bench: Annotated[Path, typer.Argument(metavar="BENCH", help="Folder of a benchmark.")],
    name: Annotated[str, typer.Option("--arm", help="Name of the arm.")],
    seed: Annotated[int, typer.Option(min=0, help="Number of the training, from 0.")] = 0,
    device: TrainingDevice = "auto",
    max_minutes: MaxMinutes = None,
) -> None:
    """Run one training of one arm, or go on with it; several may run at the same time, on several machines.

    Example: maisi-aug benchmark arm bench --arm real+synthetic:1 --seed 0
    """
    from maisi_aug.evaluation.benchmark.run import load_benchmark

    state = _run_one(load_benchmark(bench), name, seed, device=device, max_minutes=max_minutes)
    typer.echo(_spell_state(state))
    if state.status == "failed":
        raise typer.Exit(1)


def _require_device(device: str) -> None:
    """Raise for a device that cannot be used, before a folder is made."""
    from maisi_aug.networks.pipeline import resolve_device

    resolve_device(device)


def _open(out: Path, config: BenchmarkConfig) -> Benchmark:
    from maisi_aug.evaluation.benchmark.run import open_benchmark

    with show_stages("reading cases") as update:
        return open_benchmark(out, config, notify=update)


def _run_all(benchmark: Benchmark, *, device: str, max_minutes: float | None) -> None:
    """Run what is not done, seed by seed; a failed arm is tried again, and does not stop the others.

    Nor does one that another process is at work on: it is named, and its figures come once it has ended.
    """
    from time import monotonic

    from maisi_aug.errors import ArmBusyError
    from maisi_aug.evaluation.benchmark.text import arm_command

    ends = None if max_minutes is None else monotonic() + 60 * max_minutes
    for state in benchmark.states:
        if state.status == "done":
            continue
        left = None if ends is None else (ends - monotonic()) / 60
        if left is not None and left <= 0:
            return
        tell(arm_command(benchmark.folder, state.arm, state.seed))
        try:
            done = _run_one(benchmark, state.arm, state.seed, device=device, max_minutes=left)
        except ArmBusyError:
            tell(f"  {state.arm}, seed {state.seed}: running elsewhere; run again once it has ended")
        else:
            tell(f"  {_spell_state(done)}")


def _run_one(benchmark: Benchmark, name: str, seed: int, *, device: str, max_minutes: float | None) -> ArmState:
    from maisi_aug.evaluation.benchmark.run import run_arm
    from maisi_aug.networks.pipeline import resolve_device

    total = benchmark.plan.config.steps
    with show_stages("reading cases") as update:

        def report_step(step: int, figures: dict[str, float]) -> None:
            update(f"{name}, seed {seed}, loss {figures['loss']:.3f}", step, total)

        return run_arm(
            benchmark, name, seed, device=resolve_device(device), max_minutes=max_minutes, report_step=report_step
        )


def _spell_state(state: ArmState) -> str:
    again = {"begun": "; run again to go on", "failed": f": {state.reason}"}.get(state.status, "")
    return f"{state.arm}, seed {state.seed}: {state.status}{again}"


def _show_figures(benchmark: Benchmark, *, as_json: bool) -> None:
    from maisi_aug.evaluation.benchmark.results import summarise_benchmark
    from maisi_aug.evaluation.benchmark.text import to_report_text

    document = summarise_benchmark(benchmark)
    typer.echo(json.dumps(document, indent=1) if as_json else to_report_text(document))
    tell(f"Next: maisi-aug report {benchmark.folder} --out report.html")
    if document["failures"]:
        raise typer.Exit(1)


def _show_plan(config: BenchmarkConfig, out: Path, *, device: str, as_json: bool) -> None:
    from maisi_aug.evaluation.benchmark.outlook import look_ahead, to_outlook_text
    from maisi_aug.networks.pipeline import resolve_device

    with show_stages("reading cases") as update:
        outlook = look_ahead(config, out, device=resolve_device(device), notify=update)
    typer.echo(json.dumps(outlook, indent=1) if as_json else to_outlook_text(outlook))
