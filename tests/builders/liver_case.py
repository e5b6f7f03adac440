"""A small CT of a liver with one round lesion, and its label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Grid

GRID = Grid.from_spacing((44, 40, 36), (2.0, 2.2, 2.5))
SPACING_MM = GRID.spacing_mm


def build_case(
    *, contrast_hu: float = -40.0, noise_hu: float = 10.0, diameter_mm: float = 20.0, trend_hu: float = 0.0
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A liver at 110 HU in fat, with a round lesion in its middle, noise, and a trend along I."""
    label_map = np.full(GRID.shape, 200, dtype=np.uint8)
    label_map[6:38, 5:35, 4:32] = 1
    index = np.moveaxis(np.indices(GRID.shape), 0, -1)
    steps_mm = (index - np.array([22, 20, 18])) * SPACING_MM
    label_map[np.linalg.norm(steps_mm, axis=-1) <= diameter_mm / 2] = 26
    image = np.where(label_map == 200, -90.0, 110.0) + np.where(label_map == 26, contrast_hu, 0.0)
    image += trend_hu * (index[..., 0] - 22)
    image += np.random.default_rng(0).normal(0, noise_hu, GRID.shape)
    return np.rint(image).astype(np.int16), label_map
