from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import nn

from maisi_aug.bundle_spec.decoding import KEEPS, Keep
from maisi_aug.networks import streaming
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.streaming import Moments, Slabs, Stream, is_streamable, stream, stream_slabs
from tests.builders.tiny_bundle import build_header
from tests.oracles.rounding import depth_of, in_float64, require_rounding_alone


@pytest.fixture
def thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs that pay for networks of this width alone in a test."""
    monkeypatch.setattr(streaming, "MIN_CPU_ROWS", 1)
    monkeypatch.setattr(streaming, "MIN_THICKNESS", 1)


def build_autoencoder(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    network = build_network({**build_header()["networks"]["autoencoder"], **changes}).eval().requires_grad_(False)
    use_plain_layers(network)
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            nn.init.normal_(layer.weight, 1.0, 0.3)
            nn.init.normal_(layer.bias, 0.0, 0.3)
    return network


def blocks_of(network: nn.Module, part: str) -> tuple[nn.Module, ...]:
    return tuple(cast(nn.ModuleList, cast(nn.Module, getattr(network, part)).blocks))


FORMS = [
    pytest.param({}, id="interpolated"),
    pytest.param({"use_convtranspose": True}, id="transposed"),
    pytest.param({"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True}, id="attention"),
]


@pytest.mark.usefixtures("thin_slabs")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("changes", FORMS)
def test_slabs_of_a_decoder_change_the_image_by_rounding_alone(changes: dict[str, Any], keep: Keep) -> None:
    autoencoder = build_autoencoder(**changes)
    blocks = blocks_of(autoencoder, "decoder")
    # Sides that no number of slabs divides, and fewer voxels than slabs.
    latent = torch.randn(2, 4, 5, 6, 3, generator=torch.Generator().manual_seed(1))
    whole = cast(nn.Module, autoencoder.decoder)(latent)
    twin = in_float64(autoencoder)
    exact = cast(nn.Module, twin.decoder)(latent.double())
    for num_parts in (1, 2, 3, 7, 16, 64):
        found = stream(blocks, latent, num_parts=num_parts, keep=keep)
        require_rounding_alone(found, whole, exact, depth=depth_of(cast(nn.Module, autoencoder.decoder)))


@pytest.mark.usefixtures("thin_slabs")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("depth", [16, 22, 13])
def test_slabs_of_an_encoder_change_the_latent_by_rounding_alone(depth: int, keep: Keep) -> None:
    autoencoder = build_autoencoder()
    image = torch.rand(1, 1, depth, 12, 8, generator=torch.Generator().manual_seed(2))
    whole = cast(nn.Module, autoencoder.encoder)(image)
    exact = cast(nn.Module, in_float64(autoencoder).encoder)(image.double())
    for num_parts in (1, 3, 4, 9):
        found = stream(blocks_of(autoencoder, "encoder"), image, num_parts=num_parts, keep=keep)
        assert found.shape == whole.shape
        require_rounding_alone(found, whole, exact, depth=depth_of(cast(nn.Module, autoencoder.encoder)))


@pytest.mark.usefixtures("thin_slabs")
def test_a_seam_would_be_seen() -> None:
    """Without the statistics of the whole, or with too short a halo, slabs differ from it by more than rounding."""
    autoencoder = build_autoencoder()
    latent = torch.randn(1, 4, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    decoder = cast(nn.Module, autoencoder.decoder)
    whole = decoder(latent)
    cut = torch.cat([decoder(part) for part in torch.split(latent, 4, dim=2)], dim=2)
    streamed = stream(blocks_of(autoencoder, "decoder"), latent, num_parts=2, keep="least")
    assert (cut - whole).abs().max() > 1000 * (streamed - whole).abs().max()


@pytest.mark.usefixtures("thin_slabs")
def test_slabs_come_one_after_the_other() -> None:
    *blocks, last = blocks_of(build_autoencoder(), "decoder")
    latent = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    slabs = list(stream_slabs(blocks, latent, last, num_parts=4))
    assert [slab.shape[2] for slab in slabs] == [4, 4, 4, 4]
    assert torch.equal(torch.cat(slabs, dim=2), stream([*blocks, last], latent, num_parts=4))


def test_slabs_on_a_cpu_are_no_thinner_than_onednn_takes() -> None:
    seen: list[int] = []
    inner = nn.Conv3d(64, 2, 3, padding=1)
    inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 0].numel()))
    with torch.no_grad():
        stream([inner], torch.rand(1, 64, 40, 40, 1), num_parts=16)
    assert len(seen) == 5
    assert min(seen) > 20480


def test_slabs_are_not_thinner_than_their_halo() -> None:
    slabs = Stream(Slabs(torch.rand(1, 1, 30, 2, 2)), 30)._cuts((), 30)
    assert [stop - start for start, stop in pairwise(slabs)] == [8, 12, 10]


def test_moments_of_slabs_are_those_of_the_whole() -> None:
    norm = nn.GroupNorm(2, 6).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = 300 + torch.randn(2, 6, 9, 5, 4, generator=torch.Generator().manual_seed(3))
    moments = Moments(2)
    for slab in torch.split(features, 2, dim=2):
        moments.add(slab)
    scale, shift = moments.as_scale_and_shift(norm)
    exact = norm.double()(features.double())
    assert (features * scale + shift - exact).abs().max() < 1e-3  # neighbours of 300 in float32 are 3e-5 away


def test_read_slabs_are_dropped() -> None:
    slabs = Slabs()
    for number in range(4):
        slabs.append(torch.full((1, 1, 2, 1, 1), float(number)))
    assert slabs.read(1, 5).flatten().tolist() == [0, 1, 1, 2]
    slabs.drop_before(4)
    assert (slabs.first, slabs.side, len(slabs.pieces)) == (4, 8, 2)
    assert slabs.read(5, 7).flatten().tolist() == [2, 3]


def test_maisis_own_layers_are_not_streamed() -> None:
    network = build_network(build_header()["networks"]["autoencoder"])
    assert not is_streamable(network)
    use_plain_layers(network)
    assert is_streamable(network)
