"""The finished trainings of an arm as arrays of scores and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.evaluation.benchmark.config import Arm
from maisi_aug.evaluation.scores.detection import DetectionFigures, LesionMatch, count_by_size

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LesionCounts:
    """Numbers of found lesions, missed lesions and false positives of one label.

    Attributes:
        rows: Counts for each training and patient, in total and by lesion size.
    """

    rows: Sequence[Sequence[tuple[DetectionFigures, ...]]]

    @property
    def names(self) -> list[str]:
        """Names of the lesion sizes."""
        return [figures.name for figures in self.rows[0][0]]

    def count(self, place: int, field: str) -> Array:
        """Return the ``(S, N)`` counts of one lesion size, by training and patient.

        Args:
            place: Index of the size.
            field: ``num_found``, ``num_missed`` or ``num_made_up``.
        """
        return np.array([[getattr(figures[place], field) for figures in row] for row in self.rows], dtype=np.float64)

    def shares(self, place: int) -> dict[str, tuple[Array, Array]]:
        """Return sensitivity and F1 for one lesion size, each as ``(S, N)`` numerators and denominators.

        Args:
            place: Index of the lesion size.

        Returns:
            Name of the figure -> numerators and denominators.
        """
        found, missed, made_up = (self.count(place, f"num_{kind}") for kind in ("found", "missed", "made_up"))
        return {"sensitivity": (found, found + missed), "f1": (2 * found, 2 * found + missed + made_up)}


@dataclass(frozen=True)
class ArmScores:
    """Scores of the finished trainings of an arm.

    Attributes:
        arm: Arm of the benchmark.
        runs: Seed -> content of ``scores.json``.
    """

    arm: Arm
    runs: Mapping[int, Mapping[str, Any]]

    def choose(self, seeds: Sequence[int]) -> ArmScores:
        """Return the scores of some of the trainings, given by seed."""
        return ArmScores(self.arm, {seed: self.runs[seed] for seed in seeds})

    def collect(self, label: str, metric: str) -> tuple[tuple[str, ...], Array]:
        """Return the patients who have a label, and their ``(S, N)`` scores by training and patient.

        The cases of a patient are averaged.

        Args:
            label: Name of the label.
            metric: Name of the metric.
        """
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
        """Return the lesion counts of a label for every training and patient, in total and by size."""
        rows = []
        for run in self.runs.values():
            by_patient: dict[str, list[LesionMatch]] = {}
            for case in run["cases"]:
                lesions = [LesionMatch(**lesion) for lesion in case["labels"][label]["lesions"]]
                by_patient.setdefault(case["patient"], []).extend(lesions)
            rows.append([count_by_size(by_patient[patient]) for patient in sorted(by_patient)])
        return LesionCounts(rows)

    def count_false_alarms(self, label: str) -> tuple[int, int]:
        """Return the number of cases without a label in which it was predicted, and that of all cases without it."""
        clean = [c["labels"][label] for run in self.runs.values() for c in run["cases"]]
        clean = [score for score in clean if score["reference_ml"] == 0]
        return sum(score["found_ml"] > 0 for score in clean), len(clean)
