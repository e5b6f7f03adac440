"""A start for a small U-Net and ControlNet: weights that already draw every label at its mean intensity.

Before its first step the ControlNet returns e(m), the latent of an image in which each label of the map m has its
mean intensity, and the networks draw this image with some of the noise that sampling starts from. What is left to learn
is what a label does not tell: texture, partial volume, the colour of noise, and lesions that differ. The parts are

* the means of labels over the training cases (:mod:`maisi_aug.training.images.label_means`),
* their lookup in the ControlNet's first layers (:mod:`maisi_aug.training.images.lookup`),
* here, the ControlNet's last layers, from the looked-up image to a blurred latent,
* the way through the U-Net, from that latent to the velocity (:mod:`maisi_aug.training.images.anchors`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import TrainingError
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore, LatentSet
from maisi_aug.training.images.anchors import NUM_SIGNAL_EXTRAS, build_signal_path, freeze_signals, keep_signals_precise
from maisi_aug.training.images.label_means import SOFT_TISSUE, measure_label_means, neighbours
from maisi_aug.training.images.lookup import bits_of_ids, fit_lookup, freeze_lookup, write_lookup
from maisi_aug.training.images.wavelet import haar_kernels, only_convolution
from maisi_aug.vocabulary.labels import Vocabulary

MAX_CASES = 160
"""Training cases that are measured at the most."""


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
    lookup = fit_lookup(means, vocabulary.tumor_ids, width=width, num_wavelets=num_channels, seed=seed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("label features", seed))
        matrix = _fit_latents(lookup(bits_of_ids()), store, latents, cases)
        build_signal_path(unet, controlnet, num_channels, noise_share=noise_share)
        write_lookup(embedding, lookup)
        _write_matrix(only_convolution(embedding.conv_out), matrix)
    hold_start(unet, controlnet, num_channels)


def hold_start(unet: nn.Module, controlnet: nn.Module, num_channels: int) -> None:
    """Keep training from changing the weights of the start, and mixed precision from rounding what they draw.

    Args:
        unet: U-Net with the weights of the start, or with what training made of them.
        controlnet: Its ControlNet.
        num_channels: Channels of the latent.
    """
    freeze_signals(unet, controlnet, num_channels)
    freeze_lookup(controlnet)
    keep_signals_precise(unet, controlnet, num_channels)


def _fit_latents(table: Tensor, store: CaseStore, latents: LatentSet, cases: range) -> Tensor:
    """``(C, 27 C + 1)`` least-squares weights from the wavelets of the looked-up image around a voxel to the latent.

    The image that is looked up has sharp edges; fitted over neighbours, the latent has the blur of a CT.
    """
    num_channels = len(latents.latents[0])
    size = 27 * num_channels + 1
    left, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, num_channels, dtype=torch.float64)
    for index in cases:
        image = table[torch.from_numpy(store.condition_map(index)).long()] - SOFT_TISSUE
        taps = neighbours(_to_wavelets(image, num_channels))
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
