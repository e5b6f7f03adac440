"""A signal path through MAISI's U-Net and ControlNet that no content of the image can disturb.

Group normalisation divides features by their deviation over the volume, which depends on the share of air in it: what a
network draws would change with the field of view. Here two channels of constant and opposite values, the anchors, are
so large that they alone decide the deviation, and what they are is made from the time step. With the share c of the
noise that is left in the image as its noise, the image is x_0 = e + c n, noisy latents are x_t = (1 - t) e + d n with
d = t + (1 - t) c, and the U-Net answers with the exact velocity

    v = x_0 - n = (e - (1 - c) x_t) / d,

whose numerator the first skip connection carries and whose denominator the anchors are. The flow is straight, so that
any number of steps draws the same image. All other channels are free to learn: they are divided by d, too, because a
change of x_0 needs a change of v that is larger by as much.

The way of the signals, by the names of MAISI's modules, for a latent of n channels. A pair of channels with both signs
passes an activation, since silu(a) - silu(-a) = a.

    x_t        -> conv_in                              first skip connection: (1 - c) x_t in channels 0 to n - 1
    label map  -> condition embedding of the ControlNet
               -> its first zero convolution           minus e, added to the same channels
    time step  -> time_embed                           t and -t in channels 0 and 1
               -> time_emb_proj, norm2 (last up block) d and -d in TIME_CHANNELS, scaled by TIME_ANCHORS
               -> conv2 (last up block)                the anchors: ANCHOR d and -ANCHOR d, two in each group of out[0]
    first skip -> skip_connection (last up block)      the signals and minus their sum, in the first group of out[0]
               -> out[0], which divides by d
               -> out[2]                               v
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from monai.networks.utils import copy_model_state
from torch import Tensor, nn

from maisi_aug.networks.pointwise import middle_tap
from maisi_aug.training.images.wavelet import anchored_deviation, only_convolution

SIGNS = (1.0, -1.0)
# Channels next to the signals in their group: two anchors, and the negative sum of the signals, which keeps the mean 0.
NUM_SIGNAL_EXTRAS = 3
# Against signals of about 1; with 1000 they change the deviation by 1e-6.
ANCHOR = 1000.0
# The level around which SiLU is linear to 1e-4 for what the signals are after normalisation, and their scale there.
LEVEL, SCALE = 20.0, 0.5
# Hidden channels of the last up block that carry the time, in a group of their own: two constants of opposite sign as
# their anchors, and d with both signs, times a gain before it is normalised.
TIME_ANCHORS, TIME_CHANNELS = (0, 1), (2, 3)
TIME_GAIN = 10.0
NUM_TIMESTEPS = 1000  # networks are given t times this
# Noisy latents would drown what the label map tells in the features of the ControlNet.
NOISY_SHARE = 0.3


@torch.no_grad()
def build_signal_path(unet: Any, controlnet: Any, num_channels: int, *, noise_share: float) -> None:
    """Write the signal path into U-Net and ControlNet, in place; the free channels stay as they are, but add nothing.

    Args:
        unet: U-Net with plain layers or MAISI's own.
        controlnet: ControlNet of the same widths, which gets the U-Net's weights first.
        num_channels: Channels of the latent.
        noise_share: Share of the starting noise that is left in the image, in [0, 1).
    """
    copy_model_state(controlnet, unet.state_dict())
    parts = _Parts(unet, controlnet, num_channels)
    for convolution in (parts.first, parts.control_first):
        middle_tap(convolution)[num_channels:] *= NOISY_SHARE
    # MAISI starts with zeros here, with which no gradient reaches the label map.
    nn.init.kaiming_uniform_(parts.embedded.weight, a=math.sqrt(5))
    for parameter in parts.hand_over.parameters():
        parameter.zero_()
    for parameter, frozen in parts.frozen():
        parameter[frozen] = 0.0
    _start_ends(parts, noise_share)
    _start_shortcut(parts)
    _start_time(parts)
    set_noise_share(unet, num_channels, noise_share)


def freeze_signals(unet: Any, controlnet: Any, num_channels: int) -> None:
    """Keep the weights of the signal path from changing in training, by gradients of 0.

    Args:
        unet: U-Net with a signal path.
        controlnet: Its ControlNet.
        num_channels: Channels of the latent.
    """
    for parameter, frozen in _Parts(unet, controlnet, num_channels).frozen():
        if parameter.requires_grad:
            parameter.register_hook(_Mask(~frozen))  # type: ignore[no-untyped-call]


def freeze_control_signals(controlnet: Any, *, whole_layers: bool) -> None:
    """Keep a ControlNet's part of a signal path from changing in training; does nothing where there is none.

    Args:
        controlnet: ControlNet that is trained beside a frozen U-Net.
        whole_layers: Freeze the layers as a whole, for training that adds to all of a weight.
    """
    first = only_convolution(controlnet.conv_in)
    signals = list(range(first.in_channels))
    if bool(first.weight[signals].any()):
        return
    for layer in _control_layers(controlnet):
        if whole_layers:
            layer.requires_grad_(False)
            continue
        for parameter, frozen in _rows(layer, signals):
            if parameter.requires_grad:
                parameter.register_hook(_Mask(~frozen))  # type: ignore[no-untyped-call]


def keep_signals_precise(unet: Any, controlnet: Any, num_channels: int) -> None:
    """Run the layers of the signal path in float32 under autocast, in place.

    Where large numbers cancel, bfloat16 would leave more noise than an image has.
    """
    parts = _Parts(unet, controlnet, num_channels)
    for layer in (parts.first, parts.last, parts.shortcut, parts.control_first, parts.hand_over):
        layer.__class__ = _PreciseConv3d
    for layer in controlnet.controlnet_cond_embedding.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = _PreciseConv3d


@torch.no_grad()
def set_noise_share(unet: Any, num_channels: int, noise_share: float) -> None:
    """Set the share of the starting noise that is left in the image, in place."""
    parts = _Parts(unet, None, num_channels)
    for channel in range(num_channels):
        middle_tap(parts.first)[channel, channel] = 1.0 - noise_share
    projection, gain = parts.block.time_emb_proj, TIME_GAIN
    for sign, place in zip(SIGNS, TIME_CHANNELS, strict=True):  # d = (1 - c) t + c
        projection.weight[place, 0] = sign * gain * (1.0 - noise_share)
        projection.weight[place, 1] = -sign * gain * (1.0 - noise_share)
        projection.bias[place] = sign * gain * noise_share


@dataclass(frozen=True)
class _Mask:
    """A gradient hook, which torch keeps by reference."""

    trains: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.trains.to(gradient.device)


class _PreciseConv3d(nn.Conv3d):
    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class _Parts:
    """The layers that the signal path goes through."""

    def __init__(self, unet: Any, controlnet: Any, num_channels: int) -> None:
        self.unet, self.controlnet, self.num_channels = unet, controlnet, num_channels
        self.first, self.last, self.norm = only_convolution(unet.conv_in), only_convolution(unet.out[2]), unet.out[0]
        self.block = unet.up_blocks[-1].resnets[-1]
        self.shortcut = only_convolution(self.block.skip_connection)
        self.before, self.after = only_convolution(self.block.conv1), only_convolution(self.block.conv2)
        if controlnet is not None:
            self.control_first, self.embedded, self.hand_over = _control_layers(controlnet)

    @property
    def group(self) -> int:
        """Channels of a group of the last normalisation."""
        return int(self.norm.num_channels // self.norm.num_groups)

    @property
    def anchors(self) -> list[tuple[int, int]]:
        """Anchors of every group: after the signals and their sum in the first, in front in the others."""
        first = self.num_channels + 1
        return [(first, first + 1)] + [
            (start, start + 1) for start in range(self.group, self.norm.num_channels, self.group)
        ]

    @property
    def bound(self) -> list[int]:
        """Channels of the last block that are not free."""
        return [*range(self.group), *(place for pair in self.anchors[1:] for place in pair)]

    def frozen(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Parameters with masks of what belongs to the signal path."""
        signals, bound = list(range(self.num_channels)), self.bound
        times = list(range(self.group))
        for layer, rows in (
            (self.first, signals), (self.shortcut, bound), (self.after, bound), (self.before, times),
            (self.block.time_emb_proj, times), (self.block.norm2, times), (self.norm, bound),
            (self.unet.time_embed[0], [0, 1]), (self.unet.time_embed[2], [0, 1]),
        ):  # fmt: skip
            yield from _rows(layer, rows)
        yield from _columns(self.last, bound)
        yield from _columns(self.unet.class_embedding, [0, 1])
        yield self.last.bias, torch.ones_like(self.last.bias, dtype=torch.bool)
        if self.controlnet is not None:
            for layer in (self.control_first, self.embedded, self.hand_over):
                yield from _rows(layer, signals)


