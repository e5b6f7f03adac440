"""The one reader of CTs and of the label maps that belong to them: is it a CT in HU, and do both lie in one place?

Every caller gets the same answer of the same files. A label map that was cropped along its CT's voxels, as 3D Slicer
stores it, is put into its place; every other difference is refused, but where the same field of view is all that is
needed.
"""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.entry import BankEntry
from maisi_aug.errors import MaisiAugWarning, VolumeError
from maisi_aug.volumes.grid import Grid, spell_grid
from maisi_aug.volumes.image_files import Volume, decode_label_map, load_grid, load_image, load_label_map

MAX_AIR_HU = -150
"""An image without anything as dark as fat is not a CT in HU."""
LEAST_HU = -1024
"""Lowest HU in a CT's 12 bits, apart from padding and noise."""
MAX_BELOW = 0.05
"""Share of voxels, apart from padding, below :data:`BELOW_HU`; a larger share means that the offset of 1024 was
subtracted twice.
"""
BELOW_HU = -1300
AIR_TWICE_HU = -1900
SOFT_TISSUE_HU = (-250, 350)
MIN_SOFT_TISSUE = 0.05
TISSUE_TWICE_HU = (-1250, -950)
"""HU of soft tissue when the offset was subtracted twice."""
BONE_HU = 600
MAX_BONE = 0.1
"""Share of bone in an image without air, fat and skin; a larger share means that tissue still has its offset of 1024.
"""
NUM_LOOKED_AT = 250_000
"""Number of evenly spread voxels whose values are counted; the minimum and maximum are of all voxels."""
SAME_PLACE = 0.1
"""Corners of two grids this share of a voxel apart are the same: headers round their origins."""


def load_ct(path: Path) -> Volume:
    """Read a CT and check that its values are HU.

    Args:
        path: Volume file, DICOM series folder or file of DICOM frames.

    Returns:
        ``(I, J, K)`` HU in RAS+.

    Raises:
        VolumeError: The CT cannot be read, or its values are not HU.
    """
    volume = load_image(path)
    require_hu(volume.array, path.name)
    return volume


def require_hu(image: NDArray[Any], subject: str) -> None:
    """Raise if values cannot be HU: MR, normalised images, and CTs stored with an offset, with or without padding.

    Args:
        image: ``(I, J, K)`` values.
        subject: Name of the image in the message.

    Raises:
        VolumeError: The message names the values found.
    """
    lowest, highest = float(image.min()), float(image.max())
    if lowest > MAX_AIR_HU:
        fault = f"values between {lowest:g} and {highest:g}"
    else:
        step = max(1, int((image.size / NUM_LOOKED_AT) ** (1 / 3)))
        looked_at = image[::step, ::step, ::step]
        fault = _find_offset(looked_at[looked_at > lowest], lowest)  # the lowest may be padding
    if fault:
        raise VolumeError(
            f"{subject}: expected HU, with air near -1000 and tissue near 0, found {fault}. Is it an MR, a normalised "
            "image, or a CT stored without its offset of 1024?"
        )


def _find_offset(seen: NDArray[Any], lowest: float) -> str:
    """Return the reason to assume an offset from HU although some values are as dark as air; empty if there is none."""
    if not seen.size:
        return ""
    below, bone = float(np.mean(seen < BELOW_HU)), float(np.mean(seen > BONE_HU))
    if below > MAX_BELOW:
        return f"{below:.0%} of them below {BELOW_HU}"
    if bone > MAX_BONE and not ((seen > LEAST_HU) & (seen <= MAX_AIR_HU)).any():
        return f"nothing between {LEAST_HU} and {MAX_AIR_HU} but {lowest:g}, and {bone:.0%} above {BONE_HU}"
    if lowest < AIR_TWICE_HU:
        soft, twice = (_share(seen, *span) for span in (SOFT_TISSUE_HU, TISSUE_TWICE_HU))
        if soft < MIN_SOFT_TISSUE and twice > 0.5:
            return f"{twice:.0%} of them between {TISSUE_TWICE_HU[0]} and {TISSUE_TWICE_HU[1]}"
    return ""


def _share(values: NDArray[Any], low: float, high: float) -> float:
    return float(np.mean((values >= low) & (values <= high)))


