"""Prepared real cases as a store for training, with their latents encoded once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from maisi_aug.errors import PreparationError, TrainingError
from maisi_aug.networks.encoder import Encoder
from maisi_aug.preparation.prepared import LATENTS_FOLDER, PreparedCase, PreparedDataset, PreparedSpec, load_prepared
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.training.cases.data import (
    CaseFacts,
    LatentSet,
    Memory,
    encode_image,
    load_or_encode,
    measure_scale_factor,
)
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import Box
from maisi_aug.volumes.image_files import load_image, load_label_map


class PreparedStore:
    """Training cases of a prepared folder, accessed by index (a :class:`~maisi_aug.training.cases.data.CaseStore`).

    Attributes:
        dataset: The folder, its description and the cases of this store.
    """

    def __init__(self, dataset: PreparedDataset, *, memory: Memory | None = None) -> None:
        self.dataset = dataset
        self._memory = memory or Memory()

    @classmethod
    def from_folder(cls, folder: Path | str) -> PreparedStore:
        """Open the cases that ``maisi-aug prepare`` wrote to a folder.

        Raises:
            PreparationError: The folder is not a prepared one, unfinished, or damaged.
        """
        return cls(load_prepared(folder))

    @property
    def spec(self) -> PreparedSpec:
        """Settings that all cases of the folder share."""
        return self.dataset.spec

    @property
    def cases(self) -> tuple[PreparedCase, ...]:
        """Records of the cases, in the order of their indices."""
        return self.dataset.cases

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the label maps, with the new labels."""
        return self.dataset.vocabulary

    def select(self, *, folds: Collection[int] | None = None, exclude_fold: int | None = None) -> PreparedStore:
        """Return a store of the cases of some folds, which shares the cache.

        Args:
            folds: The folds to keep; None for all.
            exclude_fold: Fold to leave out; None for none.

        Raises:
            PreparationError: A fold does not exist, or no case is left.
        """
        return self.part(self.dataset.select(folds=folds, exclude_fold=exclude_fold))

    def part(self, dataset: PreparedDataset) -> PreparedStore:
        """Return a store of some of the cases of the same folder, which shares the cache."""
        return PreparedStore(dataset, memory=self._memory)

    def __len__(self) -> int:
        return len(self.cases)

    def facts(self, index: int) -> CaseFacts:
        """Return shape, spacing, modality and regions of a case, as they were prepared."""
        record = self.cases[index]
        return CaseFacts(record.shape, record.spacing_mm, record.modality, record.regions)

    def label_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` uint8 vocabulary ids of a case, or of a box of it.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.

        Raises:
            PreparationError: The file has another shape than it was prepared with.
            VolumeError: The file cannot be read.
        """
        return self._read(index, "label", np.uint8)[box]

    def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return what the networks are shown of a case, or of a box of it: its label map; see :meth:`label_map`.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """
        return self.label_map(index, box)

    def noise(self, index: int) -> None:
        """Return None, because the noise of a patient's image is unknown."""

    def image_hu(self, index: int, box: Box = ()) -> NDArray[np.int16]:
        """Return ``(I, J, K)`` int16 HU of a case, or of a box of it; raises as :meth:`label_map` does.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """
        return self._read(index, "image", np.int16)[box]

    def encode(
        self,
        autoencoder: nn.Module,
        *,
        weights_hash: str,
        device: str,
        scale_factor: float | None = None,
        deviation: float | None = None,
        report: Report = report_nothing,
    ) -> LatentSet:
        """Encode every case of the folder once; latents are kept in the folder under the hash of what they depend on.

        Args:
            autoencoder: Autoencoder in evaluation mode, on ``device``.
            weights_hash: SHA-256 of the autoencoder's weights.
            device: Device for encoding.
            scale_factor: Scale factor of the bundle whose diffusion model will read the latents; or ``deviation``.
            deviation: Standard deviation of scaled latents, from which the scale factor is computed.
            report: Progress callback, called with (cases done, cases in all).

        Raises:
            TrainingError: Neither or both of scale factor and deviation are given.
        """
        if (scale_factor is None) == (deviation is None):
            raise TrainingError(
                "Latents: needs either a scale factor or a deviation, found "
                f"{'neither' if scale_factor is None else 'both'}. Give the bundle's scale factor for fine-tuning."
            )
        folder = self.dataset.path / LATENTS_FOLDER / weights_hash[:12]
        # The hash covers the header too, so that it changes with the grid.
        paths = [folder / f"{record.id}.{record.image_sha256[:12]}.npy" for record in self.cases]
        encoder = Encoder(autoencoder)
        latents = load_or_encode(
            paths, lambda index: encode_image(self.image_hu(index), encoder, device), report=report
        )
        if deviation is not None:
            scale_factor = measure_scale_factor(latents, deviation)
        assert scale_factor is not None
        return LatentSet(latents, scale_factor)

    def _read(self, index: int, role: Literal["image", "label"], kind: type[np.generic]) -> NDArray[Any]:
        record = self.cases[index]
        load = load_image if role == "image" else load_label_map

        def read() -> NDArray[Any]:
            array = load(self.dataset.file_of(role, record.id)).array
            if array.shape != record.shape:
                raise PreparationError(
                    f"{self.dataset.path}, case {record.id}: was prepared with the shape {record.shape}, found "
                    f"{array.shape}. Prepare the data again."
                )
            return array.astype(kind)

        return self._memory.get((role, record.id), read)
