"""A start for a small U-Net and ControlNet: weights that already draw every label at its mean intensity.

Before its first step the ControlNet returns e(m), the latent of an image in which each label of the map m has its
mean intensity, and the U-Net answers with

    v = -s (x_t - e(m)) / std(x_t - e(m)).

For rectified flow this is the exact velocity x_0 - n wherever e(m) = x_0: x_t - e(m) is then t (n - x_0), whose scale
the group normalisation before the last convolution takes away, and s is the standard deviation of n - x_0. What is left
to learn is what a label does not tell: texture, contrast phase, partial volume, and lesions that differ.

Signals pass the activations unharmed in pairs of opposite sign, for SiLU(a) - SiLU(-a) = a.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.networks.utils import copy_model_state
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import TrainingError
from maisi_aug.networks.conditioning import HU_MAXIMUM, HU_MINIMUM, hu_to_unit, to_label_bits
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore, LatentSet
from maisi_aug.training.images.wavelet import NUM_WAVELETS, haar_kernels, only_convolution
from maisi_aug.vocabulary.labels import Vocabulary

NUM_FIT_STEPS = 12_000
# Intensities span [0, 1] and soft tissue 2% of it: the fit works on larger numbers.
FIT_GAIN = 10.0
MAX_CASES = 60
# A tumor's contrast is a few HU in a thousand and its voxels are few: in the fit they count as so many more.
TUMOR_FIT_WEIGHT = 5.0
FAINT_HU = 100.0
"""Mean contrast in HU below which ``faint_gain`` amplifies a kind of tumor: soft tissue in soft tissue."""


@dataclass(frozen=True, eq=False)
class LabelMeans:
    """Mean intensity in [0, 1] and number of voxels of each of 256 label ids; absent ids have no voxels."""

    intensity: Tensor
    num_voxels: Tensor


@dataclass(frozen=True, eq=False)
class Lookup:
    """A small network from the bits of a label id to an intensity, used as the first layers of a ControlNet."""

    first: nn.Linear
    second: nn.Linear
    readout: nn.Linear

    def __call__(self, bits: Tensor) -> Tensor:
        """Return intensities in [0, 1] of ``(..., 8)`` bits, about."""
        hidden = functional.silu(self.second(functional.silu(self.first(bits))))
        intensity: Tensor = self.readout(hidden)[..., 0] / FIT_GAIN
        return intensity

    @property
    def layers(self) -> nn.ModuleList:
        """The three layers of the network."""
        return nn.ModuleList([self.first, self.second, self.readout])


def start_from_label_means(
    unet: nn.Module,
    controlnet: nn.Module,
    store: CaseStore,
    latents: LatentSet,
    *,
    vocabulary: Vocabulary,
    seed: int,
    faint_gain: float = 1.0,
) -> None:
    """Set initial weights with which U-Net and ControlNet draw every label at its mean intensity, in place.

    Args:
        unet: U-Net with ``num_channels[0] / norm_num_groups`` equal to twice the latent channels.
        controlnet: ControlNet with a condition embedding of two widths; its encoder is copied from the U-Net, as in
            MAISI.
        store: Training cases, of which the first 60 are measured.
        latents: Latents of these cases, half as wide as the images along every axis.
        vocabulary: Vocabulary, which names tumours and their hosts.
        seed: Seed of the fit.
        faint_gain: Factor on the contrast of faint tumours.

    Raises:
        TrainingError: The networks have another architecture.
    """
    cases = range(min(len(store), MAX_CASES))
    num_channels = len(latents.latents[0])
    _require_fitting(unet, controlnet, store, latents)
    means = measure_label_means(store, cases, vocabulary, faint_gain=faint_gain)
    embedding: Any = controlnet.controlnet_cond_embedding
    width = only_convolution(embedding.conv_in).out_channels
    lookup = _fit_lookup(means, vocabulary.tumor_ids, width=width, seed=seed)
    with torch.no_grad():
        table = lookup(bits_of_ids())
        matrix = _fit_latents(table, store, latents, cases)
        power = torch.stack([(latents.latents[i].float() * latents.scale_factor).square().mean() for i in cases]).mean()
        _start_unet(unet, num_channels, scale=float((1.0 + power).sqrt()))
        copy_model_state(controlnet, unet.state_dict())
        _start_embedding(embedding, lookup, matrix)
        _start_hand_over(only_convolution(controlnet.controlnet_down_blocks[0]), num_channels)  # type: ignore[index]
    freeze_lookup(controlnet)


def freeze_lookup(controlnet: nn.Module) -> None:
    """Freeze the first layers of a ControlNet's condition embedding, which look up intensities of labels.

    Hundreds of weights add up in every intensity, so that a training step would shift organs by tens of HU.
    """
    embedding: Any = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks):
        layer.requires_grad_(False)


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
    total, count = np.zeros(256), np.zeros(256)
    contrast, core_count = np.zeros(256), np.zeros(256)
    for index in cases:
        label_map = store.label_map(index)
        image = hu_to_unit(torch.from_numpy(store.image_hu(index))).numpy()
        sums = np.bincount(label_map.ravel(), image.ravel(), minlength=256)
        counts = np.bincount(label_map.ravel(), minlength=256)
        for tumor in vocabulary.tumor_ids:
            hosts = list(vocabulary.hosts_of(tumor))
            if counts[tumor] and counts[hosts].any():
                core = image[_core(label_map == tumor)]
                contrast[tumor] += core.sum() - len(core) * sums[hosts].sum() / counts[hosts].sum()
                core_count[tumor] += len(core)
        total, count = total + sums, count + counts
    means = total / np.maximum(count, 1)
    for tumor in np.flatnonzero(core_count).tolist():
        hosts = list(vocabulary.hosts_of(tumor))
        difference = contrast[tumor] / core_count[tumor]
        gain = faint_gain if abs(difference) * (HU_MAXIMUM - HU_MINIMUM) < FAINT_HU else 1.0
        means[tumor] = total[hosts].sum() / count[hosts].sum() + gain * difference
    return LabelMeans(torch.from_numpy(means).float(), torch.from_numpy(count).float())


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its rim, or all of it where it is nothing but rim."""
    core: NDArray[np.bool_] = ndimage.binary_erosion(mask)
    return core if core.any() else mask


