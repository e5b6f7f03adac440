"""Patches of training images: position, transformation and hidden part, which are all drawn before a patch is made."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from maisi_aug.networks.conditioning import HU_MINIMUM, hu_to_unit
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.training.cases.data import CaseStore
from maisi_aug.training.loop.processes import WHOLE, Share
from maisi_aug.training.loop.settings import SurroundingsConfig, VaeLossConfig
from maisi_aug.volumes.grid import Shape, Spacing

AIR_HU = int(HU_MINIMUM)


@dataclass(frozen=True)
class PatchPlan:
    """How one training patch of the autoencoder is cut and augmented.

    Attributes:
        index: Index of the case.
        corner: First voxel along I, J, K.
        box: Voxels that are cut out along I, J, K; air beyond the image.
        flipped_axes: Axes that are flipped after the cut.
        quarter_turns: Number of rotations of the patch by 90 degrees.
        plane: The two axes of the rotation.
        shape: Voxels to which the box is resampled, before rotations.
        scale: Factor on intensities in [0, 1].
        shift: Value that is added to intensities.
    """

    index: int
    corner: Shape
    box: Shape
    flipped_axes: tuple[int, ...]
    quarter_turns: int = 0
    plane: tuple[int, int] = (0, 1)
    shape: Shape | None = None
    scale: float = 1.0
    shift: float = 0.0


class LesionPlaces:
    """Positions of the lesions of each case, found once per case."""

    def __init__(self, store: CaseStore, lesion_ids: Sequence[int]) -> None:
        self.store = store
        self.is_lesion = np.isin(np.arange(256), np.asarray(lesion_ids, dtype=int))
        self._places: dict[int, NDArray[np.int32]] = {}

    def __getitem__(self, index: int) -> NDArray[np.intp]:
        """Return ``(N, 3)`` voxels of lesions of a case, in the order of the array."""
        if index not in self._places:
            is_there = self.is_lesion[self.store.label_map(index)]
            self._places[index] = np.flatnonzero(is_there).astype(np.int32)
        return np.stack(np.unravel_index(self._places[index], self.store.facts(index).shape), axis=1)


class PatchSource:
    """Source of the autoencoder's training patches, which depend only on the seed and the number of the step."""

    def __init__(self, store: CaseStore, config: VaeLossConfig, *, lesion_ids: Sequence[int], seed: int) -> None:
        self.store = store
        self.config = config
        self.seed = seed
        self.lesions = LesionPlaces(store, lesion_ids)

    def draw(self, step: int, share: Share = WHOLE) -> Tensor:
        """Return ``(B, 1, I, J, K)`` intensities in [0, 1] of a share of a step's patches.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            ``(B, 1, I, J, K)`` float32 intensities; 0 is -1000 HU and 1 is 1000 HU.
        """
        plans = self.plan(step, num_shares=share.count)[share.slice_of(self.config.batch_count)]
        return torch.stack([self.cut(plan) for plan in plans])[:, None]

    def plan(self, step: int, *, num_shares: int = 1) -> list[PatchPlan]:
        """Return the plans of all patches of a step.

        Args:
            step: Number of the step, from 0.
            num_shares: Number of shares of the batch over all processes.

        Returns:
            Plans of the patches of all shares, in the order of the batch.
        """
        rng = numpy_generator(derive_seed("vae batch", self.seed, step), "patches")
        transforms = numpy_generator(derive_seed("vae batch", self.seed, step), "transforms")
        start = self.config.large_patch_start_step
        is_large = start is not None and step >= start
        shape = self.config.large_patch_shape if is_large else self.config.patch_shape
        indices = rng.integers(len(self.store), size=num_shares * self.config.batch_count)
        return [self.plan_patch(int(index), shape, rng, transforms) for index in indices]

    def plan_patch(
        self, index: int, wanted: Shape, rng: np.random.Generator, transforms: np.random.Generator
    ) -> PatchPlan:
        """Return the plan of one patch of a case.

        Args:
            index: Index of the case.
            wanted: Voxels of the patch along I, J, K.
            rng: Generator of position and flips.
            transforms: Generator of everything else.
        """
        image_shape = np.asarray(self.store.facts(index).shape)
        turns, plane = self._draw_turns(transforms)
        shape = _swap(wanted, plane) if turns % 2 else wanted
        step_voxels = self._draw_step(index, transforms)
        is_plain = self.config.rotation_share == 0 and step_voxels is None
        box = np.maximum(1, np.rint(np.asarray(shape) * (1.0 if step_voxels is None else step_voxels)).astype(int))
        inside = np.minimum(box, image_shape)
        corner = self._draw_corner(index, inside, image_shape - inside, rng)
        axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
        scale = 1.0 + self.config.intensity_scale * transforms.uniform(-1.0, 1.0)
        shift = self.config.intensity_shift * transforms.uniform(-1.0, 1.0)
        return PatchPlan(
            index,
            _to_shape(corner),
            _to_shape(inside if is_plain else box),
            axes,
            turns,
            plane,
            None if is_plain else shape,
            scale,
            shift,
        )

    def cut(self, plan: PatchPlan) -> Tensor:
        """Cut a planned patch: ``(I, J, K)`` intensities in [0, 1]."""
        places = tuple(slice(start, start + side) for start, side in zip(plan.corner, plan.box, strict=True))
        patch_hu = np.flip(self.store.image_hu(plan.index, places), plan.flipped_axes)
        missing = [(0, side - found) for side, found in zip(plan.box, patch_hu.shape, strict=True)]
        if any(side for _, side in missing):
            patch_hu = np.pad(patch_hu, missing, constant_values=AIR_HU)
        patch = hu_to_unit(torch.from_numpy(np.ascontiguousarray(patch_hu)))
        if plan.shape is not None and tuple(patch.shape) != plan.shape:
            patch = functional.interpolate(patch[None, None], plan.shape, mode="trilinear", align_corners=False)[0, 0]
        if plan.quarter_turns:
            patch = patch.rot90(plan.quarter_turns, plan.plane)
        if plan.scale != 1.0 or plan.shift != 0.0:
            patch = (patch * plan.scale + plan.shift).clamp(0.0, 1.0)
        return patch

    def _draw_turns(self, transforms: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Draw the number of turns by 90 degrees, and their plane."""
        is_turned = transforms.random() < self.config.rotation_share
        turns, plane = int(transforms.integers(1, 4)), int(transforms.integers(3))
        return (turns if is_turned else 0), ((0, 1), (0, 2), (1, 2))[plane]

    def _draw_step(self, index: int, transforms: np.random.Generator) -> NDArray[np.float64] | None:
        """Voxels of the image per voxel of the patch along I, J, K; None for one."""
        zoom = transforms.uniform(*(self.config.zoom_range or (1.0, 1.0)))
        if self.config.spacing_mm is not None:
            ratio: NDArray[np.float64] = np.divide(self.config.spacing_mm, self.store.facts(index).spacing_mm) / zoom
            return ratio
        return None if self.config.zoom_range is None else np.full(3, 1.0 / zoom)

    def _draw_corner(
        self, index: int, shape: NDArray[np.intp], limits: NDArray[np.intp], rng: np.random.Generator
    ) -> NDArray[np.intp]:
        corner = rng.integers(0, limits + 1)
        if rng.random() < self.config.lesion_share:
            lesion_voxels = self.lesions[index]
            if len(lesion_voxels):
                centre = lesion_voxels[rng.integers(len(lesion_voxels))]
                corner = np.clip(centre - rng.integers(0, shape), 0, limits)
        return corner


def _swap(shape: Shape, plane: tuple[int, int]) -> Shape:
    sides = list(shape)
    sides[plane[0]], sides[plane[1]] = sides[plane[1]], sides[plane[0]]
    return sides[0], sides[1], sides[2]


def _to_shape(sides: NDArray[np.intp]) -> Shape:
    i, j, k = (int(side) for side in sides)
    return i, j, k


def draw_hidden(
    label_map: NDArray[np.uint8],
    spacing_mm: Spacing,
    lesion_ids: Collection[int],
    config: SurroundingsConfig,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Draw the part of a crop that a ControlNet for insertion does not see and must generate.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; 0 is outside of the image and never the centre of a hidden part.
        spacing_mm: Voxel sides along I, J, K in mm.
        lesion_ids: Ids of lesions.
        config: Frequencies and sizes of hidden parts.
        rng: Random generator; every crop takes four numbers.

    Returns:
        ``(I, J, K)`` mask of the hidden part.
    """
    what, where = rng.random(2)
    size = rng.random()
    is_lesion = np.isin(label_map, list(lesion_ids))
    places = np.flatnonzero(label_map)
    place = int(rng.integers(max(1, len(places))))
    if what < config.hidden_share or not len(places):
        return np.ones(label_map.shape, dtype=bool)
    if is_lesion.any() and where >= config.elsewhere_share:
        low, high = config.margin_mm
        distance = ndimage.distance_transform_edt(~is_lesion, sampling=spacing_mm)
        return np.asarray(distance <= low + size * (high - low))
    low, high = config.radius_mm
    centre = np.unravel_index(places[place], label_map.shape)
    steps = [(np.arange(side) - c) * mm for side, c, mm in zip(label_map.shape, centre, spacing_mm, strict=True)]
    squared = sum(part**2 for part in np.meshgrid(*steps, indexing="ij", sparse=True))
    return np.asarray(squared <= (low + size * (high - low)) ** 2)
