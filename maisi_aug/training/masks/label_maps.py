"""Label maps to train mask networks on, as classes of MAISI's mask decoder: read, varied, cut into patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from maisi_aug.networks.mask_decoding import class_ids
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.system.whole_files import open_whole
from maisi_aug.training.cases.data import Memory
from maisi_aug.training.masks.recipe import WarpConfig
from maisi_aug.vocabulary.labels import BODY_ID, MAISI, Vocabulary
from maisi_aug.volumes.grid import Shape, Spacing

CACHE_BYTES = 2**30
Classes = NDArray[np.uint8]


class LabelMaps(Protocol):
    """Protocol of label maps of one shape, as classes of MAISI's mask decoder, accessed by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` ids or classes; read-only."""


@cache
def _class_table(removals: tuple[tuple[int, int], ...]) -> NDArray[np.uint8]:
    table = np.full(256, np.flatnonzero(class_ids() == BODY_ID)[0], dtype=np.uint8)
    table[class_ids()] = np.arange(len(class_ids()), dtype=np.uint8)
    for label_id, host in removals:
        table[label_id] = table[host]
    return table


def to_classes(label_map: NDArray[np.uint8], vocabulary: Vocabulary = MAISI) -> Classes:
    """Convert vocabulary ids to the classes of MAISI's mask decoder.

    Labels without a class become their host organ if they have one, as kidney cysts do, otherwise body.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        vocabulary: Vocabulary, which names the hosts of bound slots.

    Returns:
        ``(I, J, K)`` uint8 classes.
    """
    known = set(class_ids().tolist())
    cysts = [(MAISI.id_of(f"{side} kidney cyst"), MAISI.id_of(f"{side} kidney")) for side in ("left", "right")]
    bound = [(label_id, vocabulary.hosts_of(label_id)[0]) for label_id in vocabulary.tumor_ids if label_id not in known]
    classes: Classes = _class_table((*cysts, *bound))[label_map]
    return classes


@cache
def mirrored_classes() -> NDArray[np.uint8]:
    """Return the ``(125,)`` table of the class that each becomes when a patient is mirrored left to right.

    The right middle lobe of the lung has no partner and stays itself.
    """
    ids = class_ids().tolist()
    partners = list(range(len(ids)))
    for number, label_id in enumerate(ids):
        words = MAISI.name_of(label_id).split()
        other = " ".join({"left": "right", "right": "left"}.get(word, word) for word in words)
        named = [label.id for label in MAISI if label.name == other]
        if named and named[0] in ids:
            partners[number] = ids.index(named[0])
    return np.array(partners, dtype=np.uint8)


class ClassMaps:
    """Label maps converted to classes, kept in memory as far as there is room."""

    def __init__(self, maps: LabelMaps, vocabulary: Vocabulary, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._maps = maps
        self._vocabulary = vocabulary
        self._memory = Memory(cache_bytes)

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index: int) -> Classes:
        return self._memory.get(index, lambda: to_classes(self._maps[index], self._vocabulary))


@dataclass(frozen=True)
class ReadMaps:
    """Label maps that are read on request: ``read`` returns each of ``num_maps`` by its number."""

    num_maps: int
    read: Callable[[int], NDArray[np.uint8]]

    def __len__(self) -> int:
        return self.num_maps

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.read(index)


def store_maps(
    folder: Path,
    names: Sequence[str],
    build: Callable[[int], NDArray[np.uint8] | None],
    *,
    report: Report = report_nothing,
) -> list[Path]:
    """Write those of a set of label maps that are not yet in a folder.

    Args:
        folder: Folder that only this program writes to.
        names: Names of the maps.
        build: Function from the number of a map to the map, or to None if it cannot be built.
        report: Progress callback, called with (maps done, maps in all), after those that were built now and after the
            last.

    Returns:
        Files of the maps that could be built, each with the array ``label_map``.
    """
    paths = [folder / f"{name}.npz" for name in names]
    for place, path in enumerate(paths):
        is_there = path.exists()
        label_map = None if is_there else build(place)
        if label_map is not None:
            with open_whole(path) as file:
                np.savez_compressed(file, label_map=label_map)
        if not (is_there and place + 1 < len(paths)):
            report(place + 1, len(paths))
    return [path for path in paths if path.exists()]


@dataclass(frozen=True, eq=False)
class VariedMaps:
    """Several variants of every label map: itself, then slightly rotated, stretched and shifted ones."""

    maps: LabelMaps
    num_variants: int
    warp: WarpConfig
    spacing_mm: Spacing
    seed: int

    def __len__(self) -> int:
        return len(self.maps) * self.num_variants

    def __getitem__(self, index: int) -> Classes:
        number, variant = divmod(index, self.num_variants)
        classes: Classes = self.maps[number]
        if variant == 0:
            return classes
        rng = numpy_generator(self.seed, f"map variant {number} {variant}")
        matrix, shift = draw_warp(self.warp, self.spacing_mm, rng)
        centre = (np.asarray(classes.shape) - 1) / 2
        return take_patch(classes, classes.shape, centre + shift, matrix)


def draw_warp(
    warp: WarpConfig, spacing_mm: Spacing, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a small rotation, stretch and shift for a label map.

    Args:
        warp: Largest rotation, stretch and shift.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Generator of all random draws.

    Returns:
        ``(3, 3)`` matrix from voxel offsets in the varied map to those in the map, and ``(3,)`` shift in voxels.
    """
    matrix = np.diag(1.0 + rng.uniform(-warp.stretch, warp.stretch, 3))
    for axis, angle in enumerate(np.radians(rng.uniform(-warp.degrees, warp.degrees, 3))):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    spacing = np.asarray(spacing_mm)
    shift = rng.uniform(-warp.shift_mm, warp.shift_mm, 3) / spacing
    return matrix * spacing[None, :] / spacing[:, None], shift


def take_patch(classes: Classes, shape: Shape, centre: NDArray[np.float64], matrix: NDArray[np.float64]) -> Classes:
    """Cut a rotated and stretched patch by nearest neighbours; background beyond the map.

    Args:
        classes: ``(I, J, K)`` classes of the map.
        shape: Voxels of the patch along I, J, K.
        centre: Centre of the patch in voxels of the map.
        matrix: ``(3, 3)`` matrix from voxel offsets in the patch to those in the map.
    """
    offsets = [np.arange(side) - (side - 1) / 2 for side in shape]
    inside = np.ones(shape, dtype=bool)
    flat = np.zeros(shape, dtype=np.int64)
    for axis, side in enumerate(classes.shape):
        i, j, k = (step * offset for step, offset in zip(matrix[axis], offsets, strict=True))
        places = np.rint(centre[axis] + i[:, None, None] + j[None, :, None] + k[None, None, :]).astype(np.int64)
        inside &= (places >= 0) & (places < side)
        flat = flat * side + np.clip(places, 0, side - 1)
    patch: Classes = np.where(inside, classes.ravel()[flat], np.uint8(0))
    return patch


def mirror(classes: Classes) -> Classes:
    """Mirror a patch left to right, along the first axis, with left and right labels exchanged."""
    return np.ascontiguousarray(mirrored_classes()[classes[::-1]])
