"""A chest of ellipses with noise and vessels: quick to make, and everything about it is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Spacing

SHAPE = (120, 96, 30)
SPACING_MM: Spacing = (1.6, 1.7, 2.5)
LUNG_HU, TISSUE_HU, NOISE_HU = -850.0, 40.0, 25.0


def build_chest(*, seed: int = 0, with_lungs: bool = True) -> NDArray[np.int16]:
    """A body with two lungs in air, int16 HU."""
    rng = np.random.default_rng(seed)
    i, j, k = (np.arange(side) - (side - 1) / 2 for side in SHAPE)
    x, y, z = np.meshgrid(i * SPACING_MM[0], j * SPACING_MM[1], k * SPACING_MM[2], indexing="ij")
    image = np.full(SHAPE, -1000.0)
    image[(x / 88) ** 2 + (y / 72) ** 2 <= 1] = TISSUE_HU
    if with_lungs:
        for side in (-1, 1):
            image[((x - 40 * side) / 32) ** 2 + (y / 50) ** 2 + (z / 80) ** 2 <= 1] = LUNG_HU
        image[((y - 6) ** 2 + (z - 4) ** 2 <= 2.5**2) & (image == LUNG_HU)] = TISSUE_HU  # a vessel across
    return np.rint(image + NOISE_HU * rng.standard_normal(SHAPE)).astype(np.int16)
