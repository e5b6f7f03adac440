"""What the scanner does to the picture: blur by the reconstruction kernel, and noise whose grain agrees with it.

Both are described in millimetres, as on the scanner's own fine pixels, and carried to the voxels of the grid, which
average over their size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from maisi_aug.phantom.intensity import Appearance
from maisi_aug.phantom.noise import F32
from maisi_aug.volumes.grid import Spacing

PIXEL_MM: Final = 0.75  # the pixel at which an appearance's noise is meant
_BOX: Final = 0.29  # standard deviation of a box of side 1: 1 / sqrt(12)
_RESAMPLED: Final = 0.40  # blur of edges in voxels: a voxel averages over its size
_RESAMPLED_GRAIN: Final = 0.30  # and of noise
# Standard deviation in the slice in mm at the softest kernel, and by how much it is less at the sharpest: of edges, and
# of the grain of noise.
_EDGE_MM: Final = (0.85, 0.45)
_GRAIN_MM: Final = (0.75, 0.40)


def blur_voxels(appearance: Appearance, spacing_mm: Spacing) -> tuple[float, float, float]:
    """Return the standard deviation of the scan's blur along I, J, K in voxels.

    Args:
        appearance: Kernel and slice thickness of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    plane = _EDGE_MM[0] - _EDGE_MM[1] * appearance.sharpness
    mm = (plane, plane, _BOX * appearance.slice_mm)
    i, j, k = (float(np.hypot(own, _RESAMPLED * step) / step) for own, step in zip(mm, spacing_mm, strict=True))
    return i, j, k


def noise_level_hu(appearance: Appearance, spacing_mm: Spacing) -> float:
    """Return the standard deviation of the noise on a grid: larger voxels average more of it away.

    Args:
        appearance: Kernel, slice thickness and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    grain = _grain_mm(appearance)
    level = appearance.noise_hu
    for own, pixel, step in zip(grain, (PIXEL_MM, PIXEL_MM, appearance.slice_mm), spacing_mm, strict=True):
        level *= float(np.sqrt(np.hypot(own, _BOX * pixel) / np.hypot(own, _BOX * max(step, pixel))))
    return level


def _grain_mm(appearance: Appearance) -> Spacing:
    """Standard deviation along I, J, K of the filter that makes the scanner's noise from white noise."""
    plane = _GRAIN_MM[0] - _GRAIN_MM[1] * appearance.sharpness
    return plane, plane, _BOX * appearance.slice_mm


def draw_noise(
    shape: tuple[int, int, int], appearance: Appearance, spacing_mm: Spacing, rng: np.random.Generator
) -> F32:
    """Draw the noise of a scan.

    Args:
        shape: Voxels along I, J, K.
        appearance: Kernel, slice thickness and noise of the scan.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.

    Returns:
        ``(I, J, K)`` float32 HU of zero mean.
    """
    white = rng.standard_normal(shape, dtype=np.float32)
    sigma = [
        float(np.hypot(own, _RESAMPLED_GRAIN * step) / step)
        for own, step in zip(_grain_mm(appearance), spacing_mm, strict=True)
    ]
    noise: F32 = ndimage.gaussian_filter(white, sigma, truncate=2.5)
    noise *= np.float32(noise_level_hu(appearance, spacing_mm) / max(float(noise.std()), 1e-6))
    return noise
