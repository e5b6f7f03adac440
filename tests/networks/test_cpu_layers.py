from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiUpsample
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.cpu_layers import (
    CpuConv3d,
    CpuGroupNorm,
    CpuMaisiUpsample,
    CpuUpsampling,
    NormedConvolution,
    is_measurable,
    measure_groups,
    use_cpu_layers,
)
from tests.builders.narrow_networks import scaled_header
from tests.oracles.rounding import ROUNDOFF, WINOGRAD_SPREAD, error_of


def require_same_sums(found: Tensor, plain: Tensor, exact: Tensor, *, num_terms: int) -> None:
    assert found.shape == plain.shape == exact.shape
    assert error_of(found, exact) <= WINOGRAD_SPREAD * num_terms**0.5 * ROUNDOFF[torch.float32]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_random_bias(layer: Any) -> Any:
    torch.manual_seed(1)
    layer.reset_parameters()
    return layer.requires_grad_(False)


CONVOLUTIONS = {
    # Sides along I that leave every rest by 4, and planes that are no cubes.
    **{f"winograd, {side} planes": (nn.Conv3d(32, 33, 3, padding=1), (2, 32, side, 11, 24)) for side in (4, 5, 6, 7)},
    "winograd without bias": (nn.Conv3d(48, 32, 3, padding=1, bias=False), (1, 48, 9, 12, 13)),
    "three planes": (nn.Conv3d(32, 32, 3, padding=1), (1, 32, 3, 20, 18)),
    "one plane": (nn.Conv3d(32, 32, 3, padding=1), (1, 32, 1, 40, 30)),
    "into one channel": (nn.Conv3d(16, 1, 3, padding=1), (2, 16, 5, 6, 7)),
    "into one channel of one plane": (nn.Conv3d(16, 1, 3, padding=1), (2, 16, 1, 1, 200)),
    "few channels": (nn.Conv3d(4, 8, 3, padding=1), (2, 4, 7, 9, 11)),
    "few voxels": (nn.Conv3d(64, 64, 3, padding=1), (1, 64, 4, 4, 4)),
    "stride": (nn.Conv3d(32, 32, 3, stride=2), (1, 32, 9, 11, 13)),
    "dilation": (nn.Conv3d(32, 32, 3, padding=2, dilation=2), (1, 32, 9, 11, 13)),
    "groups": (nn.Conv3d(64, 64, 3, padding=1, groups=2), (1, 64, 9, 11, 13)),
    "pointwise": (nn.Conv3d(32, 16, 1), (1, 32, 9, 11, 13)),
    "padded by name": (nn.Conv3d(32, 32, 3, padding="same"), (1, 32, 9, 11, 13)),
    "replicated": (nn.Conv3d(32, 32, 3, padding=1, padding_mode="replicate"), (1, 32, 9, 11, 13)),
}


