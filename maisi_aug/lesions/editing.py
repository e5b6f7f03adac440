"""Lesions that a label map already has: turned back into their host, or brought to another volume.

Arrays have axes ``I J K``; touching means sharing a face, an edge or a corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import expand_labels

from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import spread_of
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.volumes.components import TOUCHING, Box, Mask, connected_parts, label_parts

HOST_REACH_MM = 12.0
HOST_CONTACT = 0.2
"""Share of a lesion's surroundings that its host makes up at least: a lymph node that touches the aorta is not part of
it."""
MAX_RESIZE = 2.0
"""A lesion is made at most twice or half as large; beyond that it would no longer be the one that was drawn."""


def remove_lesions(
    label_map: NDArray[np.uint8],
    vocabulary: Vocabulary,
    *,
    spacing_mm: Sequence[float],
    keep: Mask | None = None,
    with_cysts: bool = False,
) -> NDArray[np.uint8]:
    """Remove the tumours of a label map: every voxel becomes the nearest organ that hosts the tumour.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        vocabulary: Vocabulary that states which ids are tumours, and their hosts.
        spacing_mm: Voxel sides along I, J, K in mm.
        keep: ``(I, J, K)`` mask of tumours to keep; a lesion is kept or removed as a whole.
        with_cysts: Also turn kidney cysts into kidney, as MAISI does for the unconditional branch of guidance.

    Returns:
        A new label map; tumours without a host nearby become what the vocabulary names as their background.
    """
    healthy = label_map.copy()
    present = set(np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist())
    removed = vocabulary.lesion_ids if with_cysts else vocabulary.tumor_ids
    for tumor_id in sorted(present.intersection(removed)):
        parts, _ = label_parts(label_map == tumor_id)
        for number, box in enumerate(ndimage.find_objects(parts), start=1):
            lesion = parts[box] == number
            if keep is not None and (keep[box] & lesion).any():
                continue
            wide = widen(box, HOST_REACH_MM, spacing_mm, label_map.shape)
            inside = parts[wide] == number
            fallback = vocabulary.background_id_for(tumor_id)
            hosts = np.isin(label_map[wide], vocabulary.hosts_of(tumor_id) or (fallback,))
            healthy[wide][inside] = _nearest_host(label_map[wide], hosts, inside, spacing_mm, fallback=fallback)
    return healthy


def settle_lesions(
    label_map: NDArray[np.uint8], lesions: Mask, *, tumor_of_host: Mapping[int, int] | None = None
) -> NDArray[np.uint8]:
    """Give lesions of an unknown kind the label that follows from their position, so that organs have no holes.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        lesions: ``(I, J, K)`` mask of the lesions.
        tumor_of_host: Host id -> lesion id; in other organs, a lesion becomes the organ.

    Returns:
        A new label map. The host of a connected lesion is the most frequent label around it, if that makes up at least
        ``HOST_CONTACT`` of its surroundings; otherwise the lesion becomes body.
    """
    settled = label_map.copy()
    settled[lesions] = BODY_ID
    for box, part in connected_parts(lesions):
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        inside = np.zeros(label_map[wide].shape, dtype=bool)
        inside[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wide, strict=True))] = part
        around = label_map[wide][ndimage.binary_dilation(inside, TOUCHING) & ~lesions[wide]]
        counts = np.bincount(around, minlength=256)
        counts[[0, BODY_ID]] = 0
        host = int(counts.argmax())
        if counts[host] and counts[host] >= HOST_CONTACT * around.size:
            settled[wide][inside] = (tumor_of_host or {}).get(host, host)
    return settled


def resize_lesion(
    label_map: NDArray[np.uint8],
    lesion: Mask,
    *,
    num_voxels: int,
    hosts: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[NDArray[np.uint8], Mask]:
    """Grow or shrink a lesion to a number of voxels by moving its surface evenly, inside its hosts.

    Args:
        label_map: ``(I, J, K)`` ids; not modified.
        lesion: ``(I, J, K)`` mask of one connected lesion of the map.
        num_voxels: Wanted number of voxels; reached exactly unless the host has no room or the lesion falls apart.
        hosts: Vocabulary ids that the lesion may grow into; voxels that it gives up get the nearest of them.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        A new label map, and the ``(I, J, K)`` mask of the lesion in it.
    """
    box = ndimage.find_objects(lesion.astype(np.uint8))[0]
    # Twice the volume is 1.26 times the diameter; half a diameter on either side is more than enough room.
    longest_mm = max((part.stop - part.start) * side for part, side in zip(box, spacing_mm, strict=True))
    wide = widen(box, max(HOST_REACH_MM, longest_mm / 2), spacing_mm, label_map.shape)
    inside = lesion[wide]
    lesion_id = label_map[wide][inside][0]
    host = np.isin(label_map[wide], hosts)
    others = ndimage.binary_dilation((label_map[wide] == lesion_id) & ~inside, TOUCHING)
    allowed = inside | (host & ~others)
    depth_mm = ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    depth_mm = depth_mm - ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    chosen = _take_deepest(depth_mm, allowed, num_voxels)
    resized = label_map.copy()
    left = inside & ~chosen
    resized[wide][chosen] = lesion_id
    if left.any():
        resized[wide][left] = _nearest_host(label_map[wide], host, left, spacing_mm, fallback=hosts[0])
    now = np.zeros(lesion.shape, dtype=bool)
    now[wide] = chosen
    return resized, now


def describe_lesion(label_map: NDArray[np.uint8], mask: Mask, lesion: Lesion, *, spacing_mm: Sequence[float]) -> Lesion:
    """Return a lesion with its size, centre and host as measured in a label map.

    The host is the most frequent label around the lesion.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        mask: ``(I, J, K)`` mask of the lesion.
        lesion: Lesion as requested.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = np.argwhere(mask[box])
    steps_mm = (inside - inside.mean(axis=0)) * np.asarray(spacing_mm)
    centre = inside[int(np.argmin((steps_mm**2).sum(axis=1)))] + [part.start for part in box]
    wide = widen(box, HOST_REACH_MM, spacing_mm, label_map.shape)
    around = label_map[wide][ndimage.binary_dilation(mask[wide], TOUCHING) & ~mask[wide]]
    counts = np.bincount(around, minlength=256)
    return lesion.drawn(
        num_voxels=len(inside),
        spacing_mm=spacing_mm,
        centre_ijk=centre,
        host_id=max(lesion.hosts, key=lambda host: int(counts[host])),
        spread=round(spread_of(mask[box], spacing_mm), 4),
    )