def place_labels(
    labels: Volume, image: Grid, *, subject: str, on: Literal["the image's grid", "its own grid"] = "the image's grid"
) -> Volume:
    """Return a label map on the grid of its image; warns if it had to be padded.

    Args:
        labels: ``(I, J, K)`` labels.
        image: Grid of the image.
        subject: Name of the label map in messages.
        on: Grid of the result. ``its own grid`` also allows other voxel sizes, if the field of view is the same to
            within a voxel.

    Returns:
        The label map, padded to the image's grid if it was cropped along the image's voxels.

    Raises:
        VolumeError: The label map lies elsewhere, has other voxels, or shows another field of view than the image.
    """
    if is_same_place(labels.grid, image):
        return labels
    # As many voxels as the image, and elsewhere: one of the two headers is wrong, and nothing tells which.
    is_other = labels.grid.shape != image.shape
    padded = _put_into(labels, image) if is_other else None
    if padded is not None:
        warnings.warn(
            f"{subject}: has {_spell_shape(labels.grid)} voxels, its CT {_spell_shape(image)}; it is placed into the "
            "CT's grid.",
            MaisiAugWarning,
            stacklevel=2,
        )
        return Volume(padded, image)
    if is_other and on == "its own grid" and _shows_the_same(labels.grid, image):
        return labels
    raise VolumeError(f"{subject}: expected the image's grid, {spell_place(image)}, found {spell_place(labels.grid)}")


def load_labels_in_place(entry: BankEntry) -> Volume:
    """Read a label map of a bank in its own ids, and check that it lies where its CT does, if it has one.

    Raises:
        VolumeError: The label map cannot be read, or lies elsewhere than its CT.
    """
    if entry.member is not None:
        return decode_label_map(entry.member.read(), entry.name, max_bytes=entry.member.max_bytes)
    (path,) = entry.label_paths
    return require_place(load_label_map(path, image=entry.image_path), entry.image_path, subject=entry.name)


def require_place(labels: Volume, image: Path | None, *, subject: str) -> Volume:
    """Return a label map unchanged after checking, by the CT's header, that it shows a part of its CT.

    Args:
        labels: ``(I, J, K)`` labels.
        image: Path of the CT; None to check nothing.
        subject: Name of the label map in messages.

    Raises:
        VolumeError: The CT cannot be read, or the label map lies elsewhere.
    """
    if image is not None:
        place_labels(labels, load_grid(image), subject=subject, on="its own grid")
    return labels


def is_same_place(grid: Grid, other: Grid) -> bool:
    """Whether the voxels of two grids coincide to within a tenth of a voxel.

    Args:
        grid: Grid whose smallest voxel side sets the tolerance.
        other: Grid to compare with; of another shape it is never the same place.
    """
    if grid.shape != other.shape:
        return False
    corners = np.array(list(product(*((0, side - 1) for side in grid.shape))))
    apart = (corners @ (grid.affine[:3, :3] - other.affine[:3, :3]).T) + (grid.affine[:3, 3] - other.affine[:3, 3])
    return bool(np.abs(apart).max() <= SAME_PLACE * min(grid.spacing_mm))


def spell_place(grid: Grid) -> str:
    """Describe a grid for a message: shape, spacing in mm, and position of the first voxel in RAS+ mm."""
    origin = ", ".join(f"{side:.1f}" for side in grid.affine[:3, 3])
    return f"{spell_grid(grid.shape, [round(side, 3) for side in grid.spacing_mm], with_extent=False)} from ({origin})"


def _spell_shape(grid: Grid) -> str:
    return "x".join(map(str, grid.shape))


def _put_into(labels: Volume, image: Grid) -> NDArray[Any] | None:
    """Labels on the image's grid, if their voxels are some of the image's; None where they are not."""
    shape = np.asarray(labels.grid.shape)
    corners = np.array(list(product(*((0, side - 1) for side in shape))), dtype=np.float64)
    places = _to_index(image, labels.grid, corners)
    offset = np.rint(places[0]).astype(int)
    if np.abs(places - corners - offset).max() > SAME_PLACE:
        return None
    low, high = np.maximum(offset, 0), np.minimum(offset + shape, image.shape)
    if (low >= high).any():
        return None
    inner = tuple(slice(int(a), int(b)) for a, b in zip(low - offset, high - offset, strict=True))
    outer = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    if np.count_nonzero(labels.array[inner]) != np.count_nonzero(labels.array):
        return None
    padded = np.zeros(image.shape, dtype=labels.array.dtype)
    padded[outer] = labels.array[inner]
    return padded


def _shows_the_same(grid: Grid, image: Grid) -> bool:
    """Whether two fields of view are the same, to a voxel of the coarser one at each side."""
    bounds = [(-0.5, side - 0.5) for side in grid.shape]
    places = _to_index(image, grid, np.array(list(product(*bounds))))
    apart_low, apart_high = places.min(axis=0) + 0.5, places.max(axis=0) + 0.5 - np.asarray(image.shape)
    voxel = np.maximum(1.0, np.asarray(grid.spacing_mm) / np.asarray(image.spacing_mm))
    return bool((np.maximum(np.abs(apart_low), np.abs(apart_high)) <= voxel).all())


def _to_index(image: Grid, grid: Grid, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points ``(N, 3)`` in voxels of one grid as voxels of another."""
    to_image = np.linalg.solve(image.affine, grid.affine)
    return np.asarray(points @ to_image[:3, :3].T + to_image[:3, 3])
