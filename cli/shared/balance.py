"""`--balance-against` for `plan` and `synthesize`: its flags, the requests, a table and files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from pydantic import BeforeValidator, PositiveInt, model_validator

from maisi_aug.cli.shared.label_map import tell_old_spelling
from maisi_aug.cli.shared.tables import open_table_console
from maisi_aug.system.models import PositiveFinite, StrictModel
from maisi_aug.system.options import Option, split_rule
from maisi_aug.system.whole_files import write_text_whole

if TYPE_CHECKING:
    from maisi_aug.cohort.balance import BalanceTarget, LabelBalance
    from maisi_aug.cohort.request import CohortRequest
    from maisi_aug.vocabulary.labels import Vocabulary

_PANEL = "Balance"
LesionMapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="LABEL=NAME",
        help="A label of the real dataset, of --size-reference or else of --mask-bank, by id or name, and what it is "
        "here, such as '2=hepatic tumor'; may repeat (default: by name).",
        rich_help_panel=_PANEL,
    ),
]


def parse_size_bins(value: object) -> object:
    """``5,10,20``, ``5,10,20mm`` or ``5mm,1cm,2cm`` as diameters in mm; a unit at the end is that of all without one.

    Raises:
        ValueError: The text is anything else.
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
    """Which dataset a cohort balances, and how."""

    against: Annotated[Path | None, Option("--balance-against", panel=_PANEL)] = None
    """Real dataset whose missing lesions are made: nnU-Net raw by path, number or name, or label maps."""
    size_bins: Annotated[
        tuple[PositiveFinite, ...] | None,
        BeforeValidator(parse_size_bins),
        Option(metavar="MM,MM,...", takes=str, panel=_PANEL),
    ] = None
    """Edges of the sizes (default: 5,10,20,30,50,100)."""
    max_lesions: Annotated[PositiveInt | None, Option(panel=_PANEL)] = None
    """Most lesions that a planned case holds (default: 3)."""
    picture: Annotated[Path | None, Option("--balance-picture", metavar="PNG", panel=_PANEL)] = None
    """File to draw the balance into."""

    @model_validator(mode="after")
    def _require_use(self) -> Self:
        for name in self.model_fields_set - {"against"} if self.against is None else ():
            raise ValueError(f"{name}: expected --balance-against beside it, found none; add it")
        return self


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


def balance_config(
    config: CohortRequest,
    options: BalanceOptions,
    rules: Sequence[str] = (),
    *,
    is_quiet: bool,
    needs_weights: bool = True,
) -> tuple[CohortRequest, Balance | None]:
    """The configuration with the requests that balance the dataset, and the balance.

    Args:
        config: The cohort as it is asked for.
        options: The dataset, and how it is balanced.
        rules: ``LABEL=NAME`` once per lesion.
        is_quiet: Show no progress.
        needs_weights: Whether the bundle's weights must be on this machine.

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: When the dataset cannot be measured or balanced.
    """
    if options.against is None:
        return config, None
    from maisi_aug.bundle_spec.bundle import load_bundle, load_outline
    from maisi_aug.cohort.balance import to_requests
    from maisi_aug.cohort.request import DEFAULT_NUM_CASES, CohortRequest
    from maisi_aug.cohort.resolve import find_grid

    _require_requests_in_mm(config)
    balance = find_balance(
        config.labels,
        options,
        rules,
        vocabulary=(load_bundle if needs_weights else load_outline)(config.bundle).vocabulary,
        num_cases=config.num_cases or DEFAULT_NUM_CASES,
        least_ml=find_grid(config).voxel_ml,
        is_quiet=is_quiet,
    )
    return CohortRequest.model_validate({**dict(config), "labels": to_requests(balance.labels)}), balance


def find_balance(
    labels: Sequence[str],
    options: BalanceOptions,
    rules: Sequence[str],
    *,
    vocabulary: Vocabulary,
    num_cases: int,
    least_ml: float = 0.0,
    is_quiet: bool,
) -> Balance:
    """What a dataset has of the lesions that are asked for, and what a cohort adds.

    Args:
        labels: Label requests.
        options: The dataset, and how it is balanced.
        rules: ``LABEL=NAME`` once per lesion.
        vocabulary: The labels that may be asked for.
        num_cases: Of the cohort.
        least_ml: Smallest volume that the grid can show.
        is_quiet: Show no progress.

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: When the dataset cannot be measured or balanced.
    """
    from maisi_aug.cli.shared.bars import count_up
    from maisi_aug.cohort.balance import DEFAULT_MAX_LESIONS, SizeBins, count_lesions, fill_deficits, read_targets
    from maisi_aug.cohort.census import take_census

    assert options.against is not None
    bins = SizeBins(options.size_bins) if options.size_bins else SizeBins()
    targets = read_targets(labels, vocabulary=vocabulary, bins=bins, least_ml=least_ml)
    with count_up("measuring lesions", is_quiet=is_quiet) as report:
        mapping = parse_lesion_map(rules, targets, vocabulary)
        censuses = take_census(options.against, targets, vocabulary=vocabulary, mapping=mapping, report=report)
    max_lesions = options.max_lesions or DEFAULT_MAX_LESIONS
    counted = [
        count_lesions(census, target, bins=bins, max_lesions=max_lesions)
        for census, target in zip(censuses, targets, strict=True)
    ]
    balance = Balance(options.against, fill_deficits(counted, num_cases=num_cases))
    if options.picture is not None:
        save_balance_picture(balance, options.picture)
    return balance


