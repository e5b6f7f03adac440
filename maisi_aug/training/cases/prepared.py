"""Prepared real cases as a store for training, with their latents encoded once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from maisi_aug.errors import PreparationError, TrainingError
from maisi_aug.preparation.prepared import LATENTS_FOLDER, PreparedCase, PreparedDataset, PreparedSpec, load_prepared
from maisi_aug.training.cases.data import LatentSet, ReportProgress, TrainingCase, load_or_encode, measure_scale_factor
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.image_files import load_image, load_label_map

CACHE_BYTES = 2 * 2**30


@dataclass
class _Memory:
    """Cases that were read, kept up to a bound; stores of subsets share them."""

    cases: dict[str, TrainingCase] = field(default_factory=dict)
    num_bytes: int = 0

    def keep(self, case_id: str, case: TrainingCase) -> None:
        needed = case.image_hu.nbytes + case.label_map.nbytes
        if self.num_bytes + needed <= CACHE_BYTES:
            self.cases[case_id] = case
            self.num_bytes += needed


class PreparedStore:
    """The cases of a prepared folder by index; a ``CaseStore``.

    Attributes:
        dataset: The folder, its description and the cases of this store.
    """

    def __init__(self, dataset: PreparedDataset, *, memory: _Memory | None = None) -> None:
        self.dataset = dataset
        self._memory = memory or _Memory()

    @classmethod
    def from_folder(cls, folder: Path | str) -> PreparedStore:
        """The store of all cases that ``maisi-aug prepare`` wrote into a folder.

        Raises:
            PreparationError: The folder is not a prepared one, unfinished, or damaged.
        """
        return cls(load_prepared(folder))

    @property
    def spec(self) -> PreparedSpec:
        """What all cases of the folder share."""
        return self.dataset.spec

    @property
    def cases(self) -> tuple[PreparedCase, ...]:
        """Records of the cases, in the order of the indices."""
        return self.dataset.cases

    @property
    def vocabulary(self) -> Vocabulary:
        """Meaning of the ids in the label maps, new labels included."""
        return self.dataset.vocabulary

    def select(self, *, folds: Collection[int] | None = None, exclude_fold: int | None = None) -> PreparedStore:
        """A store of the cases of some folds; images that were read are shared.

        Args:
            folds: The folds to keep; None for all.
            exclude_fold: A fold to leave out.

        Raises:
            PreparationError: A fold does not exist, or no case is left.
        """
        return PreparedStore(self.dataset.select(folds=folds, exclude_fold=exclude_fold), memory=self._memory)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> TrainingCase:
        record = self.cases[index]
        if record.id not in self._memory.cases:
            case = self._read(record)
            self._memory.keep(record.id, case)
            return case
        return self._memory.cases[record.id]

    def encode(
        self,
        autoencoder: nn.Module,
        *,
        weights_hash: str,
        device: str,
        scale_factor: float | None = None,
        deviation: float | None = None,
        report: ReportProgress | None = None,
    ) -> LatentSet:
        """The posterior means of all cases, each encoded once and kept in the folder by the hash of its content.

        Args:
            autoencoder: In evaluation mode on ``device``.
            weights_hash: SHA-256 of its weights.
            device: Where to encode.
            scale_factor: That of the bundle whose diffusion model will read the latents. Either this or ``deviation``.
            deviation: The standard deviation over all latents that the scale factor shall bring about.
            report: Called with (cases done, cases in all).

        Raises:
            TrainingError: Neither or both of scale factor and deviation are given.
        """
        if (scale_factor is None) == (deviation is None):
            raise TrainingError(
                "Latents: expected either a scale factor or a deviation, found "
                f"{'neither' if scale_factor is None else 'both'}. Give the bundle's scale factor for fine-tuning."
            )
        folder = self.dataset.path / LATENTS_FOLDER / weights_hash[:12]
        # The hash covers the header too, so that it changes with the grid.
        paths = [folder / f"{record.id}.{record.image_sha256[:12]}.npy" for record in self.cases]
        latents = load_or_encode(self, autoencoder, paths, device=device, report=report)
        if deviation is not None:
            scale_factor = measure_scale_factor(latents, deviation)
        assert scale_factor is not None
        return LatentSet(latents, scale_factor)

    def _read(self, record: PreparedCase) -> TrainingCase:
        image = load_image(self.dataset.file_of("image", record.id))
        label_map = load_label_map(self.dataset.file_of("label", record.id))
        for volume in (image, label_map):
            if volume.array.shape != record.shape:
                raise PreparationError(
                    f"{self.dataset.path}, case {record.id}: expected the shape {record.shape} that it was prepared "
                    f"with, found {volume.array.shape}. Prepare the data again."
                )
        return TrainingCase(
            image.array.astype(np.int16), label_map.array.astype(np.uint8), record.spacing_mm, record.modality
        )
