"""Which maps of a bank may serve a case, and in which order, by what is known before any of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maisi_aug.banks.entry import BankEntry
from maisi_aug.vocabulary.regions import Regions, covers
from maisi_aug.volumes.grid import Grid

MIN_COVER = 0.5
"""Share of the grid's length from feet to head that a map has to have; a thinner slab would float in air."""
SAME_VIEW, NEAR_VIEW = 0.01, 0.15
"""Relative difference along the worst axis up to which fields of view are the same, and near."""
MIN_NEAR = 32
"""Maps among which chance decides, whatever their field of view: one patient for every case would be no variety."""


@dataclass(frozen=True)
class Needs:
    """What a map has to hold.

    Attributes:
        required_ids: All of these.
        host_ids: At least one of each of these sets.
        only_tumor_ids: No tumour but these; None where tumours are removed anyway.
    """

    required_ids: frozenset[int] = frozenset()
    host_ids: tuple[frozenset[int], ...] = ()
    only_tumor_ids: frozenset[int] | None = None

    def are_met_by(self, ids: frozenset[int] | None) -> bool:
        """Whether a map with these ids has all that is needed; None is a map that cannot be used."""
        return ids is not None and self.required_ids <= ids and all(ids & hosts for hosts in self.host_ids)


class BankListing:
    """What is known of the maps of a bank.

    Attributes:
        ids: Ids of each map that a list promises; None where only the map itself can tell.
    """

    def __init__(
        self, entries: Sequence[BankEntry], *, grid: Grid, tumor_ids: Sequence[int], body_region: Regions | None
    ) -> None:
        self.ids = [None if entry.listed_ids is None else frozenset(entry.listed_ids) for entry in entries]
        tumors = frozenset(tumor_ids)
        self._tumors = [frozenset() if ids is None else ids & tumors for ids in self.ids]
        self._is_told = any(entry.extent_mm is not None for entry in entries)
        extents = np.array([entry.extent_mm or grid.extent_mm for entry in entries], dtype=np.float64).reshape(-1, 3)
        self._distances = np.abs(np.log(extents / grid.extent_mm)).max(axis=1)
        is_long = extents[:, 2] >= MIN_COVER * grid.extent_mm[2]
        self._is_in_view = [
            bool(long) and (body_region is None or entry.extent_mm is None or _shows(entry, body_region))
            for long, entry in zip(is_long, entries, strict=True)
        ]

    def choose(self, order: Sequence[int], needs: Needs) -> list[int]:
        """Those of some maps that may serve, the near ones first, else in the order given.

        Where tumours are removed anyway, maps without any go first, if there are enough of them for variety. Nothing is
        sorted or left out where a bank tells nothing of its maps.
        """
        if not self._is_told:
            return list(order)
        chosen = np.array([index for index in order if self._may_serve(index, needs)], dtype=np.int64)
        if not chosen.size:
            return []
        distances = self._distances[chosen]
        is_late = np.zeros(chosen.size, dtype=bool)
        if needs.only_tumor_ids is None:
            has_tumor = np.array([bool(self._tumors[index]) for index in chosen])
            if np.count_nonzero(~has_tumor) >= MIN_NEAR:
                is_late = has_tumor
        ascending = np.sort(distances[~is_late])
        near = ascending[min(MIN_NEAR, ascending.size) - 1]
        near = SAME_VIEW if near <= SAME_VIEW else max(near, NEAR_VIEW)
        places = np.lexsort((np.where(distances <= near, 0.0, distances), is_late))
        return [int(index) for index in chosen[places]]

    def _may_serve(self, index: int, needs: Needs) -> bool:
        ids = self.ids[index]
        if ids is None:
            return True
        is_wanted = needs.only_tumor_ids is None or self._tumors[index] <= needs.only_tumor_ids
        return is_wanted and self._is_in_view[index] and needs.are_met_by(ids)


def _shows(entry: BankEntry, wanted: Regions) -> bool:
    return entry.regions is not None and covers(entry.regions, wanted)
