"""A cohort of the lesions that a real dataset lacks: its requests, its balance, and the files that show it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import load_bundle, load_outline
from maisi_aug.cohort.balance import (
    DEFAULT_MAX_LESIONS,
    BalanceTarget,
    LabelBalance,
    SizeBins,
    count_lesions,
    fill_deficits,
    read_targets,
    to_requests,
)
from maisi_aug.cohort.census import take_census
from maisi_aug.cohort.recipe import CohortConfig
from maisi_aug.cohort.resolve import find_grid
from maisi_aug.cohort.source_rules import DEFAULT_NUM_CASES, SOURCES_WITHOUT_REQUESTS
from maisi_aug.errors import RequestError
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.whole_files import write_text_whole
from maisi_aug.vocabulary.labels import Vocabulary

BALANCE_NAME = "balance.json"
PICTURE_NAME = "balance.png"

ReadMap = Callable[[Sequence[BalanceTarget], Vocabulary], dict[str, str]]
"""Which label of the dataset each lesion is, once it is known what is asked for; lesion -> label."""


@dataclass(frozen=True)
class BalanceRequest:
    """What a cohort is balanced with.

    Attributes:
        dataset: The real dataset: an nnU-Net raw dataset by path, number or name, or a folder of label maps.
        read_map: Says which label of it is which lesion; by name where it says nothing.
        size_bins_mm: Edges of the sizes; the usual ones when not given.
        max_lesions: Most lesions that a planned case holds.
    """

    dataset: Path
    read_map: ReadMap = lambda targets, vocabulary: {}
    size_bins_mm: tuple[float, ...] | None = None
    max_lesions: int | None = None


@dataclass(frozen=True)
class Balance:
    """The balance of a cohort with a real dataset.

    Attributes:
        dataset: Its path.
        labels: What each label has and gets.
    """

    dataset: Path
    labels: tuple[LabelBalance, ...]

    def to_json(self) -> dict[str, Any]:
        """The balance as JSON types."""
        return {"dataset": str(self.dataset), "labels": [label.to_json() for label in self.labels]}

    def save(self, folder: Path) -> None:
        """Write the balance of a cohort into its folder, as JSON and as a picture.

        Raises:
            VolumeError: When a file cannot be written.
        """
        write_text_whole(folder / BALANCE_NAME, json.dumps(self.to_json(), indent=1) + "\n")
        self.save_picture(folder / PICTURE_NAME)

    def save_picture(self, path: Path) -> None:
        """Write the balance as a picture.

        Raises:
            VolumeError: When the file cannot be written.
        """
        from maisi_aug.cohort.balance_picture import draw_balance
        from maisi_aug.pictures.preview import save_picture

        save_picture(path, draw_balance(self.labels, dataset=self.dataset.resolve().name))


def balance_cohort(
    config: CohortConfig, wanted: BalanceRequest, *, needs_weights: bool = True, report: Report = report_nothing
) -> tuple[CohortConfig, Balance]:
    """The configuration with the requests that balance a dataset, and the balance.

    Args:
        config: Its requests name the lesions.
        wanted: The dataset.
        needs_weights: Whether the bundle must be on this machine.
        report: Called with (label maps measured, label maps in all).

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: When the dataset cannot be measured or balanced.
    """
    _require_requests_in_mm(config)
    vocabulary = (load_bundle if needs_weights else load_outline)(config.bundle).vocabulary
    bins = SizeBins(wanted.size_bins_mm) if wanted.size_bins_mm else SizeBins()
    targets = read_targets(config.labels, vocabulary=vocabulary, bins=bins, least_ml=find_grid(config).voxel_ml)
    mapping = wanted.read_map(targets, vocabulary)
    censuses = take_census(wanted.dataset, targets, vocabulary=vocabulary, mapping=mapping, report=report)
    max_lesions = wanted.max_lesions or DEFAULT_MAX_LESIONS
    counted = [
        count_lesions(census, target, bins=bins, max_lesions=max_lesions)
        for census, target in zip(censuses, targets, strict=True)
    ]
    labels = fill_deficits(counted, num_cases=config.num_cases or DEFAULT_NUM_CASES)
    return config.model_copy(update={"labels": to_requests(labels)}), Balance(wanted.dataset, labels)


def _require_requests_in_mm(config: CohortConfig) -> None:
    if config.mask_source in SOURCES_WITHOUT_REQUESTS:
        raise RequestError(
            f"--balance-against: expected a mask source that takes requests, found '{config.mask_source}'. Use "
            "--mask-source plant, bank or diffusion."
        )
    if config.size_reference is not None:
        raise RequestError(
            "--balance-against: expected no size reference beside it, found one. The planned sizes are millimetres; "
            "leave --size-reference out."
        )