def _control_layers(controlnet: Any) -> tuple[nn.Conv3d, nn.Conv3d, nn.Conv3d]:
    """The ControlNet's layers on the signal path: from the noisy latent, from the label map, and to the U-Net."""
    parts = controlnet.conv_in, controlnet.controlnet_cond_embedding.conv_out, controlnet.controlnet_down_blocks[0]
    first, embedded, hand_over = map(only_convolution, parts)
    return first, embedded, hand_over


def _rows(layer: Any, rows: list[int]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for parameter in (layer.weight, layer.bias):
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        mask[rows] = True
        yield parameter, mask


def _columns(layer: Any, columns: list[int]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    mask[:, columns] = True
    yield layer.weight, mask


def _start_ends(parts: _Parts, noise_share: float) -> None:
    """From x_t and e to the numerator, and from what normalisation makes of it to the velocity."""
    deviation = anchored_deviation(ANCHOR, parts.group)
    parts.last.weight.zero_()
    parts.last.bias.fill_(LEVEL / SCALE)
    parts.norm.weight.fill_(deviation)
    parts.norm.bias.zero_()
    for channel in range(parts.num_channels):
        middle_tap(parts.hand_over)[channel, channel] = -1.0
        middle_tap(parts.first)[channel, channel] = 1.0 - noise_share
        parts.norm.weight[channel], parts.norm.bias[channel] = SCALE * deviation, LEVEL
        middle_tap(parts.last)[channel, channel] = -1.0 / SCALE
    # What the label map tells goes on to the last block, too.
    for channel in range(parts.num_channels, parts.hand_over.out_channels):
        middle_tap(parts.hand_over)[channel, channel] = 1.0


def _start_shortcut(parts: _Parts) -> None:
    """The last block reads the features below it and then the first skip connection."""
    skip = parts.shortcut.in_channels - parts.first.out_channels
    for channel in range(parts.num_channels):
        middle_tap(parts.shortcut)[channel, skip + channel] = 1.0
        middle_tap(parts.shortcut)[parts.num_channels, skip + channel] = -1.0


def _start_time(parts: _Parts) -> None:
    """t through the time embedding, and d, which ``set_noise_share`` makes of it, to the anchors."""
    _pass_time(parts.unet.time_embed)
    block = parts.block
    deviation = anchored_deviation(ANCHOR, block.norm2.num_channels // block.norm2.num_groups)
    for sign, place in zip(SIGNS, TIME_ANCHORS, strict=True):
        parts.before.bias[place] = sign * ANCHOR
    positive, negative = TIME_CHANNELS
    block.norm2.weight[[positive, negative]], block.norm2.bias[[positive, negative]] = deviation / TIME_GAIN, 0.0
    for pair in parts.anchors:
        for sign, place in zip(SIGNS, pair, strict=True):
            middle_tap(parts.after)[place, positive] = sign * ANCHOR
            middle_tap(parts.after)[place, negative] = -sign * ANCHOR


def _pass_time(time_embed: Any) -> None:
    """Have a time embedding answer with t and -t in its first two channels, by least squares on its slowest waves."""
    t = torch.linspace(0.0, 1.0, 501, dtype=torch.float64)
    waves = get_timestep_embedding(NUM_TIMESTEPS * t.float(), time_embed[0].in_features).double()
    half = waves.shape[1] // 2
    # The slowest sines are almost straight over the range of times; two of them are straight to 1e-5.
    slowest = (-1, -2, half - 1)
    known = torch.cat([waves[:, slowest], torch.ones(len(t), 1, dtype=torch.float64)], dim=1)
    *slopes, offset = torch.linalg.lstsq(known, t[:, None]).solution[:, 0].tolist()
    for row, sign in enumerate(SIGNS):
        for place, slope in zip(slowest, slopes, strict=True):
            time_embed[0].weight[row, place] = sign * slope
        time_embed[0].bias[row] = sign * offset
        time_embed[2].weight[row, 0], time_embed[2].weight[row, 1] = sign, -sign
