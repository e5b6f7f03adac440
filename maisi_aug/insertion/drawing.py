"""The painter that is a bundle: latents of the crop are known but for a hidden part, which the networks draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.bundle_spec.solvers import PLAIN_SOLVER, Sampling
from maisi_aug.insertion.painting import PaintTask, Texture
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.grid import Grid, Shape, Spacing, voxel_volume_ml

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.networks.pipeline import Pipeline

Scalar = TypeVar("Scalar", bound=np.generic)
Method = Literal["replace", "difference", "whole"]
"""How the known part is used: ``replace`` puts its latents back at every step; ``difference`` subtracts two drawings
with the same noise, with and without the lesion, and adds the difference to the CT; ``whole`` only shows it to the
ControlNet.
"""
TEXTURE_NAMES: Mapping[Texture, str] = {"part-solid": "part-solid nodule", "ground-glass": "ground-glass nodule"}
"""Names of labels by which a bundle may distinguish textures."""
USUAL_HU: Mapping[Texture, tuple[tuple[float, float, float], ...]] = {
    "solid": ((6.1, -550.0, -140.0), (9.6, -375.0, 35.0), (15.0, -250.0, 70.0), (25.0, -170.0, 75.0)),
    "part-solid": ((8.0, -655.0, -305.0),),
    "ground-glass": ((7.5, -740.0, -470.0),),
}
"""Diameter in mm, and between which HU the median of a nodule's inner half lies in eight of ten patients' nodules.

Measured on the nodules of the 300 train patients of LIDC-IDRI (Armato et al., Medical Physics 2011) in which readers
saw no calcification: 392 solid ones (texture score 4 or 5; up to 8 mm, 8 to 12, 12 to 20 and above), 21 part-solid (3)
and 62 of ground-glass (1 or 2). A small nodule is blurred by the scanner, and its outline holds some lung."""
MOST_GAIN, NUM_GAINS = 3.0, 12
"""Largest factor by which a nodule fainter than usual ones is raised, and how many from 1 to it are tried."""
MOTTLING_MM, MOTTLED_SIZES_MM, MOTTLING_HU = 1.5, (8.0, 20.0), (0.0, 25.0)
"""Large nodules are uneven inside: what patients' have of this scale beyond what is drawn, by diameter."""
RIM_MM = 2.0
"""Width in mm of the rim of a nodule over which the gain grows from 0 to its full value."""
WALL_RANGE_HU, USUAL_WALL_HU, LEAST_WALL_VOXELS = (0.0, 150.0), 50.0, 100
"""Soft tissue without fat and bone, and what it is taken for where a crop shows none."""
KNEE_HU, HEADROOM_HU = -100.0, 50.0
"""Relative to the chest wall: above the first, a nodule's brightness is compressed, and it nears the second."""
BLUR_MM = 0.7
"""Width in mm of the smoothing; finer structure, such as noise, keeps its contrast when brightness is limited."""
MARGIN_MM = 6.0
"""Smallest margin in mm around the drawn part that the networks see."""
SPACING_LIMITS_MM = (1.05, 1.05, 2.6)
"""Largest spacing at which networks draw on the CT's own voxels; coarser ones are refined by an integer factor."""


