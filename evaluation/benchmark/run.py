"""A benchmark on disk: its plan, its arms one by one, and what each of them has scored.

bench/benchmark.json                     the plan; the folder keeps to it
bench/prepared/                          cases at the planned spacing
bench/arms/ARM/seed-0/checkpoint.pt      an arm on its way; a killed one continues from here
bench/arms/ARM/seed-0/predictions/       label maps of the test cases, on their own grids
bench/arms/ARM/seed-0/scores.json        written last: an arm that has it is done and never done again
bench/arms/ARM/seed-0/failure.json       why an arm failed; gone once it has succeeded
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from maisi_aug.errors import ArmBusyError, BenchmarkError, MaisiAugError, did_you_mean
from maisi_aug.evaluation.benchmark.arm_job import ArmJob, Engine
from maisi_aug.evaluation.benchmark.config import PLAN_NAME, PREPARED_NAME, BenchmarkConfig
from maisi_aug.evaluation.benchmark.data import load_case
from maisi_aug.evaluation.benchmark.plan import BenchmarkPlan, plan_benchmark
from maisi_aug.evaluation.scores.detection import LesionMatch, match_lesions
from maisi_aug.evaluation.scores.overlap import score_case
from maisi_aug.system.content import read_json
from maisi_aug.system.file_lock import lock
from maisi_aug.system.progress import ReportStage, ReportStep, report_nothing
from maisi_aug.system.whole_files import is_leftover_of, remove_leftovers, write_json_whole
from maisi_aug.volumes.image_files import load_label_map

SCORES_NAME: Final = "scores.json"
FAILURE_NAME: Final = "failure.json"
LOCK_NAME: Final = ".lock"


@dataclass(frozen=True, slots=True)
class ArmState:
    """State of one training of an arm.

    Attributes:
        arm: Name of the arm.
        seed: Number of the training.
        status: ``done``, ``failed``, ``begun``, ``waiting``, or ``busy`` if another process is running it.
        reason: Why the training failed; otherwise empty.
    """

    arm: str
    seed: int
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark in a folder, with its plan and the states of its trainings.

    Attributes:
        folder: Folder of the benchmark.
        plan: Plan of the benchmark.
    """

    folder: Path
    plan: BenchmarkPlan

    def folder_of(self, arm: str, seed: int) -> Path:
        """Return the folder of one training of an arm.

        Args:
            arm: Name of the arm.
            seed: Number of the training, from 0.

        Returns:
            Path of the folder, which need not exist.

        Raises:
            BenchmarkError: There is no such arm, or no such seed.
        """
        found = next((a for a in self.plan.config.parsed_arms if a.name == arm), None)
        if found is None:
            names = [a.name for a in self.plan.config.parsed_arms]
            raise BenchmarkError(
                f"Arm '{arm}': unknown arm; expected one of {', '.join(names)}.{did_you_mean(arm, names)}"
            )
        if not 0 <= seed < self.plan.config.num_seeds:
            raise BenchmarkError(f"Seed {seed}: must be 0 to {self.plan.config.num_seeds - 1}.")
        return self.folder / "arms" / found.folder_name / f"seed-{seed}"

    def state_of(self, arm: str, seed: int) -> ArmState:
        """Return the state of one training of an arm.

        Args:
            arm: Name of the arm.
            seed: Number of the training, from 0.

        Raises:
            BenchmarkError: There is no such arm or seed.
        """
        folder = self.folder_of(arm, seed)
        if (folder / SCORES_NAME).is_file():
            return ArmState(arm, seed, "done")
        failure = _read_json(folder / FAILURE_NAME) if (folder / FAILURE_NAME).is_file() else None
        if failure is not None:
            return ArmState(arm, seed, "failed", str(failure.get("reason", "")))
        return ArmState(arm, seed, "begun" if folder.is_dir() else "waiting")

    @property
    def states(self) -> tuple[ArmState, ...]:
        """States of all trainings, ordered by seed, so that a stopped benchmark has many complete comparisons."""
        config = self.plan.config
        return tuple(self.state_of(arm.name, s) for s in range(config.num_seeds) for arm in config.parsed_arms)

    def load_scores(self, arm: str, seed: int) -> dict[str, Any]:
        """Return the scores of a finished training.

        Args:
            arm: Name of the arm.
            seed: Number of the training, from 0.

        Returns:
            Content of ``scores.json`` in the folder of the training.

        Raises:
            BenchmarkError: The training is not done, or its file is damaged.
        """
        path = self.folder_of(arm, seed) / SCORES_NAME
        scores = _read_json(path) if path.is_file() else None
        if scores is None or not _has_every_score(scores, self.plan):
            found = "missing" if scores is None else "incomplete"
            raise BenchmarkError(f"{path}: the scores of this arm are {found}. Remove the file and run the arm again.")
        return scores


