"""`--balance-against` for `plan` and `synthesize`: its flags, the requests, a table and files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.cli.shared.label_map import split_rule, tell_old_spelling
from maisi_aug.cli.shared.tables import open_table_console

if TYPE_CHECKING:
    from maisi_aug.api.balancing import Balance
    from maisi_aug.cohort.balance import BalanceTarget, LabelBalance
    from maisi_aug.cohort.recipe import CohortConfig
    from maisi_aug.vocabulary.labels import Vocabulary

_PANEL = "Balance"

BalanceAgainst = Annotated[
    Path | None,
    typer.Option(
        help="Real dataset (nnU-Net raw by path, number or name, or label maps) whose missing lesions are made, by "
        "number per case and size.",
        rich_help_panel=_PANEL,
    ),
]
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
SizeBinsOption = Annotated[
    str | None,
    typer.Option(metavar="MM,MM,...", help="Edges of the sizes (default: 5,10,20,30,50,100).", rich_help_panel=_PANEL),
]
MaxLesionsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most lesions that a planned case holds (default: 3).", rich_help_panel=_PANEL),
]
BalancePicture = Annotated[
    Path | None, typer.Option(metavar="PNG", help="File to draw the balance into.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class BalanceFlags:
    """What the user gave.

    Attributes:
        against: The real dataset; None where nothing is balanced.
        mapping: ``LABEL=NAME`` once per lesion.
        size_bins: Edges in mm, as typed.
        max_lesions: Most lesions of a case.
        picture: Where the balance is drawn.
    """

    against: Path | None
    mapping: Sequence[str]
    size_bins: str | None
    max_lesions: int | None
    picture: Path | None = None

    def require_use(self) -> None:
        """Raise where a flag would do nothing.

        Raises:
            typer.BadParameter: Naming it.
        """
        idle = {
            "--size-bins": self.size_bins,
            "--max-lesions": self.max_lesions,
            "--balance-picture": self.picture,
        }
        for name in (name for name, value in idle.items() if value and self.against is None):
            raise typer.BadParameter(f"{name}: expected --balance-against beside it, found none. Add it.")


def balance_config(
    config: CohortConfig, flags: BalanceFlags, *, is_quiet: bool, needs_weights: bool = True
) -> tuple[CohortConfig, Balance | None]:
    """The configuration with the requests that balance the dataset, and the balance.

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: When the dataset cannot be measured or balanced.
    """
    flags.require_use()
    if flags.against is None:
        return config, None
    from maisi_aug.api.balancing import BalanceRequest, balance_cohort
    from maisi_aug.api.bars import count_up

    wanted = BalanceRequest(
        flags.against,
        lambda targets, vocabulary: parse_lesion_map(flags.mapping, targets, vocabulary),
        parse_size_bins(flags.size_bins) if flags.size_bins else None,
        flags.max_lesions,
    )
    with count_up("measuring lesions", is_quiet=is_quiet) as report:
        config, balance = balance_cohort(config, wanted, needs_weights=needs_weights, report=report)
    if flags.picture is not None:
        balance.save_picture(flags.picture)
    return config, balance


def parse_size_bins(text: str) -> tuple[float, ...]:
    """``5,10,20``, ``5,10,20mm`` or ``5mm,1cm,2cm`` as diameters in mm; a unit at the end is that of all without one.

    Raises:
        typer.BadParameter: When it is anything else.
    """
    from maisi_aug.vocabulary.sizes import SIZE_UNITS

    parts = [re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(mm|cm)?\s*", part) for part in text.lower().split(",")]
    found = [part.groups() for part in parts if part is not None]
    if len(found) < len(parts):
        raise typer.BadParameter(f"--size-bins: expected diameters such as 5,10,20,30,50, found '{text}'.")
    shared = found[-1][1] or "mm"
    return tuple(float(number) * SIZE_UNITS[unit or shared][1] for number, unit in found)


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
    from maisi_aug.errors import VocabularyError

    try:
        return vocabulary.id_of(name) in {target.label_id for target in targets}
    except VocabularyError:
        return False


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
