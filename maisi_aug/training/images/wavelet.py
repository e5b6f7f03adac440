"""A start for small autoencoders: weights that already are a Haar wavelet transform, to be refined by training.

From random weights, MAISI's autoencoder spends its first thousands of steps on learning to hand intensities through:
its group normalisation takes the mean and the scale of every volume away, and the decoder must win them back. Here the
trunk hands the image through untouched, and four channels are set up so that normalisation cannot hurt: two constants
of opposite sign, so large that they alone decide the scale, and a zero whose normalised value is the mean to subtract.

The latent is the local mean of 2x2x2 voxels and its three first differences (Haar, "Zur Theorie der orthogonalen
Funktionensysteme", 1910); the four mixed differences are left to the decoder's imagination.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError

NUM_WAVELETS = 4


def haar_kernels() -> Tensor:
    """``(4, 2, 2, 2)`` weights of the mean of 2x2x2 voxels and of their first differences along I, J and K.

    Source: Haar, "Zur Theorie der orthogonalen Funktionensysteme", 1910; the four mixed differences are left out.
    """
    kernels = torch.full((NUM_WAVELETS, 2, 2, 2), 1.0 / 8.0)
    for axis, corner in product(range(3), product((0, 1), repeat=3)):
        if corner[axis] == 0:
            kernels[(1 + axis, *corner)] *= -1.0
    return kernels


def only_convolution(layer: Any) -> Any:
    """The one convolution inside a layer, transposed or not."""
    found = [part for part in layer.modules() if isinstance(part, nn.Conv3d | nn.ConvTranspose3d)]
    assert len(found) == 1
    return found[0]


# Channels of the trunk after the signals: anchors of both signs and a zero.
ANCHORS = slice(NUM_WAVELETS, NUM_WAVELETS + 3)
# Large against signals of about 1, so that they decide the scale, but no larger: training must not feel them.
ANCHOR = 10.0
# Differences are small against means: the gain brings them nearer to each other, so that diffusion sees both.
DIFFERENCE_GAIN = 4.0


@torch.no_grad()
def start_as_wavelet(autoencoder: nn.Module) -> None:
    """Set the weights of an autoencoder with two levels to a Haar transform, in place.

    Args:
        autoencoder: MAISI's, or with plain layers; with two levels, transposed convolutions, one normalisation group,
            four latent channels and at least eight channels a level.

    Raises:
        TrainingError: For another architecture.
    """
    _require_fitting(autoencoder)
    encoder, decoder = autoencoder.encoder.blocks, autoencoder.decoder.blocks  # type: ignore[union-attr]
    assert isinstance(encoder, nn.ModuleList)
    assert isinstance(decoder, nn.ModuleList)
    _start_trunk(encoder, num_signals=1)
    _start_trunk(decoder, num_signals=NUM_WAVELETS)
    _start_down(_only(encoder, "Downsample"))
    _start_up(_only(decoder, "Upsample"))
    for name in ("quant_conv_mu", "post_quant_conv"):
        _start_identity(only_convolution(getattr(autoencoder, name)), range(NUM_WAVELETS))


def _require_fitting(autoencoder: nn.Module) -> None:
    layers = list(autoencoder.modules())
    ups = [layer for layer in layers if isinstance(layer, nn.ConvTranspose3d)]
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    latent = only_convolution(autoencoder.post_quant_conv).in_channels
    narrowest = min(norm.num_channels for norm in norms)
    if len(ups) != 1 or any(norm.num_groups != 1 for norm in norms) or latent != NUM_WAVELETS or narrowest < 8:
        raise TrainingError(
            "Wavelet start: expected an autoencoder with two levels of 8 channels or more, use_convtranspose, "
            f"norm_num_groups 1 and {NUM_WAVELETS} latent channels, found {len(ups)} transposed convolutions, "
            f"{max(norm.num_groups for norm in norms)} groups, {narrowest} channels and {latent} latent channels. "
            "Change the definition, or start at random."
        )


def _start_trunk(blocks: nn.ModuleList, *, num_signals: int) -> None:
    """Hand the signals from the first convolution to the last; residual blocks add nothing yet."""
    first, last = only_convolution(blocks[0]), only_convolution(blocks[-1])
    _start_identity(first, range(num_signals))
    _start_anchors(first)
    for block in blocks:
        if "ResBlock" in type(block).__name__:
            last_of_block = only_convolution(block.conv2)
            last_of_block.weight.zero_()
            _bias(last_of_block).zero_()
            if not isinstance(block.nin_shortcut, nn.Identity):
                _start_identity(only_convolution(block.nin_shortcut), range(NUM_WAVELETS))
                _start_anchors(only_convolution(block.nin_shortcut))
            _ignore_anchors(block.norm1)
    norm = next(layer for block in blocks for layer in block.modules() if layer is blocks[-2])
    assert isinstance(norm, nn.GroupNorm)
    norm.weight.fill_(_scale(norm))
    norm.weight[NUM_WAVELETS : NUM_WAVELETS + 2] = 0.0
    norm.bias.zero_()
    last.weight.zero_()
    _bias(last).zero_()
    for channel in range(last.out_channels):
        last.weight[channel, channel, 1, 1, 1] = 1.0
        last.weight[channel, NUM_WAVELETS + 2, 1, 1, 1] = -1.0


def _scale(norm: nn.GroupNorm) -> float:
    """The standard deviation that the anchors alone make, which normalisation divides by."""
    return ANCHOR * math.sqrt(2.0 / norm.num_channels)


def _ignore_anchors(norm: Any) -> None:
    """Give the signals back their scale before the first convolution of a residual block, and hide the anchors."""
    norm.weight.fill_(_scale(norm))
    norm.weight[ANCHORS] = 0.0


def _start_identity(convolution: nn.Conv3d, channels: range) -> None:
    centre = tuple(side // 2 for side in convolution.kernel_size)
    for channel in channels:
        if channel < min(convolution.in_channels, convolution.out_channels):
            convolution.weight[channel] = 0.0
            convolution.weight[(channel, channel, *centre)] = 1.0
            _bias(convolution)[channel] = 0.0


def _start_anchors(convolution: nn.Conv3d | nn.ConvTranspose3d) -> None:
    """Make the anchors from biases, and let no other channel hear of those of the layer before."""
    inputs = convolution.weight if isinstance(convolution, nn.ConvTranspose3d) else convolution.weight.transpose(0, 1)
    if convolution.in_channels > NUM_WAVELETS:
        inputs[ANCHORS] = 0.0
    for channel, value in zip(range(NUM_WAVELETS, NUM_WAVELETS + 3), (ANCHOR, -ANCHOR, 0.0), strict=True):
        _output(convolution, channel).zero_()
        _bias(convolution)[channel] = value


def _start_down(convolution: nn.Conv3d) -> None:
    _start_anchors(convolution)
    for channel, kernel in enumerate(haar_kernels()):
        convolution.weight[channel] = 0.0
        _bias(convolution)[channel] = 0.0
        convolution.weight[channel, 0, :2, :2, :2] = kernel * (1.0 if channel == 0 else DIFFERENCE_GAIN)


def _start_up(convolution: nn.ConvTranspose3d) -> None:
    """Tap 1 of a transposed convolution of stride 2 and padding 1 makes even voxels, tap 2 the odd ones after them."""
    _start_anchors(convolution)
    _output(convolution, 0).zero_()
    _bias(convolution)[0] = 0.0
    for channel, kernel in enumerate(haar_kernels()):
        signs = kernel * 8.0
        convolution.weight[channel, 0, 1:3, 1:3, 1:3] = signs / (1.0 if channel == 0 else DIFFERENCE_GAIN)


def _output(convolution: nn.Conv3d | nn.ConvTranspose3d, channel: int) -> Tensor:
    """The weights that make one output channel, as a view."""
    weight: Tensor = convolution.weight
    return weight[:, channel] if isinstance(convolution, nn.ConvTranspose3d) else weight[channel]


def _bias(convolution: nn.Module) -> Tensor:
    bias = convolution.bias
    assert isinstance(bias, Tensor)
    return bias


def _only(blocks: nn.ModuleList, kind: str) -> Any:
    found = [block for block in blocks if kind in type(block).__name__]
    assert len(found) == 1
    return only_convolution(found[0])
