"""How cases are prepared: what decides the bytes of a prepared folder, beside the sources themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maisi_aug.preparation.prepared import NewLabel
from maisi_aug.preparation.request import ModalityName
from maisi_aug.preparation.tissues import Tissue
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.grid import Grid, Shape, Spacing

VERSION = 2
"""Raised when the same options and sources come to give other files."""


@dataclass(frozen=True)
class PrepareSettings:
    """What every case is prepared with.

    Attributes:
        shape: Voxels of the networks' grid along I, J, K.
        spacing_mm: Voxel sides along I, J, K.
        vocabulary: With the new labels.
        new_labels: Name -> the labels in use that MAISI's own vocabulary lacks.
        tissues: Labels told by their HU where no other is.
        organ_labels: What the ids of organ label maps mean: ``auto``, ``totalsegmentator-v1`` or ``-v2``, ``maisi``.
        keeps_surroundings: Whether table and air around the patient stay as they are; else they become -1000 HU.
        modality: What the U-Net is told of every image.
    """

    shape: Shape
    spacing_mm: Spacing
    vocabulary: Vocabulary
    new_labels: Mapping[str, NewLabel]
    tissues: tuple[Tissue, ...] = ()
    organ_labels: str = "auto"
    keeps_surroundings: bool = False
    modality: ModalityName = "ct"

    @property
    def grid(self) -> Grid:
        """The networks' grid, centred on the world origin."""
        return Grid.from_spacing(self.shape, self.spacing_mm)

    @property
    def focus_ids(self) -> tuple[int, ...]:
        """What training is about: the new labels and the tumours."""
        return tuple(sorted({*self.vocabulary.tumor_ids, *(label.id for label in self.new_labels.values())}))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types, for ``dataset.yaml``."""
        name_of = self.vocabulary.name_of
        return {
            "version": VERSION,
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "new_labels": {
                name: {"id": label.id, "hosts": list(label.hosts)} for name, label in self.new_labels.items()
            },
            "tissues": [
                {"label": name_of(tissue.label_id), "hu": [tissue.low_hu, tissue.high_hu]} for tissue in self.tissues
            ],
            "organ_labels": self.organ_labels,
            "keeps_surroundings": self.keeps_surroundings,
            "modality": self.modality,
        }
