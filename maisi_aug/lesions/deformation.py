"""Smooth fields on a grid: lobes for lesions, and elastic variety for label maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KNOT_SPACING_MM = 40.0
KNOT_DEVIATION_MM = 12.0
MAX_ZOOM = 0.01
MAX_SLAB_VOXELS = 2_000_000
"""Deformation works in slabs of this size, which bounds its memory on full-size grids."""


def deform_label_map(
    label_map: NDArray[np.uint8], *, spacing_mm: Sequence[float], rng: np.random.Generator, strength: float = 1.0
) -> NDArray[np.uint8]:
    """Vary an anatomy by a smooth elastic displacement and a zoom of at most 1%.

    The displacement is a cubic B-spline with knots every 40 mm whose standard deviation is about ``4 mm x strength``.
    Its knots are cut at 0.4 of their spacing, where it cannot fold (Choi & Lee, "Injectivity conditions of 2D and 3D
    uniform cubic B-spline functions", 2000). Voxels from beyond the border repeat the border, so that a body cut by
    the field of view stays cut. A draw that loses a label is repeated at half the strength, four draws at most; then
    the input is returned, as a copy.

    Args:
        label_map: ``(I, J, K)`` label ids; not modified.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        rng: Source of all randomness.
        strength: 0 for none, 1 for the variation named above.
    """
    present = np.bincount(label_map.ravel(), minlength=256) > 0
    for attempt in range(4):
        deformed = _deform(label_map, spacing_mm, rng, strength * 0.5**attempt)
        if ((np.bincount(deformed.ravel(), minlength=256) > 0) | ~present).all():
            return deformed
    return label_map.copy()


def spline_basis(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform cubic B-spline weights ``(len(positions), num_knots)`` at positions >= 0 in knot spacings."""
    cell = np.floor(positions).astype(np.int64)
    t = positions - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    basis = np.zeros((len(positions), int(cell.max(initial=0)) + 4))
    for shift in range(4):
        basis[np.arange(len(positions)), cell + shift] = weights[shift]
    return basis


def spline_field(knots: NDArray[np.float64], bases: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Evaluate ``(A, B, C)`` knots on the product of three axes with bases ``(I, A)``, ``(J, B)``, ``(K, C)``."""
    field: NDArray[np.float64] = np.einsum("abc,kc->abk", knots, bases[2])
    field = np.einsum("abk,jb->ajk", field, bases[1])
    return np.asarray(np.einsum("ajk,ia->ijk", field, bases[0]))


def _deform(
    label_map: NDArray[np.uint8], spacing_mm: Sequence[float], rng: np.random.Generator, strength: float
) -> NDArray[np.uint8]:
    shape, spacing = label_map.shape, np.asarray(spacing_mm, dtype=np.float64)
    bases = [spline_basis(np.arange(n) * step / KNOT_SPACING_MM) for n, step in zip(shape, spacing, strict=True)]
    knots_mm = strength * KNOT_DEVIATION_MM * rng.standard_normal((3, *[basis.shape[1] for basis in bases]))
    knots_mm = np.clip(knots_mm, -0.4 * KNOT_SPACING_MM, 0.4 * KNOT_SPACING_MM)
    zoom = 1.0 + MAX_ZOOM * min(strength, 1.0) * rng.uniform(-1.0, 1.0)
    deformed = np.empty_like(label_map)
    rows = max(1, MAX_SLAB_VOXELS // max(1, shape[1] * shape[2]))
    for first in range(0, shape[0], rows):
        slab = slice(first, min(first + rows, shape[0]))
        source = []
        for axis, side in enumerate(shape):
            index = np.arange(side, dtype=np.float64)
            index = (index - (side - 1) / 2) / zoom + (side - 1) / 2
            index = index[slab] if axis == 0 else index
            moved = spline_field(knots_mm[axis], [bases[0][slab], bases[1], bases[2]]) / spacing[axis]
            moved += index.reshape([-1 if other == axis else 1 for other in range(3)])
            source.append(np.clip(np.rint(moved), 0, side - 1).astype(np.int32))
        deformed[slab] = label_map[source[0], source[1], source[2]]
    return deformed
