"""`maisi-aug benchmark run|arm`: does a synthetic cohort help a segmentation network, by fair arms and intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.api.bars import show_stages
from maisi_aug.cli.shared.label_map import split_rule, tell_old_spelling

if TYPE_CHECKING:
    from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
    from maisi_aug.evaluation.benchmark.run import ArmState, Benchmark


def parse_sources(words: Sequence[str]) -> dict[str, Path]:
    """``[NAME=]FOLDER`` as folders by name; without a name it is "synthetic".

    Raises:
        typer.BadParameter: A name that occurs twice, or is not one word.
    """
    sources: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum():
            name, path = "synthetic", word
        if name in sources:
            raise typer.BadParameter(
                f"--synthetic {word}: expected a name of its own, found '{name}' twice. Write NAME=FOLDER."
            )
        sources[name] = Path(path)
    return sources


def parse_labels(
    words: Sequence[str], rules: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """The labels of `--label`, and what `--map` says of them.

    Args:
        words: ``NAME`` each; ``NAME=ID+ID`` is an earlier spelling of a rule with ids, and told.
        rules: ``LABEL=NAME+NAME`` each, LABEL being a real label's name, or ids of it joined by a plus sign where the
            real cases do not name it: then it is called NAME.

    Returns:
        Real label -> ids, none where the real cases name it; and real label -> names or ids in the synthetic maps.

    Raises:
        typer.BadParameter: A word without a name, or a side of it is missing.
    """
    labels: dict[str, tuple[int, ...]] = {}
    mapping: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, ids = (part.strip() for part in word.partition("="))
        if not name or (equals and _read_ids(ids) is None):
            raise typer.BadParameter(
                f"--label {word}: expected NAME, and its ids with --map ID+ID=NAME, found '{ids}'."
            )
        labels[name] = _read_ids(ids) or ()
        if equals:
            tell_old_spelling(f"--label '{word}'", f"--map '{ids}={name}'")
    for rule in rules:
        label, names = split_rule(rule, "tumor=hepatic tumor")
        parts = tuple(part.strip() for part in names.split("+"))
        if not all(parts):
            raise typer.BadParameter(f"--map {rule}: expected LABEL=NAME or LABEL=NAME+NAME, found '{names}'.")
        numbers = _read_ids(label)
        if numbers is None:
            mapping[label] = parts
            continue
        labels[names] = tuple(sorted({*labels.get(names, ()), *numbers}))
        if len(parts) > 1:
            mapping[names] = parts
    return labels, mapping


def _read_ids(text: str) -> tuple[int, ...] | None:
    """``1+2`` as its ids; None for anything else."""
    parts = [part.strip() for part in text.split("+")]
    return tuple(map(int, parts)) if all(part.isdecimal() and int(part) > 0 for part in parts) else None


def parse_arms(text: str) -> tuple[str, ...]:
    """Arms joined by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_list(path: Path | None) -> tuple[str, ...]:
    """The lines of a text file, empty ones left out.

    Raises:
        typer.BadParameter: The file cannot be read, or holds nothing.
    """
    if path is None:
        return ()
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--test-list: expected a text file, found: {error}.") from None
    if not lines:
        raise typer.BadParameter(f"--test-list {path}: expected a patient in every line, found none.")
    return lines


_DATA, _TRAINING, _RUN = "Cases and labels", "Training", "Run"


class EngineChoice(StrEnum):
    """What trains."""

    monai = "monai"
    nnunet = "nnunet"


class PresetChoice(StrEnum):
    """Size of the light engine's network."""

    cpu = "cpu"
    gpu = "gpu"


def register(app: typer.Typer) -> None:
    """Add the group ``benchmark``."""
    group = typer.Typer(
        name="benchmark",
        no_args_is_help=True,
        help="Measure whether synthetic cases help: fair arms, several seeds, intervals, a verdict per label.",
    )
    group.command("run")(run)
    group.command("arm")(arm)
    app.add_typer(group)


