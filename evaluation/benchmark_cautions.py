"""What a benchmark can tell at best, before anything is trained: who shows a label, and who has seen the patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maisi_aug.evaluation.benchmark_config import BenchmarkConfig
from maisi_aug.evaluation.benchmark_split import Split
from maisi_aug.evaluation.comparison import MIN_PATIENTS
from maisi_aug.evaluation.rank_tests import least_p
from maisi_aug.evaluation.statistics import ALPHA
from maisi_aug.evaluation.training_lists import find_published_training
from maisi_aug.integrations.nnunet_folders import MAPPING_NAME

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
