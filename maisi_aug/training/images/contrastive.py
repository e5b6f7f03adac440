"""The region contrastive loss: a label in the map must show in the image, and the rest must not care.

Source: Zhao et al., "MAISI-v2: Accelerated 3D High-Resolution Medical Image Synthesis with Rectified Flow and
Region-specific Contrastive Loss", 2025. MONAI does not ship it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.vocabulary.labels import Label, Vocabulary
from maisi_aug.volumes.components import TOUCHING, bounding_box, is_any_of
from maisi_aug.volumes.grid import Spacing

MARGIN_VOXELS = 3
"""Width in voxels of the band around a removed label that the loss ignores."""
MAX_PATCHES = 256
_EPSILON = 1e-5


class ChangedRegions(NamedTuple):
    """Masks of a removed label and of the region that its removal does not affect, ``(B, 1, i, j, k)`` float32 each."""

    changed: Tensor
    outside: Tensor


class LabelRemover:
    """Replaces tumours in label maps by the nearest host organ; the change to each map is computed once.

    Args:
        vocabulary: Vocabulary whose tumours are removed.
        with_cysts: Also remove kidney cysts, as MAISI does.
    """

    def __init__(self, vocabulary: Vocabulary, *, with_cysts: bool = True) -> None:
        self._ids = vocabulary.lesion_ids if with_cysts else vocabulary.tumor_ids
        self._vocabulary, self._with_cysts = vocabulary, with_cysts
        self._patches: dict[bytes, tuple[tuple[slice, ...], NDArray[np.uint8]]] = {}

    @classmethod
    def of_taught(cls, taught: Sequence[TaughtLabel], vocabulary: Vocabulary) -> Self:
        """Return a remover of the taught labels, including organs, and of no others.

        Args:
            taught: Labels that are taught.
            vocabulary: Vocabulary of the bundle that is trained.
        """
        return cls(_only_these_are_tumors(taught, vocabulary), with_cysts=False)

    def remove(self, label_map: NDArray[np.uint8], spacing_mm: Spacing) -> NDArray[np.uint8]:
        """Return a label map with the labels replaced by their hosts.

        Args:
            label_map: ``(I, J, K)`` vocabulary ids; not modified.
            spacing_mm: Voxel sides along I, J, K in mm.
        """
        mask = is_any_of(label_map, self._ids)
        if not mask.any():
            return label_map
        key = hashlib.blake2b(label_map.tobytes()).digest()
        if key not in self._patches:
            box = bounding_box(mask, margin=0)
            healthy = remove_lesions(label_map, self._vocabulary, spacing_mm=spacing_mm, with_cysts=self._with_cysts)
            if len(self._patches) >= MAX_PATCHES:  # crops never come again: only whole maps are worth keeping
                self._patches.pop(next(iter(self._patches)))
            self._patches[key] = (box, healthy[box].copy())
        box, patch = self._patches[key]
        without = label_map.copy()
        without[box] = patch
        return without


def _only_these_are_tumors(taught: Sequence[TaughtLabel], vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary whose tumours are the labels to remove."""
    hosts = {label.id: label.hosts for label in taught}

    def redo(label: Label) -> Label:
        if label.id in hosts:
            return replace(label, kind="tumor", hosts=hosts[label.id], removal_id=hosts[label.id][0])
        return replace(label, kind="organ", removal_id=None) if label.kind == "tumor" else label

    return Vocabulary(tuple(map(redo, vocabulary)))


def show_without(
    shown: NDArray[np.uint8], label_maps: NDArray[np.uint8], without: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return what networks are shown of cases without a label, where they are shown other ids than the label maps'.

    Args:
        shown: ``(B, I, J, K)`` ids that the networks are shown.
        label_maps: ``(B, I, J, K)`` vocabulary ids of the same cases.
        without: ``(B, I, J, K)`` vocabulary ids after the removal; what changed is shown as most of the label that
            takes its place.

    Returns:
        A new ``(B, I, J, K)`` array; ``without`` itself where label maps are shown as they are.
    """
    if np.array_equal(shown, label_maps):
        return without
    result = shown.copy()
    for case in range(len(shown)):
        changed = label_maps[case] != without[case]
        for label in np.unique(without[case][changed]):
            same = shown[case][label_maps[case] == label]
            usual = int(np.argmax(np.bincount(same, minlength=256))) if same.size else int(label)
            result[case][changed & (without[case] == label)] = usual
    return result


def find_regions(
    with_label: NDArray[np.uint8], without_label: NDArray[np.uint8], latent_shape: torch.Size
) -> ChangedRegions:
    """Find the latent voxels where two label maps differ, and those well outside of the differences.

    Args:
        with_label: ``(B, I, J, K)`` vocabulary ids.
        without_label: ``(B, I, J, K)`` vocabulary ids of the maps without the label.
        latent_shape: Shape ``(B, C, i, j, k)`` of the latents.
    """
    changed = with_label != without_label
    near = np.stack([ndimage.binary_dilation(part, TOUCHING, iterations=MARGIN_VOXELS) for part in changed])
    return ChangedRegions(_pool(changed, latent_shape), 1.0 - _pool(near, latent_shape))


def region_contrastive_loss(
    with_label: Tensor, without_label: Tensor, target: Tensor, regions: ChangedRegions, *, bound: float
) -> tuple[Tensor, Tensor]:
    """Return both parts of the region contrastive loss: reward for a difference inside, penalty for errors outside.

    Args:
        with_label: ``(B, C, i, j, k)`` output of the network for the label map.
        without_label: ``(B, C, i, j, k)`` output for the map without the labels, from the same noise at the same time
            step.
        target: ``(B, C, i, j, k)`` output that is correct for the real image.
        regions: Result of :func:`find_regions`, on the same device.
        bound: Mean difference beyond which the reward does not grow.

    Returns:
        Minus the mean absolute difference inside, no lower than ``-bound``, and the mean absolute error of
        ``without_label`` outside; scalars.
    """
    num_channels = with_label.shape[1]
    inside = regions.changed.sum() * num_channels + _EPSILON
    difference = ((with_label - without_label).abs() * regions.changed).sum() / inside
    reward = functional.relu(bound - difference) - bound
    error = ((without_label - target).abs() * regions.outside).sum() / (regions.outside.sum() * num_channels + _EPSILON)
    return reward, error


def _pool(mask: NDArray[np.bool_], shape: torch.Size) -> Tensor:
    """``(B, 1, i, j, k)``: whether any voxel of a latent voxel is set; a label smaller than one is not lost."""
    return functional.adaptive_max_pool3d(torch.from_numpy(mask)[:, None].float(), list(shape[2:]))
