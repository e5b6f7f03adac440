"""Detail maps: a label map with the structure that labels do not show, written as ids that the vocabulary leaves free.

Under id 200 the tissues appear (fat, muscle, skin and so on), bones get their cortex, kidneys their medulla, the heart
its blood pools, the bowel its content and the lungs their vessels. All other voxels keep their label. The renderer
draws images from detail maps, so that image and map agree voxel by voxel; networks can be conditioned on them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.phantom.erosion import inner
from maisi_aug.phantom.lumen import fill_gut
from maisi_aug.phantom.lungs import paint_lungs
from maisi_aug.phantom.noise import F32, smooth_noise
from maisi_aug.phantom.shapes import lookup
from maisi_aug.phantom.tumors import find_tumors, without_tumors
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.components import bounding_box
from maisi_aug.volumes.grid import Grid, Spacing

Labels = NDArray[np.uint8]
SKIN_MM: Final = 2.2
# How compact the cortex is, relative to that of the hips.
_THIN_CORTEX: Final = (ids.STERNUM, *ids.VERTEBRAE, *ids.RIBS, ids.SACRUM)
_THICK_CORTEX: Final = (ids.LEFT_FEMUR, ids.RIGHT_FEMUR, ids.LEFT_HUMERUS, ids.RIGHT_HUMERUS)
CORTEX_MM: Final = 2.0
RENAL_CORTEX_MM: Final = 6.5


def draw_detail(label_map: Labels, tissue: NDArray[np.uint8], *, seed: int, grid: Grid) -> Labels:
    """Draw the detail map of a label map; the same seed gives the same map.

    Args:
        label_map: ``(I, J, K)`` uint8 vocabulary ids along R, A, S, with or without tumours; not modified.
        tissue: ``(I, J, K)`` uint8 tissue ids (``ids.TISSUES``); read where the label is 200.
        seed: Seed of the content of the bowel, of vessels and of everything else that labels leave open.
        grid: Shape and spacing of the label map.

    Returns:
        ``(I, J, K)`` uint8: vocabulary ids and ``ids.DETAIL_IDS``. Tumours and air outside the body keep their label.

    Raises:
        GridError: The maps do not have the grid's shape.
    """
    grid.require_shape_of(label_map, subject="Label map")
    grid.require_shape_of(tissue, subject="Tissue map")
    labels = np.ascontiguousarray(label_map, dtype=np.uint8)
    tumors = find_tumors(labels)
    return with_tumors(draw_healthy_detail(without_tumors(labels, tumors), tissue, seed=seed, grid=grid), labels)


def with_tumors(detail: Labels, labels: Labels) -> Labels:
    """Return a detail map with the tumours of a label map written over it; both have shape ``(I, J, K)``."""
    return np.where(lookup(ids.TUMORS)[labels], labels, detail)


def draw_healthy_detail(labels: Labels, tissue: NDArray[np.uint8], *, seed: int, grid: Grid) -> Labels:
    """Draw the detail map of a label map without tumours; see :func:`draw_detail`.

    Args:
        labels: ``(I, J, K)`` uint8 vocabulary ids without tumours; not modified.
        tissue: ``(I, J, K)`` uint8 tissue ids.
        seed: Seed of everything that labels leave open.
        grid: Shape and spacing of the label map.

    Returns:
        A new ``(I, J, K)`` uint8 map.
    """
    spacing = grid.spacing_mm
    detail = labels.copy()
    _paint_tissues(detail, labels, tissue, spacing, numpy_generator(seed, "fat"))
    _paint_cortex(detail, labels, spacing)
    _paint_medulla(detail, labels, spacing, numpy_generator(seed, "kidneys"))
    _paint_blood(detail, labels, spacing, numpy_generator(seed, "heart"))
    paint_lungs(detail, labels, spacing, numpy_generator(seed, "lungs"))
    fill_gut(detail, labels, spacing, numpy_generator(seed, "gut"))
    _paint_texture(detail, spacing, numpy_generator(seed, "detail texture"))
    return detail


def _paint_tissues(
    detail: Labels, labels: Labels, tissue: NDArray[np.uint8], spacing_mm: Spacing, rng: np.random.Generator
) -> None:
    """What is under id 200, the vessels of visceral fat, and the skin."""
    body = labels == ids.BODY
    shown = np.where(lookup(ids.TISSUES)[tissue], tissue, np.uint8(ids.TISSUE_FAT)) + np.uint8(ids.DETAIL_TISSUE)
    first, second = (smooth_noise(labels.shape, spacing_mm, rng, 30.0) for _ in range(2))
    # Two sheets of noise cross in lines: strings of vessels as in the mesentery.
    strings = first * first + second * second < np.float32(0.05)
    shown[strings & (shown == ids.VISCERAL_FAT)] = ids.UNLABELLED_VESSEL
    skin = (labels > 0) & ~inner(labels > 0, SKIN_MM, spacing_mm)
    shown[skin] = ids.SKIN
    detail[body] = shown[body]


def _paint_cortex(detail: Labels, labels: Labels, spacing_mm: Spacing) -> None:
    bone = lookup(ids.BONES)[labels]
    cortex = np.full(256, ids.CORTICAL_BONE, dtype=np.uint8)
    cortex[list(_THIN_CORTEX)], cortex[list(_THICK_CORTEX)] = ids.THIN_CORTEX, ids.THICK_CORTEX
    shell = bone & ~inner(bone, CORTEX_MM, spacing_mm)
    detail[shell] = cortex[labels[shell]]


def _paint_texture(detail: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Strands in visceral fat, streaks of fat in muscle, and the crumbs of stool."""
    is_ridge = np.abs(smooth_noise(detail.shape, spacing_mm, rng, 15.0)) < np.float32(0.17)
    other = smooth_noise(detail.shape, spacing_mm, rng, 34.0)
    muscle = lookup((*ids.MUSCLES, ids.UNLABELLED_MUSCLE))[detail]
    detail[is_ridge & (other > np.float32(0.3)) & (detail == ids.VISCERAL_FAT)] = ids.FAT_STRAND
    detail[is_ridge & (other < np.float32(0.3)) & muscle] = ids.MUSCLE_STREAK
    stool = detail == ids.STOOL
    count = int(stool.sum())
    if count:
        mottle = smooth_noise(detail.shape, spacing_mm, rng, 13.0)[stool]
        crumbs = np.where(mottle > np.float32(0.6), ids.DENSE_STOOL, ids.STOOL).astype(np.uint8)
        crumbs[rng.standard_normal(count, dtype=np.float32) > np.float32(1.3)] = ids.STOOL_GAS
        detail[stool] = crumbs


