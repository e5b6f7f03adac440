"""`--map LABEL=NAME`, in one direction for all commands: the label in the user's files, then its name here.

Earlier spellings, which some commands had the other way round or as another flag, work for one more release, with a
note that gives the new spelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from maisi_aug.cli.shared.from_models import Given
from maisi_aug.system.content import spells_number
from maisi_aug.system.models import split_rule, warn_of_spelling

DROPPED = "background"


def add_old_rules(rules: Iterable[str] | None, old: Sequence[str] | None, flag: str) -> list[str]:
    """Join the rules of ``--map`` with those of an earlier NAME=LABEL option, swapped and with a warning.

    Args:
        rules: Rules ``LABEL=NAME``.
        old: Rules ``NAME=LABEL`` of the earlier option.
        flag: Name of the earlier option.
    """
    turned = []
    for text in old or ():
        name, equals, label = (part.strip() for part in text.rpartition("="))
        turned.append(f"{label}={name}" if equals else text)
        warn_of_spelling(f"{flag} '{text}'", f"--map '{turned[-1]}'")
    return [*(rules or ()), *turned]


def to_bank_labels(rules: Sequence[str]) -> dict[str | int, str | int] | None:
    """Parse rules ``LABEL=NAME`` about a mask bank, and return label -> name or id; ``-`` drops a label.

    Raises:
        typer.BadParameter: A rule cannot be read, or a label has two rules.
    """
    meanings: dict[str | int, str | int] = {}
    for label, name in (split_rule(text, "2=hepatic tumor") for text in rules):
        if label in meanings:
            raise typer.BadParameter(f"--map: each label can be given only once, found '{label}' twice.")
        meanings[label] = DROPPED if name == "-" else name
    return meanings or None


def to_size_labels(rules: Sequence[str], folder: Path) -> dict[str, int] | None:
    """Parse rules ``LABEL=NAME`` about a size reference, and return lesion name -> label id.

    A label is an id, or a name from the ``dataset.json`` of the folder.

    Raises:
        typer.BadParameter: A rule cannot be read, or the dataset has no such name.
        BankError: The dataset's description cannot be read.
    """
    from maisi_aug.banks.files import NAME_FILES, load_labels
    from maisi_aug.vocabulary.labels import lookup_words

    description = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    names = {} if description is None else load_labels(description)[0].get("", {})
    sizes: dict[str, int] = {}
    for label, name in (split_rule(text, "2=hepatic tumor") for text in rules):
        ids = (
            [int(label)]
            if spells_number(label)
            else [i for i, n in names.items() if lookup_words(n) == lookup_words(label)]
        )
        if len(ids) != 1:
            listed = ", ".join(f"{label_id} '{text}'" for label_id, text in names.items() if label_id) or "no names"
            raise typer.BadParameter(f"--map '{label}={name}': {folder} has no such label; its labels are {listed}.")
        sizes[name] = ids[0]
    return sizes or None


@dataclass(frozen=True)
class LabelRules:
    """Rules of ``--map``, sorted by the dataset whose labels they explain.

    Attributes:
        lesions: Rules about the dataset of ``--balance-against``, not yet parsed.
        sizes: Lesion name -> label id in ``--size-reference``.
        bank: Label in ``--mask-bank`` -> name or id.
    """

    lesions: tuple[str, ...] = ()
    sizes: dict[str, int] | None = None
    bank: dict[str | int, str | int] | None = None

    @classmethod
    def read(
        cls, texts: Sequence[str], balance_against: Path | None, size_reference: str | None, mask_bank: str | None
    ) -> LabelRules:
        """Assign the rules of ``--map`` to the dataset that the other options name.

        Args:
            texts: Rules ``LABEL=NAME``.
            balance_against: Value of `--balance-against`.
            size_reference: Value of `--size-reference`.
            mask_bank: Value of `--mask-bank`, or of another option that may name a bank.

        Raises:
            typer.BadParameter: No option names a dataset, or a rule cannot be read.
            BankError: The size reference's description cannot be read.
        """
        if balance_against is not None:
            return cls(lesions=tuple(texts))
        if size_reference is not None:
            return cls(sizes=to_size_labels(texts, Path(size_reference)))
        if texts and mask_bank is None:
            raise typer.BadParameter(
                "--map: needs --balance-against, --size-reference or --mask-bank, the dataset whose labels it "
                "explains. Add one."
            )
        return cls(bank=to_bank_labels(texts))

    def add_to(self, flags: Given) -> Given:
        """Return the given options together with the configuration fields that the rules set.

        Raises:
            typer.BadParameter: The bank's labels are also given by ``--mask-labels``.
        """
        if self.bank is not None and "mask_labels" in flags:
            raise typer.BadParameter("--map and --mask-labels cannot be used together. Leave one out.")
        return {
            **flags,
            **({} if self.sizes is None else {"size_label": self.sizes}),
            **({} if self.bank is None else {"mask_labels": self.bank}),
        }
