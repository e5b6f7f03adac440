"""A cohort of the lesions that a real dataset lacks: its requests, its balance, and the files that show it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, PositiveInt, model_validator

from maisi_aug.api.keywords import build_model
from maisi_aug.errors import RequestError, VocabularyError
from maisi_aug.system.models import Option, PositiveFinite, StrictModel
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.whole_files import write_json_whole

if TYPE_CHECKING:
    from maisi_aug.cohort.balance import BalanceTarget, LabelBalance
    from maisi_aug.cohort.request import CohortRequest
    from maisi_aug.insertion.request import InsertConfig
    from maisi_aug.vocabulary.labels import Vocabulary

    ReadMap = Callable[[Sequence[BalanceTarget], Vocabulary], dict[str, str]]

BALANCE_NAME = "balance.json"
PICTURE_NAME = "balance.png"
_PANEL = "Balance"


def parse_size_bins(value: object) -> object:
    """Read the edges of size bins, such as ``5,10,20`` or ``5mm,1cm,2cm``, as lesion diameters in mm.

    A unit at the end of the text applies to all numbers without one. Values that are not text are returned unchanged.

    Raises:
        ValueError: The text is not a list of lengths.
    """
    from maisi_aug.vocabulary.sizes import SIZE_UNITS

    if not isinstance(value, str):
        return value
    parts = [re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(mm|cm)?\s*", part) for part in value.lower().split(",")]
    found = [part.groups() for part in parts if part is not None]
    if len(found) < len(parts):
        raise ValueError(f"expected diameters such as 5,10,20,30,50, found '{value}'")
    shared = found[-1][1] or "mm"
    return tuple(float(number) * SIZE_UNITS[unit or shared][1] for number, unit in found)


class BalanceOptions(StrictModel, use_attribute_docstrings=True):
    """Options for planning a cohort that evens out the lesion sizes and counts of a real dataset."""

    against: Annotated[Path | None, Option("--balance-against", complete="datasets", panel=_PANEL)] = None
    """Real dataset whose missing cases are planned: an nnU-Net raw dataset (path, number or name) or label maps."""
    size_bins: Annotated[
        tuple[PositiveFinite, ...] | None,
        BeforeValidator(parse_size_bins),
        Option(metavar="MM,MM,...", takes=str, panel=_PANEL),
    ] = None
    """Edges of the size bins in mm (default: 5,10,20,30,50,100)."""
    max_lesions: Annotated[PositiveInt | None, Option(panel=_PANEL)] = None
    """Largest number of lesions in a planned case (default: 3)."""
    picture: Annotated[Path | None, Option("--balance-picture", metavar="PNG", panel=_PANEL)] = None
    """Also draw the balance into this PNG file."""

    @model_validator(mode="after")
    def _require_use(self) -> Self:
        for name in self.model_fields_set - {"against"} if self.against is None else ():
            raise ValueError(f"{name} can only be used with --balance-against")
        return self


@dataclass(frozen=True)
class Balance:
    """What each label of a real dataset lacks, and how many cases a planned cohort adds.

    Attributes:
        dataset: Path of the real dataset.
        labels: Existing and planned cases of each label, counted by lesion size and by lesions per case.
    """

    dataset: Path
    labels: tuple[LabelBalance, ...]

    def to_json(self) -> dict[str, Any]:
        """Return dataset, labels, bins and counts as a JSON-able dict, as :meth:`save` writes it."""
        return {"dataset": str(self.dataset), "labels": [label.to_json() for label in self.labels]}

    def save(self, folder: Path) -> None:
        """Write the balance as JSON and as a picture into the folder of a cohort.

        Raises:
            VolumeError: A file cannot be written.
        """
        write_json_whole(folder / BALANCE_NAME, self.to_json())
        self.save_picture(folder / PICTURE_NAME)

    def save_picture(self, path: Path) -> None:
        """Draw the balance as a picture: lesions by size and number, before and after.

        Args:
            path: Image file to write.

        Raises:
            VolumeError: The file cannot be written.
        """
        from maisi_aug.cohort.balance_picture import draw_balance
        from maisi_aug.pictures.preview import save_picture

        save_picture(path, draw_balance(self.labels, dataset=self.dataset.resolve().name))


def balance_cohort(
    request: CohortRequest,
    options: BalanceOptions,
    read_map: ReadMap,
    *,
    needs_weights: bool = True,
    report: Report = report_nothing,
) -> tuple[CohortRequest, Balance | None]:
    """Return a cohort request whose label requests fill the gaps of a real dataset, and the balance behind it.

    Args:
        request: The cohort; its label requests name the lesions to balance.
        options: The real dataset and the size bins. Without a dataset, the request is returned unchanged.
        read_map: Function from the requested lesions to a mapping of lesion name -> label of the dataset.
        needs_weights: Whether the bundle's weights must be on this machine.
        report: Progress callback, called with (label maps measured, label maps in all).

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: The dataset cannot be measured or balanced.
    """
    if options.against is None:
        return request, None
    from maisi_aug.bundle_spec.bundle import load_bundle, load_outline
    from maisi_aug.cohort.balance import to_requests
    from maisi_aug.cohort.request import DEFAULT_NUM_CASES, CohortRequest
    from maisi_aug.cohort.resolve import find_grid

    _require_requests_in_mm(request)
    balance = find_balance(
        request.labels,
        options,
        read_map,
        vocabulary=(load_bundle if needs_weights else load_outline)(request.bundle).vocabulary,
        num_cases=request.num_cases or DEFAULT_NUM_CASES,
        least_ml=find_grid(request).voxel_ml,
        report=report,
    )
    return CohortRequest.model_validate({**dict(request), "labels": to_requests(balance.labels)}), balance


def balance_insertion(
    config: InsertConfig,
    options: BalanceOptions,
    read_rules: Callable[[Sequence[str]], ReadMap],
    *,
    report: Report = report_nothing,
) -> tuple[InsertConfig, Balance | None]:
    """Return an insertion request whose label requests fill the gaps of a real dataset, and the balance behind it.

    The rules of ``--map`` (``config.map``) name the lesions in the dataset; CTs without labels need none.

    Args:
        config: The insertion; its label requests name the lesions to balance.
        options: The real dataset and the size bins. Without a dataset, the request is returned unchanged.
        read_rules: Function that parses rules ``LABEL=NAME`` into a reader of the lesion map, as for
            :func:`balance_cohort`.
        report: Progress callback, called with (label maps measured, label maps in all).

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: The dataset cannot be measured or balanced.
    """
    if options.against is None:
        return config, None
    from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME
    from maisi_aug.cohort.balance import to_requests
    from maisi_aug.cohort.grammar import label_names
    from maisi_aug.insertion.config import choose_painter
    from maisi_aug.insertion.request import InsertConfig

    vocabulary = choose_painter(config)[0].vocabulary
    asked = {vocabulary.id_of(name) for name in label_names(config.labels)}
    rules = [rule for rule in config.map if names_one_of(rule.rpartition("=")[2], asked, vocabulary)]
    balance = find_balance(
        config.labels,
        options,
        read_rules(rules),
        vocabulary=vocabulary,
        num_cases=config.num_cases,
        report=report,
    )
    has_labels = config.into_labels is not None or (Path(config.into) / DESCRIPTION_NAME).is_file()
    # CTs without labels have no use for rules that say what the dataset calls the lesions.
    kept = config.map if has_labels else tuple(rule for rule in config.map if rule not in rules)
    return InsertConfig.model_validate({**dict(config), "labels": to_requests(balance.labels), "map": kept}), balance


def find_balance(
    labels: Sequence[str],
    options: BalanceOptions,
    read_map: ReadMap,
    *,
    vocabulary: Vocabulary,
    num_cases: int,
    least_ml: float = 0.0,
    report: Report = report_nothing,
) -> Balance:
    """Count the requested lesions in a real dataset, and plan the cases that even them out.

    Args:
        labels: Label requests, ``NAME[@SHARE]``, of the lesions to balance.
        options: The real dataset and the size bins.
        read_map: Function from the requested lesions to a mapping of lesion name -> label of the dataset.
        vocabulary: The labels that may be requested.
        num_cases: Number of cases to plan.
        least_ml: Smallest lesion volume in mL that the output grid can show; smaller ones are not planned.
        report: Progress callback, called with (label maps measured, label maps in all).

    Returns:
        Existing and planned cases of each label.

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: The dataset cannot be measured or balanced.
    """
    from maisi_aug.cohort.balance import DEFAULT_MAX_LESIONS, SizeBins, count_lesions, fill_deficits, read_targets
    from maisi_aug.cohort.census import take_census

    assert options.against is not None
    bins = SizeBins(options.size_bins) if options.size_bins else SizeBins()
    targets = read_targets(labels, vocabulary=vocabulary, bins=bins, least_ml=least_ml)
    mapping = read_map(targets, vocabulary)
    censuses = take_census(options.against, targets, vocabulary=vocabulary, mapping=mapping, report=report)
    counted = [
        count_lesions(census, target, bins=bins, max_lesions=options.max_lesions or DEFAULT_MAX_LESIONS)
        for census, target in zip(censuses, targets, strict=True)
    ]
    balance = Balance(options.against, fill_deficits(counted, num_cases=num_cases))
    if options.picture is not None:
        balance.save_picture(options.picture)
    return balance


def names_one_of(name: str, label_ids: Collection[int], vocabulary: Vocabulary) -> bool:
    """Whether a label name or alias stands for one of the given ids; False for names that are not in the vocabulary.

    Args:
        name: Name or alias of a label.
        label_ids: Vocabulary ids.
        vocabulary: Vocabulary of the names.
    """
    try:
        return vocabulary.id_of(name) in label_ids
    except VocabularyError:
        return False


def _require_requests_in_mm(request: CohortRequest) -> None:
    if not request.takes_requests:
        raise RequestError(
            f"--balance-against cannot be used with mask source '{request.mask_source}', which takes no requests. "
            "Use --mask-source plant, bank or diffusion."
        )
    if request.size_reference is not None:
        raise RequestError(
            "--balance-against cannot be used with --size-reference, because planned sizes are in mm. Leave "
            "--size-reference out."
        )


def read_balance(
    dataset: str | Path | None,
    size_bins: Sequence[float] | str | None,
    max_lesions: int | None,
    picture: str | Path | None,
) -> BalanceOptions:
    """Check the balancing arguments of a Python call, and return them as one object.

    Args:
        dataset: Real dataset to balance; None without balancing.
        size_bins: Ascending edges in mm, or text such as ``5,10,20mm``; None for the default.
        max_lesions: Largest number of lesions of a case; None for the default.
        picture: PNG file to draw the balance into; None for none.

    Raises:
        RequestError: ``size_bins``, ``max_lesions`` or ``picture`` is given without a dataset, or is invalid.
    """
    values = {"against": dataset, "size_bins": size_bins, "max_lesions": max_lesions, "picture": picture}
    return build_model(BalanceOptions, values, source="balance_against", error=RequestError)
