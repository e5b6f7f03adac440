"""The balance of a real dataset as a table, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from maisi_aug.cli.tables import open_table_console
from maisi_aug.whole_files import write_text_whole

if TYPE_CHECKING:
    from maisi_aug.balance import LabelBalance
    from maisi_aug.cli.balance_options import Balance

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
    from maisi_aug.balance_picture import draw_balance
    from maisi_aug.preview import save_picture

    save_picture(path, draw_balance(balance.labels, dataset=balance.dataset.resolve().name))
