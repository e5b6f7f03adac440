"""The patient's envelope in a CT: table, clothes and wires removed, lungs and gas filled.

MAISI needs every body voxel without an organ to carry label 200; public label maps seldom have it, but their CT shows
where the patient ends. The search runs on voxels of about 4 mm, where a table's shell is one or two voxels thin and a
limb is not, and only the skin is then drawn at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import VolumeError
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Spacing, voxel_volume_ml

Mask = NDArray[np.bool_]

COARSE_MM = 4.2  # coarse voxels are at most this wide, unless the image's own are wider
TISSUE_HU = -300.0  # between foam, cloth or lung and fat
SKIN_HU = -500.0  # half way between air and the skin's fat, so the surface lies in the middle of the partial volume
LUNG_HU = -930.0  # most of a lung is denser than this; air around the patient and foam are not
SHELL_MM = 6.0  # half the thickness of what is taken for table, rail, cloth or wire
LIMB_RADIUS_MM = 12.0  # a separate part at least this thick is an arm or a leg, not a rail
LIMB_ML = 60.0
EAR_MM = 25.0  # a thin part that ends within this distance of the body is an ear, nose or fold, not a table
GAP_CM2 = 15.0  # wider than any airway: air enclosed by arm and trunk, or a lung cut by the image's border
NUM_PROBED_SLICES = 32
MAX_HOLLOW = 0.2  # of what an envelope's outline encloses; bowel gas without a label is less, lungs are more
SLAB_VOXELS = 1_000_000  # worked on at once at full resolution


@dataclass(frozen=True)
class _Coarse:
    """The image at about 4 mm.

    Attributes:
        image_hu: ``(I, J, K)`` block means.
        spacing_mm: Spacing of the blocks.
        factors: Voxels per block along each axis.
    """

    image_hu: NDArray[np.float32]
    spacing_mm: Spacing
    factors: tuple[int, int, int]


def find_body(image_hu: NDArray[Any], spacing_mm: Spacing) -> Mask:
    """Find the body of the patient in a CT.

    Args:
        image_hu: ``(I, J, K)`` CT in HU, RAS+, whose border may cut the body.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` mask of the skin and everything inside, including lungs, airways and bowel gas.

    Raises:
        VolumeError: No part of the image looks like a patient.
    """
    coarse = _build_coarse(image_hu, spacing_mm)
    tissue = coarse.image_hu > TISSUE_HU
    solid = tissue | _find_lungs(tissue, coarse)
    thick = _find_thick_parts(solid, coarse.spacing_mm)
    if not thick.any():
        raise VolumeError(
            f"Body envelope: no patient was found in the CT: values lie between {image_hu.min():g} and "
            f"{image_hu.max():g}, and nothing is as thick as a limb. Is the image in HU?"
        )
    body = _fill_cavities(_grow_back(thick, solid, tissue, coarse.spacing_mm), coarse)
    return _draw_skin(body, image_hu, coarse.factors)


def add_body(label_map: NDArray[Any], image_hu: NDArray[Any], spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Give every body voxel without an organ label the id 200, with the body found in the CT.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids below 256; not modified.
        image_hu: ``(I, J, K)`` CT to which the map belongs, in HU.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` uint8 label map with 200 where the CT shows the patient and the given map is 0.

    Raises:
        VolumeError: Shapes differ, or the CT shows no patient.
    """
    if label_map.shape != image_hu.shape:
        raise VolumeError(
            f"Body envelope: expected a CT of the label map's shape {label_map.shape}, found {image_hu.shape}. Use "
            "the CT that the label map was drawn on."
        )
    body = find_body(image_hu, spacing_mm)
    return np.where((label_map == 0) & body, BODY_ID, label_map).astype(np.uint8)


def is_hollow(body: Mask) -> bool:
    """Whether a body mask is a shell, such as the skin alone, without the inside of the patient.

    Args:
        body: ``(I, J, K)`` mask of everything labelled, including organs; some axial slices are examined.
    """
    slices = np.ascontiguousarray(body[:, :, :: max(1, body.shape[2] // NUM_PROBED_SLICES)])
    gaps = _label_slices(~slices)
    enclosed = ~_touches_open_border(gaps, slices)
    enclosed[0] = False
    num_enclosed = int(np.count_nonzero(enclosed[gaps]))
    return num_enclosed > MAX_HOLLOW * (num_enclosed + int(np.count_nonzero(slices)))


def _build_coarse(image_hu: NDArray[Any], spacing_mm: Spacing) -> _Coarse:
    """Block means; the last block repeats the border where the sides do not divide."""
    i, j, k = (max(1, int(COARSE_MM / side)) for side in spacing_mm)
    means: NDArray[Any] = image_hu
    for axis, factor in enumerate((i, j, k)):
        means = _mean_of_blocks(means, axis, factor)
    coarse_mm = (spacing_mm[0] * i, spacing_mm[1] * j, spacing_mm[2] * k)
    return _Coarse(np.ascontiguousarray(means), coarse_mm, (i, j, k))


def _mean_of_blocks(array: NDArray[Any], axis: int, factor: int) -> NDArray[np.float32]:
    """Means over blocks along one axis, as a sum of strided views: ten times quicker than a mean over a split axis."""
    side = array.shape[axis]
    num_blocks = -(-side // factor)
    total: NDArray[np.float32] | None = None
    for offset in range(factor):
        places = np.minimum(np.arange(num_blocks) * factor + offset, side - 1)
        part = np.clip(np.take(array, places, axis=axis), -1024, 1024).astype(np.float32)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total / np.float32(factor)


def _find_lungs(tissue: Mask, coarse: _Coarse) -> Mask:
    """Enclosed cavities with the density of lung.

    They are closed before anything is eroded, since the chest wall is often no thicker than a table; a hollow table
    stays hollow, because air and foam are thinner than lung.
    """
    slices = _label_slices(~tissue)
    is_cut_lung = ~_touches_open_border(slices, tissue) & (_area_cm2(slices, coarse) > GAP_CM2)
    is_lung = _is_lung(slices, coarse.image_hu) & (~_touches_border(slices) | is_cut_lung)
    lungs: Mask = is_lung[slices]
    return lungs


def _find_thick_parts(solid: Mask, spacing_mm: Spacing) -> Mask:
    """Erode with a ball, and keep the largest part and every other part as thick as a limb."""
    depth_mm = _depth_mm(solid, spacing_mm)
    parts, num_parts = ndimage.label(depth_mm > SHELL_MM)
    volume_ml = np.bincount(parts.ravel()) * voxel_volume_ml(spacing_mm)
    radius_mm = np.zeros(num_parts + 1)
    np.maximum.at(radius_mm, parts.ravel(), depth_mm.ravel())
    keep = (volume_ml >= LIMB_ML) & (radius_mm >= LIMB_RADIUS_MM)
    if num_parts:
        keep[1 + int(volume_ml[1:].argmax())] |= bool(radius_mm[1:].max() >= LIMB_RADIUS_MM)
    keep[0] = False
    kept: Mask = keep[parts]
    return kept


def _grow_back(thick: Mask, solid: Mask, tissue: Mask, spacing_mm: Spacing) -> Mask:
    """Undo the erosion, and add thin tissue that ends near the body, such as ears; a table's shell extends far."""
    reach_mm = ndimage.distance_transform_edt(~thick, sampling=spacing_mm)
    # Half a voxel more than the ball gives all but corners that are sharper than the ball.
    core: Mask = solid & (reach_mm <= SHELL_MM + 0.5 * max(spacing_mm))
    parts, num_parts = ndimage.label(tissue & ~core)
    first_mm = np.full(num_parts + 1, np.inf)
    last_mm = np.zeros(num_parts + 1)
    np.minimum.at(first_mm, parts.ravel(), reach_mm.ravel())
    np.maximum.at(last_mm, parts.ravel(), reach_mm.ravel())
    keep = (first_mm <= SHELL_MM + 1.5 * max(spacing_mm)) & (last_mm <= SHELL_MM + EAR_MM)
    keep[0] = False
    thin: Mask = keep[parts]
    return core | thin


