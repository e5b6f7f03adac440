"""Convolutions of which only the middle tap is used."""

from __future__ import annotations

import torch
from torch import nn

from maisi_aug.networks.building import use_plain_layers
from maisi_aug.networks.conditioning import to_label_bits
from maisi_aug.networks.pointwise import (
    LabelTable,
    PointwiseConv3d,
    is_pointwise,
    use_label_table,
    use_pointwise_layers,
)
from maisi_aug.training.images.wavelet import only_convolution
from tests.builders.tiny_networks import build_networks


def build() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.Conv3d(5, 4, 3, padding=1), nn.Conv3d(4, 4, 3, 2, 1))
    first = layers[0]
    assert isinstance(first, nn.Conv3d)
    with torch.no_grad():
        middle = first.weight[:, :, 1, 1, 1].clone()
        first.weight.zero_()
        first.weight[:, :, 1, 1, 1] = middle
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
    first, second, _ = build()
    assert isinstance(first, nn.Conv3d)
    assert isinstance(second, nn.Conv3d)
    assert is_pointwise(first)
    assert not is_pointwise(second)


@torch.no_grad()
def test_labels_are_looked_up_where_layers_see_one_voxel_at_a_time() -> None:
    _, controlnet = build_networks(is_plain=False)
    use_plain_layers(controlnet)
    embedding = controlnet.controlnet_cond_embedding
    assert isinstance(embedding, nn.Module)
    assert not use_label_table(controlnet), "its layers see neighbours, too"
    for layer in (embedding.conv_in, embedding.blocks[0]):  # type: ignore[index]
        weight = only_convolution(layer).weight
        middle = weight[:, :, 1, 1, 1].clone()
        weight.zero_()
        weight[:, :, 1, 1, 1] = middle
    only_convolution(embedding.conv_out).weight.normal_()
    label_map = torch.randint(0, 256, (2, 6, 4, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    wanted = embedding(to_label_bits(label_map))
    assert use_label_table(controlnet)
    assert isinstance(embedding.conv_in, LabelTable)
    torch.testing.assert_close(embedding(to_label_bits(label_map)), wanted)
    assert float(wanted.std()) > 0
