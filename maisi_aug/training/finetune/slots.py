"""Prepared cases with their labels in the slots of a bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import TrainingError
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.training.cases.data import CaseStore
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.cases.taught_label import Kind, TaughtLabel
from maisi_aug.training.finetune.slot_choice import (
    LabelTraits,
    choose_hosts,
    choose_kind,
    choose_slots,
    count_surroundings,
    find_source,
    remap_table,
)
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.components import Box


class SlotStore:
    """A case store that translates the ids in the label maps of another store when they are read.

    Args:
        store: Cases to translate.
        table: ``(256,)`` table from their ids to others.
    """

    def __init__(self, store: CaseStore, table: NDArray[np.uint8]) -> None:
        self._store = store
        self._table = table.tobytes()
        self.facts = store.facts
        self.image_hu = store.image_hu
        self.noise = store.noise

    def __len__(self) -> int:
        return len(self._store)

    def label_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` translated ids of a case, or of a box of it.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """
        ids = self._store.label_map(index, box)
        # Three times as fast as indexing the table with the ids.
        translated = bytearray(ids.tobytes()).translate(self._table)
        return np.frombuffer(translated, dtype=np.uint8).reshape(ids.shape)

    def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return what the networks are shown of a case, or of a box of it: its translated ids.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """
        return self.label_map(index, box)


def plan_labels(
    names: Sequence[str],
    store: PreparedStore,
    base: Bundle,
    *,
    slots: Mapping[str, str],
    hosts: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, Kind],
    report: Report = report_nothing,
) -> tuple[TaughtLabel, ...]:
    """Decide slot, hosts and kind of every label that is taught.

    Values given by the user take precedence, then those of the base or the preparation, then those found in the cases.

    Args:
        names: Labels as the user names them.
        store: Training cases.
        base: Bundle to start from.
        slots: Name -> requested slot.
        hosts: Name -> requested ids of the hosts.
        kinds: Name -> requested kind.
        report: Progress callback, called with (cases looked at, cases in all).

    Raises:
        TrainingError: The data lack a label, or a slot is taken.
    """
    dataset = store.dataset
    sources = [find_source(name, dataset) for name in names]
    twice = [label.name for place, label in enumerate(sources) if label in sources[:place]]
    if twice:
        raise TrainingError(f"Labels: '{twice[0]}' is given twice. Leave one --label out.")
    given = {label.name: name for label, name in zip(sources, names, strict=True)}
    ids = choose_slots(
        sources, {name: slots[given[name]] for name in given if given[name] in slots}, dataset=dataset, base=base
    )
    traits = measure_traits(store, [source.id for source in sources], report=report)
    taught = []
    told_in_data: set[int] = set()
    for source in sources:
        name = given[source.name]
        known = base.vocabulary.label(ids[source.name]) if base.vocabulary.contains(ids[source.name]) else None
        given_hosts = hosts.get(name) or (known.hosts if known else ())
        own_hosts = given_hosts or source.hosts
        if not given_hosts:
            told_in_data.add(source.id)
        chosen_hosts = own_hosts or choose_hosts(traits[source.id])
        kind, why = choose_kind(source.name, traits[source.id])
        if name in kinds:
            kind, why = kinds[name], "as given"
        elif known is not None and known.kind in ("tumor", "organ"):
            kind, why = ("lesion" if known.kind == "tumor" else "organ"), f"as in bundle '{base.name}'"
        around = "hosts as given" if own_hosts else "hosts by what surrounds it in the training data"
        taught.append(TaughtLabel(source.name, source.id, ids[source.name], chosen_hosts, kind, f"{why}; {around}"))
    # Hosts given to the preparation are ids of the prepared maps, and may be new labels that get another id here.
    table, _, _ = remap_table(taught, dataset=dataset, base=base)
    return tuple(
        replace(label, hosts=tuple(dict.fromkeys(int(table[host]) for host in label.hosts)))
        if label.source_id in told_in_data
        else label
        for label in taught
    )


def measure_traits(
    store: PreparedStore, label_ids: Collection[int], *, report: Report = report_nothing
) -> dict[int, LabelTraits]:
    """Measure how large labels are in the patients of a store, and which labels surround them.

    Args:
        store: Prepared cases.
        label_ids: Ids of the labels.
        report: Progress callback, called with (cases done, cases in all).

    Returns:
        Id -> traits.
    """
    new_ids = {label.id for label in store.spec.new_labels.values()}
    tumors = set(store.vocabulary.tumor_ids)
    around: dict[int, dict[int, int]] = {label_id: {} for label_id in label_ids}
    volumes: dict[int, dict[str, float]] = {label_id: {} for label_id in label_ids}
    for index, record in enumerate(store.cases):
        present = [label_id for label_id in label_ids if record.voxels.get(label_id)]
        label_map = store.label_map(index) if present else None
        for label_id in present:
            assert label_map is not None
            ignored = sorted((new_ids | tumors) - {label_id})
            for other, count in count_surroundings(label_map, label_id, ignored).items():
                around[label_id][other] = around[label_id].get(other, 0) + count
            largest = max(volumes[label_id].get(record.patient, 0.0), record.volume_ml(label_id))
            volumes[label_id][record.patient] = largest
        report(index + 1, len(store))
    num_patients = len({record.patient for record in store.cases})
    return {
        label_id: LabelTraits(tuple(volumes[label_id].values()), num_patients, around[label_id] or {BODY_ID: 1})
        for label_id in label_ids
    }
