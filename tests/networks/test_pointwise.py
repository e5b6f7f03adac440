"""Convolutions of which only the middle tap is used."""

from __future__ import annotations

import torch
from torch import nn

from maisi_aug.networks.pointwise import PointwiseConv3d, is_pointwise, use_pointwise_layers


def build() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.Conv3d(5, 4, 3, padding=1), nn.Conv3d(4, 4, 3, 2, 1))
    with torch.no_grad():
        middle = layers[0].weight[:, :, 1, 1, 1].clone()
        layers[0].weight.zero_()
        layers[0].weight[:, :, 1, 1, 1] = middle
    return layers


@torch.no_grad()
def test_only_pointwise_layers_are_replaced_and_the_result_is_the_same() -> None:
    layers = build()
    image = torch.randn(1, 3, 8, 6, 10)
    wanted, names = layers(image), list(layers.state_dict())
    use_pointwise_layers(layers)
    assert [type(layer) is PointwiseConv3d for layer in layers] == [True, False, False]
    torch.testing.assert_close(layers(image), wanted)
    assert list(layers.state_dict()) == names


def test_kernels_of_other_sizes_are_not_pointwise() -> None:
    assert not is_pointwise(nn.Conv3d(2, 2, 1))
    assert is_pointwise(build()[0])
    assert not is_pointwise(build()[1])
