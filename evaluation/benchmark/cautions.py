"""What a benchmark can tell at best, before anything is trained: who shows a label, and who has seen the patients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.evaluation.benchmark.split import Split
from maisi_aug.evaluation.scores.comparison import MIN_PATIENTS
from maisi_aug.evaluation.scores.statistics import ALPHA, least_p
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME

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


def find_published_training(path: Path) -> str:
    """The dataset of the training list that a folder seems to hold, or an empty text.

    Looks at the folder's name and at ``dataset.json``; a renamed copy without a description is not recognised.
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
    """What to beware of, one sentence each.

    Args:
        config: What was asked for.
        split: Cases to train and to test on.
        labels: All that are compared.
        shown: Labels of every real case.
    """
    cautions = [*_find_untested(config, split, labels, shown), *_find_untaught(split, labels, shown)]
    if config.num_seeds < 2:
        cautions.append(
            "Every arm is trained once: how far another seed would move the figures is not known, so that every "
            "verdict is undecided. Take --seeds 3."
        )
    if (Path(config.real) / MAPPING_NAME).is_file():
        cautions.append(
            f"The real cases are synthetic themselves: {MAPPING_NAME} says that maisi-aug exported them. Such a "
            "benchmark says nothing of patients."
        )
    published = find_published_training(Path(config.real))
    if published:
        cautions.append(
            f"The real cases seem to be of {published}, which is in the published training list of MAISI: its networks "
            "may have seen the test patients. Check on data of your own before you rely on a gain."
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
        f"Of the {len(patients)} test patients, too few show: {', '.join(few)}. Wilcoxon's test{over} cannot reach "
        f"p < {ALPHA:g} with so few, so that no gain can be shown however large it is."
    ]


def _find_untaught(split: Split, labels: tuple[str, ...], shown: Shown) -> list[str]:
    """Labels that no real training case shows."""
    missing = [label for label in labels if not any(label in shown[case_id] for case_id in split.train)]
    if not missing:
        return []
    return [
        f"No real case to train on shows {', '.join(missing)}: arms of real cases alone cannot learn it, so that any "
        "gain is one over nothing."
    ]
