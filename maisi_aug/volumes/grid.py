"""Geometry of a volume: shape and affine, nothing else.

Convention: every array inside the package has axes ``I J K`` that run along R, A and S (RAS+, millimetres). The affine
maps voxel indices to scanner millimetres and may be oblique; its columns are the steps of the three axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import GridError

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

STRAIGHT_VOXELS = 0.01
"""Largest deviation, in voxels, at which axes count as perpendicular."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and voxel-to-world affine of a volume.

    Attributes:
        shape: Number of voxels along I, J, K.
        affine: ``(4, 4)`` float64 matrix from voxel index to RAS+ millimetres; not to be modified.
    """

    shape: Shape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(side) for side in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise GridError(f"Grid shape: expected three positive sides, found {self.shape}.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GridError(f"Grid affine: expected an invertible 4x4 matrix, found {affine.tolist()}.")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(cls, shape: Shape, spacing_mm: Spacing) -> Grid:
        """Return an axis-aligned RAS+ grid that is centred on the world origin.

        Args:
            shape: Number of voxels along I, J, K.
            spacing_mm: Voxel sides along I, J, K in mm.

        Raises:
            GridError: A side or a step is not positive.
        """
        affine = np.diag([*spacing_mm, 1.0]).astype(np.float64)
        affine[:3, 3] = -0.5 * (np.asarray(shape) - 1) * np.asarray(spacing_mm)
        return cls(shape, affine)

    @cached_property
    def spacing_mm(self) -> Spacing:
        """Voxel side lengths along I, J, K in millimetres."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @cached_property
    def has_right_angles(self) -> bool:
        """Whether the axes are orthogonal, as ITK, a qform and DICOM require.

        Round-off in headers, up to a hundredth of a voxel at the far end of an axis, is allowed.
        """
        steps, sides = np.asarray(self.spacing_mm), np.asarray(self.shape) - 1
        directions = self.affine[:3, :3] / steps
        cosines = np.abs(directions.T @ directions - np.diag((directions**2).sum(axis=0)))
        # How far walking along one axis leads along another one, in voxels of that one.
        drift = cosines * (sides * steps)[None, :] / steps[:, None]
        return bool(drift.max() <= STRAIGHT_VOXELS)

    @property
    def extent_mm(self) -> Spacing:
        """Field of view along I, J, K in millimetres."""
        i, j, k = (side * step for side, step in zip(self.shape, self.spacing_mm, strict=True))
        return (i, j, k)

    def cut(self, first: Sequence[float] | NDArray[Any], shape: Sequence[int]) -> Grid:
        """Return a grid with the same voxels, which begins at another voxel; it may reach beyond this grid.

        Args:
            first: Index of its first voxel in this grid, along I, J, K; may be negative or fractional.
            shape: Its number of voxels along I, J, K.
        """
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(first)
        i, j, k = (int(side) for side in shape)
        return Grid((i, j, k), affine)

    def cut_to(self, box: Sequence[slice]) -> Grid:
        """Return the grid of a box of voxels, along I, J, K."""
        return self.cut([part.start for part in box], [part.stop - part.start for part in box])

    def divided_into(self, shape: Shape) -> Grid:
        """Return the grid with the same field of view and another number of voxels along I, J, K."""
        factors = np.asarray(self.shape) / np.asarray(shape)
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = np.diag(factors), (factors - 1) / 2
        return Grid(shape, self.affine @ step)

    def with_voxels_of(self, spacing_mm: float) -> Grid:
        """Return the grid with the same field of view and isotropic voxels of about the given side in mm."""
        i, j, k = (max(1, round(extent / spacing_mm)) for extent in self.extent_mm)
        return self.divided_into((i, j, k))

    def is_close(self, other: Grid, *, tolerance_mm: float = 1e-3) -> bool:
        """Whether another grid has the same shape and about the same affine.

        Args:
            other: The other grid.
            tolerance_mm: Largest difference of any entry of the affines, in mm.
        """
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, rtol=0, atol=tolerance_mm))

    def require_shape_of(self, array: NDArray[Any], *, subject: str) -> None:
        """Raise unless an array has the grid's shape.

        Args:
            array: Array of any type, one value per voxel.
            subject: Name of the array in the message.

        Raises:
            GridError: The array has another shape.
        """
        if array.shape != self.shape:
            raise GridError(
                f"{subject}: expected the grid's shape {self.shape}, found {array.shape}. Pass its own grid."
            )

    def require_multiple_of(self, factor: int, *, subject: str) -> None:
        """Raise unless every side is a multiple of a number.

        Args:
            factor: Number of voxels, at least 1.
            subject: Name of the grid in the message.

        Raises:
            GridError: The message names the sides and the nearest suitable shape.
        """
        if any(side % factor for side in self.shape):
            nearest = tuple(max(factor, round(side / factor) * factor) for side in self.shape)
            raise GridError(
                f"{subject}: expected sides that are multiples of {factor}, found "
                f"{'x'.join(map(str, self.shape))}. Use {'x'.join(map(str, nearest))}."
            )


def voxel_volume_ml(spacing_mm: Sequence[float]) -> float:
    """Return the volume in mL of a voxel, from its three orthogonal sides in mm."""
    return float(np.prod(np.asarray(spacing_mm, dtype=np.float64))) / 1000.0


def spell_grid(shape: Sequence[int], spacing_mm: Sequence[float], *, with_extent: bool = True) -> str:
    """Describe a grid in words, such as ``512x512x128 at 0.75x0.75x4 mm (384x384x512 mm)``.

    Args:
        shape: Number of voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        with_extent: Whether to add the field of view in parentheses.
    """
    extent = "x".join(f"{side * step:.0f}" for side, step in zip(shape, spacing_mm, strict=True))
    words = f"{'x'.join(map(str, shape))} at {'x'.join(f'{step:.4g}' for step in spacing_mm)} mm"
    return f"{words} ({extent} mm)" if with_extent else words