def open_benchmark(folder: Path, config: BenchmarkConfig, *, notify: ReportStage = report_nothing) -> Benchmark:
    """Begin a benchmark in a folder, or continue one of the same configuration.

    Args:
        folder: New or empty folder, or that of this benchmark.
        config: Request of the benchmark.
        notify: Progress callback, called with (stage, done, total).

    Raises:
        BenchmarkError: The folder holds something else, or a benchmark of another configuration.
    """
    if (folder / PLAN_NAME).is_file():
        benchmark = load_benchmark(folder)
        _require_same(benchmark, config)
        return benchmark
    if folder.exists() and (not folder.is_dir() or any(not _is_own_start(p) for p in folder.iterdir())):
        raise BenchmarkError(f"{folder}: neither new, empty nor a benchmark's folder. Choose another --out.")
    plan = plan_benchmark(config, notify=notify)
    write_json_whole(folder / PLAN_NAME, plan.to_json())
    return Benchmark(folder, plan)


def _is_own_start(path: Path) -> bool:
    """Whether a file is the lock, or what was left of a plan whose process died while it was written."""
    return path.name == LOCK_NAME or is_leftover_of(path, PLAN_NAME)


def load_benchmark(folder: Path) -> Benchmark:
    """Open a benchmark by reading its plan.

    Raises:
        BenchmarkError: The folder is not a benchmark, or its plan is damaged.
    """
    path = folder / PLAN_NAME
    if not path.is_file():
        raise BenchmarkError(
            f"{folder}: not a benchmark, because {PLAN_NAME} is missing. Begin one with 'maisi-aug benchmark run'."
        )
    try:
        return Benchmark(folder, BenchmarkPlan.from_json(read_json(path)))
    except BenchmarkError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not the plan of a benchmark: {error!r}. Begin another benchmark.") from error


def _require_same(benchmark: Benchmark, config: BenchmarkConfig) -> None:
    before, now = benchmark.plan.config.to_json(), config.to_json()
    different = [f"{key}: {before[key]!r}, not {now[key]!r}" for key in before if before[key] != now[key]]
    if different:
        raise BenchmarkError(
            f"{benchmark.folder}: this benchmark was begun with another configuration ({'; '.join(different)}). "
            "Choose another --out, or continue with the original options."
        )


def run_arm(
    benchmark: Benchmark,
    arm: str,
    seed: int,
    *,
    device: str,
    max_minutes: float | None = None,
    report_step: ReportStep | None = None,
) -> ArmState:
    """Run one training of an arm, or continue it; does nothing if it is done.

    An error of the training is saved in its folder and returned as its state, so that the other arms continue.

    Args:
        benchmark: The benchmark.
        arm: Name of the arm.
        seed: Number of the training, from 0.
        device: Name of a torch device, such as ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Time limit; None for no limit.
        report_step: Progress callback, called with (step, figures such as ``loss``).

    Returns:
        State of the training: ``done``; ``begun`` if the time limit was reached; or ``failed`` with the reason.

    Raises:
        BenchmarkError: There is no such arm or seed.
        ArmBusyError: Another process is running it.
    """
    folder = benchmark.folder_of(arm, seed)
    if benchmark.state_of(arm, seed).status == "done":
        return ArmState(arm, seed, "done")
    with _lock(folder):
        job = ArmJob(benchmark.plan, arm, seed, folder, benchmark.folder, device)
        try:
            remove_leftovers(folder)
            started = perf_counter()
            if not build_engine(benchmark.plan.config).run(job, max_minutes=max_minutes, report_step=report_step):
                return ArmState(arm, seed, "begun")
            scores = score_predictions(job)
            write_json_whole(
                folder / SCORES_NAME, {**scores, "seconds_of_last_run": round(perf_counter() - started, 1)}
            )
        # Whatever stops an arm, memory or a broken file, is that arm's result: the others and the report continue.
        except Exception as error:
            reason = _spell_failure(error)
            write_json_whole(folder / FAILURE_NAME, {"reason": reason, "traceback": traceback.format_exc()})
            return ArmState(arm, seed, "failed", reason)
        (folder / FAILURE_NAME).unlink(missing_ok=True)
    if all(state.status == "done" for state in benchmark.states):  # nobody writes any more into what arms share
        for shared in (benchmark.folder, *benchmark.folder.joinpath(PREPARED_NAME).glob("*/")):
            remove_leftovers(shared)
    return ArmState(arm, seed, "done")


