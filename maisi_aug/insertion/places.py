"""Choice of a lesion's place: deep enough in its host, or at its surface, and clear of other structures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import UnfitCtError
from maisi_aug.insertion.lungs import CoarseMask
from maisi_aug.insertion.request import Attachment
from maisi_aug.volumes.components import bounding_box
from maisi_aug.volumes.grid import Shape

PLEURAL_SHARE = 0.3
"""Share of juxta-pleural nodules; about a third of the nodules of LIDC-IDRI touch the pleura."""
CLEARANCE_MM = 6.0
"""Distance in mm between the surfaces of two lesions; the zone drawn anew around one must not reach the other."""
SURFACE_DEPTHS = (0.3, 0.7)
"""Depth of the centre of a lesion that touches the surface, in radii."""


@dataclass(frozen=True)
class Place:
    """Place for a lesion: its centre voxel, and its position relative to the surface of its host organ."""

    centre: Shape
    attachment: Attachment


def draw_place(
    host: CoarseMask,
    image_shape: Shape,
    radius_mm: float,
    *,
    occupied: NDArray[np.bool_] | None,
    rng: np.random.Generator,
    attachment: Attachment | None = None,
    least_radius_mm: float | None = None,
) -> Place:
    """Draw a random place in a host organ for a ball with the lesion's volume.

    Args:
        host: Region in which lesions may grow.
        image_shape: Voxels of the image along I, J, K, inside which the lesion stays.
        radius_mm: Radius in mm of the ball.
        occupied: Mask of the blocks with lesions, of the shape of ``host.mask``; None for none.
        rng: Generator of all random draws.
        attachment: Whether the lesion touches the host's surface; None leaves it to chance, as far as there is room.
        least_radius_mm: Radius in mm of the smallest twin at the same place, which must touch the surface, too.

    Raises:
        UnfitCtError: The host has no room.
    """
    is_wall = rng.random() < PLEURAL_SHARE
    drawn: Attachment = "surface" if is_wall else "free"
    other: Attachment = "free" if is_wall else "surface"
    room = _find_room(host, image_shape, radius_mm, occupied)
    depth_mm = host.depth_mm
    for tried in (drawn, other) if attachment is None else (attachment,):
        if tried == "free":
            blocks = np.flatnonzero(room & (depth_mm >= radius_mm + 1.5))
        else:
            touching_mm = radius_mm if least_radius_mm is None else least_radius_mm
            low, high = (max(part * touching_mm, 0.5 * min(host.spacing_mm)) for part in SURFACE_DEPTHS)
            blocks = np.flatnonzero(room & (depth_mm >= low) & (depth_mm <= max(high, low + min(host.spacing_mm))))
        if len(blocks):
            block = np.unravel_index(blocks[rng.integers(len(blocks))], host.mask.shape)
            offsets = [int(rng.integers(factor)) for factor in host.factors]
            parts = zip(block, host.factors, offsets, image_shape, strict=True)
            i, j, k = (min(int(b) * factor + offset, side - 1) for b, factor, offset, side in parts)
            return Place((i, j, k), tried)
    raise UnfitCtError(
        f"Lesion of {2 * radius_mm:.1f} mm: no room left in the host, which has "
        f"{host.mask.sum() * np.prod(host.spacing_mm) / 1000:.0f} mL. Request smaller or fewer lesions."
    )


def _find_room(
    host: CoarseMask, image_shape: Shape, radius_mm: float, occupied: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Blocks of the host that are clear of lesions, and from which a ball does not reach beyond the image."""
    room = host.mask.copy()
    for axis, (side, factor, step) in enumerate(zip(image_shape, host.factors, host.spacing_mm, strict=True)):
        centres = (np.arange(room.shape[axis]) + 0.5) * factor
        gap_mm = np.minimum(centres, side - centres) * step / factor
        room &= np.expand_dims(gap_mm >= radius_mm, [other for other in range(3) if other != axis])
    if occupied is not None and occupied.any():
        reach_mm = radius_mm + CLEARANCE_MM
        box = bounding_box(occupied, margin=1 + int(reach_mm / min(host.spacing_mm)))
        room[box] &= ndimage.distance_transform_edt(~occupied[box], sampling=host.spacing_mm) > reach_mm
    return room
