"""Cleaning up label maps that a network drew: islands, holes, stray tumours, and what floats outside the body.

A map is put right from the outside inwards: first the envelope, then the tumours, the organs and their holes. What has
lost its label takes that of its surroundings, layer by layer, so that no step makes an island of its own and the
envelope stays as it is. Connected components are found with cc3d for all labels at once, and everything else works on
lists of voxels: the time is bounded by the number of voxels, whatever the map looks like.

Arrays have axes ``I J K``. Parts of organs and lesions touch by a face, an edge or a corner; parts of air, of tissue
without a label and of the envelope by a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import VocabularyError, VolumeError
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, FREE_IDS, FULL_VOCABULARY, SLOT_IDS
from maisi_aug.volumes.components import Mask, bounding_box, is_any_of, label_parts
from maisi_aug.volumes.grid import Spacing, voxel_volume_ml

LIVER_ID, HEPATIC_VESSEL_ID, SKULL_ID = 1, 25, 120

DUST_ML = 0.05
"""A part of an organ, a gap or air at the border below this volume is noise: a cube of 3.7 mm, 15 voxels at 1.5 mm."""
MIN_PART_SHARE = 0.05
MIN_PART_ML = 2.0
"""A further part of an organ, where it may have several, is kept from this share of its largest part on, or from this
volume on: a loop of bowel is large, but a small share of all bowel."""
MAX_SKULL_HOLE_ML = 1.0
"""The skull's sinuses and what it holds beside the brain are not holes; in other organs a hole may be of any size."""
MAX_PASSES = 3
"""An organ that has grown into its islands makes a part of it small that was large enough before; seldom more than once
and never for long."""
SEVERAL_PARTS = frozenset(
    (
        *(8, 9, 126),  # adrenal and thyroid glands: limbs and lobes joined by less than a voxel
        *(6, 7, 17, 57, 58, 59, 60, 61, 119, 125, 132),  # great vessels and airways, thin or cut by the image's border
        *(*range(108, 114), 123, 124),  # vessels of the neck and arms, left atrial appendage
        *(11, 13, 19, 62),  # oesophagus, duodenum, small bowel, colon: collapsed stretches have no label
        *(*range(63, 87), 114, 120, 122),  # ribs, costal cartilages, skull and jaw, sternum and its process
        *(116, 117),  # kidney cysts
        *SLOT_IDS,  # what they mean is not known here
        *FREE_IDS,
    )
)
"""Organs that may have several parts wherever they lie. Any other may where the image's border cuts the part: a femur's
head and trochanter, a vertebra's body and spinous process."""

_HAS_PARTS = np.isin(np.arange(256), list(SEVERAL_PARTS))
_ALL_STEPS = tuple(step for step in product((-1, 0, 1), repeat=3) if any(step))
_FACE_STEPS = tuple(step for step in _ALL_STEPS if sum(map(abs, step)) == 1)


class _Parts(NamedTuple):
    """Connected parts of a padded map: their numbers per voxel (0 outside), and their sizes in voxels by number."""

    numbers: NDArray[np.unsignedinteger[Any]]
    sizes: NDArray[np.int64]


class _Limits(NamedTuple):
    """The volumes above in voxels."""

    dust: int
    part: float
    skull_hole: float

    @classmethod
    def on_voxels_of(cls, voxel_ml: float) -> _Limits:
        return cls(max(1, int(np.ceil(DUST_ML / voxel_ml))), MIN_PART_ML / voxel_ml, MAX_SKULL_HOLE_ML / voxel_ml)


