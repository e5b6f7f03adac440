"""Painters that draw a lesion into a crop, including the procedural painter, which needs no weights.

It is also the control that a network must face: a lesion of plausible HU, softened by the point spread of a scanner,
with the noise of its surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from maisi_aug.insertion.surroundings import AERATED_HU
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.components import Mask
from maisi_aug.volumes.grid import Shape, Spacing

Texture = Literal["solid", "part-solid", "ground-glass", "soft"]
"""Texture of a lesion: three kinds of lung nodules, and "soft" for lesions of other organs."""
TEXTURES: tuple[Texture, ...] = ("solid", "part-solid", "ground-glass")

SOLID_HU = (20.0, 130.0)
GROUND_GLASS_HU = (-680.0, -420.0)
HALO_HU = (-480.0, -240.0)
"""HU of the non-solid part of a part-solid nodule; in LIDC-IDRI it is denser than ground-glass alone."""
SOFT_CONTRAST_HU = (25.0, 60.0)
"""Contrast in HU between a lesion of soft tissue and its host."""
CORE_SHARE = (0.15, 0.5)
"""Share of a part-solid nodule's volume that is solid."""
POINT_SPREAD_MM = (0.6, 1.0)
MOTTLING_HU, SOFT_MOTTLING_HU = 25.0, 6.0
MOTTLING_MM = 2.0
NOISE_MM = 1.5
"""Structure finer than this is taken for noise where the surroundings are measured."""


@dataclass(frozen=True, eq=False)
class PaintTask:
    """A crop of a CT in which a painter is to draw a lesion.

    Attributes:
        image_hu: ``(I, J, K)`` float32 crop of the CT in HU; not to be modified.
        label_map: ``(I, J, K)`` vocabulary ids including the lesion; 0 beyond the CT.
        lesion: ``(I, J, K)`` mask of the lesion.
        hidden: ``(I, J, K)`` mask of the voxels to draw.
        host: ``(I, J, K)`` mask of the host organ, without lesions.
        spacing_mm: Voxel sides along I, J, K in mm.
        texture: Density of the lesion.
        seed: Seed; the same seed gives the same drawing.
        sign: Whether a soft lesion is brighter (1) or darker (-1) than its host, or either (0).
    """

    image_hu: NDArray[np.float32]
    label_map: NDArray[np.uint8]
    lesion: Mask
    hidden: Mask
    host: Mask
    spacing_mm: Spacing
    texture: Texture
    seed: int
    sign: int = 0


class Painter(Protocol):
    """Protocol of objects that draw lesions into crops of CTs."""

    @property
    def name(self) -> str:
        """Name of the painter in the manifest."""

    @property
    def factor(self) -> int:
        """Number of which every side of a crop must be a multiple."""

    @property
    def least_shape(self) -> Shape:
        """Smallest shape of a crop along I, J, K, in voxels."""

    def paint(self, task: PaintTask) -> NDArray[np.float32]:
        """Draw the lesion of a task; returns ``(I, J, K)`` HU, of which only the hidden part is used."""


@dataclass(frozen=True)
class ProceduralPainter:
    """Painter that computes lesions from HU and noise of the CT, without weights and at any resolution."""

    name: str = "procedural"
    factor: int = 1
    least_shape: Shape = (16, 16, 6)

    def paint(self, task: PaintTask) -> NDArray[np.float32]:
        """Draw the lesion of a task: its HU softened at the edge, with noise like that around it; ``(I, J, K)`` HU."""
        rng = numpy_generator(task.seed, "procedural painter")
        sigma = [rng.uniform(*POINT_SPREAD_MM) / step for step in task.spacing_mm]
        cover = np.clip(ndimage.gaussian_filter(_fill(task), sigma), 0.0, 1.0)
        inner_hu = _draw_inside(task, rng)
        inner_hu = ndimage.gaussian_filter(inner_hu, sigma)
        noise_hu = draw_noise_like(task.image_hu, _choose_noise(task), task.spacing_mm, rng)
        if task.texture == "ground-glass":  # vessels and bronchi show through
            lung_hu = _local_hu(task)
            added = np.maximum(0.0, inner_hu - lung_hu) * cover
            return np.asarray(np.maximum(task.image_hu, np.minimum(task.image_hu + added, 60.0)), dtype=np.float32)
        # As much noise as the real image loses where it is covered.
        strength = np.sqrt(np.clip(1.0 - (1.0 - cover) ** 2, 0.0, 1.0))
        painted = task.image_hu * (1.0 - cover) + inner_hu * cover + noise_hu * strength
        return np.asarray(painted, dtype=np.float32)


def set_contrast(task: PaintTask, drawn_hu: NDArray[np.float32], contrast_hu: float) -> NDArray[np.float32]:
    """Make a drawn lesion brighter or darker as a whole; its texture and noise are preserved.

    Args:
        task: Task that was drawn.
        drawn_hu: ``(I, J, K)`` HU as drawn.
        contrast_hu: Wanted difference between the median HU of the lesion's inner half and of the host.

    Returns:
        ``(I, J, K)`` HU with that contrast.
    """
    depth_mm = ndimage.distance_transform_edt(task.lesion, sampling=task.spacing_mm)
    core = depth_mm >= np.median(depth_mm[task.lesion])
    sigma = [float(np.mean(POINT_SPREAD_MM)) / step for step in task.spacing_mm]
    cover = np.clip(ndimage.gaussian_filter(_fill(task), sigma), 0.0, 1.0)
    lacking_hu = _local_hu(task) + contrast_hu - float(np.median(drawn_hu[core]))
    return np.asarray(drawn_hu + lacking_hu * cover / max(float(np.median(cover[core])), 0.1), dtype=np.float32)


