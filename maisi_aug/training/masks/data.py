"""Label maps for mask networks: phantoms, a bank, or a prepared folder; training and held-out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.entry import Needs
from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import cut_map
from maisi_aug.errors import TrainingError
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.training.cases.data import Memory, PhantomStore, read_array
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.masks.label_maps import (
    ClassMaps,
    LabelMaps,
    ReadMaps,
    store_maps,
)
from maisi_aug.training.masks.recipe import MaskTrainingRecipe
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, Vocabulary
from maisi_aug.volumes.grid import Grid, spell_grid

HELD_OUT_SHARE = 5
"""At most one in this many of the user's own maps is held out."""


@dataclass(frozen=True, eq=False)
class MaskSplit:
    """Label maps as classes, split into training and held-out maps.

    Attributes:
        training: Maps to train on.
        held_out: Maps for validation only.
        key: Hash that identifies the maps.
        origin: Origin of the maps, for the bundle's provenance.
    """

    training: ClassMaps
    held_out: ClassMaps
    key: str
    origin: str


def open_phantoms(recipe: MaskTrainingRecipe, folder: Path, *, report: Report = report_nothing) -> MaskSplit:
    """Build the missing phantoms of a recipe, and return their label maps.

    Phantom ``i`` depends only on the seed and on ``i``; held-out phantoms derive from another seed.

    Args:
        recipe: Recipe of the training.
        folder: Folder of the phantoms.
        report: Progress callback, called with (phantoms done, phantoms in all).
    """
    data, grid = recipe.data, recipe.grid

    def build(seed: int, num_phantoms: int) -> ClassMaps:
        memory = Memory(0)  # classes are kept in place of ids
        store = PhantomStore(folder, seed=seed, shape=grid.shape, spacing_mm=grid.spacing_mm, memory=memory)
        store.ensure(num_phantoms, report=report)
        return ClassMaps(ReadMaps(len(store), store.label_map), FULL_VOCABULARY)

    training = build(data.seed, data.num_phantoms)
    held_out = build(derive_seed("held-out phantoms", data.seed), data.num_held_out)
    key = hash_of(["phantoms", data.seed, data.num_phantoms, data.num_held_out, grid.model_dump(mode="json")])
    return MaskSplit(training, held_out, key, f"{data.num_phantoms} procedural phantoms, seed {data.seed}")


def open_bank(
    recipe: MaskTrainingRecipe, bank: FolderBank, folder: Path, *, report: Report = report_nothing
) -> MaskSplit:
    """Cut every map of a bank once to the recipe's grid, with the volumes of its lesions kept, and store the cuts.

    A bank whose files have other names or sizes, or whose ids mean something else, counts as another bank. Maps that
    cannot be used are left out, see ``bank.skipped``. Every map counts as a patient of its own.

    Args:
        recipe: Recipe of the training.
        bank: Label maps of the user.
        folder: Folder of the cuts.
        report: Progress callback, called with (maps done, maps in all).

    Raises:
        BankError: No map can be used.
        TrainingError: Only one map can be used.
    """
    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    indices = sorted(bank.order(recipe.data.seed, Needs()))
    key = hash_of([bank.name, bank.digest, recipe.data.seed, recipe.grid.model_dump(mode="json")])
    store = folder / f"maps-{key}"

    def cut(index: int) -> NDArray[np.uint8] | None:
        bank_map = bank.load(index)
        if bank_map is None:
            return None
        rng = numpy_generator(recipe.data.seed, f"training cut {index}")
        return cut_map(bank_map, grid, [], rng=rng, keep_ids=bank.vocabulary.tumor_ids).label_map

    usable = store_maps(store, [f"{index:05d}" for index in indices], lambda place: cut(indices[place]), report=report)
    names = [key, *(path.stem for path in usable)]
    maps = ReadMaps(len(usable), lambda index: read_array(usable[index], "label_map"))
    return _split(maps, names, recipe, bank.vocabulary, f"{len(usable)} maps of {bank.name}")


def open_prepared(recipe: MaskTrainingRecipe, store: PreparedStore) -> MaskSplit:
    """Return the label maps of a prepared folder, of which the first fold is held out.

    Args:
        recipe: Recipe with its grid.
        store: Prepared cases.

    Returns:
        Label maps to train on, and the held-out ones.

    Raises:
        TrainingError: The grid is not the recipe's, or there is only one fold.
    """
    grid = recipe.grid
    for record in store.cases:
        if record.shape != grid.shape or not np.allclose(record.spacing_mm, grid.spacing_mm, rtol=1e-3):
            raise TrainingError(
                f"{store.dataset.path}, case {record.id}: expected the recipe's grid, "
                f"{spell_grid(grid.shape, grid.spacing_mm)}, found {spell_grid(record.shape, record.spacing_mm)}. "
                "Prepare the data with that grid, or change the recipe's."
            )
    folds = sorted({record.fold for record in store.cases})
    if len(folds) < 2:
        raise TrainingError(
            f"{store.dataset.path}: needs cases in at least two folds, one of them held out, found {len(folds)}. "
            "Prepare more cases."
        )
    parts = [store.select(exclude_fold=folds[0]), store.select(folds=[folds[0]])]
    # Folds too: latents are kept by number, and cases that were trained on must never come to be held out.
    rows = [[record.id, record.label_sha256, record.fold == folds[0]] for record in store.cases]
    key = hash_of([store.dataset.path.name, *rows])
    training, held_out = (ClassMaps(ReadMaps(len(part), part.label_map), store.vocabulary) for part in parts)
    return MaskSplit(training, held_out, key, f"{len(parts[0])} prepared cases of {store.dataset.path.name}")


def _split(
    maps: LabelMaps, names: list[str], recipe: MaskTrainingRecipe, vocabulary: Vocabulary, origin: str
) -> MaskSplit:
    if len(maps) < 2:
        raise TrainingError(
            f"Label maps for training: at least two are needed, one of them held out, found {len(maps)}. Add maps."
        )
    order = numpy_generator(recipe.data.seed, "held-out maps").permutation(len(maps)).tolist()
    num_held_out = max(1, min(recipe.data.num_held_out, len(maps) // HELD_OUT_SHARE))

    def pick(indices: list[int]) -> ClassMaps:
        return ClassMaps(ReadMaps(len(indices), lambda index: maps[indices[index]]), vocabulary)

    held_out, training = pick(sorted(order[:num_held_out])), pick(sorted(order[num_held_out:]))
    key = hash_of([origin, names, recipe.data.seed, num_held_out, recipe.grid.model_dump(mode="json")])
    return MaskSplit(training, held_out, key, origin)


def hash_of(parts: list[object]) -> str:
    """Return a short hash of JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
