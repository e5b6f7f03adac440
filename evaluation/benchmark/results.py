"""What the arms of a benchmark have shown: scores with intervals, comparisons with verdicts, lesions by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.config import Arm
from maisi_aug.evaluation.benchmark.run import Benchmark
from maisi_aug.evaluation.scores.comparison import compare_arms
from maisi_aug.evaluation.scores.detection import DetectionFigures, LesionMatch, count_by_size
from maisi_aug.evaluation.scores.statistics import Interval, find_interval, find_ratio_interval
from maisi_aug.system.seeds import numpy_generator

METRICS: Final = ("dice", "nsd")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LesionCounts:
    """Lesions found, missed and made up.

    Attributes:
        rows: For every training and patient the figures in all and by size.
    """

    rows: Sequence[Sequence[tuple[DetectionFigures, ...]]]

    @property
    def names(self) -> list[str]:
        """The sizes."""
        return [figures.name for figures in self.rows[0][0]]

    def count(self, place: int, field: str) -> Array:
        """``(S, N)`` of one size: ``num_found``, ``num_missed`` or ``num_made_up``."""
        return np.array([[getattr(figures[place], field) for figures in row] for row in self.rows], dtype=np.float64)

    def shares(self, place: int) -> dict[str, tuple[Array, Array]]:
        """Sensitivity and F1 of one size as counts and what they are a share of."""
        found, missed, made_up = (self.count(place, f"num_{kind}") for kind in ("found", "missed", "made_up"))
        return {"sensitivity": (found, found + missed), "f1": (2 * found, 2 * found + missed + made_up)}


@dataclass(frozen=True)
class ArmScores:
    """The finished trainings of an arm.

    Attributes:
        arm: The arm.
        runs: Content of ``scores.json`` by seed.
    """

    arm: Arm
    runs: Mapping[int, Mapping[str, Any]]

    def collect(self, label: str, metric: str) -> tuple[tuple[str, ...], Array]:
        """Scores of a label: the patients that show it, and an ``(S, N)`` array; a patient's cases are averaged."""
        rows = []
        patients: tuple[str, ...] = ()
        for run in self.runs.values():
            by_patient: dict[str, list[float]] = {}
            for case in run["cases"]:
                score = case["labels"][label][metric]
                if score is not None:
                    by_patient.setdefault(case["patient"], []).append(score)
            patients = tuple(sorted(by_patient))
            rows.append([float(np.mean(by_patient[patient])) for patient in patients])
        return patients, np.array(rows, dtype=np.float64).reshape(len(rows), len(patients))

    def count_lesions(self, label: str) -> LesionCounts:
        """Lesions of a label in every training and patient, in all and by size."""
        rows = []
        for run in self.runs.values():
            by_patient: dict[str, list[LesionMatch]] = {}
            for case in run["cases"]:
                lesions = [LesionMatch(**lesion) for lesion in case["labels"][label]["lesions"]]
                by_patient.setdefault(case["patient"], []).extend(lesions)
            rows.append([count_by_size(by_patient[patient]) for patient in sorted(by_patient)])
        return LesionCounts(rows)

    def count_false_alarms(self, label: str) -> tuple[int, int]:
        """Cases without the label in which it was found, and cases without it; all trainings together."""
        clean = [c["labels"][label] for run in self.runs.values() for c in run["cases"]]
        clean = [score for score in clean if score["reference_ml"] == 0]
        return sum(score["found_ml"] > 0 for score in clean), len(clean)


def summarise_benchmark(benchmark: Benchmark) -> dict[str, Any]:
    """All figures of a benchmark as JSON types; arms that are not finished are named and left out of the figures."""
    scores, failures = _load_finished(benchmark)
    plan = benchmark.plan
    document: dict[str, Any] = {
        "kind": "benchmark",
        "config": plan.config.to_json(),
        "labels": list(plan.labels),
        "lesion_labels": list(plan.lesion_labels),
        "num_train_cases": len(plan.split.train),
        "num_test_cases": len(plan.split.test),
        "num_test_patients": len({plan.config.patient_of(case) for case in plan.split.test}),
        "num_steps": plan.config.steps,
        "training": plan.training.to_json(),
        "warnings": [*plan.warnings, *_find_unfinished(benchmark, scores)],
        "failures": failures,
        "arms": [_describe_arm(benchmark, arm, scores) for arm in plan.config.parsed_arms],
        "scores": [row for arm in scores for row in _score_rows(benchmark, arm)],
        "comparisons": [],
        "detection_comparisons": [],
        "detection": [row for arm in scores for row in _detection_rows(benchmark, arm)],
        "false_alarms": [row for arm in scores for row in _alarm_rows(benchmark, arm)],
    }
    for arm, other in list_pairs(scores):
        document["comparisons"] += _comparison_rows(benchmark, arm, other)
        document["detection_comparisons"] += _detection_comparison_rows(benchmark, arm, other)
    return document


def list_pairs(scores: Sequence[ArmScores]) -> list[tuple[ArmScores, ArmScores]]:
    """Every arm against the first one, and arms with added cases against the duplicated real ones as well."""
    if not scores:
        return []
    pairs = [(arm, scores[0]) for arm in scores[1:]]
    control = next((arm for arm in scores[1:] if arm.arm.kind == "duplicated"), None)
    if control is not None:
        pairs += [(arm, control) for arm in scores[1:] if arm.arm.kind in ("mixed", "copy-paste")]
    return pairs


