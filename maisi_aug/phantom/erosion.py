"""Erosion of masks by whole layers of voxels: walls, cortex and skin of a known thickness on any grid.

Where a mask is cut by the border of the grid nothing is eroded, because the organ goes on there.
"""

from __future__ import annotations

import numpy as np

from maisi_aug.volumes.components import Mask
from maisi_aug.volumes.grid import Spacing


def eroded(mask: Mask) -> Mask:
    """Return the voxels whose six neighbours all belong to a mask; the grid's border does not count as outside."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    inner[:, :, 1:] &= mask[:, :, :-1]
    inner[:, :, :-1] &= mask[:, :, 1:]
    return inner


def layers(thickness_mm: float, spacing_mm: Spacing) -> int:
    """Return how many voxels a layer takes; 0 where voxels are more than twice as thick.

    Args:
        thickness_mm: Thickness of the layer in mm.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    share = thickness_mm / float(np.cbrt(np.prod(spacing_mm)))
    return round(share) if share >= 1.5 else int(share >= 0.5)


def inner(mask: Mask, thickness_mm: float, spacing_mm: Spacing) -> Mask:
    """Return a mask without its outer layer.

    Args:
        mask: ``(I, J, K)`` mask; the grid's border does not count as outside.
        thickness_mm: Thickness of the layer in mm.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    for _ in range(layers(thickness_mm, spacing_mm)):
        mask = eroded(mask)
    return mask