@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_convolutions_change_by_rounding_alone(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    plain, features = with_random_bias(layer), draw(*shape)
    untouched = features.clone()
    exact = copy.deepcopy(plain).double()(features.double())
    fast = CpuConv3d.sharing(plain)
    for given in (features, features.contiguous(memory_format=torch.channels_last_3d)):
        require_same_sums(fast(given), plain(features), exact, num_terms=plain.weight[0].numel())
        assert torch.equal(given, untouched)
    assert fast.weight is plain.weight


def test_chunks_of_winograd_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = with_random_bias(nn.Conv3d(32, 32, 3, padding=1))
    fast, features = CpuConv3d.sharing(plain), draw(2, 32, 22, 10, 12)
    whole = fast(features)
    monkeypatch.setattr("maisi_aug.networks.cpu_layers.CHUNK_NUMBERS", 1)  # four planes at a time
    exact = copy.deepcopy(plain).double()(features.double())
    require_same_sums(fast(features), whole, exact, num_terms=plain.weight[0].numel())


@pytest.mark.parametrize("channels", [32, 8])
def test_planes_of_a_normed_convolution_are_those_of_the_whole(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maisi_aug.networks.cpu_layers.CHUNK_NUMBERS", 1)  # four planes at a time
    plain = with_random_bias(nn.Conv3d(channels, channels, 3, padding=1))
    features, scale = draw(2, channels, 22, 10, 12), draw(2, channels, 1, 1, 1)
    shift, untouched = scale.flip(1), features.clone()
    whole = plain(functional.silu(features * scale + shift))
    exact = copy.deepcopy(plain).double()(functional.silu(features.double() * scale.double() + shift.double()))
    normed = NormedConvolution(scale, shift, CpuConv3d.sharing(plain))
    for start, stop in ((0, 22), (0, 5), (7, 15), (3, 14), (16, 22), (21, 22)):
        found, planes = normed.compute(features, start, stop), slice(start, stop)
        assert found.shape[2] == stop - start
        require_same_sums(found, whole[:, :, planes], exact[:, :, planes], num_terms=27 * channels)
    assert torch.equal(features, untouched)


@pytest.mark.parametrize("shape", [(2, 8, 5, 6, 7), (1, 8, 1, 1, 1), (1, 8, 2, 1, 9)])
def test_upsampling_changes_by_rounding_alone(shape: tuple[int, ...]) -> None:
    plain = with_random_bias(nn.ConvTranspose3d(8, 6, 3, stride=2, padding=1, output_padding=1))
    features = draw(*shape)
    exact = copy.deepcopy(plain).double()(features.double())
    require_same_sums(CpuUpsampling.sharing(plain)(features), plain(features), exact, num_terms=27 * 8)


def test_other_types_and_gradients_are_left_to_torch() -> None:
    plain = with_random_bias(nn.Conv3d(32, 32, 3, padding=1))
    up = with_random_bias(nn.ConvTranspose3d(32, 32, 3, stride=2, padding=1, output_padding=1))
    features = draw(1, 32, 8, 12, 12)
    for layer, fast in ((plain, CpuConv3d.sharing(plain)), (up, CpuUpsampling.sharing(up))):
        assert not torch.equal(fast(features), layer(features)), "the fast way was not taken"
        assert torch.equal(
            copy.deepcopy(fast).double()(features.double()), copy.deepcopy(layer).double()(features.double())
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(fast(features), layer(features))
        given = features.clone().requires_grad_()
        (fast(given).square().sum()).backward()
        found, given.grad = given.grad, None
        (layer(given).square().sum()).backward()
        assert torch.equal(cast(Tensor, found), cast(Tensor, given.grad))


def test_networks_keep_their_weights_and_names() -> None:
    header = scaled_header("rflow-ct")["networks"]
    for role in ("autoencoder", "diffusion_unet", "controlnet"):
        network = build_network(header[role])
        use_plain_layers(network)
        before = {name: value.data_ptr() for name, value in network.state_dict().items()}
        assert use_cpu_layers(network) > 15
        assert {name: value.data_ptr() for name, value in network.state_dict().items()} == before
        assert use_cpu_layers(network) == 0
        assert not any(type(layer) is MaisiUpsample for layer in network.modules())
        assert not any(type(layer) is nn.Conv3d for layer in network.modules())


def test_attention_is_fused_where_the_kernel_does_all_of_it() -> None:
    torch.manual_seed(0)
    features = draw(2, 50, 32)
    for settings, is_fused in (({}, True), ({"attention_dtype": torch.float32}, False), ({"save_attn": True}, False)):
        block = nn.Sequential(SABlock(32, 4, **settings)).eval().requires_grad_(False)
        expected = block(features)
        use_cpu_layers(block)
        assert cast(Any, block[0]).use_flash_attention is is_fused
        exact = copy.deepcopy(block).double()(features.double()) if "attention_dtype" not in settings else None
        if exact is not None:
            require_same_sums(block(features), expected, exact, num_terms=50)


def test_norm_of_a_large_image_in_channels_last_is_as_exact_as_of_a_contiguous_one() -> None:
    features = (draw(1, 4, 48, 96, 96) + 1).contiguous(memory_format=torch.channels_last_3d)
    norm = nn.GroupNorm(2, 4).requires_grad_(False)
    exact = copy.deepcopy(norm).double()(features.double().contiguous())
    assert error_of(CpuGroupNorm.sharing(norm)(features), exact) < 10 * ROUNDOFF[torch.float32]


@pytest.mark.parametrize("sides", [(2, 2, 2), (3, 5, 4), (7, 2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_interpolated_upsampling_changes_by_rounding_alone(sides: tuple[int, int, int], bias: bool) -> None:
    plain = MaisiUpsample(3, 6, False, num_splits=1, dim_split=0, print_info=False, save_mem=False)
    plain.conv = with_random_bias(nn.Conv3d(6, 6, 3, padding=1, bias=bias))
    features = draw(2, 6, *sides)
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(features.double())
        expected = plain(features)
        holder = nn.Sequential(plain)
        assert use_cpu_layers(holder) == 2
        assert isinstance(holder[0], CpuMaisiUpsample)
        found = holder(features)
    assert not torch.equal(found, expected), "the fast way was not taken"
    require_same_sums(found, expected, exact, num_terms=27 * 6)
    for start, stop in ((0, 3), (2, 2 * sides[0]), (1, 2 * sides[0] - 1)):
        part = holder[0].upsample(features, start, stop)
        require_same_sums(part, expected[:, :, start:stop], exact[:, :, start:stop], num_terms=27 * 6)
    assert copy.deepcopy(holder).double()(features.double()).allclose(exact, rtol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_groups_are_measured_in_channels_last_as_exactly_as_in_float64(mean: float) -> None:
    features = (draw(2, 8, 21, 22, 23) + mean).contiguous(memory_format=torch.channels_last_3d)
    assert is_measurable(features)
    means, squares = measure_groups(features, 2)
    groups = features.double().reshape(2, 2, -1)
    assert torch.allclose(means, groups.mean(-1), atol=1e-6)
    assert torch.allclose(squares, (groups - groups.mean(-1, keepdim=True)).square().sum(-1), rtol=1e-6)
    norm = nn.GroupNorm(2, 8).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = CpuGroupNorm.sharing(norm)(features)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    exact = copy.deepcopy(norm).double()(features.double())
    assert error_of(found, exact) <= (4 + mean) * ROUNDOFF[torch.float32] * 4
