"""The ten sizes of a label map, measured as generation tells them to the mask networks. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maisi_aug.networks.mask_conditions import ABSENT, CONDITION_IDS, SIZED_ORGANS, SIZED_TUMORS
from maisi_aug.networks.mask_decoding import class_ids
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.whole_files import open_whole
from maisi_aug.training.masks.label_maps import Classes, LabelMaps
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.sizes import reference_distribution
from maisi_aug.volumes.components import label_parts

NUM_DIGITS = 4


@dataclass(frozen=True, eq=False)
class MapFigures:
    """Voxels per class and volumes of a set of label maps.

    Attributes:
        counts: ``(N, 125)`` number of voxels per class.
        volumes_ml: ``(N, 10)`` volumes in mL in the order of ``CONDITION_IDS``: of organs the whole, of tumours the
            largest connected one, because percentiles refer to the largest tumour of a patient.
    """

    counts: NDArray[np.int64]
    volumes_ml: NDArray[np.float64]

    def to_sizes(self, organ_volumes_ml: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
        """Return the size conditions of the maps.

        An organ's size is its rank among the training maps that have it, in [0, 1]. A tumour's is its percentile in the
        package's size reference, which generation uses to convert the requested volume. Absent labels are -1.

        Args:
            organ_volumes_ml: For each of ``SIZED_ORGANS``, its volumes in the training maps, ascending.

        Returns:
            ``(N, 10)`` float32.
        """
        sizes = np.full(self.volumes_ml.shape, ABSENT, dtype=np.float32)
        for row, volumes in enumerate(self.volumes_ml):
            for place, label_id in enumerate(CONDITION_IDS):
                if volumes[place] > 0 and label_id in SIZED_ORGANS:
                    sizes[row, place] = _rank(organ_volumes_ml[place], volumes[place])
                elif volumes[place] > 0:
                    sizes[row, place] = reference_distribution(MAISI.name_of(label_id)).percentile(volumes[place])
        return np.round(sizes, NUM_DIGITS)

    def organ_volumes_ml(self) -> list[NDArray[np.float64]]:
        """Return, for each of ``SIZED_ORGANS``, its volumes in mL in the maps that have it, ascending."""
        columns = self.volumes_ml.T[: len(SIZED_ORGANS)]
        return [np.sort(column[column > 0]) for column in columns]


def _rank(ascending: NDArray[np.float64], volume_ml: float) -> float:
    """The share of volumes that are smaller, interpolated between neighbours; one half where there is but one."""
    if len(ascending) < 2:
        return 0.5
    return float(np.interp(volume_ml, ascending, np.linspace(0.0, 1.0, len(ascending))))


def measure_maps(maps: LabelMaps, path: Path, *, voxel_ml: float, report: Report = report_nothing) -> MapFigures:
    """Measure voxels and volumes of every label map once, and keep them in a file.

    Args:
        maps: Label maps as classes.
        path: Path of the file, whose name identifies the maps.
        voxel_ml: Volume of a voxel in mL.
        report: Progress callback, called with (maps done, maps in all).
    """
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return MapFigures(stored["counts"], stored["volumes_ml"])
    counts, volumes = [], []
    for index in range(len(maps)):
        counted, measured = measure_map(maps[index], voxel_ml=voxel_ml)
        counts.append(counted)
        volumes.append(measured)
        report(index + 1, len(maps))
    figures = MapFigures(np.stack(counts), np.stack(volumes))
    with open_whole(path) as file:
        np.savez(file, counts=figures.counts, volumes_ml=figures.volumes_ml)
    return figures


def measure_map(classes: Classes, *, voxel_ml: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ``(125,)`` voxels per class and ``(10,)`` volumes in mL of one map, see :class:`MapFigures`.

    Args:
        classes: ``(I, J, K)`` classes of the mask networks.
        voxel_ml: Volume of a voxel in mL.
    """
    ids = class_ids()
    counts = np.bincount(classes.ravel(), minlength=len(ids)).astype(np.int64)
    volumes = np.zeros(len(CONDITION_IDS))
    for place, label_id in enumerate(CONDITION_IDS):
        number = int(np.flatnonzero(ids == label_id)[0])
        num_voxels = counts[number]
        if num_voxels and label_id in SIZED_TUMORS:
            parts, _ = label_parts(classes == number)
            num_voxels = np.bincount(parts.ravel())[1:].max()
        volumes[place] = num_voxels * voxel_ml
    return counts, volumes
