"""Whether synthetic cases help: what ``benchmark`` and ``report`` do, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.displays import Progress, listen_to_stages
from maisi_aug.api.keywords import build_model, require_known, takes_fields_of
from maisi_aug.errors import BenchmarkError, RequestError
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.system.progress import ReportStage, Say, report_nothing

if TYPE_CHECKING:
    from maisi_aug.evaluation.benchmark.run import ArmState, Benchmark


@dataclass(frozen=True)
class BenchmarkOutlook:
    """What a benchmark would do.

    Attributes:
        figures: Arms, cases, steps and minutes, as JSON types.
        text: The same as Markdown, which notebooks show.
    """

    figures: Mapping[str, Any] = field(repr=False)
    text: str

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class BenchmarkResult:
    """Where a benchmark stands, and what its finished trainings show.

    Attributes:
        folder: Of the benchmark.
        states: Of every training of every arm: done, failed, begun or waiting.
        commands: A command for each training, for machines that take their part.
        warnings: What the user should know of the cases, a sentence each.
        figures: Scores, differences, verdicts, as JSON types; of trainings that are done.
        text: The same as Markdown, which notebooks show.
    """

    folder: Path
    states: tuple[ArmState, ...] = field(repr=False)
    commands: tuple[str, ...] = field(repr=False)
    warnings: tuple[str, ...]
    figures: Mapping[str, Any] = field(repr=False)
    text: str = field(repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether every training is done."""
        return all(state.status == "done" for state in self.states)

    def _repr_markdown_(self) -> str:
        return self.text