@dataclass(frozen=True)
class BundlePainter:
    """Draws with the networks of a bundle.

    Attributes:
        pipeline: The bundle on a device.
        texture_ids: Ids that the networks know textures by; for others the lesion keeps its id in the label map.
        method: How the known part of the image is used.
        sampling: Number of steps and solver; None for the bundle's full number.
        num_resamplings: Number of times that a step is taken, see ``KnownLatent``.
        least_shape: Voxels that the networks are shown at least.
    """

    pipeline: Pipeline
    texture_ids: Mapping[Texture, int]
    method: Method = "replace"
    sampling: Sampling | None = None
    num_resamplings: int = 1
    least_shape: Shape = (40, 40, 8)
    name: str = field(default="bundle")

    @property
    def factor(self) -> int:
        """Number of which every side of a crop must be a multiple."""
        return self.pipeline.bundle.grid_factor

    def paint(self, task: PaintTask) -> NDArray[np.float32]:
        """Draw the hidden part of a crop from what the networks see around it; returns ``(I, J, K)`` HU."""
        factors = finer_factors(task)
        box = self._choose_part(task, factors)
        spacing_mm = tuple(step / factor for step, factor in zip(task.spacing_mm, factors, strict=True))
        image_hu = refine_image(task.image_hu[box], factors)
        label_map = _repeat(task.label_map[box], factors)
        hidden, lesion, host = (_repeat(mask[box], factors) for mask in (task.hidden, task.lesion, task.host))
        drawn_map = label_map.copy()
        if task.texture in self.texture_ids:
            drawn_map[lesion] = self.texture_ids[task.texture]
        maps = [drawn_map]
        if self.method == "difference":
            maps.append(_replace_lesion(label_map, lesion, host))
        grid = Grid.from_spacing(image_hu.shape, spacing_mm)  # type: ignore[arg-type]
        images = self.pipeline.redraw_images(
            image_hu,
            maps,
            hidden,
            grid,
            seed=task.seed,
            num_inference_steps=None if self.sampling is None else self.sampling.num_steps,
            solver=PLAIN_SOLVER if self.sampling is None else self.sampling.solver,
            num_resamplings=self.num_resamplings,
            puts_back=self.method != "whole",
        )
        drawn = images[0]
        if self.method == "difference":
            drawn = image_hu + _match_usual(images[0] - images[1], image_hu, lesion, grid.spacing_mm, task)
        painted = task.image_hu.copy()
        painted[box] = coarsen_image(drawn, factors)
        return painted

    def _choose_part(self, task: PaintTask, factors: Shape) -> tuple[slice, ...]:
        """The part of a crop that holds what is hidden and some of what is around it, as slices along I, J, K."""
        if not task.hidden.any():
            return tuple(slice(0, side) for side in task.hidden.shape)
        box = []
        for axis, (step, factor, least) in enumerate(zip(task.spacing_mm, factors, self.least_shape, strict=True)):
            others = tuple(other for other in range(3) if other != axis)
            held, whole = np.flatnonzero(task.hidden.any(axis=others)), task.hidden.shape[axis]
            wanted = max(int(held[-1] - held[0]) + 1 + 2 * int(np.ceil(MARGIN_MM / step)), -(-least // factor))
            side = min(-(-wanted // self.factor) * self.factor, whole)
            start = min(max(0, int(held[0] + held[-1] + 1 - side) // 2), whole - side)
            box.append(slice(start, start + side))
        return tuple(box)


def open_bundle_painter(bundle: Bundle, device: str, *, sampling: Sampling | None = None) -> BundlePainter:
    """Load the networks of a bundle to draw lesions with.

    Args:
        bundle: Whose.
        device: Device on which they run.
        sampling: Number of steps and solver; None for the bundle's full number.

    Raises:
        BundleError: When the weights or the device cannot be used.
    """
    from maisi_aug.networks.pipeline import Pipeline

    known = {label.name for label in bundle.vocabulary}
    texture_ids = {texture: bundle.vocabulary.id_of(name) for texture, name in TEXTURE_NAMES.items() if name in known}
    return BundlePainter(
        Pipeline.load(bundle, device),
        texture_ids,
        method="difference",
        sampling=sampling,
        name=bundle.name,
    )


def finer_factors(task: PaintTask) -> Shape:
    """Return the factors along I, J, K by which the networks' voxels are finer than those of the CT."""
    i, j, k = (
        max(1, int(np.ceil(step / limit))) for step, limit in zip(task.spacing_mm, SPACING_LIMITS_MM, strict=True)
    )
    return i, j, k


def refine_image(image_hu: NDArray[np.float32], factors: Shape) -> NDArray[np.float32]:
    """Interpolate a crop to voxels that are finer by the given factors, with cubic splines.

    Args:
        image_hu: ``(I, J, K)`` crop.
        factors: Factors along I, J, K.

    Returns:
        ``(I * f, J * g, K * h)`` image of the same box.
    """
    if factors == (1, 1, 1):
        return image_hu
    return np.asarray(ndimage.zoom(image_hu, factors, order=3, mode="nearest", grid_mode=True), dtype=np.float32)


def coarsen_image(image_hu: NDArray[np.float32], factors: Shape) -> NDArray[np.float32]:
    """Average an image over blocks of voxels, as a scanner with larger voxels would measure.

    Args:
        image_hu: ``(I * f, J * g, K * h)`` image.
        factors: Voxels per block along I, J, K.

    Returns:
        ``(I, J, K)`` means.
    """
    if factors == (1, 1, 1):
        return image_hu
    split = [part for side, factor in zip(image_hu.shape, factors, strict=True) for part in (side // factor, factor)]
    return np.asarray(image_hu.reshape(split).mean(axis=(1, 3, 5)), dtype=np.float32)


def _repeat(array: NDArray[Scalar], factors: Shape) -> NDArray[Scalar]:
    for axis, factor in enumerate(factors):
        array = np.repeat(array, factor, axis=axis)
    return array


def _replace_lesion(
    label_map: NDArray[np.uint8], lesion: NDArray[np.bool_], host: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The map with the nearest host in place of the lesion: else the wall next to it would be drawn there."""
    if not host.any():
        host = ~lesion
    nearest = ndimage.distance_transform_edt(~host, return_distances=False, return_indices=True)
    return np.where(lesion, label_map[tuple(nearest)], label_map).astype(np.uint8)


def _match_usual(
    added_hu: NDArray[np.float32],
    image_hu: NDArray[np.float32],
    lesion: NDArray[np.bool_],
    spacing_mm: Spacing,
    task: PaintTask,
) -> NDArray[np.float32]:
    """The HU that a nodule adds, raised where it is fainter than nodules of its kind, and limited by the chest wall."""
    if task.texture not in USUAL_HU:
        return added_hu
    depth = ndimage.distance_transform_edt(lesion)
    core = depth >= np.median(depth[lesion])
    size_mm = diameter_mm(float(lesion.sum()) * voxel_volume_ml(spacing_mm))
    usual_hu = numpy_generator(task.seed, "contrast").uniform(*find_usual_hu(task.texture, size_mm))
    wall_hu = find_wall_hu(task.image_hu)
    opaque = lesion if task.texture == "solid" else np.zeros_like(lesion)
    gains = np.geomspace(1.0, MOST_GAIN, NUM_GAINS) if float(np.median(added_hu[core])) > 0 else [1.0]
    # From the outline to the core: a rim that is also raised is brighter than those of patients.
    inwards = np.clip(ndimage.distance_transform_edt(lesion, sampling=spacing_mm) / RIM_MM, 0.0, 1.0)
    for gain in gains:
        raised = added_hu * (1 + np.float32(gain - 1) * inwards.astype(np.float32))
        limited = limit_brightness(image_hu, raised, opaque, wall_hu, spacing_mm)
        if float(np.median((image_hu + limited)[core])) >= usual_hu:
            break
    return np.asarray(limited + inwards * _draw_mottling(lesion.shape, spacing_mm, size_mm, task.seed), np.float32)


def _draw_mottling(
    shape: tuple[int, ...], spacing_mm: Spacing, size_mm: float, seed: int
) -> NDArray[np.float32] | np.float32:
    """Smooth noise in HU, as strong as a nodule of a diameter is uneven."""
    strength_hu = np.float32(np.interp(size_mm, MOTTLED_SIZES_MM, MOTTLING_HU))
    if not strength_hu:
        return strength_hu
    noise = numpy_generator(seed, "mottling").standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, [MOTTLING_MM / step for step in spacing_mm], mode="wrap")
    return np.asarray(strength_hu * smooth / max(float(smooth.std()), 1e-6), dtype=np.float32)


def find_usual_hu(texture: Texture, size_mm: float) -> tuple[float, float]:
    """Return the usual lower and upper HU of the inner half of a nodule, see ``USUAL_HU``.

    Args:
        texture: Texture of the nodule.
        size_mm: Equivalent diameter in mm.
    """
    sizes_mm, low_hu, high_hu = zip(*USUAL_HU[texture], strict=True)
    return float(np.interp(size_mm, sizes_mm, low_hu)), float(np.interp(size_mm, sizes_mm, high_hu))


def find_wall_hu(image_hu: NDArray[np.float32]) -> float:
    """Return the median HU of the soft tissue in a crop of a chest CT; a usual value if it shows hardly any."""
    soft = image_hu[(image_hu >= WALL_RANGE_HU[0]) & (image_hu <= WALL_RANGE_HU[1])]
    return float(np.median(soft)) if soft.size >= LEAST_WALL_VOXELS else USUAL_WALL_HU


def limit_brightness(
    image_hu: NDArray[np.float32],
    added_hu: NDArray[np.float32],
    opaque: NDArray[np.bool_],
    wall_hu: float,
    spacing_mm: Spacing,
) -> NDArray[np.float32]:
    """Reduce what is added to an image where the sum would be brighter than soft tissue.

    A nodule without calcification is as dense as the chest wall. Above a knee the sum ``s``, smoothed, becomes ``knee +
    width * (1 - exp(-(s - knee) / width))``: it stays monotone and smooth, and noise, which is finer than what is
    smoothed, keeps its strength. No voxel becomes darker than it is in the image, except where a solid nodule replaces
    a vessel filled with contrast medium.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        added_hu: ``(I, J, K)`` HU to be added.
        opaque: ``(I, J, K)`` mask of voxels through which vessels do not show.
        wall_hu: HU of the chest wall.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` HU to add, after the reduction.
    """
    sigma = [BLUR_MM / step for step in spacing_mm]
    slow_added, cover = (ndimage.gaussian_filter(array, sigma) for array in (added_hu, opaque.astype(np.float32)))
    slow = ndimage.gaussian_filter(image_hu, sigma) + slow_added
    excess = _find_excess(slow, wall_hu + KNEE_HU, HEADROOM_HU - KNEE_HU)
    limited = added_hu - np.minimum(excess, np.maximum(slow_added, 0.0) + cover * excess)
    thin = cover * _find_excess(
        image_hu + limited, wall_hu + HEADROOM_HU, HEADROOM_HU
    )  # vessels, of which most is fine
    return np.asarray(limited - thin, dtype=np.float32)


def _find_excess(image_hu: NDArray[np.float32], knee_hu: float, width_hu: float) -> NDArray[np.float32]:
    """By how much HU above a knee exceed what they are compressed to, which nears a width above the knee."""
    above = np.maximum(image_hu - knee_hu, 0.0)
    return np.asarray(above + width_hu * np.expm1(-above / width_hu), dtype=np.float32)