def widen(box: Box, margin_mm: float, spacing_mm: Sequence[float], shape: Sequence[int]) -> Box:
    """Enlarge a box of voxels on all sides, within an array.

    Args:
        box: Slices along I, J, K.
        margin_mm: Margin in mm, rounded up to whole voxels.
        spacing_mm: Voxel sides along I, J, K in mm.
        shape: Number of voxels of the array along I, J, K, to which the box is limited.
    """
    margins = [int(np.ceil(margin_mm / side)) for side in spacing_mm]
    return tuple(
        slice(max(0, part.start - margin), min(side, part.stop + margin))
        for part, margin, side in zip(box, margins, shape, strict=True)
    )


def _take_deepest(depth_mm: NDArray[np.float64], allowed: Mask, num_voxels: int) -> Mask:
    """The connected part around the deepest voxel of the ``num_voxels`` deepest ones."""
    candidates = np.flatnonzero(allowed.ravel())
    order = np.argsort(-depth_mm.ravel()[candidates], kind="stable")
    taken = np.zeros(allowed.size, dtype=bool)
    taken[candidates[order[:num_voxels]]] = True
    parts, _ = label_parts(taken.reshape(allowed.shape))
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    connected: Mask = parts == largest
    return connected


def _nearest_host(
    label_map: NDArray[Any], host: Mask, voxels: Mask, spacing_mm: Sequence[float], *, fallback: int
) -> NDArray[np.uint8]:
    """The nearest host's id for each of the voxels."""
    if not host.any():
        return np.full(int(voxels.sum()), fallback, dtype=np.uint8)
    nearest = expand_labels(np.where(host, label_map, 0), np.inf, spacing=spacing_mm)
    return np.asarray(nearest[voxels], dtype=np.uint8)
