"""Turns a label map into a CT: its detail map, HU by id, texture, kernel, tumours and noise."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.phantom import ids, textures
from maisi_aug.phantom.detail import draw_healthy_detail, with_tumors
from maisi_aug.phantom.erosion import eroded
from maisi_aug.phantom.intensity import Phase, draw_appearance, draw_phase
from maisi_aug.phantom.scanner import blur_voxels, draw_noise
from maisi_aug.phantom.shapes import lookup
from maisi_aug.phantom.tumors import blend_tumors, find_tumors, without_tumors
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.grid import Grid, Spacing

Labels = NDArray[np.uint8]
HU_LIMITS: Final = (-1000.0, 1400.0)
_WALL_REACH_MM: Final = 11.0  # how far muscle reaches around bones when the tissues have to be guessed


def render_hu(
    label_map: NDArray[np.uint8],
    *,
    seed: int,
    grid: Grid,
    phase: Phase | None = None,
    tissue: NDArray[np.uint8] | None = None,
) -> NDArray[np.int16]:
    """Render a CT image that matches a label map; the same seed gives the same image.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids, with or without tumours; not modified.
        seed: Seed of phase, HU, textures, kernel and noise.
        grid: Shape and affine of the label map.
        phase: Contrast phase; drawn from the seed when None.
        tissue: ``(I, J, K)`` tissue under label 200 (see ``ids``); guessed from the geometry when None.

    Returns:
        ``(I, J, K)`` int16 HU; exactly -1000 where the label is 0.

    Raises:
        GridError: The map does not have the grid's shape.
    """
    grid.require_shape_of(label_map, subject="Label map")
    tissues = guess_tissue(label_map, grid.spacing_mm) if tissue is None else tissue
    return draw_case(label_map, tissues, seed=seed, grid=grid, phase=phase or draw_phase(seed))[1]


def draw_case(
    label_map: Labels, tissue: NDArray[np.uint8], *, seed: int, grid: Grid, phase: Phase
) -> tuple[Labels, NDArray[np.int16]]:
    """Draw the detail map of a label map and the CT image that matches both.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids, with or without tumours; not modified.
        tissue: ``(I, J, K)`` tissue under label 200.
        seed: Seed of detail, HU, textures, kernel and noise.
        grid: Shape and affine of the label map.
        phase: Contrast phase.

    Returns:
        The detail map, as :func:`detail.draw_detail` draws it, and ``(I, J, K)`` int16 HU.
    """
    appearance = draw_appearance(seed, phase)
    labels = np.ascontiguousarray(label_map, dtype=np.uint8)
    tumors = find_tumors(labels)
    healthy = without_tumors(labels, tumors)
    detail = draw_healthy_detail(healthy, tissue, seed=seed, grid=grid)
    image = appearance.hu[detail]
    textures.paint_textures(image, detail, appearance, grid.spacing_mm, numpy_generator(seed, "texture"))
    image = ndimage.gaussian_filter(image, blur_voxels(appearance, grid.spacing_mm), truncate=3.0)
    blend_tumors(image, tumors, appearance, grid.spacing_mm, numpy_generator(seed, "tumors"))
    image += draw_noise(grid.shape, appearance, grid.spacing_mm, numpy_generator(seed, "noise"))
    np.clip(image, *HU_LIMITS, out=image)
    image[labels == ids.BACKGROUND] = HU_LIMITS[0]
    return with_tumors(detail, labels), np.rint(image).astype(np.int16)


def guess_tissue(labels: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.uint8]:
    """Return the tissue of voxels with label 200, guessed from the labels: muscle around bones, else fat.

    Args:
        labels: ``(I, J, K)`` vocabulary ids.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` uint8 tissue ids.
    """
    tissue = np.full(labels.shape, ids.TISSUE_FAT, dtype=np.uint8)
    if not labels.any():
        return tissue
    frame = lookup((*ids.BONES, *ids.MUSCLES, ids.COSTAL_CARTILAGE))[labels]
    sigma = [_WALL_REACH_MM / 1.6 / step for step in spacing_mm]
    near = ndimage.gaussian_filter(frame.astype(np.float32), sigma, truncate=2.0) > 0.10
    deep = labels > 0
    for _ in range(max(1, round(6.0 / max(spacing_mm)))):
        deep = eroded(deep)
    tissue[near & deep] = ids.TISSUE_MUSCLE
    tissue[~deep] = ids.TISSUE_SUBCUTANEOUS
    return tissue
