"""Convolutions whose kernel of 3x3x3 uses the middle tap alone, computed with a 27th of the products."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.networks.conditioning import NUM_LABEL_BITS, to_label_bits


class PointwiseConv3d(nn.Conv3d):
    """A convolution of 3x3x3 and stride 1 of which only the middle tap is used; the parameters stay whole."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution of ``(B, C, I, J, K)`` features."""
        with torch.autocast(features.device.type, enabled=False):  # few products, and labels must keep their intensity
            return functional.conv3d(features.float(), self.weight[:, :, 1:2, 1:2, 1:2], self.bias)


def middle_tap(convolution: nn.Conv3d) -> Tensor:
    """Return the weights of a kernel's middle tap, ``(out, in)``, as a view: what a voxel makes of itself."""
    i, j, k = (side // 2 for side in convolution.kernel_size)
    return convolution.weight[:, :, i, j, k]


def is_pointwise(convolution: nn.Conv3d) -> bool:
    """Whether only the middle tap of a kernel of 3x3x3 is used."""
    weight = convolution.weight.detach()
    if convolution.kernel_size != (3, 3, 3):
        return False
    middle = torch.zeros_like(weight)
    middle[:, :, 1, 1, 1] = middle_tap(convolution).detach()
    return torch.equal(weight, middle)


def use_pointwise_layers(embedding: nn.Module) -> None:
    """Have those convolutions of a ControlNet's condition embedding that are pointwise computed as such, in place.

    Their weights must not change afterwards, other than the middle taps. The results differ by rounding.
    """
    for layer in embedding.modules():
        if isinstance(layer, nn.Conv3d) and layer.stride == (1, 1, 1) and is_pointwise(layer):
            cast(nn.Module, layer).__class__ = PointwiseConv3d


class LabelTable(nn.Module):
    """What the first layers of a condition embedding make of each label id, looked up instead of computed."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, label_bits: Tensor) -> Tensor:
        """Return ``(B, C, I, J, K)`` features of ``(B, 8, I, J, K)`` bits, in channels-last memory format."""
        places = 2.0 ** torch.arange(NUM_LABEL_BITS, device=label_bits.device)
        ids = torch.einsum("bcijk,c->bijk", label_bits.float(), places).round().int()  # (B, I, J, K)
        table = cast(Tensor, self.table)
        features: Tensor = functional.embedding(ids, table).movedim(-1, 1)
        return features


@torch.no_grad()
def use_label_table(controlnet: nn.Module) -> bool:
    """Have a ControlNet whose first layers see one voxel at a time look up what they make of each label id, in place.

    Such are those that started from label means; the weights of these layers must not change afterwards.

    Returns:
        Whether the layers were replaced; those of other ControlNets stay as they are.
    """
    embedding: Any = getattr(controlnet, "controlnet_cond_embedding", None)
    if embedding is None or len(embedding.blocks) == 0:
        return False
    layers = [layer for part in (embedding.conv_in, embedding.blocks[0]) for layer in part.modules()]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv3d)]
    if convolutions[0].in_channels != NUM_LABEL_BITS or not all(map(is_pointwise, convolutions)):
        return False
    ids = torch.arange(256, dtype=torch.uint8, device=convolutions[0].weight.device).view(1, 256, 1, 1)
    table = embedding.blocks[0](embedding.conv_in(to_label_bits(ids)))  # (1, C, 256, 1, 1)
    embedding.conv_in, embedding.blocks[0] = LabelTable(table[0, :, :, 0, 0].T.contiguous()), nn.Identity()
    return True