def _depth_mm(solid: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """Distance to the nearest voxel outside, where the image's border counts as inside: a cropped body continues."""
    margin = [1 + int(np.ceil(LIMB_RADIUS_MM / side)) for side in spacing_mm]
    padded = np.pad(solid, [(width, width) for width in margin], mode="edge")
    depth = ndimage.distance_transform_edt(padded, sampling=spacing_mm)
    inner = tuple(slice(width, width + side) for width, side in zip(margin, solid.shape, strict=True))
    return np.asarray(depth[inner], dtype=np.float64)


def _fill_cavities(body: Mask, coarse: _Coarse) -> Mask:
    """Fill what each axial slice encloses, except air between arm and trunk that is open to the outside."""
    slices = _label_slices(~body)
    area_cm2 = _area_cm2(slices, coarse)
    open_air = _touches_open_border(slices, body)
    is_lung = _is_lung(slices, coarse.image_hu)
    fill = ~open_air & (~_touches_border(slices) | (is_lung & (area_cm2 > GAP_CM2)))
    outside = _is_connected_to(~body, open_air[slices] & (slices > 0))
    leads_outside = np.zeros(fill.size, dtype=bool)
    leads_outside[np.unique(slices[outside])] = True
    fill &= ~(leads_outside & (area_cm2 > GAP_CM2) & ~is_lung)
    fill[0] = False
    filled: Mask = body | fill[slices]
    return filled


def _label_slices(air: Mask) -> NDArray[np.int32]:
    """Number the connected parts of every axial slice on their own."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    labels, _ = ndimage.label(air, structure=in_plane)
    return np.asarray(labels, dtype=np.int32)


def _area_cm2(slices: NDArray[np.int32], coarse: _Coarse) -> NDArray[np.float64]:
    """Per number, the area of the part."""
    voxel_cm2 = coarse.spacing_mm[0] * coarse.spacing_mm[1] / 100.0
    return np.bincount(slices.ravel()).astype(np.float64) * voxel_cm2


def _is_lung(slices: NDArray[np.int32], image_hu: NDArray[np.float32]) -> Mask:
    """Per number, whether more than half of the part is denser than air and foam."""
    count = np.bincount(slices.ravel())
    dense = np.bincount(slices.ravel(), weights=(image_hu > LUNG_HU).ravel())
    is_lung: Mask = dense > 0.5 * count
    is_lung[0] = False
    return is_lung


def _touches_border(slices: NDArray[np.int32]) -> Mask:
    """Per number, whether the part reaches a side of its slice."""
    touches = np.zeros(int(slices.max()) + 1, dtype=bool)
    for side in (slices[0], slices[-1], slices[:, 0], slices[:, -1]):
        touches[np.unique(side)] = True
    return touches


def _touches_open_border(slices: NDArray[np.int32], solid: Mask) -> Mask:
    """Per number, whether the part reaches a side of its slice outside the stretch that the cut body spans there."""
    touches = np.zeros(int(slices.max()) + 1, dtype=bool)
    sides = [(slices[n], solid[n]) for n in (0, -1)] + [(slices[:, n], solid[:, n]) for n in (0, -1)]
    for numbers, cut in sides:
        from_start = np.logical_or.accumulate(cut, axis=0)
        from_end = np.logical_or.accumulate(cut[::-1], axis=0)[::-1]
        touches[np.unique(numbers[~(from_start & from_end)])] = True
    return touches


def _is_connected_to(air: Mask, start: Mask) -> Mask:
    """The air that is connected to the start in three dimensions."""
    labels, num_labels = ndimage.label(air)
    reached = np.zeros(num_labels + 1, dtype=bool)
    reached[np.unique(labels[start])] = True
    reached[0] = False
    connected: Mask = reached[labels]
    return connected


def _draw_skin(body: Mask, image_hu: NDArray[Any], factors: tuple[int, int, int]) -> Mask:
    """Full resolution: all well inside the coarse body, and what is not air within a coarse voxel of its surface.

    A majority vote takes off the threads of cloth and table that touch the skin, and closes pores of noise. The work
    goes in slabs that fit the processor's cache, which is several times quicker on full-size scans.
    """
    inner_coarse = ndimage.binary_erosion(body, border_value=1)
    near_coarse = ndimage.binary_dilation(body)
    reach = [factor // 2 for factor in factors]
    drawn = np.empty(image_hu.shape, dtype=bool)
    step = factors[0]
    rows = max(1, SLAB_VOXELS // (step * drawn[0].size))
    for first in range(0, body.shape[0], rows):
        low, high = max(0, first - 1), min(body.shape[0], first + rows + 1)  # the vote reaches into the next row
        slab = image_hu[low * step : high * step]
        inner = _refine(inner_coarse[low:high], factors, slab.shape)
        near = _refine(near_coarse[low:high], factors, slab.shape)
        skin = inner | _vote(inner | (near & (slab > SKIN_HU)), reach)
        offset = (first - low) * step
        drawn[first * step : (first + rows) * step] = skin[offset : offset + rows * step]
    return drawn


def _vote(mask: Mask, reach: Sequence[int]) -> Mask:
    """Whether most voxels within a box reach around a voxel are set; sums of shifted views, as the box is small."""
    if not any(reach):
        return mask
    num_voxels = int(np.prod([2 * width + 1 for width in reach]))
    count: NDArray[Any] = mask.astype(np.uint8 if num_voxels < 256 else np.uint16)
    for axis, width in enumerate(reach):
        padded = np.pad(count, [(width, width) if other == axis else (0, 0) for other in range(3)], mode="edge")
        views = [
            padded[tuple(slice(n, n + mask.shape[axis]) if other == axis else slice(None) for other in range(3))]
            for n in range(2 * width + 1)
        ]
        count = views[0].copy()
        for view in views[1:]:
            count += view
    majority: Mask = count > num_voxels // 2
    return majority


def _refine(mask: Mask, factors: tuple[int, int, int], shape: tuple[int, ...]) -> Mask:
    """Repeat every coarse voxel, and cut to the image's shape."""
    for axis, factor in enumerate(factors):
        mask = np.repeat(mask, factor, axis=axis) if factor > 1 else mask
    return mask[: shape[0], : shape[1], : shape[2]]
