"""Sources of a recipe's training cases: phantoms, built here, or a prepared folder of real ones.

Both have a ``description`` for the bundle, ``slots`` of labels that MAISI's vocabulary lacks, an ``identity`` that a
folder keeps to, and a ``shape``; ``open`` gives training and held-out cases, ``encode`` their latents, scaled alike.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from maisi_aug.bundle_spec.bundle import SlotSpec
from maisi_aug.errors import TrainingError
from maisi_aug.system.progress import Report
from maisi_aug.training.cases.data import CaseStore, LatentSet, PhantomStore, encode_store
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.images.checks import require_fitting_data
from maisi_aug.training.images.recipe import PhantomData, PreparedData, TrainingRecipe


class PhantomSource:
    """Training data of a recipe: phantoms, built in the run's own folder."""

    def __init__(self, recipe: TrainingRecipe, data: PhantomData, folder: Path) -> None:
        self.data = data
        self.folder = folder
        grid = recipe.bundle.grid
        self.shape = grid.shape
        self.store = PhantomStore(
            folder,
            seed=data.seed,
            shape=grid.shape,
            spacing_mm=grid.spacing_mm,
            zoom_range=data.zoom_range,
            completes=recipe.bundle.unlabelled == "complete",
        )

    @property
    def description(self) -> str:
        """Number and seed of the phantoms, as text."""
        return f"{self.data.num_phantoms} procedural phantoms, seed {self.data.seed}"

    @property
    def slots(self) -> dict[str, SlotSpec]:
        """Always empty, because the recipe's bundle names all labels of phantoms."""
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that identify the data: the seed, because a phantom does not depend on their number."""
        return {"data.seed": self.data.seed}

    def open(self, report: Report) -> tuple[CaseStore, CaseStore | None]:
        """Build missing phantoms, and return training cases and no held-out cases."""
        self.store.ensure(self.data.num_phantoms, report=report)
        return self.store, None

    def encode(
        self, autoencoder: nn.Module, *, weights_hash: str, deviation: float, device: str, report: Report
    ) -> tuple[LatentSet, LatentSet | None]:
        """Encode the phantoms, and return their latents and no held-out latents; see :func:`encode_store`.

        Args:
            autoencoder: Autoencoder in evaluation mode, on ``device``.
            weights_hash: SHA-256 of its weights.
            deviation: Standard deviation of scaled latents.
            device: Name of the torch device.
            report: Progress callback, called with (cases done, cases in all).

        Returns:
            Latents of all phantoms, and None.
        """
        latents = encode_store(
            self.store,
            autoencoder,
            self.folder,
            weights_hash=weights_hash,
            deviation=deviation,
            device=device,
            report=report,
        )
        return latents, None


class PreparedSource:
    """Training data of a recipe: a prepared folder, of which one fold may be held out.

    Raises:
        PreparationError: The folder is not a prepared one, or lacks the fold.
        TrainingError: There is only one patient, who cannot be both trained on and held out.
    """

    def __init__(self, data: PreparedData) -> None:
        self.data = data
        cases = PreparedStore.from_folder(data.prepared)
        patients = {case.patient for case in cases.cases}
        if data.validation_fold is not None and len(patients) < 2:
            raise TrainingError(
                f"{data.prepared}: needs at least two patients to hold a fold out, found {len(patients)}. Add "
                "patients, or leave validation_fold and validation_steps out."
            )
        self.training = cases.select(exclude_fold=data.validation_fold)
        fold = data.validation_fold
        self.held_out = None if fold is None else cases.select(folds=[fold])
        self.shape = cases.spec.grid.shape

    @property
    def description(self) -> str:
        """Number of cases and held-out fold, as text."""
        held_out = "" if self.held_out is None else f", fold {self.data.validation_fold} held out"
        return f"{len(self.training)} cases of {self.training.spec.name}{held_out}"

    @property
    def slots(self) -> dict[str, SlotSpec]:
        """Label names that the preparation bound to free ids."""
        labels = self.training.spec.new_labels
        return {name: SlotSpec(id=label.id, hosts=label.hosts) for name, label in labels.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """JSON values that identify the data: a hash over the files' hashes, so that the folder may be moved."""
        digest = hashlib.sha256()
        for case in self.training.cases:
            digest.update(f"{case.image_sha256} {case.label_sha256}\n".encode())
        return {"data.cases": digest.hexdigest(), "data.validation_fold": self.data.validation_fold}

    def open(self, report: Report) -> tuple[CaseStore, CaseStore | None]:
        """Return training cases and held-out cases (None without a held-out fold); arrays are read when needed."""
        return self.training, self.held_out

    def encode(
        self, autoencoder: nn.Module, *, weights_hash: str, deviation: float, device: str, report: Report
    ) -> tuple[LatentSet, LatentSet | None]:
        """Encode the cases, and return latents of training and held-out cases, with the scale factor of the former.

        Args:
            autoencoder: Autoencoder in evaluation mode, on ``device``.
            weights_hash: SHA-256 of its weights.
            deviation: Standard deviation of scaled latents.
            device: Name of the torch device.
            report: Progress callback, called with (cases done, cases in all).

        Returns:
            Latents of the cases to train on, and of the held-out ones; None for those without a held-out fold.
        """
        latents = self.training.encode(
            autoencoder, weights_hash=weights_hash, deviation=deviation, device=device, report=report
        )
        if self.held_out is None:
            return latents, None
        held_out = self.held_out.encode(
            autoencoder, weights_hash=weights_hash, scale_factor=latents.scale_factor, device=device, report=report
        )
        return latents, held_out


def open_source(recipe: TrainingRecipe, folder: Path) -> PhantomSource | PreparedSource:
    """Open the training data that a recipe names.

    Args:
        recipe: Recipe of the training.
        folder: Folder of the run, where phantoms are built.

    Raises:
        PreparationError: The prepared folder cannot be read.
        TrainingError: A fold is to be held out of a single patient, or the cases' grid does not suit the recipe.
    """
    if isinstance(recipe.data, PhantomData):
        return PhantomSource(recipe, recipe.data, folder)
    source = PreparedSource(recipe.data)
    require_fitting_data(recipe, source.training.spec.grid, recipe.data.prepared)
    return source
