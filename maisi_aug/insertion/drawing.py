"""The painter that is a bundle: latents of the crop are known but for a hidden part, which the networks draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.insertion.painting import PaintTask, Texture
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.grid import Grid, Shape

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.networks.pipeline import Pipeline

Scalar = TypeVar("Scalar", bound=np.generic)
Method = Literal["replace", "difference", "whole"]
"""How the known part comes in: its latents are put back at every step; two drawings with the same noise, with the
lesion and without, are subtracted and the difference is added to the CT; or only the ControlNet is shown it."""
TEXTURE_NAMES: Mapping[Texture, str] = {"part-solid": "part-solid nodule", "ground-glass": "ground-glass nodule"}
"""Labels of their own that a bundle may know textures by."""
USUAL_HU: Mapping[Texture, tuple[float, float]] = {
    "solid": (-60.0, 80.0),
    "part-solid": (-400.0, -200.0),
    "ground-glass": (-650.0, -480.0),
}
"""Between these lies the middle of a nodule that a reader calls so, blurred by the scanner as it is."""
MOST_GAIN = 3.0
SPACING_LIMITS_MM = (1.05, 1.05, 2.6)
"""Coarser CTs are drawn on voxels a whole number of times finer: the embedded bundle has seen few as coarse."""


@dataclass(frozen=True)
class BundlePainter:
    """Draws with the networks of a bundle.

    Attributes:
        pipeline: The bundle on a device.
        texture_ids: Ids that the networks know textures by; for others the lesion keeps its id in the label map.
        method: How the known part comes in.
        num_inference_steps: None for the bundle's default.
        num_resamplings: How often a step is taken, see ``KnownLatent``.
        least_shape: Voxels that the networks are shown at least.
    """

    pipeline: Pipeline
    texture_ids: Mapping[Texture, int]
    method: Method = "replace"
    num_inference_steps: int | None = None
    num_resamplings: int = 1
    least_shape: Shape = (40, 40, 8)
    name: str = field(default="bundle")

    @property
    def factor(self) -> int:
        """What every side of a crop must be a multiple of."""
        return self.pipeline.bundle.grid_factor

    def paint(self, task: PaintTask) -> NDArray[np.float32]:
        """The crop with its hidden part drawn, ``(I, J, K)`` HU."""
        factors = finer_factors(task)
        spacing_mm = tuple(step / factor for step, factor in zip(task.spacing_mm, factors, strict=True))
        image_hu = refine_image(task.image_hu, factors)
        label_map, hidden = _repeat(task.label_map, factors), _repeat(task.hidden, factors)
        lesion = _repeat(task.lesion, factors)
        drawn_map = label_map.copy()
        if task.texture in self.texture_ids:
            drawn_map[lesion] = self.texture_ids[task.texture]
        grid = Grid.from_spacing(image_hu.shape, spacing_mm)  # type: ignore[arg-type]
        drawn = self._draw(image_hu, drawn_map, hidden, grid, task.seed)
        if self.method == "difference":
            without = _replace_lesion(label_map, lesion, _repeat(task.host, factors))
            added = drawn - self._draw(image_hu, without, hidden, grid, task.seed)
            drawn = image_hu + added * _choose_gain(added, image_hu, lesion, task)
        return coarsen_image(drawn, factors)

    def _draw(
        self,
        image_hu: NDArray[np.float32],
        label_map: NDArray[np.uint8],
        hidden: NDArray[np.bool_],
        grid: Grid,
        seed: int,
    ) -> NDArray[np.float32]:
        return self.pipeline.redraw_image(
            image_hu,
            label_map,
            hidden,
            grid,
            seed=seed,
            num_inference_steps=self.num_inference_steps,
            num_resamplings=self.num_resamplings,
            puts_back=self.method != "whole",
        )


def open_bundle_painter(
    bundle: Bundle, device: str, *, num_inference_steps: int | None = None, method: Method = "difference"
) -> BundlePainter:
    """Load the networks of a bundle to draw lesions with.

    Args:
        bundle: Whose.
        device: Where they run.
        num_inference_steps: None for the bundle's default.
        method: How the known part comes in.

    Raises:
        BundleError: When the weights or the device cannot be used.
    """
    from maisi_aug.networks.pipeline import Pipeline

    known = {label.name for label in bundle.vocabulary}
    texture_ids = {texture: bundle.vocabulary.id_of(name) for texture, name in TEXTURE_NAMES.items() if name in known}
    return BundlePainter(
        Pipeline.load(bundle, device),
        texture_ids,
        method=method,
        num_inference_steps=num_inference_steps,
        name=bundle.name,
    )


def finer_factors(task: PaintTask) -> Shape:
    """How many times finer along I, J, K the networks draw than the CT is."""
    i, j, k = (
        max(1, int(np.ceil(step / limit))) for step, limit in zip(task.spacing_mm, SPACING_LIMITS_MM, strict=True)
    )
    return i, j, k


def refine_image(image_hu: NDArray[np.float32], factors: Shape) -> NDArray[np.float32]:
    """Cubic interpolation to voxels so many times finer, on the same box."""
    if factors == (1, 1, 1):
        return image_hu
    return np.asarray(ndimage.zoom(image_hu, factors, order=3, mode="nearest", grid_mode=True), dtype=np.float32)


def coarsen_image(image_hu: NDArray[np.float32], factors: Shape) -> NDArray[np.float32]:
    """Means over so many voxels: what a scanner with larger voxels would have measured."""
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
    """The map with the nearest host in place of the lesion: else the wall beside it would be drawn there."""
    if not host.any():
        host = ~lesion
    nearest = ndimage.distance_transform_edt(~host, return_distances=False, return_indices=True)
    return np.where(lesion, label_map[tuple(nearest)], label_map).astype(np.uint8)


def _choose_gain(
    added_hu: NDArray[np.float32], image_hu: NDArray[np.float32], lesion: NDArray[np.bool_], task: PaintTask
) -> float:
    """By how much a lesion that came out fainter than its texture is in patients is raised."""
    if task.texture not in USUAL_HU:
        return 1.0
    depth = ndimage.distance_transform_edt(lesion)
    core = depth >= np.median(depth[lesion])
    usual_hu = numpy_generator(task.seed, "contrast").uniform(*USUAL_HU[task.texture])
    found_hu = float(np.median(added_hu[core]))
    lacking_hu = usual_hu - float(np.median(image_hu[core]))
    return float(np.clip(lacking_hu / found_hu, 1.0, MOST_GAIN)) if found_hu > 0 else 1.0
