"""`maisi-aug benchmark run|arm`: does a synthetic cohort help a segmentation network, by fair arms and intervals."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.api.bars import add_training, open_bars, show_stages
from maisi_aug.api.engines import ClusterOptions, Where
from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import RUN, AsJson, Devices, MaxMinutes, TrainingDevice
from maisi_aug.cli.shared.streams import tell
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def register(app: typer.Typer) -> None:
    """Add the group of commands ``benchmark`` to the application."""
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
    cluster: ClusterOptions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the benchmark.", rich_help_panel=RUN)],
    device: TrainingDevice = "auto",
    devices: Devices = None,
    max_minutes: MaxMinutes = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan-only", help="Write the plan, print the command of every arm, and stop.", rich_help_panel=RUN
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show arms, cases, steps and time; write nothing.", rich_help_panel=RUN)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the same network on every arm's cases for the same number of steps and compare them on held-out patients.

    Example: maisi-aug benchmark run --real nnUNet_raw/Dataset003_Liver --synthetic cohort --out bench
    """
    from maisi_aug.api.benchmarking import look_ahead, open_benchmark, run_trainings, summarise
    from maisi_aug.evaluation.benchmark.text import list_commands

    where = Where.read(device, devices, options=cluster.to_engine())
    if dry_run:
        with show_stages("reading cases") as notify:
            outlook = look_ahead(config, out, device=where.devices[0] if where.devices else device, notify=notify)
        typer.echo(json.dumps(outlook.figures, indent=1) if as_json else outlook.text)
        return
    with show_stages("reading cases") as notify:
        benchmark = open_benchmark(config, out, where=None if plan_only else where, notify=notify)
    for warning in benchmark.plan.warnings:
        tell(f"Note: {warning}")
    if plan_only:
        typer.echo("\n".join(list_commands(out, benchmark.plan.config)))
        return
    with open_bars(is_transient=True) as bars:
        lines = _TrainingLines(bars, benchmark.plan.config.steps)
        run_trainings(benchmark, where, max_minutes=max_minutes, watch=lines, say=tell)
    result = summarise(benchmark)
    typer.echo(json.dumps(result.figures, indent=1) if as_json else result.text)
    tell(f"Next: maisi-aug report {out} --out report.html")
    if result.figures["failures"]:
        raise typer.Exit(1)


@dataclass
class _TrainingLines:
    """A bar for each worker, with the training that it is at.

    Attributes:
        bars: Progress display that it belongs to.
        num_steps: Number of steps of a training.
    """

    bars: Progress
    num_steps: int
    _lines: dict[str, TaskID] = field(default_factory=dict)

    def __call__(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        """As engines and trainings tell it."""
        if worker not in self._lines:
            self._lines[worker] = self.bars.add_task("opening", total=None)
        if event == "begins":
            self.bars.update(self._lines[worker], description="reading cases", completed=0, total=None)
        elif event == "steps":
            name, seed, step, loss = details
            text = f"{name}, seed {seed}, loss {loss:.3f}"
            self.bars.update(self._lines[worker], description=text, completed=step, total=self.num_steps)


def arm(
    bench: Annotated[Path, typer.Argument(metavar="BENCH", help="Folder of a benchmark.")],
    name: Annotated[str, typer.Option("--arm", help="Name of the arm, as in the plan.")],
    seed: Annotated[int, typer.Option(min=0, help="Number of the training, starting at 0.")] = 0,
    device: TrainingDevice = "auto",
    max_minutes: MaxMinutes = None,
) -> None:
    """Run one training of one arm, or continue it; several may run at the same time, on several machines.

    Example: maisi-aug benchmark arm bench --arm real+synthetic:1 --seed 0
    """
    from maisi_aug.api.benchmarking import train_arm
    from maisi_aug.evaluation.benchmark.run import load_benchmark
    from maisi_aug.evaluation.benchmark.text import spell_state

    benchmark = load_benchmark(bench)
    with open_bars(is_transient=True) as bars:
        report_step = add_training(bars, f"{name}, seed {seed}", benchmark.plan.config.steps)
        state = train_arm(benchmark, name, seed, device=device, max_minutes=max_minutes, report_step=report_step)
    typer.echo(spell_state(state))
    if state.status == "failed":
        raise typer.Exit(1)