def _spell_failure(error: BaseException) -> str:
    """The sentence of an error of this package; of others type and message of what was raised first.

    Libraries wrap errors: MONAI's ``Compose`` only says which transform was applied.
    """
    while not isinstance(error, MaisiAugError) and error.__cause__ is not None:
        error = error.__cause__
    message, name = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, MaisiAugError):
        return message
    return f"{name}: {message}" if message else name


def build_engine(config: BenchmarkConfig) -> Engine:
    """Return the engine that a benchmark's configuration selects: MONAI's U-Net or nnU-Net."""
    if config.engine == "nnunet":
        from maisi_aug.evaluation.benchmark.nnunet import NnunetEngine

        return NnunetEngine()
    from maisi_aug.evaluation.benchmark.light import LightEngine

    return LightEngine()


def score_predictions(job: ArmJob) -> dict[str, Any]:
    """Score the predictions of a training against the references, on the references' grids; a JSON-able dict."""
    plan, rows = job.plan, []
    for ref in job.test_refs:
        case, label_ids = job.find_case(ref)
        reference = load_case(case, label_ids)
        found = load_label_map(job.predictions / f"{case.case_id}.nii.gz").array
        scores = score_case(
            reference.classes,
            found,
            plan.classes,
            spacing_mm=reference.grid.spacing_mm,
            tolerance_mm=plan.config.tolerance_mm,
        )
        labels: dict[str, Any] = {}
        for name, score in scores.items():
            labels[name] = {
                "dice": score.dice,
                "nsd": score.nsd,
                "reference_ml": score.reference_ml,
                "found_ml": score.found_ml,
            }
            if name in plan.lesion_labels:
                number = plan.classes[name]
                lesions = match_lesions(reference.classes == number, found == number, voxel_ml=reference.grid.voxel_ml)
                labels[name]["lesions"] = [lesion.to_json() for lesion in lesions]
        rows.append({"case_id": case.case_id, "patient": plan.config.patient_of(case.case_id), "labels": labels})
    return {"arm": job.arm, "seed": job.seed, "num_steps": plan.config.steps, "cases": rows}


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes away from a training; the lock dies with the process.

    Raises:
        ArmBusyError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not lock(descriptor):
            raise ArmBusyError(f"{folder}: another process is working on this arm. Wait for it to end.")
        yield
    finally:
        os.close(descriptor)


def _has_every_score(scores: Mapping[str, Any], plan: BenchmarkPlan) -> bool:
    """Whether all test cases of the plan and all of its labels are there: figures are made of nothing less."""
    try:
        for case in scores["cases"]:
            for name in plan.labels:
                score = case["labels"][name]
                _ = case["patient"], float(score["reference_ml"]), float(score["found_ml"])
                _ = [float(score[metric]) for metric in ("dice", "nsd") if score[metric] is not None]
                _ = [LesionMatch(**lesion) for lesion in score["lesions"]] if name in plan.lesion_labels else []
        return sorted(case["case_id"] for case in scores["cases"]) == sorted(plan.split.test)
    except (KeyError, TypeError, ValueError):
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
