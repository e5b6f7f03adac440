"""Condition maps: label maps in which every voxel is anatomy, for networks of bundles with ``unlabelled: complete``.

The networks then see fat, muscle and the cortex of bones as labels, and the contrast phase as ids, whatever a user's
map leaves out. Label maps on disk stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom.completion import complete_anatomy
from maisi_aug.phantom.detail import draw_detail
from maisi_aug.phantom.intensity import Phase
from maisi_aug.phantom.phases import condition_seed, phase_for, with_phase
from maisi_aug.volumes.grid import Grid


@dataclass(frozen=True, eq=False)
class CompletedMap:
    """A label map that was completed, and what its hidden structure is drawn from.

    Attributes:
        label_map: ``(I, J, K)`` completed vocabulary ids.
        tissue: ``(I, J, K)`` tissue ids under label 200.
        grid: Shape and affine of both.
        seed: Seed of the hidden structure and of the contrast phase.
    """

    label_map: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    grid: Grid
    seed: int

    def to_condition(
        self, modality: str, label_map: NDArray[np.uint8] | None = None, *, phase: Phase | None = None
    ) -> NDArray[np.uint8]:
        """Return what networks are conditioned on.

        Args:
            modality: Modality of the image, which decides whether there is contrast agent.
            label_map: ``(I, J, K)`` labels of the same patient, such as without lesions; the completed ones by default.
            phase: Contrast phase; drawn from the seed by the modality when None.

        Returns:
            A new ``(I, J, K)`` uint8 map of vocabulary ids, ``ids.DETAIL_IDS`` and the spare ids of ``phases``.
        """
        labels = self.label_map if label_map is None else label_map
        detail = draw_detail(labels, self.tissue, seed=self.seed, grid=self.grid)
        return with_phase(detail, phase or phase_for(modality, self.seed))


def complete_map(
    label_map: NDArray[np.uint8], *, grid: Grid, seed: int, tissue: NDArray[np.uint8] | None = None
) -> CompletedMap:
    """Complete the label map of a case.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids along R, A, S; not modified.
        grid: Grid of the label map.
        seed: Seed of the case's image; the same gives the same map.
        tissue: ``(I, J, K)`` tissue ids under label 200, as phantoms have them; None completes the anatomy.

    Raises:
        GridError: The map does not have the grid's shape, or nothing is labelled in it.
    """
    own = condition_seed(seed)
    if tissue is None:
        label_map, tissue = complete_anatomy(label_map, seed=own, grid=grid)
    return CompletedMap(label_map, tissue, grid, own)


def condition_map(
    label_map: NDArray[np.uint8],
    *,
    grid: Grid,
    seed: int,
    modality: str,
    tissue: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return what the networks are conditioned on: the completed map with hidden structure and the contrast phase.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids along R, A, S; not modified.
        grid: Shape and affine of the label map.
        seed: Seed of the case's image; the same gives the same map.
        modality: Modality of the image, which decides whether there is contrast agent.
        tissue: ``(I, J, K)`` tissue ids under label 200, as phantoms have them; None completes the anatomy.

    Returns:
        A new ``(I, J, K)`` uint8 map; see :meth:`CompletedMap.to_condition`.

    Raises:
        GridError: The map does not have the grid's shape, or nothing is labelled in it.
    """
    return complete_map(label_map, grid=grid, seed=seed, tissue=tissue).to_condition(modality)
