"""The label maps that a fine-tuned bundle draws from: those of its training cases, and those that its base has."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.label_ids import Translation
from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.schema import MaskBankSpec
from maisi_aug.errors import MaisiAugWarning
from maisi_aug.preparation.prepared import PreparedDataset
from maisi_aug.system.content import read_json
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.volumes.image_files import load_label_map, save_label_map

BANK_LIST, BANK_LABELS, MAPS_FOLDER = "label_maps.json", "label_map_ids.json", "label_maps"
IN_OWN_IDS = "maisi"


@dataclass(frozen=True)
class BankRow:
    """A label map in the mask bank of a fine-tuned bundle.

    Attributes:
        path: Path of the file.
        listed: Ids of its labels in the bundle.
        ids: Id in the file -> id in the bundle.
    """

    path: Path
    listed: tuple[int, ...]
    ids: Mapping[int, int]


@dataclass(frozen=True)
class FinetunedBank:
    """Mask bank of a fine-tuned bundle: the label maps of its training cases and of its base.

    Attributes:
        rows: Rows of the training cases, then those of the base.
        source: Description of the maps, for people.
    """

    rows: tuple[BankRow, ...]
    source: str

    @property
    def ids(self) -> dict[int, int] | None:
        """Id in the files -> id in the bundle; None if files differ in the meaning of an id."""
        merged: dict[int, int] = {}
        for row in self.rows:
            if any(merged.setdefault(own, label_id) != label_id for own, label_id in row.ids.items()):
                return None
        return merged

    def describe(self, *, copies: bool) -> MaskBankSpec:
        """Return the entry about the mask bank in ``bundle.yaml``.

        Args:
            copies: Whether the maps are copied into the bundle.
        """
        ids = self.ids
        is_same = copies or ids is None or all(own == label_id for own, label_id in ids.items())
        return MaskBankSpec(list=BANK_LIST, labels=IN_OWN_IDS if is_same else BANK_LABELS, source=self.source)

    def write(self, unfinished: Path, folder: Path, *, copies: bool) -> None:
        """Write the list of the maps, or copies of them with the bundle's ids, into a bundle that is being written.

        Copies are necessary if the ids of the files differ in meaning.

        Args:
            unfinished: Folder in which the bundle is written.
            folder: Final folder of the bundle.
            copies: Whether to put copies into the bundle.
        """
        ids = self.ids
        listed: list[dict[str, Any]] = []
        names: dict[str, int] = {}
        for row in self.rows:
            place = Path(os.path.relpath(row.path, folder.resolve())).as_posix()
            if copies or ids is None:
                number = names[row.path.name] = names.get(row.path.name, 0) + 1
                name = row.path.name if number == 1 else f"{number}_{row.path.name}"
                place = f"{MAPS_FOLDER}/{name}"
                volume = load_label_map(row.path)
                label_map = Translation({0: 0, **row.ids}, frozenset()).apply(volume.array)
                save_label_map(unfinished / place, label_map, volume.grid)
            listed.append({"label": place, "label_list": list(row.listed)})
        write_json_whole(unfinished / BANK_LIST, {"training": listed})
        if not copies and ids is not None:
            table = {str(own): label_id for own, label_id in sorted(ids.items())}
            write_json_whole(unfinished / BANK_LABELS, table)


def collect_bank(base: Bundle, training: PreparedDataset, table: NDArray[np.uint8]) -> FinetunedBank:
    """Collect the label maps of the training cases and of the base, so that earlier labels can still be drawn.

    Warns of maps of the base that do not exist any more.

    Args:
        base: The bundle that was fine-tuned.
        training: Training cases.
        table: ``(256,)`` table from the ids of the training maps to the bundle's.

    Raises:
        BundleError: The base names a list that does not exist.
    """
    own = []
    for case in training.cases:
        present = sorted(label_id for label_id, count in case.voxels.items() if count and label_id)
        ids = {label_id: int(table[label_id]) for label_id in present}
        own.append(BankRow(training.file_of("label", case.id).resolve(), tuple(sorted(set(ids.values()))), ids))
    paths = {row.path for row in own}
    earlier = [row for row in _read_bank(base) if row.path not in paths]
    found = [row for row in earlier if row.path.is_file()]
    if len(found) < len(earlier):
        gone = next(row.path for row in earlier if not row.path.is_file())
        warnings.warn(
            f"Label maps of base '{base.name}': {len(earlier) - len(found)} of {len(earlier)} files are missing, the "
            f"first is {gone}. The bundle will use the others.",
            MaisiAugWarning,
            stacklevel=3,
        )
    source = f"{len(own)} training cases of {training.spec.name}"
    source += f" and {len(found)} label maps of {base.name}" if found else ""
    return FinetunedBank((*own, *found), source)


def _read_bank(base: Bundle) -> list[BankRow]:
    """The maps that the base draws from by default, whether they are there or not."""
    bank = base.find_mask_bank()
    if bank is None:
        return []
    place, labels = Path(bank[0]), bank[1]
    table = None if labels == IN_OWN_IDS else read_json(Path(labels))
    rows = []
    for row in read_json(place)["training"]:
        listed = tuple(row["label_list"])
        ids = {label_id: label_id for label_id in listed}
        if table is not None:
            ids = {int(own): int(label_id) for own, label_id in table.items() if label_id in listed}
        rows.append(BankRow((place.parent / row["label"]).resolve(), listed, ids))
    return rows
