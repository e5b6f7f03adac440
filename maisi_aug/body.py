"""The patient's envelope in a CT: table, clothes and wires removed, lungs and gas filled.

MAISI wants every body voxel without an organ to carry label 200; public label maps seldom have it, but their CT shows
where the patient ends. The search runs on voxels of about 3 mm, where a table's shell is one or two voxels thin and a
limb is not, and only the skin is then drawn at full resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import VolumeError
from maisi_aug.grid import Spacing
from maisi_aug.labels import BODY_ID

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


@dataclass(frozen=True)
class _Coarse:
    """The image at about 3 mm.

    Attributes:
        image_hu: ``(I, J, K)`` block means.
        spacing_mm: Spacing of the blocks.
        factors: Voxels per block along each axis.
    """

    image_hu: NDArray[np.float32]
    spacing_mm: Spacing
    factors: tuple[int, int, int]


def find_body(image_hu: NDArray[Any], spacing_mm: Spacing) -> Mask:
    """The patient's envelope.

    Args:
        image_hu: ``(I, J, K)`` CT in HU, RAS+; a body cut by the image's border is fine.
        spacing_mm: Voxel sides along I, J, K.

    Returns:
        ``(I, J, K)`` mask: skin and all it encloses, lungs, airways and bowel gas included.

    Raises:
        VolumeError: No part of the image looks like a patient.
    """
    coarse = _build_coarse(image_hu, spacing_mm)
    tissue = coarse.image_hu > TISSUE_HU
    solid = tissue | _find_lungs(tissue, coarse)
    core = _find_thick_parts(solid, coarse.spacing_mm)
    if not core.any():
        raise VolumeError(
            f"Body envelope: expected a patient in the CT, found values between {image_hu.min():g} and "
            f"{image_hu.max():g} and nothing as thick as a limb. Is the image in HU?"
        )
    body = core | _find_thin_parts(tissue & ~core, core, coarse.spacing_mm)
    body = _fill_cavities(body, coarse)
    return _draw_skin(body, image_hu, coarse.factors)


def add_body(label_map: NDArray[Any], image_hu: NDArray[Any], spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Give every body voxel without an organ the label 200.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids below 256; not modified.
        image_hu: ``(I, J, K)`` the CT the map belongs to, in HU.
        spacing_mm: Voxel sides along I, J, K.

    Returns:
        ``(I, J, K)`` uint8: the map with 200 where the CT shows the patient and the map shows nothing.

    Raises:
        VolumeError: Shapes differ, or the CT shows no patient.
    """
    if label_map.shape != image_hu.shape:
        raise VolumeError(
            f"Body envelope: expected a CT of the label map's shape {label_map.shape}, found {image_hu.shape}. "
            "Give the CT that the label map was drawn on."
        )
    body = find_body(image_hu, spacing_mm)
    return np.where((label_map == 0) & body, BODY_ID, label_map).astype(np.uint8)


def _build_coarse(image_hu: NDArray[Any], spacing_mm: Spacing) -> _Coarse:
    """Block means; the last block repeats the border where the sides do not divide."""
    i, j, k = (max(1, int(COARSE_MM / side)) for side in spacing_mm)
    factors = (i, j, k)
    padding = [(0, -side % factor) for side, factor in zip(image_hu.shape, factors, strict=True)]
    clipped = np.clip(image_hu, -1024, 1024).astype(np.float32)
    if max(factors) > 1:
        padded = np.pad(clipped, padding, mode="edge")
        a, b, c = (side // factor for side, factor in zip(padded.shape, factors, strict=True))
        clipped = padded.reshape(a, i, b, j, c, k).mean(axis=(1, 3, 5), dtype=np.float32)
    coarse_mm = (spacing_mm[0] * i, spacing_mm[1] * j, spacing_mm[2] * k)
    return _Coarse(clipped, coarse_mm, factors)


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
    """Open with a ball, and keep the largest part and every other part as thick as a limb."""
    depth_mm = _depth_mm(solid, spacing_mm)
    parts, num_parts = ndimage.label(depth_mm > SHELL_MM)
    if num_parts == 0:
        return np.zeros_like(solid)
    volume_ml = np.bincount(parts.ravel()) * float(np.prod(spacing_mm)) / 1000.0
    radius_mm = np.zeros(num_parts + 1)
    np.maximum.at(radius_mm, parts.ravel(), depth_mm.ravel())
    keep = (volume_ml >= LIMB_ML) & (radius_mm >= LIMB_RADIUS_MM)
    keep[1 + int(volume_ml[1:].argmax())] |= bool(radius_mm[1:].max() >= LIMB_RADIUS_MM)
    keep[0] = False
    kept: Mask = keep[parts]
    if not kept.any():
        return kept
    # Growing back by the ball, plus half a voxel, gives all but corners that are sharper than the ball.
    reach_mm = ndimage.distance_transform_edt(~kept, sampling=spacing_mm)
    core: Mask = solid & (reach_mm <= SHELL_MM + 0.5 * max(spacing_mm))
    return core


def _depth_mm(solid: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """Distance to the nearest voxel outside, where the image's border counts as inside: a cropped body goes on."""
    margin = [1 + int(np.ceil(LIMB_RADIUS_MM / side)) for side in spacing_mm]
    padded = np.pad(solid, [(width, width) for width in margin], mode="edge")
    depth = ndimage.distance_transform_edt(padded, sampling=spacing_mm)
    inner = tuple(slice(width, width + side) for width, side in zip(margin, solid.shape, strict=True))
    return np.asarray(depth[inner], dtype=np.float64)


def _find_thin_parts(rest: Mask, core: Mask, spacing_mm: Spacing) -> Mask:
    """Thin tissue on the body that ends nearby, such as ears; a table's shell goes on and is left out."""
    parts, num_parts = ndimage.label(rest)
    if num_parts == 0:
        return rest
    reach_mm = ndimage.distance_transform_edt(~core, sampling=spacing_mm)
    first_mm = np.full(num_parts + 1, np.inf)
    last_mm = np.zeros(num_parts + 1)
    np.minimum.at(first_mm, parts.ravel(), reach_mm.ravel())
    np.maximum.at(last_mm, parts.ravel(), reach_mm.ravel())
    keep = (first_mm <= 1.01 * max(spacing_mm)) & (last_mm <= EAR_MM)
    keep[0] = False
    thin: Mask = keep[parts]
    return thin


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
    """Full resolution: all well inside the coarse body, and what is not air within a coarse voxel of its surface."""
    inner = _refine(ndimage.binary_erosion(body, border_value=1), factors, image_hu.shape)
    near = _refine(ndimage.binary_dilation(body), factors, image_hu.shape)
    skin: Mask = inner | (near & (image_hu > SKIN_HU))
    if max(factors) > 1:
        # A majority vote takes off the threads of cloth and table that touch the skin, and closes pores of noise.
        width = [2 * (factor // 2) + 1 for factor in factors]
        skin = ndimage.uniform_filter(skin, size=width, output=np.float32, mode="nearest") > 0.5
    return skin | inner


def _refine(mask: Mask, factors: tuple[int, int, int], shape: tuple[int, ...]) -> Mask:
    """Repeat every coarse voxel, and cut to the image's shape."""
    for axis, factor in enumerate(factors):
        mask = np.repeat(mask, factor, axis=axis) if factor > 1 else mask
    return mask[: shape[0], : shape[1], : shape[2]]
