"""The mean intensity of every label over training cases, which a small network draws before its first training step.

Thin labels and tumours are corrected: images are blurred, and a mean over patients mixes their contrast phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from maisi_aug.networks.conditioning import HU_PER_UNIT, hu_to_unit
from maisi_aug.training.cases.data import CaseStore
from maisi_aug.vocabulary.labels import Vocabulary

NUM_SHARPENINGS = 4
"""Turns in which the blur of the images and the means without it are fitted."""
FAINT_HU = 100.0
"""Mean contrast in HU below which ``faint_gain`` amplifies a kind of tumor: soft tissue in soft tissue."""
SOFT_TISSUE = 0.52
"""Intensity of soft tissue in [0, 1], 40 HU. Fits and convolutions know it as 0, with which a volume is padded."""


@dataclass(frozen=True, eq=False)
class LabelMeans:
    """Mean intensity in [0, 1] and number of voxels of each of 256 label ids; absent ids have no voxels."""

    intensity: Tensor
    num_voxels: Tensor


def measure_label_means(
    store: CaseStore, cases: Iterable[int], vocabulary: Vocabulary, *, faint_gain: float = 1.0
) -> LabelMeans:
    """Measure the mean intensity of every label over the voxels of some cases.

    For a tumour it is the mean of its hosts plus the contrast of its core to them in the same patient: a mean over
    patients would mix contrast phases, and one over whole tumours would include the rim that shares voxels with the
    host.

    Args:
        store: Training cases.
        cases: Indices of the cases to measure, from 0.
        vocabulary: Vocabulary, which names tumours and their hosts.
        faint_gain: Factor on a tumour's contrast if that is below ``FAINT_HU`` (100 HU), which compensates for what
            training and sampling lose; 1 keeps the measured contrast.

    Returns:
        Two float32 tensors of shape ``(256,)``, indexed by label id: ``intensity``, where 0 is -1000 HU and 1 is
        1000 HU, and ``num_voxels`` over all cases. Both are 0 for labels that no case contains.
    """
    cases = list(cases)
    total, count = np.zeros(256), np.zeros(256)
    tumors: dict[int, _TumorSum] = {}
    for index in cases:
        label_map, shown = store.label_map(index), store.condition_map(index)
        image = hu_to_unit(torch.from_numpy(store.image_hu(index))).numpy()
        total += np.bincount(shown.ravel(), image.ravel(), minlength=256)
        count += np.bincount(shown.ravel(), minlength=256)
        for tumor in vocabulary.tumor_ids:
            is_host = np.isin(label_map, vocabulary.hosts_of(tumor))
            if (label_map == tumor).any() and is_host.any():
                core = _core(label_map == tumor)
                found = tumors.setdefault(int(shown[core][0]), _TumorSum())
                found.contrast += float((image[core] - image[is_host].mean()).sum())
                found.num_voxels += int(core.sum())
                found.hosts += core.sum() * np.bincount(shown[is_host], minlength=256) / is_host.sum()
    means = LabelMeans(torch.from_numpy(total / np.maximum(count, 1)).float(), torch.from_numpy(count).float())
    means = _sharpen(means, store, cases, kept=tumors)
    for tumor, found in tumors.items():
        hosts = torch.from_numpy(found.hosts / found.num_voxels).float()
        difference = found.contrast / found.num_voxels
        gain = faint_gain if abs(difference) * HU_PER_UNIT < FAINT_HU else 1.0
        means.intensity[tumor] = (hosts * means.intensity).sum() + gain * difference
    return means


@dataclass(eq=False)
class _TumorSum:
    """Of the cores of a kind of tumour: summed contrast to their hosts, voxels, and what the hosts are made of.

    Attributes:
        contrast: Sum over the voxels of all cores.
        num_voxels: Number of these voxels.
        hosts: ``(256,)`` share of every id in the hosts, summed over the same voxels.
    """

    contrast: float = 0.0
    num_voxels: int = 0
    hosts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(256))


def _sharpen(means: LabelMeans, store: CaseStore, cases: Sequence[int], *, kept: Iterable[int]) -> LabelMeans:
    """Means from which the blur of the images is taken away: in it, thin labels share the intensity of what is around.

    Blur (least squares over 27 taps) and means (by the mean error of every label) are fitted in turns; background and
    the ``kept`` ids stay as they are.
    """
    intensity = means.intensity.clone()
    for _ in range(NUM_SHARPENINGS if len(cases) else 0):
        blur = _fit_blur(intensity, store, cases)
        error = torch.zeros(256)
        for index in cases:
            shown, taps, image = _look_up_case(intensity, store, index)
            error += torch.bincount(shown, image - (blur @ taps + SOFT_TISSUE), minlength=256)
        error /= means.num_voxels.clamp_min(1.0)
        error[[0, *kept]] = 0.0
        intensity = (intensity + error).clamp(0.0, 1.0)
    return LabelMeans(intensity, means.num_voxels)


def _fit_blur(intensity: Tensor, store: CaseStore, cases: Sequence[int]) -> Tensor:
    """``(27,)`` kernel that makes images of cases from the maps in which every label has its intensity."""
    left, right = torch.zeros(27, 27, dtype=torch.float64), torch.zeros(27, dtype=torch.float64)
    for index in cases:
        _, taps, image = _look_up_case(intensity, store, index)
        left += (taps @ taps.T).double()
        right += (taps @ (image - SOFT_TISSUE)).double()
    left.diagonal().add_(1e-4 * left.diagonal().mean())
    kernel: Tensor = torch.linalg.solve(left, right).float()
    return kernel


def _look_up_case(intensity: Tensor, store: CaseStore, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a case's voxels: ids ``(N,)``, intensities of their neighbourhoods ``(27, N)``, and of the image ``(N,)``."""
    shown = torch.from_numpy(store.condition_map(index)).long()
    image = hu_to_unit(torch.from_numpy(store.image_hu(index))).flatten()
    return shown.flatten(), neighbours(intensity[shown][None] - SOFT_TISSUE), image


def neighbours(volume: Tensor) -> Tensor:
    """Return the 3x3x3 neighbourhood of every voxel, for a least-squares fit of a kernel.

    Args:
        volume: ``(C, I, J, K)``; beyond it is 0.

    Returns:
        ``(27 C, I * J * K)``, tap by tap in the order of a convolution's kernel, the channels of a tap together.
    """
    _, i, j, k = volume.shape
    wide = functional.pad(volume, (1,) * 6)
    return torch.cat([wide[:, a : a + i, b : b + j, c : c + k].flatten(1) for a, b, c in product(range(3), repeat=3)])


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its rim, or all of it where it is nothing but rim."""
    core: NDArray[np.bool_] = ndimage.binary_erosion(mask)
    return core if core.any() else mask
