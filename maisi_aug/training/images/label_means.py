"""A start for a small U-Net and ControlNet: weights that already draw every label at its mean intensity.

Before its first step the ControlNet returns e(m), the latent of an image in which each label of the map m has its
mean intensity, and the networks (:mod:`maisi_aug.training.images.anchors`) draw this image with some of the noise that
sampling starts from. What is left to learn is what a label does not tell: texture, partial volume, the colour of noise,
and lesions that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import TrainingError
from maisi_aug.networks.conditioning import HU_MAXIMUM, HU_MINIMUM, hu_to_unit, to_label_bits
from maisi_aug.networks.pointwise import use_pointwise_layers
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore, LatentSet
from maisi_aug.training.images.anchors import NUM_SIGNAL_EXTRAS, build_signal_path, freeze_signals
from maisi_aug.training.images.wavelet import haar_kernels, only_convolution
from maisi_aug.vocabulary.labels import Vocabulary

NUM_FIT_STEPS = 12_000
NUM_POLISH_STEPS = 1000
NUM_SHARPENINGS = 4
# Intensities span [0, 1] and soft tissue 2% of it: the fit works on larger numbers.
FIT_GAIN = 10.0
MAX_CASES = 160
# A tumor's contrast is a few HU in a thousand and its voxels are few: in the fit they count as so many more.
TUMOR_FIT_WEIGHT = 5.0
FAINT_HU = 100.0
"""Mean contrast in HU below which ``faint_gain`` amplifies a kind of tumor: soft tissue in soft tissue."""
CENTRE = 0.52
"""Intensity, that of soft tissue, which the layers after the lookup know as 0: convolutions pad the volume with it."""


@dataclass(frozen=True, eq=False)
class LabelMeans:
    """Mean intensity in [0, 1] and number of voxels of each of 256 label ids; absent ids have no voxels."""

    intensity: Tensor
    num_voxels: Tensor


@dataclass(frozen=True, eq=False)
class Lookup:
    """A small network from the bits of a label id to an intensity, used as the first layers of a ControlNet.

    Attributes:
        first: Layer on the bits.
        second: Layer on the first one's.
        readout: Layer to the intensity, times ``FIT_GAIN``.
        num_wavelets: Wavelets of the looked-up image that the ControlNet's next layer makes.
        centre: Intensity that this layer takes for 0.
    """

    first: nn.Linear
    second: nn.Linear
    readout: nn.Linear
    num_wavelets: int
    centre: float = CENTRE

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
    noise_share: float = 0.0,
) -> None:
    """Set initial weights with which U-Net and ControlNet draw every label at its mean intensity, in place.

    Args:
        unet: U-Net whose first level has groups of at least three channels more than the latent.
        controlnet: ControlNet with a condition embedding of two widths; its encoder is copied from the U-Net, as in
            MAISI.
        store: Training cases, of which the first ``MAX_CASES`` (160) are measured.
        latents: Latents of these cases, half as wide as the images along every axis.
        vocabulary: Vocabulary, which names tumours and their hosts.
        seed: Seed of the fit.
        faint_gain: Factor on the contrast of faint tumours.
        noise_share: Share of the starting noise that is left in the image, as its noise.

    Raises:
        TrainingError: The networks have another architecture.
    """
    cases = range(min(len(store), MAX_CASES))
    num_channels = len(latents.latents[0])
    _require_fitting(unet, controlnet, store, latents)
    means = measure_label_means(store, cases, vocabulary, faint_gain=faint_gain)
    embedding: Any = controlnet.controlnet_cond_embedding
    width = only_convolution(embedding.conv_in).out_channels
    lookup = _fit_lookup(means, vocabulary.tumor_ids, width=width, num_wavelets=num_channels, seed=seed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("label features", seed))
        matrix = _fit_latents(lookup(bits_of_ids()), store, latents, cases)
        build_signal_path(unet, controlnet, num_channels, noise_share=noise_share)
        write_lookup(embedding, lookup)
        _write_matrix(only_convolution(embedding.conv_out), matrix)
    freeze_signals(unet, controlnet, num_channels)
    freeze_lookup(controlnet)


def freeze_lookup(controlnet: nn.Module) -> None:
    """Freeze the first layers of a ControlNet's condition embedding, which look up intensities of labels.

    Hundreds of weights add up in every intensity, so that a training step would shift organs by tens of HU.
    """
    embedding: Any = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks):
        layer.requires_grad_(False)
    use_pointwise_layers(embedding)


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
        gain = faint_gain if abs(difference) * (HU_MAXIMUM - HU_MINIMUM) < FAINT_HU else 1.0
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
    """Means from which the blur of the images is taken away: those of thin labels have got a share of their neighbours.

    Blur (least squares over 27 taps) and means (by the mean error of every label) are fitted in turns.
    """
    intensity = means.intensity.clone()
    for _ in range(NUM_SHARPENINGS if len(cases) else 0):
        left, right = torch.zeros(27, 27, dtype=torch.float64), torch.zeros(27, dtype=torch.float64)
        for index in cases:
            taps = _taps(intensity[torch.from_numpy(store.condition_map(index)).long()][None] - CENTRE)
            wanted = hu_to_unit(torch.from_numpy(store.image_hu(index))).flatten() - CENTRE
            left += (taps @ taps.T).double()
            right += (taps @ wanted).double()
        left.diagonal().add_(1e-4 * left.diagonal().mean())
        kernel = torch.linalg.solve(left, right).float()
        error = torch.zeros(256)
        for index in cases:
            ids = torch.from_numpy(store.condition_map(index)).long()
            blurred = kernel @ _taps(intensity[ids][None] - CENTRE) + CENTRE
            rest = hu_to_unit(torch.from_numpy(store.image_hu(index))).flatten() - blurred
            error += torch.bincount(ids.flatten(), rest, minlength=256)
        error /= means.num_voxels.clamp_min(1.0)
        error[[0, *kept]] = 0.0
        intensity = (intensity + error).clamp(0.0, 1.0)
    return LabelMeans(intensity, means.num_voxels)


def _taps(volume: Tensor) -> Tensor:
    """``(27 C, I * J * K)``: every voxel's neighbours, those beyond the volume 0, tap by tap."""
    _, i, j, k = volume.shape
    wide = functional.pad(volume, (1,) * 6)
    return torch.cat([wide[:, a : a + i, b : b + j, c : c + k].flatten(1) for a, b, c in product(range(3), repeat=3)])


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its rim, or all of it where it is nothing but rim."""
    core: NDArray[np.bool_] = ndimage.binary_erosion(mask)
    return core if core.any() else mask


def _fit_lookup(means: LabelMeans, tumor_ids: Sequence[int], *, width: int, num_wavelets: int, seed: int) -> Lookup:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("label means", seed))
        lookup = Lookup(nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 1), num_wavelets)
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
    polish_lookup(lookup, means.intensity, torch.nonzero(means.num_voxels)[:, 0], num_steps=NUM_POLISH_STEPS)
    return lookup


def polish_lookup(lookup: Lookup, intensity: Tensor, ids: Tensor, *, num_steps: int) -> None:
    """Bring a lookup's intensities of some ids to their values, in place, to a fraction of a HU where it can.

    Args:
        lookup: Lookup that is near them, such as one fitted by gradient descent.
        intensity: ``(256,)`` wanted intensities in [0, 1].
        ids: Ids that count, all alike.
        num_steps: Largest number of steps.
    """
    precise = lookup.layers.double()
    bits, wanted = bits_of_ids()[ids].double(), intensity[ids].double()
    optimizer = torch.optim.LBFGS(
        precise.parameters(), max_iter=num_steps, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = (HU_MAXIMUM - HU_MINIMUM) * (lookup(bits) - wanted)
        # The fourth power beside the square, for the label that is farthest off.
        loss = (error**2).mean() + (error**4).mean().sqrt()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    lookup.layers.float()


def bits_of_ids() -> Tensor:
    """Return the ``(256, 8)`` bits of all label ids, as the ControlNet gets them."""
    return to_label_bits(torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1))[0, :, :, 0, 0].T


def _fit_latents(table: Tensor, store: CaseStore, latents: LatentSet, cases: range) -> Tensor:
    """``(C, 27 C + 1)`` least-squares weights from the wavelets of the looked-up image around a voxel to the latent.

    The image that is looked up has sharp edges; fitted over neighbours, the latent has the blur of a CT.
    """
    num_channels = len(latents.latents[0])
    size = 27 * num_channels + 1
    left, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, num_channels, dtype=torch.float64)
    for index in cases:
        image = table[torch.from_numpy(store.condition_map(index)).long()] - CENTRE
        taps = _taps(_to_wavelets(image, num_channels))
        known = torch.cat([taps, torch.ones(1, taps.shape[1])])
        wanted = latents.latents[index].float().flatten(1) * latents.scale_factor
        left += (known @ known.T).double()
        right += (known @ wanted.T).double()
    # Taps of a label map that are never seen apart would get large weights of opposite sign.
    left.diagonal()[:-1] += 1e-5 * left.diagonal()[:-1].mean()
    matrix: Tensor = torch.linalg.solve(left, right).T.float()
    return matrix


def _to_wavelets(image: Tensor, count: int) -> Tensor:
    """``(C, I/2, J/2, K/2)`` mean and differences of an ``(I, J, K)`` image."""
    return functional.conv3d(image[None, None], haar_kernels(count)[:, None], stride=2)[0]


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
    count = lookup.num_wavelets
    for channel, kernel in enumerate(haar_kernels(count)):
        for sign, place in ((1.0, channel), (-1.0, channel + count)):
            down.weight[place] = 0.0
            # A stride of 2 and a padding of 1: taps 1 and 2 see the two voxels of a pair.
            down.weight[place, :, 1:, 1:, 1:] = sign * kernel * lookup.readout.weight[0][:, None, None, None] / FIT_GAIN
            shift = float(lookup.readout.bias) / FIT_GAIN - lookup.centre
            down.bias[place] = sign * float(kernel.sum()) * shift


def _write_matrix(last: nn.Conv3d, matrix: Tensor) -> None:
    """Have the last layer of a condition embedding make the latent from wavelets of both signs.

    They have passed an activation, for which silu(a) - silu(-a) = a.
    """
    count = len(matrix)
    assert last.bias is not None
    last.weight[:count] = 0.0
    taps = matrix[:, :-1].view(count, 3, 3, 3, count).permute(0, 4, 1, 2, 3)
    last.weight[:count, :count] = taps
    last.weight[:count, count : 2 * count] = -taps
    last.bias[:count] = matrix[:, -1]


def _centre(convolution: nn.Conv3d) -> Tensor:
    """The weights of the middle tap, ``(out, in)``, as a view."""
    i, j, k = (side // 2 for side in convolution.kernel_size)
    return convolution.weight[:, :, i, j, k]


def _require_fitting(unet: Any, controlnet: Any, store: CaseStore, latents: LatentSet) -> None:
    norm, blocks = unet.out[0], controlnet.controlnet_cond_embedding.blocks
    num_channels, *latent_shape = latents.latents[0].shape
    group, least = norm.num_channels // norm.num_groups, num_channels + NUM_SIGNAL_EXTRAS
    down = only_convolution(blocks[-1])
    is_half = tuple(2 * side for side in latent_shape) == store.facts(0).shape
    is_wide = group >= least and norm.num_groups >= 2
    if not is_half or len(blocks) != 2 or not is_wide or down.out_channels < 2 * num_channels:
        raise TrainingError(
            "Start from label means: expected latents half as wide as images, two widths of the condition embedding, "
            f"the last of {2 * num_channels} or more, and two or more groups of num_channels[0] / norm_num_groups of "
            f"at least {least}, found latents of {tuple(latent_shape)}, {len(blocks) // 2 + 1} widths, the last of "
            f"{down.out_channels}, and {norm.num_groups} groups of {group}. Change the definitions, or start from the "
            "encoder."
        )