@dataclass(frozen=True)
class ReportResult:
    """A report.

    Attributes:
        files: The page, its figures (JSON) and its summary (Markdown).
        figures: As JSON types.
        text: The summary, which notebooks show.
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
    """Arms, cases, steps and time of a benchmark, nothing written; ``maisi-aug benchmark run --dry-run``.

    Args:
        real: Real cases: an nnU-Net raw dataset, a prepared folder, or a folder of pairs.
        device: Where a training step is timed.
        progress: As for :func:`benchmark`.
        **fields: As for :func:`benchmark`.

    Raises:
        MaisiAugError: The sentence that the command prints.
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
    max_minutes: float | None = None,
    plan_only: bool = False,
    progress: Progress = True,
    **fields: Any,
) -> BenchmarkResult:
    """Train a network on every arm's cases and compare on held-out patients; ``maisi-aug benchmark run``.

    Args:
        real: Real cases: an nnU-Net raw dataset, a prepared folder, or a folder of pairs.
        out: Folder of the benchmark: new, or one that the same call began, which is continued.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Stop after so long; the same call continues.
        plan_only: Write the plan, and leave the trainings to :func:`run_arm` or to the commands of the result.
        progress: True for bars on a terminal or in a notebook, False for none, or something to call with
            ``(stage, done, total)``.
        **fields: See below. ``synthetic`` may be one folder, several, or a mapping of names to folders; ``labels`` one
            name or several; ``mapping`` a mapping of labels to names.

    Raises:
        MaisiAugError: The sentence that the command prints. A training that fails is a state of the result.
    """
    require_known(benchmark, fields)
    config = _read_config(real, fields, source="benchmark")
    with listen_to_stages(progress) as notify:
        opened = open_benchmark(config, Path(out), device=None if plan_only else device, notify=notify)
        if not plan_only:
            run_trainings(opened, device=device, max_minutes=max_minutes, notify=notify)
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
        bench: Folder of the benchmark.
        arm: Name of the arm.
        seed: Number of the training, from 0.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Stop after so long; the same call continues.
        progress: As for :func:`benchmark`.

    Returns:
        Where the training stands: done, begun, or failed with the reason.

    Raises:
        BenchmarkError: There is no such benchmark, arm or seed.
        ArmBusyError: Another process is at work on it.
    """
    from maisi_aug.evaluation.benchmark.run import load_benchmark

    with listen_to_stages(progress) as notify:
        return train_arm(load_benchmark(Path(bench)), arm, seed, device=device, max_minutes=max_minutes, notify=notify)


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
        out: The page; its figures (``.json``) and its summary (``.md``) go beside it.
        fid: ``fid.json`` of ``ma.evaluate.fid(..., out=...)``, to be shown with a cohort.
        detection_curve: ``detection_curve.json``, the same.
        evidence: Folders of other measurements, for the scorecard of a cohort.
        progress: As for :func:`benchmark`.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    from maisi_aug.evaluation.report.build import build_report, require_own_report, write_report

    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"--out: expected a file that ends in .html, found '{out}'.")
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
    """Plan a benchmark and time a step; nothing is written.

    Raises:
        MaisiAugError: A run would be refused.
    """
    from maisi_aug.evaluation.benchmark import outlook
    from maisi_aug.networks.pipeline import resolve_device

    found = outlook.look_ahead(config.with_paths_found(), out, device=resolve_device(device), notify=notify)
    return BenchmarkOutlook(found, outlook.to_outlook_text(found))


def open_benchmark(config: BenchmarkConfig, out: Path, *, device: str | None, notify: ReportStage) -> Benchmark:
    """Begin a benchmark, or continue one of the same configuration.

    Args:
        config: What is asked for.
        out: Folder of the benchmark.
        device: Where trainings will run, tried before a folder is made; None where they run elsewhere.
        notify: Called with (stage, done, total).

    Raises:
        MaisiAugError: What is asked for cannot be made.
    """
    from maisi_aug.evaluation.benchmark import run
    from maisi_aug.networks.pipeline import resolve_device

    config = config.with_paths_found()
    if device is not None:
        resolve_device(device)
    return run.open_benchmark(out, config, notify=notify)


def run_trainings(
    opened: Benchmark, *, device: str, max_minutes: float | None, notify: ReportStage, say: Say = report_nothing
) -> None:
    """Run what is not done, seed by seed; a failed training is tried again, and does not stop the others.

    Nor does one that another process is at work on: it is named, and its figures come once it has ended.

    Args:
        opened: The benchmark.
        device: Where networks train.
        max_minutes: Of all together; None for no limit.
        notify: Called with (stage, done, total).
        say: Called with what is begun, and what came of it.
    """
    from maisi_aug.errors import ArmBusyError
    from maisi_aug.evaluation.benchmark.text import arm_command, spell_state
    from maisi_aug.training.loop.stopping import TimeLimit

    limit = TimeLimit(max_minutes)
    for state in opened.states:
        if state.status == "done":
            continue
        left = limit.minutes_left
        if left == 0.0:
            return
        say(arm_command(opened.folder, state.arm, state.seed))
        try:
            done = train_arm(opened, state.arm, state.seed, device=device, max_minutes=left, notify=notify)
        except ArmBusyError:
            say(f"  {state.arm}, seed {state.seed}: running elsewhere; run again once it has ended")
        else:
            say(f"  {spell_state(done)}")


def train_arm(
    opened: Benchmark, arm: str, seed: int, *, device: str, max_minutes: float | None, notify: ReportStage
) -> ArmState:
    """Run one training, or continue it, and tell its loss.

    Raises:
        BenchmarkError: There is no such arm or seed.
        ArmBusyError: Another process is at work on it.
    """
    from maisi_aug.evaluation.benchmark import run
    from maisi_aug.networks.pipeline import resolve_device

    total = opened.plan.config.steps

    def report_step(step: int, figures: dict[str, float]) -> None:
        notify(f"{arm}, seed {seed}, loss {figures['loss']:.3f}", step, total)

    return run.run_arm(
        opened, arm, seed, device=resolve_device(device), max_minutes=max_minutes, report_step=report_step
    )


def summarise(opened: Benchmark) -> BenchmarkResult:
    """What the finished trainings of a benchmark show."""
    from maisi_aug.evaluation.benchmark.results import summarise_benchmark
    from maisi_aug.evaluation.benchmark.text import list_commands, to_report_text

    document = summarise_benchmark(opened)
    commands = tuple(list_commands(opened.folder, opened.plan.config))
    warnings = tuple(opened.plan.warnings)
    return BenchmarkResult(opened.folder, opened.states, commands, warnings, document, to_report_text(document))


def _read_config(real: str | Path, fields: Mapping[str, Any], *, source: str) -> BenchmarkConfig:
    """What Python asked for; labels, rules and folders as the command line words them.

    Raises:
        BenchmarkError: Listing every problem with its place.
    """
    values = {"real": real, **fields}
    for name in ("synthetic", "labels"):
        if isinstance(values.get(name), str | Path):
            values[name] = [values[name]]
    if isinstance(rules := values.get("mapping"), Mapping):
        spelt = {label: names if isinstance(names, str) else "+".join(names) for label, names in rules.items()}
        values["mapping"] = [f"{label}={names}" for label, names in spelt.items()]
    return build_model(BenchmarkConfig, values, source=source, error=BenchmarkError)