def clean_label_map(
    label_map: NDArray[np.uint8], *, spacing_mm: Spacing, keep_tumor_ids: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Clean up a label map drawn by mask networks.

    - The envelope (everything with a label) becomes one piece without holes; what floats outside of it is removed.
    - Hepatic vessels become liver.
    - A tumour of another kind than ``keep_tumor_ids`` becomes the host that it touches, each voxel the nearest one;
      without a host it becomes what surrounds it.
    - Of every organ the largest part stays, and of ``SEVERAL_PARTS`` and of organs cut by the image's border each part
      of at least ``MIN_PART_SHARE`` of it or ``MIN_PART_ML``. Islands become what surrounds them.
    - Tissue without a label that touches one organ only becomes that organ, and specks of it the organ that they touch
      most.
    - Of a tumour that is kept, the largest part that touches its host stays, its holes closed; with none it is removed.

    Args:
        label_map: ``(I, J, K)`` MAISI's ids with the body (200) drawn; not modified.
        spacing_mm: Voxel sides along I, J, K in mm.
        keep_tumor_ids: Tumours that were requested.

    Returns:
        A new ``(I, J, K)`` map.

    Raises:
        VolumeError: The map has no body.
        VocabularyError: One of ``keep_tumor_ids`` is not a tumour of ``FULL_VOCABULARY``.
    """
    _require_tumors(keep_tumor_ids)
    if not (label_map == BODY_ID).any():
        raise VolumeError(
            f"Label map: no body envelope (label {BODY_ID}) around the organs. Give every body voxel without an "
            f"organ the label {BODY_ID}."
        )
    limits = _Limits.on_voxels_of(voxel_volume_ml(spacing_mm))
    # A rim of air: every voxel has all its neighbours, one fixed step away in memory.
    drawn = np.pad(label_map, 1, constant_values=BACKGROUND_ID)
    drawn[drawn == HEPATIC_VESSEL_ID] = LIVER_ID
    _clean_envelope(drawn, limits)
    cleaned = drawn.copy()
    unclaimed = _return_tumors(cleaned) | _find_islands(cleaned, limits)
    for _ in range(MAX_PASSES):
        _fill_from_around(cleaned, unclaimed)
        _close_holes(cleaned, limits)
        unclaimed = _find_islands(cleaned, limits)
        if not unclaimed.any():
            break
    for tumor_id in dict.fromkeys(keep_tumor_ids):
        _draw_tumor_again(cleaned, drawn == tumor_id, tumor_id)
    return cleaned[1:-1, 1:-1, 1:-1].copy()


def _require_tumors(label_ids: Sequence[int]) -> None:
    known = FULL_VOCABULARY
    for label_id in label_ids:
        if label_id not in known.tumor_ids:
            found = f"'{known.name_of(label_id)}'" if known.contains(label_id) else "an id without a label"
            raise VocabularyError(
                f"Tumour {label_id} to keep: expected one of {', '.join(map(str, known.tumor_ids))}, found {found}. "
                "Name a tumour that MAISI's mask generator draws."
            )


def _clean_envelope(labels: NDArray[np.uint8], limits: _Limits) -> None:
    """Keep the largest piece of the body, and give the air that it encloses the body's label; in place.

    Air is outside where it reaches a side of the axial slices, so that a void that runs out of the first or last slice
    is closed as well. Specks of air at a side are noise.
    """
    inner = labels[1:-1, 1:-1, 1:-1]
    body = _find_parts(inner > 0, connectivity=6)
    if body.sizes.size > 2:
        inner[body.numbers != 1 + int(body.sizes[1:].argmax())] = BACKGROUND_ID
    air = _find_parts(inner == BACKGROUND_ID, connectivity=6)
    is_enclosed = np.ones(air.sizes.size, dtype=bool)
    for side in (air.numbers[0], air.numbers[-1], air.numbers[:, 0], air.numbers[:, -1]):
        is_enclosed[np.unique(side)] = False
    is_enclosed |= air.sizes < limits.dust
    is_enclosed[0] = False
    if is_enclosed.any():
        inner[is_enclosed[air.numbers]] = BODY_ID


def _return_tumors(labels: NDArray[np.uint8]) -> Mask:
    """Turn tumours into the hosts that they touch, in place; the voxels of those that touch none have no label."""
    unclaimed = np.zeros(labels.shape, dtype=bool)
    present = np.bincount(labels.ravel(), minlength=256)
    for tumor_id in (label_id for label_id in FULL_VOCABULARY.tumor_ids if present[label_id]):
        box = bounding_box(labels == tumor_id, margin=1)
        tumor = labels[box] == tumor_id
        hosts = np.where(is_any_of(labels[box], FULL_VOCABULARY.hosts_of(tumor_id)), labels[box], 0)
        grown, left = _grow_into(hosts, tumor)
        labels[box][tumor] = grown[tumor]
        unclaimed[box] |= left
    return unclaimed


def _find_islands(labels: NDArray[np.uint8], limits: _Limits) -> Mask:
    """The parts of organs that are not kept; ``clean_label_map`` says which."""
    organs = labels.copy()
    organs[labels == BODY_ID] = 0
    parts = _find_parts(organs, connectivity=26)
    owner = np.zeros(parts.sizes.size, dtype=np.uint8)
    owner[parts.numbers.ravel()] = organs.ravel()
    is_cut = np.zeros(parts.sizes.size, dtype=bool)
    for axis in range(3):
        is_cut[np.unique(parts.numbers.take((1, -2), axis=axis))] = True
    candidates = 1 + np.flatnonzero(parts.sizes[1:] >= limits.dust)
    # The largest part of each organ comes first; of equals the first in scan order.
    candidates = candidates[np.lexsort((candidates, -parts.sizes[candidates], owner[candidates]))]
    owners, first = np.unique(owner[candidates], return_index=True)
    largest = np.zeros(256, dtype=np.int64)
    largest[owners] = parts.sizes[candidates[first]]
    enough = np.minimum(MIN_PART_SHARE * largest, limits.part)
    is_large = parts.sizes[candidates] >= enough[owner[candidates]]
    is_kept = np.zeros(parts.sizes.size, dtype=bool)
    is_kept[candidates] = is_large & (_HAS_PARTS[owner[candidates]] | is_cut[candidates])
    is_kept[candidates[first]] = True
    is_kept[0] = True
    islands: Mask = ~is_kept[parts.numbers]
    return islands


def _fill_from_around(labels: NDArray[np.uint8], unclaimed: Mask) -> None:
    """Give voxels without a label the one that reaches them first from outside, in place; never air."""
    if not unclaimed.any():
        return
    labels[unclaimed] = 0
    grown, left = _grow_into(labels, unclaimed)
    labels[unclaimed] = grown[unclaimed]
    labels[left] = BODY_ID  # only where nothing in the envelope is large enough to be kept


def _grow_into(sources: NDArray[np.uint8], room: Mask) -> tuple[NDArray[np.uint8], Mask]:
    """Let labels grow into a room, a layer of voxels at a time.

    Args:
        sources: ``(I, J, K)`` labels that grow, else 0; a rim of one voxel around the room is outside of it.
        room: ``(I, J, K)`` voxels to take; each gets the commonest label of its six neighbours, of equals the lowest.

    Returns:
        The grown labels, and the voxels of the room that none reaches.
    """
    grown, waiting = np.ascontiguousarray(sources), np.ascontiguousarray(room)
    labels, is_waiting = grown.reshape(-1).copy(), waiting.reshape(-1).copy()
    steps = _in_memory(_FACE_STEPS, sources.shape)
    layer = np.flatnonzero(is_waiting)
    is_reached = np.zeros(layer.size, dtype=bool)
    for step in steps:
        is_reached |= labels[layer + step] > 0
    layer = layer[is_reached]
    is_waiting[layer] = False
    while layer.size:
        labels[layer] = _commonest(np.stack([labels[layer + step] for step in steps]))
        further = []
        for step in steps:
            reached = layer + step
            reached = reached[is_waiting[reached]]
            is_waiting[reached] = False
            further.append(reached)
        layer = np.concatenate(further)
    return labels.reshape(sources.shape), is_waiting.reshape(room.shape)


def _commonest(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Along the first axis, the commonest label other than 0, of equals the lowest; at least one is not 0."""
    ordered = np.sort(labels, axis=0)
    counts = np.zeros(ordered.shape, dtype=np.uint8)
    for row in ordered:
        counts += ordered == row
    counts[ordered == 0] = 0
    commonest: NDArray[np.uint8] = np.take_along_axis(ordered, counts.argmax(axis=0)[np.newaxis], axis=0)[0]
    return commonest


def _close_holes(labels: NDArray[np.uint8], limits: _Limits) -> None:
    """Give tissue that one organ encloses, and specks of tissue, that organ's label; in place.

    The largest stretch of tissue is the body itself.
    """
    tissue = _find_parts(labels == BODY_ID, connectivity=6)
    if tissue.sizes.size <= 2:
        return
    is_gap = np.ones(tissue.sizes.size, dtype=bool)
    is_gap[[0, 1 + int(tissue.sizes[1:].argmax())]] = False
    gaps = np.flatnonzero(is_gap[tissue.numbers])
    number = tissue.numbers.reshape(-1)[gaps].astype(np.int64)
    keys = []
    for step in _in_memory(_FACE_STEPS, labels.shape):
        neighbour = labels.reshape(-1)[gaps + step]
        is_other = neighbour != BODY_ID
        keys.append(number[is_other] * 256 + neighbour[is_other])
    contacts, areas = np.unique(np.concatenate(keys), return_counts=True)
    part, label = np.divmod(contacts, 256)
    is_open = np.zeros(tissue.sizes.size, dtype=bool)
    is_open[part[label == BACKGROUND_ID]] = True
    part, label, areas = (column[label != BACKGROUND_ID] for column in (part, label, areas))
    num_organs = np.bincount(part, minlength=tissue.sizes.size)
    # Written from the smallest area to the largest, of equals from the highest id to the lowest: the last one stays.
    order = np.lexsort((-label, areas))
    organ = np.full(tissue.sizes.size, BODY_ID, dtype=np.uint8)
    organ[part[order]] = label[order]
    is_hole = ~is_open & (num_organs == 1) & ((organ != SKULL_ID) | (tissue.sizes <= limits.skull_hole))
    organ[~(is_hole | (tissue.sizes < limits.dust))] = BODY_ID
    labels.reshape(-1)[gaps] = organ[number]


def _draw_tumor_again(labels: NDArray[np.uint8], tumor: Mask, tumor_id: int) -> None:
    """Write the largest part of a tumour that touches its host back into the healthy map, in place."""
    hosts = FULL_VOCABULARY.hosts_of(tumor_id)
    outer = bounding_box(tumor, margin=1)
    tumor, frame = tumor[outer], labels[outer]
    host = (is_any_of(frame, hosts) & ~tumor).reshape(-1)
    voxels = np.flatnonzero(tumor)
    is_touching = np.zeros(voxels.size, dtype=bool)
    for step in _in_memory(_ALL_STEPS, tumor.shape):
        is_touching |= host[voxels + step]
    parts, num_parts = label_parts(tumor)
    number = parts.reshape(-1)[voxels]
    touches = np.zeros(num_parts + 1, dtype=bool)
    touches[number[is_touching]] = True
    sizes = np.bincount(number, minlength=num_parts + 1) * touches
    if not sizes.any():
        return
    lesion = parts == int(sizes.argmax())
    box = bounding_box(lesion)
    holes = ndimage.binary_fill_holes(lesion[box]) & is_any_of(frame[box], (*hosts, BODY_ID))
    frame[box][lesion[box] | holes] = tumor_id


def _find_parts(labels: NDArray[Any], *, connectivity: int) -> _Parts:
    """Connected parts of equal labels, all labels at once."""
    contiguous = np.ascontiguousarray(labels)
    # As bytes: of a mask one voxel wide, cc3d 4.1 underestimates the number of parts and raises.
    contiguous = contiguous.view(np.uint8) if contiguous.dtype == np.bool_ else contiguous
    numbers = cc3d.connected_components(contiguous, connectivity=connectivity)
    return _Parts(numbers, np.bincount(numbers.reshape(-1)))


def _in_memory(steps: Sequence[tuple[int, ...]], shape: Sequence[int]) -> tuple[int, ...]:
    """Steps along I, J, K as steps through a C-ordered array."""
    strides = (shape[1] * shape[2], shape[2], 1)
    return tuple(sum(a * b for a, b in zip(step, strides, strict=True)) for step in steps)
