"""Benchmarks and reports, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.displays import Progress, listen_to_stages, show_training
from maisi_aug.api.engines import ClusterOptions, Where
from maisi_aug.api.keywords import build_model, require_known, takes_fields_of
from maisi_aug.errors import BenchmarkError, RequestError
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.system.progress import ReportStage, ReportStep, Say, report_nothing

if TYPE_CHECKING:
    from maisi_aug.evaluation.benchmark.run import ArmState, Benchmark
    from maisi_aug.system.engine.work import Watch


@dataclass(frozen=True)
class BenchmarkOutlook:
    """Plan of a benchmark: arms, cases, optimiser steps and estimated minutes.

    Attributes:
        figures: Arms, cases, steps and minutes, as JSON types.
        text: The plan as Markdown; shown in notebooks.
    """

    figures: Mapping[str, Any] = field(repr=False)
    text: str

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class BenchmarkResult:
    """Progress of a benchmark, and the results of its finished trainings.

    Attributes:
        folder: Folder of the benchmark.
        states: State of every training of every arm: done, failed, begun or waiting.
        commands: One command line per training, for running it on another machine.
        warnings: Warnings about the cases, a sentence each.
        figures: Scores, differences and verdicts of finished trainings, as JSON types.
        text: The results as Markdown; shown in notebooks.
    """

    folder: Path
    states: tuple[ArmState, ...] = field(repr=False)
    commands: tuple[str, ...] = field(repr=False)
    warnings: tuple[str, ...]
    figures: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether every training of every arm is done."""
        return all(state.status == "done" for state in self.states)

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class ReportResult:
    """Files and figures of a report that :func:`report` has written.

    Attributes:
        files: Paths of the page (HTML), the figures (JSON) and the summary (Markdown).
        figures: Figures as JSON types.
        text: Summary as Markdown; shown in notebooks.
    """

    files: tuple[Path, ...]
    figures: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)

    def _repr_markdown_(self) -> str:
        return self.text


@takes_fields_of(BenchmarkConfig)
def plan_benchmark(
    real: str | Path, *, device: str = "auto", progress: Progress = True, **fields: Any
) -> BenchmarkOutlook:
    """Return the plan of a benchmark without writing anything; ``maisi-aug benchmark run --dry-run``.

    Args:
        real: Real cases: an nnU-Net raw dataset, a folder that :func:`prepare` wrote, or a folder with ``images/`` and
            ``labels/``, whose files have the same names.
        device: Device on which one training step is timed: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: True for bars, False for none, or a function called with ``(stage, done, total)``.
        **fields: The keywords listed below, settings of the benchmark.

    Returns:
        The plan, as ``figures`` with ``train_cases``, ``test_cases``, ``arms``, ``num_trainings``, ``num_steps`` and
        the estimated time, and as ``text`` in Markdown.

    Raises:
        RecipeError: A keyword is unknown.
        BenchmarkError: A field is invalid, or the cases do not suffice; the message lists all problems.
        MaisiAugError: The cases cannot be read; the message is the one that the command prints.
    """
    require_known(plan_benchmark, fields)
    config = _read_config(real, fields, source="plan_benchmark")
    with listen_to_stages(progress) as notify:
        return look_ahead(config, Path("BENCH"), device=device, notify=notify)


@takes_fields_of(BenchmarkConfig)
def benchmark(
    real: str | Path,
    *,
    out: str | Path,
    device: str = "auto",
    devices: str | Sequence[str] | None = None,
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
    max_minutes: float | None = None,
    plan_only: bool = False,
    progress: Progress = True,
    **fields: Any,
) -> BenchmarkResult:
    """Train a segmenter on the cases of every arm, and compare on held-out patients; ``maisi-aug benchmark run``.

    An arm is a way to compose the training set, such as ``real`` or ``real+synthetic:1`` (one synthetic case per real
    one). All arms are tested on the same patients, which are in no training set::

        result = ma.benchmark("Dataset007_Pancreas", synthetic="cohort", out="bench", max_minutes=60)
        print(result.text)

    Args:
        real: Real cases: an nnU-Net raw dataset, a folder that :func:`prepare` wrote, or a folder with ``images/`` and
            ``labels/``, whose files have the same names.
        out: Folder of the benchmark: new, or one that the same call began, which is continued. Plan, weights and scores
            are kept there; :func:`report` makes a page of it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        devices: Several devices, such as ``"cuda:0,cuda:1"``, instead of ``device``; each trains one arm at a time in
            its own process. Scripts that use it need ``if __name__ == "__main__":``.
        address: ``"HOST:PORT"`` of the head of a Ray cluster whose workers train instead, or ``"auto"``. The following
            two arguments can only be used with it.
        num_workers: Number of workers on that cluster; one per GPU, or per core, when not given.
        gpus_per_worker: GPUs of each worker, such as 0.5.
        max_minutes: Time limit for all trainings together, after which the call returns; the same call continues.
        plan_only: Only write the plan; trainings are then run with :func:`run_arm` or the commands of the result.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``: a text and two numbers.
        **fields: The keywords listed below, settings of the benchmark.

    Returns:
        ``states`` (of every training), ``is_complete``, ``figures`` (scores and, under ``comparisons``, differences
        between arms with verdicts), ``text`` (the same as Markdown), ``commands`` and ``warnings``. A training that
        fails does not raise an error, but has the status ``failed`` in ``states``.

    Raises:
        RecipeError: A keyword is unknown.
        BenchmarkError: A field is invalid, the cases do not suffice, or ``out`` holds another benchmark.
        MaisiAugError: The request cannot be met for another reason; the message is the one that the command prints.
    """
    require_known(benchmark, fields)
    config = _read_config(real, fields, source="benchmark")
    cluster = ClusterOptions(address=address, num_workers=num_workers, gpus_per_worker=gpus_per_worker)
    where = Where.read(device, devices, options=cluster.to_engine())
    with listen_to_stages(progress) as notify:
        opened = open_benchmark(config, Path(out), where=None if plan_only else where, notify=notify)
        num_steps = opened.plan.config.steps

        def watch(worker: str, event: str, details: tuple[Any, ...]) -> None:
            if event == "steps":
                arm, seed, step, _ = details
                notify(f"{arm}, seed {seed}", step, num_steps)

        if not plan_only:
            run_trainings(opened, where, max_minutes=max_minutes, watch=watch)
    return summarise(opened)