def _fill(task: PaintTask) -> NDArray[np.float32]:
    """Return the share of lesion in each voxel: one half at the rim, since readers outline the visible nodule."""
    depth_mm = ndimage.distance_transform_edt(task.lesion, sampling=task.spacing_mm)
    return np.asarray(np.clip(depth_mm / min(task.spacing_mm) - 0.5, 0.0, 1.0), dtype=np.float32)


def _choose_noise(task: PaintTask) -> Mask:
    """Choose where noise is measured: in the host, without the vessels of a lung; anywhere if there is no host."""
    thin = task.host if task.texture == "soft" else task.host & (task.image_hu < AERATED_HU)
    return next((mask for mask in (thin, task.host) if mask.any()), task.label_map > 0)


def _draw_inside(task: PaintTask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the lesion without noise and point spread."""
    glass = HALO_HU if task.texture == "part-solid" else GROUND_GLASS_HU
    solid_hu, glass_hu, share = (rng.uniform(*span) for span in (SOLID_HU, glass, CORE_SHARE))
    mottling = ndimage.gaussian_filter(
        rng.standard_normal(task.lesion.shape), [MOTTLING_MM / step for step in task.spacing_mm], mode="wrap"
    )
    mottling *= (SOFT_MOTTLING_HU if task.texture == "soft" else MOTTLING_HU) / max(float(mottling.std()), 1e-6)
    if task.texture == "soft":
        contrast_hu = rng.uniform(*SOFT_CONTRAST_HU) * (task.sign or (1 if rng.random() < 0.5 else -1))
        return np.asarray(_local_hu(task) + contrast_hu + mottling, dtype=np.float32)
    level_hu = np.full(task.lesion.shape, solid_hu if task.texture == "solid" else glass_hu)
    if task.texture == "part-solid":
        depth_mm = ndimage.distance_transform_edt(task.lesion, sampling=task.spacing_mm)
        depth_mm = depth_mm + 0.02 * mottling * (task.lesion > 0)
        num_core = max(1, round(share * int(task.lesion.sum())))
        level_hu[depth_mm >= np.sort(depth_mm[task.lesion])[-num_core]] = solid_hu
    return np.asarray(level_hu + mottling, dtype=np.float32)


def _local_hu(task: PaintTask) -> float:
    """Median of the host in the crop, of a lung without its vessels."""
    around = _choose_noise(task)
    return float(np.median(task.image_hu[around])) if around.any() else -850.0


def find_fine_structure(image_hu: NDArray[np.float32], where: Mask, spacing_mm: Spacing) -> NDArray[np.float32]:
    """Return the structure finer than ``NOISE_MM`` within a mask, ignoring voxels outside; 0 elsewhere.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        where: ``(I, J, K)`` mask; voxels outside do not count, so that the edge of a lesion is not mistaken for noise.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    sigma = [NOISE_MM / step for step in spacing_mm]
    share = ndimage.gaussian_filter(where.astype(np.float32), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(where, image_hu, 0.0).astype(np.float32), sigma, mode="nearest")
    fine: NDArray[np.float32] = np.where(where, image_hu - total / np.maximum(share, 1e-6), 0.0).astype(np.float32)
    return fine


def measure_noise(image_hu: NDArray[np.float32], where: Mask, spacing_mm: Spacing) -> float:
    """Return the robust standard deviation in HU of the structure finer than ``NOISE_MM`` within a mask.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        where: ``(I, J, K)`` mask; 0 is returned if it is empty.
        spacing_mm: Voxel sides along I, J, K in mm.
    """
    return robust_deviation(find_fine_structure(image_hu, where, spacing_mm)[where])


def robust_deviation(values: NDArray[np.float32]) -> float:
    """Estimate the standard deviation of values from the median of absolute deviations; 0 without values."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def draw_noise_like(
    image_hu: NDArray[np.float32], where: Mask, spacing_mm: Spacing, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw noise with the spectrum and strength of the fine structure of an image.

    The spectrum's phases are drawn anew (Galerne et al., "Random phase textures", IEEE TIP 2011); vessels and edges are
    clipped beforehand.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        where: ``(I, J, K)`` mask of the voxels whose structure is imitated.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Generator of all random draws.

    Returns:
        ``(I, J, K)`` noise in HU.
    """
    fine = find_fine_structure(image_hu, where, spacing_mm)
    strength = robust_deviation(fine[where])
    clipped = np.clip(fine, -2.0 * strength, 2.0 * strength)
    phases = fft.rfftn(rng.standard_normal(image_hu.shape))
    spectrum = np.abs(fft.rfftn(clipped)) * phases / np.maximum(np.abs(phases), 1e-9)
    drawn = fft.irfftn(spectrum, image_hu.shape)
    deviation = float(drawn.std())
    return np.asarray(drawn * (strength / deviation if deviation > 0 else 0.0), dtype=np.float32)
