"""Convolutions whose kernel of 3x3x3 uses the middle tap alone, computed with a 27th of the products."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class PointwiseConv3d(nn.Conv3d):
    """A convolution of 3x3x3 and stride 1 of which only the middle tap is used; the parameters stay whole."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution of ``(B, C, I, J, K)`` features."""
        with torch.autocast(features.device.type, enabled=False):  # few products, and labels must keep their intensity
            return functional.conv3d(features.float(), self.weight[:, :, 1:2, 1:2, 1:2], self.bias)


def is_pointwise(convolution: nn.Conv3d) -> bool:
    """Whether only the middle tap of a kernel of 3x3x3 is used."""
    weight = convolution.weight.detach()
    if convolution.kernel_size != (3, 3, 3):
        return False
    middle = torch.zeros_like(weight)
    middle[:, :, 1, 1, 1] = weight[:, :, 1, 1, 1]
    return torch.equal(weight, middle)


def use_pointwise_layers(embedding: nn.Module) -> None:
    """Have those convolutions of a ControlNet's condition embedding that are pointwise computed as such, in place.

    Their weights must not change afterwards, other than the middle taps. The results differ by rounding.
    """
    for layer in embedding.modules():
        if isinstance(layer, nn.Conv3d) and layer.stride == (1, 1, 1) and is_pointwise(layer):
            cast(nn.Module, layer).__class__ = PointwiseConv3d