def run_arm(
    bench: str | Path,
    arm: str,
    *,
    seed: int = 0,
    device: str = "auto",
    max_minutes: float | None = None,
    progress: Progress = True,
) -> ArmState:
    """Run one training of one arm of a benchmark, or continue it; ``maisi-aug benchmark arm``.

    Several may run at the same time, on several machines that share the folder.

    Args:
        bench: Folder of the benchmark, which :func:`benchmark` has begun, for instance with ``plan_only=True``.
        arm: Name of the arm, such as ``real+synthetic:1``.
        seed: Number of the training, from 0 to ``num_seeds`` - 1.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Time limit, after which the state is saved and the call returns; the same call continues.
        progress: True for bars, False for none, or a function called with ``(stage, done, total)``.

    Returns:
        State of the training, whose ``status`` is ``done``, ``begun`` or ``failed``, the last with a ``reason``.

    Raises:
        BenchmarkError: The benchmark, arm or seed was not found.
        ArmBusyError: Another process is running it.
    """
    from maisi_aug.evaluation.benchmark.run import load_benchmark

    opened = load_benchmark(Path(bench))
    with show_training(progress) as display:
        report_step = display.add_training(f"{arm}, seed {seed}", opened.plan.config.steps)
        return train_arm(opened, arm, seed, device=device, max_minutes=max_minutes, report_step=report_step)


def report(
    path: str | Path,
    out: str | Path = "report.html",
    *,
    fid: str | Path | None = None,
    detection_curve: str | Path | None = None,
    evidence: str | Path | Sequence[str | Path] = (),
    progress: Progress = True,
) -> ReportResult:
    """Write a benchmark or a cohort as one page that needs no network and no other file; ``maisi-aug report``.

    >>> import maisi_aug as ma
    >>> [path.name for path in ma.report("cohort", "cohort.html", progress=False).files]
    ['cohort.html', 'cohort.json', 'cohort.md']

    Args:
        path: Folder of a benchmark or of a cohort.
        out: The page, a new ``.html`` file or one of an earlier report; figures (``.json``) and summary (``.md``) of
            the same name are written next to it.
        fid: The file ``fid.json`` that ``ma.evaluate.fid(..., out=...)`` wrote, to be shown in the page.
        detection_curve: The file ``detection_curve.json`` that ``ma.evaluate.detection_curve(..., out=...)`` wrote, to
            be shown with a cohort; not for a benchmark.
        evidence: One folder or several that other measurements of :mod:`maisi_aug.api.evaluate` wrote, for the
            scorecard of a cohort; not for a benchmark.
        progress: True for bars, False for none, or a function called with ``(stage, done, total)``.

    Returns:
        ``files`` (page, figures, summary), ``figures`` (content of the ``.json``) and ``text`` (the summary).

    Raises:
        RequestError: ``out`` does not end in ``.html``.
        BenchmarkError: ``path`` is neither a benchmark nor a cohort.
        EvaluationError: A file of figures is missing, has another format or belongs to another folder, or ``out``
            exists and is not of an earlier report.
    """
    from maisi_aug.evaluation.report.build import build_report, require_own_report, write_report

    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"--out: the file name must end in .html, found '{out}'.")
    require_own_report(page)
    folders = [evidence] if isinstance(evidence, str | Path) else evidence
    with listen_to_stages(progress) as notify:
        built = build_report(
            Path(path),
            fid_file=None if fid is None else Path(fid),
            curve_file=None if detection_curve is None else Path(detection_curve),
            evidence=[Path(folder) for folder in folders],
            notify=notify,
        )
    return ReportResult(write_report(built, page), built.document, built.markdown)


