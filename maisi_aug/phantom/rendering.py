"""Turns a label map into a CT: HU by organ and tissue, inner structure, partial volume, kernel, noise."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError
from maisi_aug.phantom import ids, textures
from maisi_aug.phantom.intensity import Appearance, Phase, draw_appearance, draw_phase
from maisi_aug.phantom.lumen import Filling, bounding_box, eroded, fill_lumen
from maisi_aug.phantom.noise import F32, smooth_noise
from maisi_aug.phantom.shapes import lookup
from maisi_aug.phantom.tumors import blend_tumors, find_tumors, without_tumors
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.grid import Grid

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
    if label_map.shape != grid.shape:
        raise GridError(
            f"Label map: expected the grid's shape {grid.shape}, found {label_map.shape}. Pass its own grid."
        )
    appearance = draw_appearance(seed, phase or draw_phase(seed))
    labels = np.ascontiguousarray(label_map, dtype=np.uint8)
    tissues = guess_tissue(labels, grid.spacing_mm) if tissue is None else tissue
    tumors = find_tumors(labels)
    image = _ideal_image(without_tumors(labels, tumors), tissues, appearance, grid, seed)
    image = ndimage.gaussian_filter(image, appearance.kernel_voxels, truncate=3.0)
    blend_tumors(image, tumors, appearance, grid.spacing_mm, numpy_generator(seed, "tumors"))
    return _with_noise(image, labels, appearance, seed)


def _ideal_image(
    labels: NDArray[np.uint8], tissues: NDArray[np.uint8], appearance: Appearance, grid: Grid, seed: int
) -> F32:
    """HU of the healthy patient before the scanner blurs them."""
    spacing = grid.spacing_mm
    image = np.where(labels == ids.BODY, appearance.tissue_hu[np.minimum(tissues, 7)], appearance.organ_hu[labels])
    slow = smooth_noise(grid.shape, spacing, numpy_generator(seed, "texture"), 24.0)
    image += slow * appearance.texture_hu[labels]
    textures.paint_fat(image, labels, tissues, appearance, spacing, numpy_generator(seed, "fat"))
    textures.paint_bones(image, labels, appearance, numpy_generator(seed, "bones"))
    textures.paint_lungs(image, labels, appearance, spacing, numpy_generator(seed, "lungs"))
    textures.paint_kidneys(image, labels, appearance, spacing, numpy_generator(seed, "kidneys"))
    textures.paint_heart(image, labels, appearance, spacing, numpy_generator(seed, "heart"))
    _fill_gut(image, labels, spacing, seed)
    return image


def _fill_gut(image: F32, labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float], seed: int) -> None:
    """Gas, fluid, food and stool; a minority of patients drank positive contrast."""
    rng = numpy_generator(seed, "gut")
    oral = rng.random() < 0.12
    fluid = float(rng.uniform(120, 220)) if oral else float(rng.uniform(8, 30))
    fillings = {
        ids.STOMACH: Filling(
            float(rng.uniform(0.5, 2.2)),
            0.2,
            fluid if oral else float(rng.uniform(5, 45)),
            float(rng.uniform(3, 16)),
            0.0,
        ),
        ids.DUODENUM: Filling(2.3, 0.6, fluid, 5.0, 0.0),
        ids.SMALL_BOWEL: Filling(2.0, 0.6, fluid, 7.0, 0.0),
        ids.COLON: Filling(
            float(rng.uniform(-0.15, 0.5)), 0.8, float(rng.uniform(-55, -10)), float(rng.uniform(20, 45)), 0.15
        ),
        ids.ESOPHAGUS: Filling(1.2, 1.0, 40.0, 3.0, 0.0),
    }
    for label, filling in fillings.items():
        fill_lumen(image, labels == label, filling, spacing_mm, rng)


def _with_noise(image: F32, labels: NDArray[np.uint8], appearance: Appearance, seed: int) -> NDArray[np.int16]:
    """Add correlated noise, cut to the HU range and clear the air around the patient."""
    white = numpy_generator(seed, "noise").standard_normal(image.shape, dtype=np.float32)
    grain = ndimage.gaussian_filter(white, appearance.noise_grain_voxels, truncate=2.5)
    image = image + grain * np.float32(appearance.noise_hu / max(float(grain.std()), 1e-6))
    np.clip(image, *HU_LIMITS, out=image)
    image[labels == ids.BACKGROUND] = HU_LIMITS[0]
    rounded: NDArray[np.int16] = np.rint(image).astype(np.int16)
    return rounded


def guess_tissue(labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Return the tissue of voxels with label 200, guessed from the labels: muscle around bones, else fat.

    Args:
        labels: ``(I, J, K)`` vocabulary ids.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` uint8 tissue ids.
    """
    tissue = np.full(labels.shape, ids.TISSUE_FAT, dtype=np.uint8)
    if bounding_box(labels > 0) is None:
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
