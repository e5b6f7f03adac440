"""Initial weights for small autoencoders: a Haar wavelet transform, which training refines.

From random weights, MAISI's autoencoder needs thousands of steps to learn to pass intensities on: its group
normalisation removes the mean and the scale of every volume, and the decoder must recover them. Here the trunk passes
the image on unchanged, and four channels prevent any effect of the normalisation: two constants of opposite sign, so
large that they alone determine the scale, and a zero whose normalised value is the mean to subtract.

The latent is the local mean of 2x2x2 voxels and its three first differences (Haar, "Zur Theorie der orthogonalen
Funktionensysteme", 1910); with four latent channels the decoder has to guess the mixed differences, with eight they are
kept, and the transform is lossless.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.pointwise import middle_tap

NUM_WAVELETS = 4
NUM_ALL_WAVELETS = 8
# Axes along which each wavelet is a difference.
WAVELET_AXES = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


def haar_kernels(count: int = NUM_WAVELETS) -> Tensor:
    """Return ``(count, 2, 2, 2)`` weights of the mean of 2x2x2 voxels and of their differences.

    First the mean, then the differences along I, J and K, then the mixed ones, along IJ, IK, JK and IJK; all eight
    tell the voxels without loss. Source: Haar, "Zur Theorie der orthogonalen Funktionensysteme", 1910.
    """
    kernels = torch.full((count, 2, 2, 2), 1.0 / 8.0)
    for place, corner in product(range(count), product((0, 1), repeat=3)):
        if sum(corner[axis] == 0 for axis in WAVELET_AXES[place]) % 2:
            kernels[(place, *corner)] *= -1.0
    return kernels


def only_convolution(layer: Any) -> Any:
    """Return the only convolution inside a layer, transposed or not."""
    found = [part for part in layer.modules() if isinstance(part, nn.Conv3d | nn.ConvTranspose3d)]
    assert len(found) == 1
    return found[0]


# Channels of the narrowest level that hold as many wavelets and the anchors.
LEAST_WIDTHS = {NUM_WAVELETS: 8, NUM_ALL_WAVELETS: 12}

# Channels of the trunk after the signals: anchors of both signs and a zero.
NUM_ANCHORS = 3
# Large against signals of about 1, so that they decide the scale, but no larger: training must not feel them.
ANCHOR = 10.0
# Differences are small against means, and mixed ones smaller still: a gain for every axis that they run along brings
# them nearer to each other, so that diffusion sees all.
DIFFERENCE_GAIN = 4.0
# With all eight wavelets the mean also comes nearer to the others: intensities around that of thin tissue, halved.
CENTRE, MEAN_GAIN = 0.3, 0.5


@torch.no_grad()
def start_as_wavelet(autoencoder: nn.Module, *, gains: tuple[float, float, float, float] | None = None) -> None:
    """Set the weights of an autoencoder with two levels to a Haar transform, in place.

    Args:
        autoencoder: MAISI's VAE with two levels, transposed convolutions and one normalisation group; with four latent
            channels and at least eight channels per level, or with eight and at least twelve.
        gains: Factors on the mean and on differences along one, two and three axes; None for 1 and 4 per axis, with
            eight latent channels 0.5 and 4 per axis. Factors that give the noise of a CT one deviation in all channels
            let sampling treat the channels alike.

    Raises:
        TrainingError: The autoencoder has another architecture.
    """
    count = _require_fitting(autoencoder)
    encoder, decoder = autoencoder.encoder.blocks, autoencoder.decoder.blocks  # type: ignore[union-attr]
    assert isinstance(encoder, nn.ModuleList)
    assert isinstance(decoder, nn.ModuleList)
    _start_trunk(encoder, count, num_signals=1)
    _start_trunk(decoder, count, num_signals=count)
    mean_gain = MEAN_GAIN if gains is None else gains[0]
    by_axes = tuple(DIFFERENCE_GAIN * axes or 1.0 for axes in range(4)) if gains is None else (1.0, *gains[1:])
    _start_down(_only(encoder, "Downsample"), count, by_axes)
    _start_up(_only(decoder, "Upsample"), count, by_axes)
    for name in ("quant_conv_mu", "post_quant_conv"):
        _start_identity(only_convolution(getattr(autoencoder, name)), range(count))
    if count == NUM_ALL_WAVELETS:
        _scale_mean(only_convolution(autoencoder.quant_conv_mu), mean_gain, -mean_gain * CENTRE)
        _scale_mean(only_convolution(autoencoder.post_quant_conv), 1.0 / mean_gain, CENTRE)


def _scale_mean(convolution: nn.Conv3d, gain: float, bias: float) -> None:
    """Have an identity multiply its first channel by a gain and add a bias."""
    convolution.weight[0] *= gain
    _bias(convolution)[0] = bias


def _require_fitting(autoencoder: nn.Module) -> int:
    """The number of wavelets that the latent holds."""
    layers = list(autoencoder.modules())
    ups = [layer for layer in layers if isinstance(layer, nn.ConvTranspose3d)]
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    latent = only_convolution(autoencoder.post_quant_conv).in_channels
    narrowest = min(norm.num_channels for norm in norms)
    is_plain = len(ups) == 1 and all(norm.num_groups == 1 for norm in norms)
    if not is_plain or latent not in LEAST_WIDTHS or narrowest < LEAST_WIDTHS[latent]:
        raise TrainingError(
            "Wavelet start: expected an autoencoder with two levels, use_convtranspose, norm_num_groups 1 and "
            f"{NUM_WAVELETS} latent channels with 8 channels a level or more, or {NUM_ALL_WAVELETS} with 12, found "
            f"{len(ups)} transposed convolutions, {max(norm.num_groups for norm in norms)} groups, {narrowest} channels"
            f" and {latent} latent channels. Change the definition, or start at random."
        )
    return int(latent)


def _anchors(count: int) -> slice:
    return slice(count, count + NUM_ANCHORS)


def _start_trunk(blocks: nn.ModuleList, count: int, *, num_signals: int) -> None:
    """Hand the signals from the first convolution to the last; residual blocks add nothing yet."""
    first, last = only_convolution(blocks[0]), only_convolution(blocks[-1])
    _start_identity(first, range(num_signals))
    _start_anchors(first, count)
    for block in blocks:
        if "ResBlock" in type(block).__name__:
            last_of_block = only_convolution(block.conv2)
            last_of_block.weight.zero_()
            _bias(last_of_block).zero_()
            if not isinstance(block.nin_shortcut, nn.Identity):
                _start_identity(only_convolution(block.nin_shortcut), range(count))
                _start_anchors(only_convolution(block.nin_shortcut), count)
            _ignore_anchors(block.norm1, count)
    norm = next(layer for block in blocks for layer in block.modules() if layer is blocks[-2])
    assert isinstance(norm, nn.GroupNorm)
    norm.weight.fill_(anchored_deviation(ANCHOR, norm.num_channels))
    norm.weight[count : count + 2] = 0.0
    norm.bias.zero_()
    last.weight.zero_()
    _bias(last).zero_()
    for channel in range(last.out_channels):
        middle_tap(last)[channel, channel] = 1.0
        middle_tap(last)[channel, count + 2] = -1.0


def anchored_deviation(anchor: float, num_channels: int) -> float:
    """Return what group normalisation divides a group by if two large constants of opposite sign decide it.

    Args:
        anchor: Absolute value of the two constants, against which all other channels are small.
        num_channels: Channels of the group, anchors included.
    """
    return anchor * math.sqrt(2.0 / num_channels)


def _ignore_anchors(norm: Any, count: int) -> None:
    """Give the signals back their scale before the first convolution of a residual block, and hide the anchors."""
    norm.weight.fill_(anchored_deviation(ANCHOR, norm.num_channels))
    norm.weight[_anchors(count)] = 0.0


def _start_identity(convolution: nn.Conv3d, channels: range) -> None:
    for channel in channels:
        if channel < min(convolution.in_channels, convolution.out_channels):
            convolution.weight[channel] = 0.0
            middle_tap(convolution)[channel, channel] = 1.0
            _bias(convolution)[channel] = 0.0


def _start_anchors(convolution: nn.Conv3d | nn.ConvTranspose3d, count: int) -> None:
    """Make the anchors from biases, and let no other channel hear of those of the layer before."""
    inputs = convolution.weight if isinstance(convolution, nn.ConvTranspose3d) else convolution.weight.transpose(0, 1)
    if convolution.in_channels > count:
        inputs[_anchors(count)] = 0.0
    for channel, value in zip(range(count, count + NUM_ANCHORS), (ANCHOR, -ANCHOR, 0.0), strict=True):
        _output(convolution, channel).zero_()
        _bias(convolution)[channel] = value


def _start_down(convolution: nn.Conv3d, count: int, gains: tuple[float, ...]) -> None:
    _start_anchors(convolution, count)
    for channel, kernel in enumerate(haar_kernels(count)):
        convolution.weight[channel] = 0.0
        _bias(convolution)[channel] = 0.0
        convolution.weight[channel, 0, :2, :2, :2] = kernel * gains[len(WAVELET_AXES[channel])]


def _start_up(convolution: nn.ConvTranspose3d, count: int, gains: tuple[float, ...]) -> None:
    """Tap 1 of a transposed convolution of stride 2 and padding 1 makes even voxels, tap 2 the odd ones after them."""
    _start_anchors(convolution, count)
    _output(convolution, 0).zero_()
    _bias(convolution)[0] = 0.0
    for channel, kernel in enumerate(haar_kernels(count)):
        signs = kernel * 8.0
        convolution.weight[channel, 0, 1:3, 1:3, 1:3] = signs / gains[len(WAVELET_AXES[channel])]


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