def run(
    real: Annotated[
        Path,
        typer.Option(help="nnU-Net raw dataset, prepared folder, or pairs.", rich_help_panel=_DATA),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the benchmark.", rich_help_panel=_RUN)],
    synthetic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Cohort, nnU-Net raw dataset or folder of pairs; with a name where there are several.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A label of the real cases to learn and to judge; may repeat; without any, all.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=NAME",
            help="A label of the real cases and what it is in the synthetic maps: names or ids, joined by '+'. Where "
            "the real cases do not name it, LABEL is its id, or several joined by '+'.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    lesion_label: Annotated[
        list[str] | None,
        typer.Option(
            help="Label whose lesions are counted one by one; without any, those named so.", rich_help_panel=_DATA
        ),
    ] = None,
    patient_pattern: Annotated[
        str,
        typer.Option(help="Expression whose first group is the patient in a case's name.", rich_help_panel=_DATA),
    ] = "",
    test_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of patients to test on.", rich_help_panel=_DATA)
    ] = 0.4,
    num_train: Annotated[
        int | None, typer.Option(min=1, help="Patients to train on, in place of a share.", rich_help_panel=_DATA)
    ] = None,
    test_list: Annotated[
        Path | None,
        typer.Option(
            help="Text file with a patient to test on in every line, in place of a share: those that the networks of "
            "the cohort have not seen.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Joined by commas: real, real+synthetic:RATIO, real-duplicated, synthetic-only, copy-paste:RATIO. "
            "The first is what the others are held against.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every arm.", rich_help_panel=_TRAINING)] = 3,
    engine: Annotated[EngineChoice, typer.Option(help="What trains.", rich_help_panel=_TRAINING)] = EngineChoice.monai,
    preset: Annotated[
        PresetChoice, typer.Option(help="Size of the network.", rich_help_panel=_TRAINING)
    ] = PresetChoice.cpu,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps of every arm (default: the preset's).", rich_help_panel=_TRAINING),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of all trainings.", rich_help_panel=_TRAINING)] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0.01, metavar="MM", help="Of the surface Dice, NSD.", rich_help_panel=_TRAINING)
    ] = 2.0,
    margin: Annotated[
        float, typer.Option(min=0.0001, help="Gain of Dice that would not matter.", rich_help_panel=_TRAINING)
    ] = 0.01,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)] = "auto",
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop after so long; the same command goes on later.", rich_help_panel=_RUN),
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option("--plan-only", help="Write the plan and print every arm's command.", rich_help_panel=_RUN),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show arms, cases, steps and time; write nothing.", rich_help_panel=_RUN)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.", rich_help_panel=_RUN)] = False,
) -> None:
    """Train the same network on every arm's cases for the same number of steps and compare them on held-out patients.

    Example: maisi-aug benchmark run --real nnUNet_raw/Dataset003_Liver --synthetic cohort --out bench
    """
    from maisi_aug.banks.raw_datasets import find_dataset
    from maisi_aug.evaluation.benchmark.config import DEFAULT_ARMS, build_benchmark_config
    from maisi_aug.evaluation.benchmark.text import list_commands

    sources = parse_sources(synthetic or [])
    labels, names = parse_labels(label or [], mapping or [])
    config = build_benchmark_config(
        real=str(find_dataset(real).resolve()),
        synthetic={name: str(find_dataset(path).resolve()) for name, path in sources.items()},
        labels=labels or None,
        mapping=names,
        lesion_labels=tuple(lesion_label) if lesion_label else None,
        arms=parse_arms(arms) if arms else DEFAULT_ARMS if sources else ("real", "real-duplicated"),
        num_seeds=seeds,
        seed=seed,
        engine=engine.value,
        preset=preset.value,
        num_steps=steps,
        test_share=test_share,
        num_train=num_train,
        test_patients=parse_list(test_list),
        patient_pattern=patient_pattern,
        tolerance_mm=tolerance,
        margin=margin,
    )
    if dry_run:
        _show_plan(config, out, device=device, as_json=as_json)
        return
    if not plan_only:  # whose trainings run elsewhere
        _require_device(device)
    benchmark = _open(out, config)
    for warning in benchmark.plan.warnings:
        typer.echo(f"Note: {warning}", err=True)
    if plan_only:
        typer.echo("\n".join(list_commands(out, config)))
        return
    _run_all(benchmark, device=device, max_minutes=max_minutes)
    _show_figures(benchmark, as_json=as_json)


def arm(
    bench: Annotated[Path, typer.Argument(help="Folder of a benchmark.")],
    name: Annotated[str, typer.Option("--arm", help="Name of the arm.")],
    seed: Annotated[int, typer.Option(min=0, help="Number of the training, from 0.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Stop after so long; the same command goes on later.")
    ] = None,
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
        typer.echo(arm_command(benchmark.folder, state.arm, state.seed), err=True)
        try:
            done = _run_one(benchmark, state.arm, state.seed, device=device, max_minutes=left)
        except ArmBusyError:
            typer.echo(f"  {state.arm}, seed {state.seed}: running elsewhere; run again once it has ended", err=True)
        else:
            typer.echo(f"  {_spell_state(done)}", err=True)


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
    typer.echo(f"Next: maisi-aug report {benchmark.folder} --out report.html", err=True)
    if document["failures"]:
        raise typer.Exit(1)


def _show_plan(config: BenchmarkConfig, out: Path, *, device: str, as_json: bool) -> None:
    from maisi_aug.evaluation.benchmark.outlook import look_ahead, to_outlook_text
    from maisi_aug.networks.pipeline import resolve_device

    with show_stages("reading cases") as update:
        outlook = look_ahead(config, out, device=resolve_device(device), notify=update)
    typer.echo(json.dumps(outlook, indent=1) if as_json else to_outlook_text(outlook))