def look_ahead(config: BenchmarkConfig, out: Path, *, device: str, notify: ReportStage) -> BenchmarkOutlook:
    """Plan a benchmark and time one optimiser step, without writing anything.

    Args:
        config: The benchmark.
        out: Folder that the benchmark would be written to; checked as in a run.
        device: Device on which the step is timed.
        notify: Progress callback, called with (stage, done, total).

    Raises:
        MaisiAugError: The benchmark cannot be run.
    """
    from maisi_aug.evaluation.benchmark import outlook
    from maisi_aug.networks.pipeline import resolve_device

    found = outlook.look_ahead(config.with_paths_found(), out, device=resolve_device(device), notify=notify)
    return BenchmarkOutlook(found, outlook.to_outlook_text(found))


def open_benchmark(config: BenchmarkConfig, out: Path, *, where: Where | None, notify: ReportStage) -> Benchmark:
    """Begin a benchmark in a folder, or continue one that has the same configuration.

    Args:
        config: The benchmark: cases, arms and training.
        out: Folder of the benchmark.
        where: Devices of the trainings, checked before a folder is made; None if they run elsewhere.
        notify: Progress callback, called with (stage, done, total).

    Raises:
        MaisiAugError: The request is invalid.
    """
    from maisi_aug.evaluation.benchmark import run

    config = config.with_paths_found()
    if where is not None:
        where.require_devices()
    return run.open_benchmark(out, config, notify=notify)


def run_trainings(
    opened: Benchmark, where: Where, *, max_minutes: float | None, watch: Watch, say: Say = report_nothing
) -> None:
    """Run the unfinished trainings of a benchmark on all devices; a failed training does not stop the others.

    Trainings that failed before are tried again. Those that another process is running are reported and left to it.

    Args:
        opened: The benchmark.
        where: Devices on which the segmenters are trained.
        max_minutes: Time limit for all together; None for no limit.
        watch: Called with the events of :func:`maisi_aug.evaluation.benchmark.trainings.run_trainings`.
        say: Called with the command of each training, and with its result.

    Raises:
        WorkerError: Processes were killed repeatedly, or write to a disk that this process does not see.
    """
    from maisi_aug.evaluation.benchmark import trainings
    from maisi_aug.evaluation.benchmark.text import arm_command, spell_state

    def watch_and_say(worker: str, event: str, details: tuple[Any, ...]) -> None:
        if event == "begins":
            say(arm_command(opened.folder, *details))
        elif event == "loses":
            say(f"Note: {worker} {details[0]}. Its training is started again.")
        watch(worker, event, details)

    trainings.run_trainings(
        opened,
        where.open_engine(),
        max_minutes=max_minutes,
        on_state=lambda state: say(f"  {spell_state(state)}"),
        watch=watch_and_say,
    )


def train_arm(
    opened: Benchmark, arm: str, seed: int, *, device: str, max_minutes: float | None, report_step: ReportStep
) -> ArmState:
    """Run or continue one training of a benchmark's arm, and report its steps.

    Args:
        opened: The benchmark.
        arm: Name of the arm.
        seed: Number of the training, from 0.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Time limit; None for no limit.
        report_step: Progress callback, called with (step, figures such as ``loss``).

    Raises:
        BenchmarkError: The arm or seed was not found.
        ArmBusyError: Another process is running it.
    """
    from maisi_aug.evaluation.benchmark import run
    from maisi_aug.networks.pipeline import resolve_device

    return run.run_arm(
        opened, arm, seed, device=resolve_device(device), max_minutes=max_minutes, report_step=report_step
    )


def summarise(opened: Benchmark) -> BenchmarkResult:
    """Return states, commands, scores and verdicts of the trainings that a benchmark has finished so far."""
    from maisi_aug.evaluation.benchmark.results import summarise_benchmark
    from maisi_aug.evaluation.benchmark.text import list_commands, to_report_text

    document = summarise_benchmark(opened)
    commands = tuple(list_commands(opened.folder, opened.plan.config))
    warnings = tuple(opened.plan.warnings)
    return BenchmarkResult(opened.folder, opened.states, commands, warnings, document, to_report_text(document))


def _read_config(real: str | Path, fields: Mapping[str, Any], *, source: str) -> BenchmarkConfig:
    """Read the configuration from Python arguments, in the forms that the command line also takes.

    Raises:
        BenchmarkError: A value is invalid; the message lists every problem.
    """
    values = {"real": real, **fields}
    for name in ("synthetic", "labels"):
        if isinstance(values.get(name), str | Path):
            values[name] = [values[name]]
    if isinstance(rules := values.get("mapping"), Mapping):
        spelt = {label: names if isinstance(names, str) else "+".join(names) for label, names in rules.items()}
        values["mapping"] = [f"{label}={names}" for label, names in spelt.items()]
    return build_model(BenchmarkConfig, values, source=source, error=BenchmarkError)
