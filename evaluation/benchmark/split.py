"""Choose the patients that a benchmark trains and tests on, and state its limits before anything is trained.

That is a matter of who shows a label, of which synthetic cases show a test patient to the training, and of what the
networks that drew them have seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from maisi_aug.cohort.mask_origin import RealMaps
from maisi_aug.errors import BenchmarkError, did_you_mean
from maisi_aug.evaluation.benchmark.cases import CaseFiles
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.evaluation.scores.comparison import MIN_PATIENTS
from maisi_aug.evaluation.scores.statistics import ALPHA, least_p
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from maisi_aug.system.seeds import numpy_generator

MIN_TEST_PATIENTS: Final = 2
_PATTERNS: Final[dict[str, str]] = {
    "MSD Task03 Liver": r"(task0?0?|dataset00)3.?liver|msd.?liver|\blits(20)?(17)?\b",
    "MSD Task06 Lung": r"(task0?0?|dataset00)6.?lung|msd.?lung",
    "MSD Task07 Pancreas": r"(task0?0?|dataset00)7.?pancreas|msd.?pancreas",
    "MSD Task08 HepaticVessel": r"(task0?0?|dataset00)8.?hepatic.?vessel|msd.?hepatic.?vessel",
    "MSD Task09 Spleen": r"(task0?0?|dataset00)9.?spleen|msd.?spleen",
    "MSD Task10 Colon": r"(task|dataset0)10.?colon|msd.?colon",
    "LIDC-IDRI": r"lidc|\bluna(16)?\b",
    "AMOS": r"\bamos",
    "BTCV": r"btcv",
    "TotalSegmentator v2": r"total.?segmentator",
    "AbdomenCT-1K": r"abdomen.?ct.?1k",
    "CT-ORG": r"ct.?org(?![a-z])",
    "VerSe": r"\bverse",
    "autoPET 2023": r"auto.?pet",
    "AeroPath": r"aero.?path",
    "CRLM-CT": r"\bcrlm|colorectal.?liver.?metastases",
    "CTPelvic1K-CLINIC": r"ct.?pelvic.?1k",
    "Multi-organ-Abdominal-CT": r"multi.?organ.?abdominal.?ct",
    "NLST": r"\bnlst\b|national lung screening trial",
    "StonyBrook-CT": r"stony.?brook|covid.?19.?ny.?sbu",
    "TCIA_Colon": r"tcia.?colon|ct.?colonography",
    "COVID-19": r"ct.?images.?in.?covid.?19",
    "Pancreas-CT": r"(nih|tcia).?pancreas",
}
_NAME_PATTERNS: Final[dict[str, str]] = {
    "Bone-Lesion": r"\bbone.?lesions?\b",
    "COVID-19": r"\bcovid.?19\b",
    "Pancreas-CT": r"\bpancreas.?ct\b",
}
"""Looked for in the folder's name alone: a description or its labels may well have such words of other cases."""


@dataclass(frozen=True)
class Split:
    """Case ids of the training set and the test set; no patient is in both."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def split_patients(lesions: Mapping[str, frozenset[str]], config: BenchmarkConfig) -> Split:
    """Draw the test patients, or take those that are listed; all cases of a patient are in the same set.

    Patients with the same lesions are distributed evenly, so that neither set is left without a rare lesion.

    Args:
        lesions: Case id -> lesion labels in the case.
        config: Request of the benchmark.

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
            f"Real cases: {num_wanted + MIN_TEST_PATIENTS} patients are needed, {num_wanted} to train on and at "
            f"least {MIN_TEST_PATIENTS} to test on; found {len(order)}, {len(test)} of them to test on. Add cases, "
            "or choose another --num-train or --test-list."
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
    """Raise unless the patients of the cases are known, and include those that are listed for the test set.

    Args:
        cases: All real cases, before unreadable ones are left out.
        config: Request of the benchmark.

    Raises:
        BenchmarkError: The folder has patients with several cases but no pattern is given, or a listed patient is
            unknown.
    """
    told = [case.patient for case in cases if case.patient]
    if not config.patient_pattern and len(set(told)) < len(told):
        raise BenchmarkError(
            f"Real cases: the {len(told)} cases seem to be of {len(set(told))} patients, but no pattern assigns "
            "them to patients. "
            "Give one with --patient-pattern, such as '(.+)_scan'."
        )
    patients = {config.patient_of(case.case_id) for case in cases}
    unknown = [patient for patient in config.test_patients if patient not in patients]
    if unknown:
        raise BenchmarkError(
            f"Test patient '{unknown[0]}': not one of the {len(patients)} real patients, such as "
            f"{min(patients)}.{did_you_mean(unknown[0], patients)} Correct --test-list."
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
            f"Real cases: {config.num_train} patients to train on are requested, but only {len(rest)} are left "
            "besides the test patients. Choose a smaller --num-train."
        )
    return rest[: config.num_train], [patient for patient in config.test_patients if patient in order]


