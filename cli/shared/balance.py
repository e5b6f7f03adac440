"""`--balance-against` for `plan` and `synthesize`: its flags, the requests, a table and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.api.balancing import Balance, BalanceOptions, balance_cohort, names_one_of
from maisi_aug.cli.shared.streams import open_table_console
from maisi_aug.system.models import split_rule, warn_of_spelling
from maisi_aug.system.printed_text import spell_count

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
        help="Meaning of a label in the real dataset, in --size-reference or in --mask-bank, by id or name, such as "
        "'2=hepatic tumor'; may repeat (default: matched by name).",
        rich_help_panel=_PANEL,
    ),
]


def balance_config(
    config: CohortRequest,
    options: BalanceOptions,
    rules: Sequence[str] = (),
    *,
    is_quiet: bool,
    needs_weights: bool = True,
) -> tuple[CohortRequest, Balance | None]:
    """Return a cohort request whose label requests fill the gaps of a real dataset, and the balance behind it.

    Args:
        config: The cohort; its label requests name the lesions to balance.
        options: The real dataset and the size bins.
        rules: Rules ``LABEL=NAME`` of ``--map``, one per lesion.
        is_quiet: Show no progress.
        needs_weights: Whether the bundle's weights must be on this machine.

    Raises:
        BankError, RequestError, VocabularyError, VolumeError: The dataset cannot be measured or balanced.
    """
    if options.against is None:
        return config, None
    from maisi_aug.api.bars import count_up

    with count_up("measuring lesions", is_quiet=is_quiet) as report:
        return balance_cohort(
            config,
            options,
            lambda targets, vocabulary: parse_lesion_map(rules, targets, vocabulary),
            needs_weights=needs_weights,
            report=report,
        )


def parse_lesion_map(texts: Sequence[str], targets: Sequence[BalanceTarget], vocabulary: Vocabulary) -> dict[str, str]:
    """Parse rules ``LABEL=NAME`` of ``--map``, and return lesion name -> label in the dataset.

    The earlier direction ``NAME=LABEL`` is accepted with a warning if it is unambiguous.

    Raises:
        typer.BadParameter: A text is not a rule, or a lesion is named twice.
    """
    mapping: dict[str, str] = {}
    for text in texts:
        label, name = split_rule(text, "2=hepatic tumor")
        if not _is_target(name, targets, vocabulary) and _is_target(label, targets, vocabulary):
            label, name = name, label
            warn_of_spelling(f"--map '{text}'", f"--map '{label}={name}'")
        if name in mapping:
            raise typer.BadParameter(f"--map: each lesion can be given only once, found '{name}' twice.")
        mapping[name] = label
    return mapping


def _is_target(name: str, targets: Sequence[BalanceTarget], vocabulary: Vocabulary) -> bool:
    return names_one_of(name, {target.label_id for target in targets}, vocabulary)


def print_balance(balance: Balance) -> None:
    """Print tables of the lesions that each label has, lacks and gets, by lesions per case and size."""
    console = open_table_console()
    for label in balance.labels:
        console.print(_build_table(label, balance.dataset))
    console.print(
        "Each cell: existing lesions (number missing to reach the fullest of the row) -> with the plan. Each planned "
        "case has the number of lesions that is rarest so far, and its lesions have the rarest sizes.",
        highlight=False,
        soft_wrap=True,
    )


def _build_table(label: LabelBalance, dataset: Path) -> object:
    from rich.table import Table

    before, after = label.evenness(planned=False), label.evenness(planned=True)
    num_lesions = sum(map(sum, label.real_lesions))
    table = Table(
        title=f"{label.target.label} in {dataset.resolve().name} ({label.source}): "
        f"{spell_count(sum(label.real_cases), 'case')}, "
        f"{spell_count(num_lesions, 'lesion')}, {spell_count(label.num_planned, 'case')} planned",
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
