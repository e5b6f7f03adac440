"""Volumes whose voxel axes are not at right angles, as of a tilted gantry, brought to a grid that all tools hold.

ITK, nnU-Net's first reader, qforms and DICOM hold orthogonal axes only; nibabel's affine holds a shear. A sheared
volume is resampled: the two axes that are closest to a right angle stay, so that every slice of a tilted scan keeps its
plane and is moved within it, and the third runs along their normal.
"""

from __future__ import annotations

from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Grid, Shape
from maisi_aug.volumes.resampling import DECIMALS, interpolate_image, resample_label_map

Scalar = TypeVar("Scalar", bound=np.generic)

AIR_HU = -1000.0
_PAIRS = ((0, 1), (0, 2), (1, 2))


def right_angled_grid(grid: Grid) -> Grid:
    """The orthogonal grid that covers all voxel centres of a sheared one.

    Its spacing in the plane that stays is the sheared grid's, and along the normal the distance of its slices. Voxel
    ``(0, 0, 0)`` of the sheared grid is a voxel of it, too. The same voxels stored in another order give the same
    grid, as long as both are turned to the closest RAS+ first.

    Args:
        grid: Any grid; one at right angles is handed back.

    Raises:
        GridError: The axes lie in one plane.
    """
    if grid.has_right_angles:
        return grid
    first, second, normal = _choose_plane(grid)
    axes = grid.affine[:3, :3]
    unit = axes / np.asarray(grid.spacing_mm)
    # The orthonormal pair closest to the two axes, whichever comes first (Loewdin 1950, symmetric orthogonalisation).
    left, _, right = np.linalg.svd(unit[:, [first, second]], full_matrices=False)
    directions = np.zeros((3, 3))
    directions[:, [first, second]] = left @ right
    across = np.cross(directions[:, first], directions[:, second])
    directions[:, normal] = across * np.sign(across @ axes[:, normal])
    steps = np.asarray(grid.spacing_mm).copy()
    steps[normal] = abs(across @ axes[:, normal])
    corners = np.array(list(product(*((0, side - 1) for side in grid.shape)))) @ axes.T
    reach = np.round(corners @ directions / steps, DECIMALS - 2)
    low, high = np.floor(reach.min(axis=0)), np.ceil(reach.max(axis=0))
    affine = np.eye(4)
    affine[:3, :3] = directions * steps
    affine[:3, 3] = grid.affine[:3, 3] + affine[:3, :3] @ low
    i, j, k = (int(side) + 1 for side in high - low)
    shape: Shape = (i, j, k)
    return Grid(shape, affine)


def straighten_image(image: NDArray[Scalar], source: Grid, target: Grid) -> NDArray[Scalar]:
    """An image in HU on a grid at right angles, interpolated linearly; beyond its voxels is air.

    Args:
        image: ``(I, J, K)`` on the sheared grid; not modified.
        source: The sheared grid.
        target: Its :func:`right_angled_grid`.

    Returns:
        Values on the target, of the image's dtype. An image without anything as dark as air gets its own lowest value
        there, so that what is no CT in HU is not taken for one.
    """
    fill = max(float(image.min()), AIR_HU)
    return interpolate_image(image, source, target, fill=fill)


def straighten_label_map(label_map: NDArray[Scalar], source: Grid, target: Grid) -> NDArray[Scalar]:
    """A label map on a grid at right angles, by the nearest label; beyond its voxels is background."""
    return resample_label_map(label_map, source, target)


def describe_shear(grid: Grid) -> str:
    """How far the axes are from right angles, in words: ``axes that meet at 74.9 degrees``."""
    unit = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    cosine = max(abs(float(unit[:, a] @ unit[:, b])) for a, b in _PAIRS)
    return f"axes that meet at {np.rad2deg(np.arccos(min(cosine, 1.0))):.4g} degrees"


def _choose_plane(grid: Grid) -> tuple[int, int, int]:
    """The two axes that stay and the one that gives way; of equals the longest step gives way."""
    unit: NDArray[Any] = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    best = min(
        _PAIRS, key=lambda pair: (round(abs(float(unit[:, pair[0]] @ unit[:, pair[1]])), 5), -_third_step(grid, pair))
    )
    return (*best, 3 - sum(best))


def _third_step(grid: Grid, pair: tuple[int, int]) -> float:
    return round(grid.spacing_mm[3 - sum(pair)], 4)