def _fit_lookup(means: LabelMeans, tumor_ids: Sequence[int], *, width: int, seed: int) -> Lookup:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("label means", seed))
        lookup = Lookup(nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 1))
    optimizer = torch.optim.Adam(lookup.layers.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_FIT_STEPS)
    bits = bits_of_ids()
    # Large organs count more, but a small one must not be lost.
    weight = means.num_voxels.sqrt()
    weight[list(tumor_ids)] *= TUMOR_FIT_WEIGHT
    weight /= weight.sum()
    for _ in range(NUM_FIT_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * (FIT_GAIN * (lookup(bits) - means.intensity)) ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return lookup


def bits_of_ids() -> Tensor:
    """Return the ``(256, 8)`` bits of all label ids, as the ControlNet gets them."""
    return to_label_bits(torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1))[0, :, :, 0, 0].T


def _fit_latents(table: Tensor, store: CaseStore, latents: LatentSet, cases: range) -> Tensor:
    """``(C, 5)`` least-squares weights from four wavelets of the looked-up image, and 1, to the scaled latent."""
    known, wanted = [], []
    for index in cases:
        wavelets = _to_wavelets(table[torch.from_numpy(store.label_map(index)).long()])
        known.append(torch.cat((wavelets, torch.ones_like(wavelets[:1]))).flatten(1))
        wanted.append(latents.latents[index].float().flatten(1) * latents.scale_factor)
    left, right = torch.cat(known, dim=1).double(), torch.cat(wanted, dim=1).double()
    matrix: Tensor = torch.linalg.solve(left @ left.T, left @ right.T).T.float()
    return matrix


def _to_wavelets(image: Tensor) -> Tensor:
    """``(4, I/2, J/2, K/2)`` mean and first differences of an ``(I, J, K)`` image."""
    return functional.conv3d(image[None, None], haar_kernels()[:, None], stride=2)[0]