def _paint_medulla(detail: Labels, labels: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Pyramids inside the renal cortex, parted by columns of it."""
    kidneys = lookup(ids.KIDNEYS)[labels]
    if not kidneys.any():
        return
    box = bounding_box(kidneys, margin=1)
    columns = smooth_noise(kidneys[box].shape, spacing_mm, rng, 17.0)
    deep = inner(kidneys[box], RENAL_CORTEX_MM, spacing_mm)
    detail[box][deep & (columns > np.float32(-0.55))] = ids.KIDNEY_MEDULLA


# Chambers as balls: centre relative to the heart's middle and radius, in standard deviations of its extent.
_LEFT_CHAMBERS: Final = (((-0.85, -0.25, -0.35), 0.78), ((0.45, -1.05, 0.35), 0.80))
_RIGHT_CHAMBERS: Final = (((-0.05, 0.85, -0.25), 0.86), ((1.05, 0.25, 0.05), 0.85), ((0.0, 0.2, 1.9), 1.25))


def _paint_blood(detail: Labels, labels: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """The blood pools of the four chambers and of the pulmonary trunk inside the myocardium."""
    heart = labels == ids.HEART
    if not heart.any():
        return
    box = bounding_box(heart)
    mask = heart[box]
    places = np.argwhere(mask)
    middle, extent = places.mean(axis=0), np.maximum(places.std(axis=0), 0.5)
    u: list[F32] = [
        ((np.arange(mask.shape[a]) - middle[a]) / extent[a])
        .astype(np.float32)
        .reshape([-1 if b == a else 1 for b in range(3)])
        for a in range(3)
    ]
    wobble = np.float32(0.10) * smooth_noise(mask.shape, spacing_mm, rng, 40.0)
    view = detail[box]
    for chambers, blood in ((_LEFT_CHAMBERS, ids.LEFT_BLOOD_POOL), (_RIGHT_CHAMBERS, ids.RIGHT_BLOOD_POOL)):
        for (cx, cy, cz), radius in chambers:
            distance = np.sqrt((u[0] - cx) ** 2 + (u[1] - cy) ** 2 + ((u[2] - cz) / 1.1) ** 2) + wobble
            view[mask & (distance < radius)] = blood
