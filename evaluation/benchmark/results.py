"""Results of a benchmark's arms: scores with intervals, comparisons with verdicts, lesions by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.arm_scores import ArmScores
from maisi_aug.evaluation.benchmark.config import MADE_KINDS, Arm
from maisi_aug.evaluation.benchmark.replacement import measure_replacement
from maisi_aug.evaluation.benchmark.run import Benchmark
from maisi_aug.evaluation.scores.comparison import compare_arms
from maisi_aug.evaluation.scores.detection import DetectionFigures
from maisi_aug.evaluation.scores.statistics import Interval, find_interval, find_ratio_interval
from maisi_aug.system.seeds import numpy_generator

METRICS: Final = ("dice", "nsd")


def summarise_benchmark(benchmark: Benchmark) -> dict[str, Any]:
    """Return all figures of a benchmark as a JSON-able dict; unfinished arms are listed and left out."""
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
    if plan.config.real_counts is not None:
        document["replacement"] = measure_replacement(benchmark, scores)
    for arm, other in list_pairs(scores):
        document["comparisons"] += _comparison_rows(benchmark, arm, other)
        document["detection_comparisons"] += _detection_comparison_rows(benchmark, arm, other)
    return document


def list_pairs(scores: Sequence[ArmScores]) -> list[tuple[ArmScores, ArmScores]]:
    """Return the pairs of arms to compare: each with the first, and those with added cases with the duplicated ones.

    Arms with a number of real patients are compared with the same number of real cases alone.
    """
    if not scores:
        return []
    if any(arm.arm.count for arm in scores):
        real = {arm.arm.count: arm for arm in scores if arm.arm.count and arm.arm.kind == "real"}
        return [(arm, real[arm.arm.count]) for arm in scores if arm.arm.ratio and arm.arm.count in real]
    pairs = [(arm, scores[0]) for arm in scores[1:]]
    control = next((arm for arm in scores[1:] if arm.arm.kind == "duplicated"), None)
    if control is not None:
        pairs += [(arm, control) for arm in scores[1:] if arm.arm.kind in ("mixed", *MADE_KINDS)]
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
    return [f"Figures cover finished trainings only ({', '.join(missing)}); verdicts may change with the others."]


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
    """Return the differences between the detection rates of two arms on the same patients."""
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
