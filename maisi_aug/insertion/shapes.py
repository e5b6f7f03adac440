"""Shapes of nodules: smooth random ones of an exact number of voxels, some of them with spicules."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.volumes.components import TOUCHING, Mask
from maisi_aug.volumes.grid import Shape, Spacing

SIZES_MM = (6.0, 17.0)
"""Diameters that the following are given for; between them they are interpolated. All were set on the masks of the 300
train patients of LIDC-IDRI: their axes, their volume against that of the ellipsoid, and the readers' spiculation."""
STRETCH = (0.12, 0.15)
"""Deviation of the logarithms of the axes."""
ROUGHNESS = ((0.08, 0.12), (0.28, 0.46))
"""Smallest and largest deviation of the surface from the ellipsoid, in radii."""
SPICULATED_SHARE = (0.04, 0.4)
NUM_SPICULES = (3, 9)


def draw_shape(room: Mask, centre: Shape, num_voxels: int, spacing_mm: Spacing, rng: np.random.Generator) -> Mask:
    """Draw a random connected lesion shape with a given number of voxels.

    The shape is a level set of the distance from a random ellipsoid, plus smooth noise, minus a few narrow cones
    (spicules).

    Args:
        room: ``(I, J, K)`` mask of voxels that the shape may occupy.
        centre: A voxel of the room, or near it.
        num_voxels: Number of voxels, which is reached exactly if the room is connected.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Generator of all random draws.

    Returns:
        ``(I, J, K)`` mask of the shape.

    Raises:
        LesionError: The room around the centre is too small.
    """
    radius_mm = (3.0 * num_voxels * float(np.prod(spacing_mm)) / (4.0 * np.pi)) ** (1.0 / 3.0)
    level = _draw_level(room.shape, centre, radius_mm, spacing_mm, rng)
    level[~room] = np.inf
    start = np.unravel_index(int(np.argmin(level)), level.shape)
    ordered = np.sort(level[room])
    if len(ordered) < num_voxels:
        raise LesionError(f"Shape of {num_voxels} voxels: only {len(ordered)} voxels are free.")
    low, high = num_voxels - 1, len(ordered) - 1
    while low < high:  # the least level whose part around the start is large enough
        middle = (low + high) // 2
        low, high = (low, middle) if _part(level <= ordered[middle], start).sum() >= num_voxels else (middle + 1, high)
    part = _part(level <= ordered[low], start)
    if part.sum() < num_voxels:
        raise LesionError(f"Shape of {num_voxels} voxels: only {part.sum()} free voxels are connected.")
    return _trim(part, level, num_voxels, start)


def _trim(part: Mask, level: NDArray[np.float64], num_voxels: int, start: tuple[Any, ...]) -> Mask:
    """Take the voxels of the highest level off; what comes off with them is given back elsewhere on the surface."""
    places = np.flatnonzero(part)
    order = places[np.argsort(level.ravel()[places], kind="stable")]
    trimmed = np.zeros(part.size, dtype=bool)
    trimmed[order[:num_voxels]] = True
    shape = _part(trimmed.reshape(part.shape), start)
    while (missing := num_voxels - int(shape.sum())) > 0:
        rim = ndimage.binary_dilation(shape, TOUCHING) & ~shape & np.isfinite(level)
        candidates = np.flatnonzero(rim)
        if not len(candidates):
            return shape
        best = candidates[np.argsort(level.ravel()[candidates], kind="stable")[:missing]]
        shape.ravel()[best] = True
    return shape


def _draw_level(
    shape: tuple[int, ...], centre: Shape, radius_mm: float, spacing_mm: Spacing, rng: np.random.Generator
) -> NDArray[np.float64]:
    """About 1 at the surface, less inside."""
    steps = [(np.arange(side) - c) * mm for side, c, mm in zip(shape, centre, spacing_mm, strict=True)]
    offsets = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
    stretch, least, most, spiculated_share = (
        float(np.interp(2 * radius_mm, SIZES_MM, values)) for values in (STRETCH, *ROUGHNESS, SPICULATED_SHARE)
    )
    turned = offsets @ _draw_rotation(rng) / np.exp(stretch * rng.standard_normal(3))
    distance = np.linalg.norm(turned, axis=-1) / radius_mm
    roughness = rng.uniform(least, most)
    level = distance + roughness * _smooth_noise(shape, [0.45 * radius_mm / mm for mm in spacing_mm], rng)
    is_spiculated, num_spicules = rng.random() < spiculated_share, int(rng.integers(*NUM_SPICULES))
    if is_spiculated:
        directions = offsets / np.maximum(np.linalg.norm(offsets, axis=-1, keepdims=True), 1e-6)
        for _ in range(num_spicules):
            axis = rng.standard_normal(3)
            cosine = directions @ (axis / np.linalg.norm(axis))
            level = level - rng.uniform(0.2, 0.7) * np.exp(-(1.0 - cosine) / 0.015)
    return np.asarray(level, dtype=np.float64)


def _smooth_noise(shape: tuple[int, ...], sigma: list[float], rng: np.random.Generator) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    deviation = float(noise.std())
    return np.asarray(noise / deviation if deviation > 0 else noise)


def _draw_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.asarray(rotation)


def _part(mask: Mask, start: tuple[Any, ...]) -> Mask:
    """The connected part of a mask that holds a voxel."""
    if not mask[start]:
        return np.zeros_like(mask)
    parts, _ = ndimage.label(mask, TOUCHING)
    return np.asarray(parts == parts[start])