def _require_requests_in_mm(config: CohortRequest) -> None:
    from maisi_aug.errors import RequestError

    if not config.takes_requests:
        raise RequestError(
            f"--balance-against: expected a mask source that takes requests, found '{config.mask_source}'. Use "
            "--mask-source plant, bank or diffusion."
        )
    if config.size_reference is not None:
        raise RequestError(
            "--balance-against: expected no size reference beside it, found one. The planned sizes are millimetres; "
            "leave --size-reference out."
        )


def parse_lesion_map(texts: Sequence[str], targets: Sequence[BalanceTarget], vocabulary: Vocabulary) -> dict[str, str]:
    """``LABEL=NAME`` once per lesion, as what the dataset calls each name.

    ``NAME=LABEL``, the earlier direction, is read where only that can be meant, and told.

    Raises:
        typer.BadParameter: When it is anything else, or a lesion is named twice.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        label, name = split_rule(text, "2=hepatic tumor")
        if not _is_target(name, targets, vocabulary) and _is_target(label, targets, vocabulary):
            label, name = name, label
            tell_old_spelling(f"--map '{text}'", f"--map '{label}={name}'")
        if name in mapping:
            raise typer.BadParameter(f"--map: expected each lesion once, found '{name}' twice.")
        mapping[name] = label
    return mapping


def _is_target(name: str, targets: Sequence[BalanceTarget], vocabulary: Vocabulary) -> bool:
    return _names_one_of(name, {target.label_id for target in targets}, vocabulary)


def _names_one_of(name: str, label_ids: Collection[int], vocabulary: Vocabulary) -> bool:
    from maisi_aug.errors import VocabularyError

    try:
        return vocabulary.id_of(name) in label_ids
    except VocabularyError:
        return False


def select_lesion_rules(rules: Sequence[str], labels: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Of rules ``LABEL=NAME`` those whose name is that of a lesion that is asked for."""
    from maisi_aug.cohort.grammar import label_names

    asked = {vocabulary.id_of(name) for name in label_names(labels)}
    return [rule for rule in rules if _names_one_of(rule.rpartition("=")[2], asked, vocabulary)]


BALANCE_NAME = "balance.json"
PICTURE_NAME = "balance.png"


def print_balance(balance: Balance) -> None:
    """Show what each label has, lacks and gets, by lesions per case and size."""
    console = open_table_console()
    for label in balance.labels:
        console.print(_build_table(label, balance.dataset))
    console.print(
        "Each cell: lesions there are (lacking to the fullest of the row) -> with the plan. Every planned case takes "
        "the number of lesions that the fewest cases have, its lesions the emptiest sizes.",
        highlight=False,
        soft_wrap=True,
    )


def _build_table(label: LabelBalance, dataset: Path) -> object:
    from rich.table import Table

    before, after = label.evenness(planned=False), label.evenness(planned=True)
    num_lesions = sum(map(sum, label.real_lesions))
    table = Table(
        title=f"{label.target.label} in {dataset.resolve().name} ({label.source}): {sum(label.real_cases)} cases, "
        f"{num_lesions} lesions, {label.num_planned} cases planned",
        caption=f"evenness of the sizes {before:.2f} -> {after:.2f} (1 is balanced)",
    )
    table.add_column("lesions in a case")
    for heading in ("cases", *label.bins.names):
        table.add_column(heading, justify="right")
    last = len(label.real_cases) - 1
    table.add_row("none", f"{label.real_cases[0]}", *[""] * len(label.bins.names))
    lacking = label.lacking(planned=False)
    for row in range(last):
        name = f"{row + 1}" if row + 1 < last else f"{row + 1} and more"
        cells = [
            _spell(real, planned, lacks)
            for real, planned, lacks in zip(
                label.real_lesions[row], label.planned_lesions[row], lacking[row], strict=True
            )
        ]
        short = max(label.real_cases[1:]) - label.real_cases[row + 1]
        table.add_row(name, _spell(label.real_cases[row + 1], label.planned_cases[row + 1], short), *cells)
    return table


def _spell(real: int, planned: int, lacking: int) -> str:
    return f"{real}" + (f" (-{lacking})" if lacking else "") + (f" -> {real + planned}" if planned else "")


def save_balance(balance: Balance, folder: Path) -> None:
    """Write the balance of a cohort into its folder, as JSON and as a picture.

    Raises:
        VolumeError: When a file cannot be written.
    """
    write_text_whole(folder / BALANCE_NAME, json.dumps(balance.to_json(), indent=1) + "\n")
    save_balance_picture(balance, folder / PICTURE_NAME)


def save_balance_picture(balance: Balance, path: Path) -> None:
    """Write the balance as a picture.

    Raises:
        VolumeError: When the file cannot be written.
    """
    from maisi_aug.cohort.balance_picture import draw_balance
    from maisi_aug.pictures.preview import save_picture

    save_picture(path, draw_balance(balance.labels, dataset=balance.dataset.resolve().name))
