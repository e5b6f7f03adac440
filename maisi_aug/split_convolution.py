"""Convolutions computed part by part: the same values for less memory, as many parts as a caller asks for."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiConvolution
from torch import Tensor, nn

HALO = 1
"""Voxels beyond a part that MAISI's decoder looks at: its kernels have three voxels a side."""


class SplitConvolution(nn.Module):
    """A convolution of stride 1, or a transposed one of stride 2, that can be computed part by part along I.

    MAISI's own layer cuts the output together in a second copy, needs sides that can be divided, and overlaps the parts
    by three voxels. Here each part, one voxel of its neighbours included, goes straight to its place in the output, so
    that only the part is held beside input and output.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.num_splits = 1

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, I, J, K)`` to what the convolution makes of it."""
        side = features.shape[2]
        num_parts = min(self.num_splits, side)
        if num_parts == 1:
            return cast(Tensor, self.inner(features))
        bounds = [side * part // num_parts for part in range(num_parts + 1)]
        output: Tensor | None = None
        for start, stop in pairwise(bounds):
            first, last = max(start - HALO, 0), min(stop + HALO, side)
            part: Tensor = self.inner(features[:, :, first:last].contiguous())
            factor = part.shape[2] // (last - first)
            if output is None:
                output = part.new_empty(*part.shape[:2], factor * side, *part.shape[3:])
            inside = slice(factor * (start - first), factor * (stop - first))
            output[:, :, factor * start : factor * stop] = part[:, :, inside]
        assert output is not None
        return output


def make_splittable(decoder: nn.Module) -> int:
    """Put every plain convolution of MAISI's decoder, upsampling included, into a ``SplitConvolution``, in place.

    Returns:
        The number of convolutions.
    """
    num_found = 0
    for parent in list(decoder.modules()):
        if isinstance(parent, SplitConvolution | MaisiConvolution):
            continue
        for name, child in list(parent.named_children()):
            is_convolution = len(list(child.children())) == 1 and isinstance(
                next(child.children()), nn.Conv3d | nn.ConvTranspose3d
            )
            if is_convolution and not isinstance(child, SplitConvolution | MaisiConvolution):
                setattr(parent, name, SplitConvolution(child))
                num_found += 1
    return num_found


def set_num_splits(decoder: nn.Module, num_splits: int) -> None:
    """Say in how many parts convolutions are computed, in our layers as well as in MAISI's own."""
    for layer in decoder.modules():
        if isinstance(layer, SplitConvolution | MaisiConvolution):
            layer.num_splits = num_splits
