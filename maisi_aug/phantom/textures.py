"""Texture inside organs and tissues on the image: what varies within one id of the detail map."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.phantom.intensity import Appearance
from maisi_aug.phantom.noise import F32, smooth_noise
from maisi_aug.phantom.shapes import lookup
from maisi_aug.volumes.grid import Spacing

Labels = NDArray[np.uint8]
_LUNG_GRADIENT_HU: Final = 38.0  # from front to back, by gravity


def paint_textures(
    image: F32,
    detail: Labels,
    appearance: Appearance,
    spacing_mm: Spacing,
    rng: np.random.Generator,
) -> None:
    """Add the texture of every tissue to the image of its mean HU.

    Args:
        image: ``(I, J, K)`` HU, painted in place.
        detail: ``(I, J, K)`` detail map.
        appearance: HU and texture of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    image += smooth_noise(image.shape, spacing_mm, rng, 24.0) * appearance.texture_hu[detail]
    _paint_fat(image, detail, spacing_mm, rng)
    _paint_bones(image, detail, spacing_mm, rng)
    lung = lookup(ids.LUNG_LOBES)[detail]
    height = np.linspace(0.5, -0.5, image.shape[1], dtype=np.float32).reshape(1, -1, 1)
    image += np.where(lung, np.float32(_LUNG_GRADIENT_HU) * height, 0)


def _paint_fat(image: F32, detail: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Septa under the skin, and fat between strands."""
    fine = smooth_noise(image.shape, spacing_mm, rng, 15.0)
    ridge = np.exp(-((fine / np.float32(0.20)) ** 2))
    other = smooth_noise(image.shape, spacing_mm, rng, 34.0)
    strands = ridge * np.clip(other + np.float32(0.2), 0, 1.2)
    gain = np.zeros(256, dtype=np.float32)
    gain[ids.VISCERAL_FAT], gain[ids.SUBCUTANEOUS_FAT] = 12, 14
    image += gain[detail] * strands


def _paint_bones(image: F32, detail: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Vary the density of the cortex from place to place."""
    cortex = lookup(ids.CORTICES)[detail]
    if not cortex.any():
        return
    places = smooth_noise(image.shape, spacing_mm, rng, 26.0)[cortex]
    grain = rng.standard_normal(places.size, dtype=np.float32)
    image[cortex] *= np.exp(np.float32(0.22) * places + np.float32(0.12) * grain)
