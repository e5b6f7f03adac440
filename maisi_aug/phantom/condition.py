"""Condition maps: label maps in which every voxel is anatomy, for networks of bundles that say ``unlabelled: complete``.

The networks then see fat, muscle and bone's cortex as labels, and the contrast phase as ids, whatever a user's map
leaves out. Label maps on disk stay as they are.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom.completion import complete_anatomy
from maisi_aug.phantom.detail import draw_detail
from maisi_aug.phantom.phases import phase_for, with_phase
from maisi_aug.system.seeds import derive_seed
from maisi_aug.volumes.grid import Grid

SEED_STREAM: Final = "completion"


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
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        grid: Shape and affine of the label map.
        seed: Seed of the case; the same gives the same map.
        modality: Modality of the image, which decides whether there is contrast agent.
        tissue: ``(I, J, K)`` tissue ids under label 200, as phantoms have them; None completes the anatomy.

    Returns:
        A new ``(I, J, K)`` uint8 map of vocabulary ids, ``ids.DETAIL_IDS`` and the spare ids of ``phases``.

    Raises:
        GridError: The map does not have the grid's shape, or nothing is labelled in it.
    """
    own = condition_seed(seed)
    if tissue is None:
        label_map, tissue = complete_anatomy(label_map, seed=own, grid=grid)
    return with_phase(draw_detail(label_map, tissue, seed=own, grid=grid), phase_for(modality, own))


def condition_seed(seed: int) -> int:
    """Return the seed of what completes a case's map, from the seed of the case."""
    return derive_seed(seed, SEED_STREAM)