def _load_finished(benchmark: Benchmark) -> tuple[list[ArmScores], list[dict[str, Any]]]:
    scores, failures = [], []
    for arm in benchmark.plan.config.parsed_arms:
        runs: dict[int, Mapping[str, Any]] = {}
        for seed in range(benchmark.plan.config.num_seeds):
            state = benchmark.state_of(arm.name, seed)
            if state.status != "done":
                failures.append({"arm": arm.name, "seed": seed, "status": state.status, "reason": state.reason})
                continue
            try:
                runs[seed] = benchmark.load_scores(arm.name, seed)
            except BenchmarkError as error:
                failures.append({"arm": arm.name, "seed": seed, "status": "failed", "reason": str(error)})
        if runs:
            scores.append(ArmScores(arm, runs))
    return scores, failures


def _find_unfinished(benchmark: Benchmark, scores: Sequence[ArmScores]) -> list[str]:
    planned = benchmark.plan.config.num_seeds
    missing = [f"{arm.arm.name} {len(arm.runs)} of {planned}" for arm in scores if len(arm.runs) < planned]
    if not missing:
        return []
    return [f"Figures are of the finished trainings alone ({', '.join(missing)}); verdicts may change with the others."]


def _describe_arm(benchmark: Benchmark, arm: Arm, scores: Sequence[ArmScores]) -> dict[str, Any]:
    refs = benchmark.plan.arms[arm.name]
    finished = next((found for found in scores if found.arm == arm), None)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "num_cases": len(refs),
        "num_real": sum(source == "real" for source, _ in refs),
        "num_different": len(set(refs)),
        "num_seeds_done": len(finished.runs) if finished else 0,
    }


def _score_rows(benchmark: Benchmark, arm: ArmScores) -> list[dict[str, Any]]:
    rows = []
    for label in benchmark.plan.labels:
        for metric in METRICS:
            patients, values = arm.collect(label, metric)
            if patients:
                interval = find_interval(values, rng=_rng(benchmark, "interval"))
                rows.append(
                    {
                        "arm": arm.arm.name,
                        "label": label,
                        "metric": metric,
                        "num_patients": len(patients),
                        "by_seed": [float(value) for value in values.mean(axis=1)],
                        **interval.to_json(),
                    }
                )
    return rows


def _comparison_rows(benchmark: Benchmark, arm: ArmScores, other: ArmScores) -> list[dict[str, Any]]:
    rows = []
    for metric in METRICS:
        pairs = {}
        for label in benchmark.plan.labels:
            (patients, values), (others, other_values) = arm.collect(label, metric), other.collect(label, metric)
            if patients == others:
                pairs[label] = (values, other_values)
        found = compare_arms(pairs, rng=_rng(benchmark, "comparison"), margin=benchmark.plan.config.margin)
        for label, comparison in found.items():
            names = {"arm": arm.arm.name, "baseline": other.arm.name, "label": label, "metric": metric}
            rows.append({**names, **comparison.to_json()})
    return rows


def _detection_rows(benchmark: Benchmark, arm: ArmScores) -> list[dict[str, Any]]:
    """Counts of all trainings together, with shares and their intervals."""
    rows = []
    for label in benchmark.plan.lesion_labels:
        counts = arm.count_lesions(label)
        for place, name in enumerate(counts.names):
            totals = [int(counts.count(place, field).sum()) for field in ("num_found", "num_missed", "num_made_up")]
            row = {"arm": arm.arm.name, "label": label, **DetectionFigures(name, *totals).to_json()}
            for share, (part, whole) in counts.shares(place).items():
                row[f"{share}_interval"] = _to_json(find_ratio_interval(part, whole, rng=_rng(benchmark, "detection")))
            rows.append({**row, "num_trainings": len(counts.rows)})
    return rows


def _detection_comparison_rows(benchmark: Benchmark, arm: ArmScores, other: ArmScores) -> list[dict[str, Any]]:
    """How much the shares of one arm are above those of another, on the same patients."""
    rows = []
    for label in benchmark.plan.lesion_labels:
        counts, others = arm.count_lesions(label), other.count_lesions(label)
        for place, name in enumerate(counts.names):
            row: dict[str, Any] = {"arm": arm.arm.name, "baseline": other.arm.name, "label": label, "name": name}
            others_shares = others.shares(place)
            for share, pair in counts.shares(place).items():
                rng = _rng(benchmark, "detection")
                row[share] = _to_json(find_ratio_interval(*pair, *others_shares[share], rng=rng))
            rows.append(row)
    return rows


def _to_json(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.to_json()


def _alarm_rows(benchmark: Benchmark, arm: ArmScores) -> list[dict[str, Any]]:
    rows = []
    for label in benchmark.plan.labels:
        num_alarms, num_clean = arm.count_false_alarms(label)
        if num_clean:
            rows.append({"arm": arm.arm.name, "label": label, "num_alarms": num_alarms, "num_clean": num_clean})
    return rows


def _rng(benchmark: Benchmark, stream: str) -> np.random.Generator:
    return numpy_generator(benchmark.plan.config.seed, stream)