def find_leaks(cases: Iterable[CaseFiles], tested: Iterable[CaseFiles]) -> tuple[str, ...]:
    """Return the ids of synthetic cases that were made from the label map of a test case, or are a test case.

    Such a case leaks the anatomy of a test patient. It is found by file name or hash of the label map, or by the map
    itself if the origin of a case is unknown.

    Args:
        cases: Synthetic cases.
        tested: Test cases.
    """
    known = RealMaps((case.case_id, case.label) for case in tested)
    return tuple(
        case.case_id for case in cases if (known.named_by(case.origin) if case.origin else known.same_as(case.label))
    )


def find_published_training(path: Path) -> str:
    """Return the public dataset, known to be MAISI training data, that a folder seems to hold; otherwise an empty text.

    The folder's name and ``dataset.json`` are examined; a renamed copy without a description is not recognised.
    """
    description = path / "dataset.json"
    name = _to_words(path.resolve().name)
    text = name
    if description.is_file():
        text += " " + _to_words(description.read_text(encoding="utf-8", errors="replace")[:4000])
    places = ((_PATTERNS, text), (_NAME_PATTERNS, name))
    return next((d for patterns, words in places for d, pattern in patterns.items() if re.search(pattern, words)), "")


def _to_words(text: str) -> str:
    return re.sub(r"[_\s]+", " ", text.lower())


Shown = Mapping[str, frozenset[str]]
"""Real case -> the labels that its label map shows."""


def find_cautions(config: BenchmarkConfig, split: Split, labels: tuple[str, ...], shown: Shown) -> list[str]:
    """Return warnings about the validity of a benchmark, one sentence each.

    Args:
        config: Request of the benchmark.
        split: Cases to train and to test on.
        labels: Labels that are compared.
        shown: Labels that occur in every real case.
    """
    cautions = [*_find_untested(config, split, labels, shown), *_find_untaught(split, labels, shown)]
    if config.num_seeds < 2:
        cautions.append(
            "Every arm is trained once, so that the effect of another seed is unknown and every verdict is "
            "undecided. Use --seeds 3."
        )
    if (Path(config.real) / MAPPING_NAME).is_file():
        cautions.append(
            f"The real cases are synthetic themselves: {MAPPING_NAME} says that maisi-aug exported them. Such a "
            "benchmark says nothing about patients."
        )
    published = find_published_training(Path(config.real))
    if published:
        cautions.append(
            f"The real cases seem to be from {published}, which is in the published training list of MAISI, so its "
            "networks may have seen the test patients. Confirm any gain on data of your own."
        )
    return cautions


def _find_untested(config: BenchmarkConfig, split: Split, labels: tuple[str, ...], shown: Shown) -> list[str]:
    """Labels that too few test patients show."""
    patients = {config.patient_of(case_id) for case_id in split.test}
    counts = {
        label: len({config.patient_of(case_id) for case_id in split.test if label in shown[case_id]})
        for label in labels
    }
    num_tested = sum(count > 1 for count in counts.values())
    few = [
        f"{label} by {count}"
        for label, count in counts.items()
        if count < MIN_PATIENTS or num_tested * least_p(count) >= ALPHA
    ]
    if not few:
        return []
    over = f", corrected over {num_tested} labels," if num_tested > 1 else ""
    return [
        (
            f"Too few of the {len(patients)} test patients show a label: {', '.join(few)}. Wilcoxon's test{over} "
            f"cannot reach p < {ALPHA:g} with so few, so that no gain can be shown, however large."
        )
    ]


def _find_untaught(split: Split, labels: tuple[str, ...], shown: Shown) -> list[str]:
    """Labels that no real training case shows."""
    missing = [label for label in labels if not any(label in shown[case_id] for case_id in split.train)]
    if not missing:
        return []
    return [
        (
            f"No real training case shows {', '.join(missing)}: arms of real cases alone cannot learn it, so any gain "
            "over them means little."
        )
    ]
