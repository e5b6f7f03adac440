"""What the arms of a benchmark have shown: scores with intervals, comparisons with verdicts, lesions by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark import Benchmark
from maisi_aug.evaluation.benchmark_config import Arm
from maisi_aug.evaluation.detection import DetectionFigures, LesionMatch, count_by_size
from maisi_aug.evaluation.statistics import (
    Comparison,
    compare_arms,
    correct_over_labels,
    find_interval,
    find_ratio_interval,
)
from maisi_aug.seeds import numpy_generator

METRICS: Final = ("dice", "nsd")

Array = NDArray[np.float64]


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

    def collect_lesions(self, label: str) -> list[tuple[str, list[LesionMatch]]]:
        """Lesions of every case and training, with the patient."""
        return [
            (case["patient"], [LesionMatch(**lesion) for lesion in case["labels"][label]["lesions"]])
            for run in self.runs.values()
            for case in run["cases"]
        ]

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
        "warnings": list(plan.warnings),
        "failures": failures,
        "arms": [_describe_arm(benchmark, arm, scores) for arm in plan.config.parsed_arms],
        "scores": [row for arm in scores for row in _score_rows(benchmark, arm)],
        "comparisons": [],
        "detection": [row for arm in scores for row in _detection_rows(benchmark, arm)],
        "false_alarms": [row for arm in scores for row in _alarm_rows(benchmark, arm)],
    }
    for arm, other in list_pairs(scores):
        document["comparisons"] += _comparison_rows(benchmark, arm, other)
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
        found: dict[str, Comparison] = {}
        for label in benchmark.plan.labels:
            patients, values = arm.collect(label, metric)
            others, other_values = other.collect(label, metric)
            if patients == others and len(patients) > 1:
                rng = _rng(benchmark, "comparison")
                found[label] = compare_arms(values, other_values, rng=rng, margin=benchmark.plan.config.margin)
        for label, comparison in zip(found, correct_over_labels(list(found.values())), strict=True):
            names = {"arm": arm.arm.name, "baseline": other.arm.name, "label": label, "metric": metric}
            rows.append({**names, **comparison.to_json()})
    return rows


def _detection_rows(benchmark: Benchmark, arm: ArmScores) -> list[dict[str, Any]]:
    rows = []
    for label in benchmark.plan.lesion_labels:
        by_case = arm.collect_lesions(label)
        patients = sorted({patient for patient, _ in by_case})
        grouped = [[x for patient, lesions in by_case if patient == p for x in lesions] for p in patients]
        figures = count_by_size([lesion for lesions in grouped for lesion in lesions])
        per_patient = [count_by_size(lesions) for lesions in grouped]
        for place, row in enumerate(figures):
            intervals = _detection_intervals(benchmark, [counts[place] for counts in per_patient])
            rows.append({"arm": arm.arm.name, "label": label, **row.to_json(), **intervals})
    return rows


def _detection_intervals(benchmark: Benchmark, counts: Sequence[DetectionFigures]) -> dict[str, Any]:
    found = np.array([row.num_found for row in counts], dtype=np.float64)
    missed = np.array([row.num_missed for row in counts], dtype=np.float64)
    made_up = np.array([row.num_made_up for row in counts], dtype=np.float64)
    totals = {"sensitivity": (found, found + missed), "f1": (2 * found, 2 * found + missed + made_up)}
    intervals = {name: find_ratio_interval(*pair, rng=_rng(benchmark, "detection")) for name, pair in totals.items()}
    return {f"{name}_interval": None if value is None else value.to_json() for name, value in intervals.items()}


def _alarm_rows(benchmark: Benchmark, arm: ArmScores) -> list[dict[str, Any]]:
    rows = []
    for label in benchmark.plan.labels:
        num_alarms, num_clean = arm.count_false_alarms(label)
        if num_clean:
            rows.append({"arm": arm.arm.name, "label": label, "num_alarms": num_alarms, "num_clean": num_clean})
    return rows


def _rng(benchmark: Benchmark, stream: str) -> np.random.Generator:
    return numpy_generator(benchmark.plan.config.seed, stream)
