from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import NUM_SPLITS
from maisi_aug.networks import split_convolution
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.split_convolution import SplitLayer, make_splittable, set_num_splits
from tests.builders.tiny_bundle import build_header
from tests.oracles.rounding import depth_of, in_float64, require_rounding_alone


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits that pay for networks of this width alone in a test."""
    monkeypatch.setattr(split_convolution, "MIN_CPU_ROWS", 1)


def build_autoencoder(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    network = build_network({**build_header()["networks"]["autoencoder"], **changes}).eval().requires_grad_(False)
    use_plain_layers(network)
    return network


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("changes", [{}, {"use_convtranspose": True}], ids=["interpolated", "transposed"])
def test_splits_change_the_image_by_rounding_alone(changes: dict[str, Any]) -> None:
    autoencoder = build_autoencoder(**changes)
    # Sides that no number of splits divides, and fewer voxels than parts.
    latent = torch.randn(2, 4, 5, 6, 3, generator=torch.Generator().manual_seed(1))
    whole = autoencoder.decode(latent)  # type: ignore[operator]
    exact = in_float64(autoencoder).decode(latent.double())  # type: ignore[operator]
    decoder = cast(nn.Module, autoencoder.decoder)
    assert make_splittable(decoder) == 7
    assert make_splittable(decoder) == 0
    assert torch.equal(autoencoder.decode(latent), whole)  # type: ignore[operator]
    for num_splits in NUM_SPLITS:
        set_num_splits(decoder, num_splits)
        split = autoencoder.decode(latent)  # type: ignore[operator]
        require_rounding_alone(split, whole, exact, depth=depth_of(decoder))


@pytest.mark.usefixtures("small_parts")
def test_convolutions_see_a_part_with_its_neighbours_at_a_time() -> None:
    seen: list[tuple[int, ...]] = []
    inner = nn.Conv3d(2, 3, 3, padding=1)
    inner.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    layer = SplitLayer(inner)
    layer.num_splits = 4
    features: Tensor = torch.rand(1, 2, 10, 4, 3)
    with torch.no_grad():
        assert layer(features).shape == (1, 3, 10, 4, 3)
    assert seen == [(3, 4, 3), (5, 4, 3), (4, 4, 3), (4, 4, 3)]


def test_parts_on_a_cpu_are_no_smaller_than_onednn_takes() -> None:
    seen: list[int] = []
    inner = nn.Conv3d(64, 2, 3, padding=1)
    inner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 0].numel()))
    layer = SplitLayer(inner)
    layer.num_splits = 16
    with torch.no_grad():
        layer(torch.rand(1, 64, 40, 40, 1))
    assert len(seen) == 5
    assert min(seen) > 20480


def test_maisis_own_layers_are_told_too() -> None:
    network = build_network(build_header()["networks"]["autoencoder"])
    decoder = cast(nn.Module, network.decoder)
    assert make_splittable(decoder) == 0
    set_num_splits(decoder, 4)
    told = {layer.num_splits for layer in decoder.modules() if hasattr(layer, "num_splits")}
    assert told == {4}
