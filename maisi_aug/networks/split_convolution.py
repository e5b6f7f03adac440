"""The decoder computed part by part: the same values for less memory, in as many parts as a caller asks for.

MAISI's own ``num_splits`` holds all parts and a second copy of them, needs sides that can be divided into parts of
three voxels or more, and saves nothing of the norms: on a CPU four splits take more memory than the plain layers.
Here a part goes from the block's input through norm, activation and convolution to its place in the output, and is
forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiConvolution, MaisiResBlock, MaisiUpsample
from torch import Tensor, nn
from torch.nn import functional

HALO = 1
"""Voxels beyond a part that MAISI's decoder looks at: kernels have three voxels a side, in upsampling finer ones."""


MIN_CPU_ROWS = 20480
"""Batch x channels x I x J up to which torch computes float32 convolutions on a CPU without oneDNN: several times
slower, and with 27 copies of the part."""


class SplitLayer(nn.Module):
    """A convolution of stride 1, or MAISI's upsampling by 2, that can be computed part by part along I."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.num_splits = 1

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, I, J, K)`` to what the layer makes of it."""
        return _in_parts(self.inner, features, self.num_splits)


class SplitResBlock(nn.Module):
    """MAISI's residual block with plain layers, whose norms and activations can be computed part by part as well."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.num_splits = 1

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, I, J, K)`` to as many voxels of the block's output channels."""
        block = cast(MaisiResBlock, self.inner)
        if self.num_splits == 1:
            return cast(Tensor, block(features))
        hidden = _in_parts(_after_norm(block.norm1, block.conv1, features), features, self.num_splits)
        output = _in_parts(_after_norm(block.norm2, block.conv2, hidden), hidden, self.num_splits)
        del hidden
        return output.add_(_in_parts(block.nin_shortcut, features, self.num_splits))


def _after_norm(norm: nn.GroupNorm, convolution: nn.Module, features: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm with the statistics of the whole, the activation and the convolution, for a part of the whole."""
    scale, shift = as_scale_and_shift(norm, features)

    def compute(part: Tensor) -> Tensor:
        normed = torch.addcmul(shift, part.float(), scale)
        return cast(Tensor, convolution(functional.silu(normed, inplace=True)))

    return compute


def as_scale_and_shift(norm: nn.GroupNorm, features: Tensor) -> tuple[Tensor, Tensor]:
    """What a group norm multiplies by and adds, ``(B, C, 1, 1, 1)`` each.

    Slabs are summed in float64: a group's mean may be far from 0, and the whole in float32 would be another copy.
    """
    moments = torch.zeros(2, features.shape[0], norm.num_groups, dtype=torch.float64, device=features.device)
    for slab in features.unbind(2):
        groups = slab.reshape(slab.shape[0], norm.num_groups, -1).double()
        moments += torch.stack((groups.sum(-1), groups.square().sum(-1)))
    mean, square = moments / (features[0].numel() / norm.num_groups)
    deviation = (square - mean.square()).clamp_(min=0).add_(norm.eps).sqrt_()
    per_channel = norm.num_channels // norm.num_groups
    mean, deviation = (each.repeat_interleave(per_channel, dim=1) for each in (mean, deviation))
    scale = norm.weight / deviation
    shape = (*scale.shape, 1, 1, 1)
    return scale.float().view(shape), (norm.bias - mean * scale).float().view(shape)


def _in_parts(compute: Callable[[Tensor], Tensor], features: Tensor, num_parts: int) -> Tensor:
    """Apply an operation that looks ``HALO`` voxels far to parts along I, and put the results together."""
    side = features.shape[2]
    if features.device.type == "cpu":
        num_parts = min(num_parts, features[..., 0].numel() // MIN_CPU_ROWS)
    num_parts = max(min(num_parts, side), 1)
    if num_parts == 1:
        return compute(features)
    output: Tensor | None = None
    for start, stop in pairwise(side * part // num_parts for part in range(num_parts + 1)):
        first, last = max(start - HALO, 0), min(stop + HALO, side)
        part = compute(features[:, :, first:last].contiguous())
        factor = part.shape[2] // (last - first)
        if output is None:
            output = part.new_empty(*part.shape[:2], factor * side, *part.shape[3:])
        inside = slice(factor * (start - first), factor * (stop - first))
        output[:, :, factor * start : factor * stop] = part[:, :, inside]
    assert output is not None
    return output


def make_splittable(decoder: nn.Module) -> int:
    """Let the plain layers of MAISI's decoder be computed in parts, in place; MAISI's own layers stay.

    Returns:
        The number of residual blocks, upsamplings and further convolutions.
    """
    num_found = 0
    for parent in list(decoder.modules()):
        if isinstance(parent, SplitLayer | SplitResBlock | MaisiConvolution | MaisiResBlock | MaisiUpsample):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, MaisiResBlock) and isinstance(child.norm1, nn.GroupNorm) and _is_plain(child.conv1):
                setattr(parent, name, SplitResBlock(child))
            elif _is_plain(child.conv if isinstance(child, MaisiUpsample) else child):
                setattr(parent, name, SplitLayer(child))
            else:
                continue
            num_found += 1
    return num_found


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is MONAI's wrapper of one convolution and nothing else."""
    children = list(layer.children())
    is_ours = isinstance(layer, SplitLayer | MaisiConvolution)
    return len(children) == 1 and isinstance(children[0], nn.Conv3d | nn.ConvTranspose3d) and not is_ours


def set_num_splits(decoder: nn.Module, num_splits: int) -> None:
    """Say in how many parts it is computed, in our layers as well as in MAISI's own."""
    for layer in decoder.modules():
        if isinstance(layer, SplitLayer | SplitResBlock | MaisiConvolution):
            layer.num_splits = num_splits
