"""Which patients a benchmark trains and tests on, and which synthetic cases show a test patient to the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from maisi_aug.cohort.mask_origin import RealMaps
from maisi_aug.errors import BenchmarkError, did_you_mean
from maisi_aug.evaluation.benchmark.cases import CaseFiles
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.system.seeds import numpy_generator

MIN_TEST_PATIENTS: Final = 2


@dataclass(frozen=True)
class Split:
    """Case ids to train and to test on; no patient is in both."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def split_patients(lesions: Mapping[str, frozenset[str]], config: BenchmarkConfig) -> Split:
    """Draw the test patients, or take those that are listed; all cases of a patient go the same way.

    Patients with the same lesions are dealt evenly to both sides, so that neither is left without a rare one.

    Args:
        lesions: Case id -> the lesion labels that it shows.
        config: What was asked for.

    Raises:
        BenchmarkError: There are too few patients to train on one and to test on two.
    """
    patients: dict[str, list[str]] = {}
    for case_id in lesions:
        patients.setdefault(config.patient_of(case_id), []).append(case_id)
    shown = {patient: frozenset().union(*(lesions[c] for c in cases)) for patient, cases in patients.items()}
    order = _draw_order(shown, numpy_generator(config.seed, "benchmark split"))
    train, test = _split_as_listed(order, config) if config.test_patients else _split_by_number(order, config)
    if not train or len(test) < MIN_TEST_PATIENTS:
        num_wanted = config.num_train or max(1, len(train))
        raise BenchmarkError(
            f"Real cases: expected at least {num_wanted + MIN_TEST_PATIENTS} patients, to train on {num_wanted} and to "
            f"test on {MIN_TEST_PATIENTS} or more, found {len(order)}, {len(test)} of them to test on. "
            "Add cases, or choose another --num-train or --test-list."
        )
    sides = [[c for patient in side for c in patients[patient]] for side in (train, test)]
    return Split(tuple(sorted(sides[0])), tuple(sorted(sides[1])))


def _draw_order(lesions: Mapping[str, frozenset[str]], rng: np.random.Generator) -> list[str]:
    """Patients in an order that is random, and in whose every part the lesions are about as frequent as in all."""
    drawn = [sorted(lesions)[index] for index in rng.permutation(len(lesions))]
    groups: dict[frozenset[str], list[str]] = {}
    for patient in drawn:
        groups.setdefault(lesions[patient], []).append(patient)
    places = {patient: (n + 0.5) / len(group) for group in groups.values() for n, patient in enumerate(group)}
    return sorted(drawn, key=places.__getitem__)


def require_patients(cases: Sequence[CaseFiles], config: BenchmarkConfig) -> None:
    """Raise unless patients can be told apart and those to test on are among them.

    Args:
        cases: All real ones, before those that cannot be read are left out.
        config: What was asked for.

    Raises:
        BenchmarkError: A folder says that cases are of one patient and no pattern does, or a listed one is unknown.
    """
    told = [case.patient for case in cases if case.patient]
    if not config.patient_pattern and len(set(told)) < len(told):
        raise BenchmarkError(
            f"Real cases: expected a pattern that tells the {len(set(told))} patients of {len(told)} cases, found "
            "none. Give one with --patient-pattern, such as '(.+)_scan'."
        )
    patients = {config.patient_of(case.case_id) for case in cases}
    unknown = [patient for patient in config.test_patients if patient not in patients]
    if unknown:
        raise BenchmarkError(
            f"Test patient '{unknown[0]}': expected one of the {len(patients)} real ones, such as {min(patients)}, "
            f"found another name.{did_you_mean(unknown[0], patients)} Correct --test-list."
        )


def _split_by_number(order: Sequence[str], config: BenchmarkConfig) -> tuple[Sequence[str], Sequence[str]]:
    num_test = max(MIN_TEST_PATIENTS, round(config.test_share * len(order)))
    num_train = config.num_train or max(0, len(order) - num_test)
    return order[:num_train], order[num_train:]


def _split_as_listed(order: Sequence[str], config: BenchmarkConfig) -> tuple[Sequence[str], Sequence[str]]:
    """The listed patients to test on, and of the others as many as are wanted to train on."""
    rest = [patient for patient in order if patient not in config.test_patients]
    if config.num_train and config.num_train > len(rest):
        raise BenchmarkError(
            f"Real cases: expected {config.num_train} patients to train on beside those listed to test on, found "
            f"{len(rest)}. Choose a smaller --num-train."
        )
    return rest[: config.num_train], [patient for patient in config.test_patients if patient in order]


def find_leaks(cases: Iterable[CaseFiles], tested: Iterable[CaseFiles]) -> tuple[str, ...]:
    """Ids of synthetic cases that were made from the label map of a test case, or are a test case.

    Such a case shows a test patient's anatomy to the training; by file name or by the hash of the map, and by the map
    itself where nothing says what a case was made from.
    """
    known = RealMaps((case.case_id, case.label) for case in tested)
    return tuple(
        case.case_id for case in cases if (known.named_by(case.origin) if case.origin else known.same_as(case.label))
    )