def _start_unet(unet: Any, num_channels: int, *, scale: float) -> None:
    pair = range(num_channels)
    first, last, norm = only_convolution(unet.conv_in), only_convolution(unet.out[2]), unet.out[0]
    block = unet.up_blocks[-1].resnets[-1]
    shortcut = only_convolution(block.skip_connection)
    last.weight.zero_()
    last.bias.zero_()
    for layer in (first, shortcut, only_convolution(block.conv2)):
        layer.weight[: 2 * num_channels] = 0.0
        layer.bias[: 2 * num_channels] = 0.0
    norm.weight[: 2 * num_channels] = 1.0
    norm.bias[: 2 * num_channels] = 0.0
    # The last block reads the features below it and then the first skip connection.
    skip = shortcut.in_channels - first.out_channels
    for channel in pair:
        for sign, place in ((1.0, channel), (-1.0, channel + num_channels)):
            _centre(first)[place, channel] = sign
            _centre(shortcut)[place, skip + place] = 1.0
            _centre(last)[channel, place] = -sign * scale


def write_lookup(embedding: Any, lookup: Lookup) -> None:
    """Write a lookup into the first layers of a ControlNet's condition embedding, in place.

    Args:
        embedding: Condition embedding of two widths, changed in place.
        lookup: Lookup to write.
    """
    first, second, down = (only_convolution(layer) for layer in (embedding.conv_in, *embedding.blocks))
    for layer, fitted in ((first, lookup.first), (second, lookup.second)):
        layer.weight.zero_()
        _centre(layer).copy_(fitted.weight)
        layer.bias.copy_(fitted.bias)
    for channel, kernel in enumerate(haar_kernels()):
        for sign, place in ((1.0, channel), (-1.0, channel + NUM_WAVELETS)):
            down.weight[place] = 0.0
            # A stride of 2 and a padding of 1: taps 1 and 2 see the two voxels of a pair.
            down.weight[place, :, 1:, 1:, 1:] = sign * kernel * lookup.readout.weight[0][:, None, None, None] / FIT_GAIN
            down.bias[place] = sign * float(kernel.sum()) * float(lookup.readout.bias) / FIT_GAIN


def _start_embedding(embedding: Any, lookup: Lookup, matrix: Tensor) -> None:
    write_lookup(embedding, lookup)
    last, num_channels = only_convolution(embedding.conv_out), len(matrix)
    last.weight.zero_()
    last.bias.zero_()
    for copy in (0, num_channels):
        places = slice(copy, copy + num_channels)
        # Halves, for the two are added again where the noisy latents of opposite sign cancel.
        _centre(last)[places, :NUM_WAVELETS] = matrix[:, :NUM_WAVELETS] / 2
        _centre(last)[places, NUM_WAVELETS : 2 * NUM_WAVELETS] = -matrix[:, :NUM_WAVELETS] / 2
        last.bias[places] = matrix[:, NUM_WAVELETS] / 2


def _start_hand_over(convolution: nn.Conv3d, num_channels: int) -> None:
    """Hand -e(m) and e(m) to the U-Net's first skip connection, which holds x_t and -x_t."""
    convolution.weight.zero_()
    assert convolution.bias is not None
    convolution.bias.zero_()
    for channel in range(num_channels):
        for part in (channel, channel + num_channels):
            _centre(convolution)[channel, part] = -1.0
            _centre(convolution)[channel + num_channels, part] = 1.0


def _centre(convolution: nn.Conv3d) -> Tensor:
    """The weights of the middle tap, ``(out, in)``, as a view."""
    i, j, k = (side // 2 for side in convolution.kernel_size)
    return convolution.weight[:, :, i, j, k]


def _require_fitting(unet: Any, controlnet: Any, store: CaseStore, latents: LatentSet) -> None:
    norm, blocks = unet.out[0], controlnet.controlnet_cond_embedding.blocks
    num_channels, *latent_shape = latents.latents[0].shape
    group = norm.num_channels // norm.num_groups
    down = only_convolution(blocks[-1])
    is_half = tuple(2 * side for side in latent_shape) == store.facts(0).shape
    if not is_half or len(blocks) != 2 or group != 2 * num_channels or down.out_channels < 2 * NUM_WAVELETS:
        raise TrainingError(
            "Start from label means: expected latents half as wide as images, two widths of the condition embedding, "
            f"the last of 8 or more, and num_channels[0] / norm_num_groups of {2 * num_channels}, found latents of "
            f"{tuple(latent_shape)}, {len(blocks) // 2 + 1} widths, the last of {down.out_channels}, and {group}. "
            "Change the definitions, or start from the encoder."
        )
