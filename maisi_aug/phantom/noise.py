"""Smooth random fields on a grid, by cubic B-splines on coarse knots: cheap at any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maisi_aug.volumes.grid import Spacing

F32 = NDArray[np.float32]
# Variance of a cubic B-spline field with unit white knots, along one axis (average over the position between knots).
_SPLINE_VARIANCE = 0.48


def spline_basis(coordinates_mm: NDArray[np.float64], *, origin_mm: float, spacing_mm: float, count: int) -> F32:
    """Return ``(n, count)`` weights of uniform cubic B-splines at ``(n,)`` coordinates, clamped at the outer knots.

    Args:
        coordinates_mm: ``(n,)`` positions in mm.
        origin_mm: Position of the first knot in mm.
        spacing_mm: Distance of the knots in mm.
        count: Number of knots.
    """
    position = np.clip((coordinates_mm - origin_mm) / spacing_mm, 1.0, count - 2.001)
    first = np.floor(position).astype(int)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6.0
    basis = np.zeros((coordinates_mm.size, count), dtype=np.float32)
    rows = np.arange(coordinates_mm.size)
    for offset in range(4):
        basis[rows, np.clip(first - 1 + offset, 0, count - 1)] = weights[:, offset]
    return basis


def spread(coefficients: ArrayLike, bases: tuple[F32, F32, F32]) -> F32:
    """Return ``(I, J, K)`` field from coefficients on knots, one axis at a time (cheap: no dense 3D kernel).

    Args:
        coefficients: ``(A, B, C)`` values at the knots.
        bases: For each axis the weights of the knots, ``(I, A)``, ``(J, B)`` and ``(K, C)``; results of
            :func:`spline_basis`.
    """
    field = np.asarray(coefficients, dtype=np.float32)
    field = np.matmul(field, bases[2].T)
    field = np.matmul(bases[1], field)
    result: F32 = np.tensordot(bases[0], field, axes=(1, 0))
    return result


def smooth_noise(shape: tuple[int, ...], spacing_mm: Spacing, rng: np.random.Generator, wavelength_mm: float) -> F32:
    """Return low-frequency noise of zero mean and about unit standard deviation.

    Args:
        shape: Voxels of the field along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of the knots' values.
        wavelength_mm: Knots lie half of it apart; never closer than the voxels.

    Returns:
        ``shape`` float32 field.
    """
    bases, counts = [], []
    for side, step in zip(shape, spacing_mm, strict=True):
        knot_mm = max(0.5 * wavelength_mm, step)
        count = int(np.ceil(max(side - 1, 0) * step / knot_mm)) + 4
        bases.append(
            spline_basis(np.arange(side, dtype=np.float64) * step, origin_mm=-knot_mm, spacing_mm=knot_mm, count=count)
        )
        counts.append(count)
    white = rng.standard_normal(tuple(counts), dtype=np.float32) / np.float32(_SPLINE_VARIANCE**1.5)
    return spread(white, (bases[0], bases[1], bases[2]))
