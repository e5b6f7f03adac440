"""Real training cases whose label maps are completed before the networks see them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom.condition import complete_map
from maisi_aug.phantom.phases import infer_phase
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore, Memory
from maisi_aug.volumes.components import Box
from maisi_aug.volumes.grid import Grid


class CompletedStore:
    """A case store that shows the networks completed maps of another store's cases; everything else is as there.

    A map is completed when it is first needed, and kept in memory. The contrast phase is read off the image, because
    networks that were shown another one would learn that phases mean nothing.

    Args:
        store: Cases, with the ids that the networks know.
        seed: Seed of what the label maps leave open.
    """

    def __init__(self, store: CaseStore, *, seed: int) -> None:
        self._store = store
        self._seed = seed
        self._memory = Memory()
        self.facts = store.facts
        self.label_map = store.label_map
        self.image_hu = store.image_hu
        self.noise = store.noise

    def __len__(self) -> int:
        return len(self._store)

    def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return the completed map of a case, or of a box of it, with hidden structure and contrast phase.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """
        return self._memory.get(index, lambda: self._complete(index))[box]

    def _complete(self, index: int) -> NDArray[np.uint8]:
        facts, label_map = self._store.facts(index), self._store.label_map(index)
        completed = complete_map(
            label_map,
            grid=Grid.from_spacing(facts.shape, facts.spacing_mm),
            seed=derive_seed("completed case", self._seed, index),
        )
        phase = infer_phase(label_map, self._store.image_hu(index), modality=facts.modality)
        return completed.to_condition(facts.modality, phase=phase)
