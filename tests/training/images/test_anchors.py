"""The signal path through U-Net and ControlNet, which no content of the image disturbs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maisi_aug.networks.building import use_plain_layers
from maisi_aug.networks.conditioning import to_label_bits
from maisi_aug.training.images.anchors import (
    _control_layers,
    build_signal_path,
    freeze_control_signals,
    freeze_signals,
    keep_signals_precise,
    set_noise_share,
)
from maisi_aug.training.images.lookup import freeze_lookup
from maisi_aug.training.images.wavelet import only_convolution
from tests.builders.tiny_networks import build_networks, run_networks

NUM_CHANNELS = 4
SHARE = 0.1


def build(share: float = SHARE) -> tuple[Any, Any]:
    """Networks with a signal path, whose embedding makes some image of the label map."""
    networks: tuple[Any, Any] = build_networks(is_plain=False)
    unet, controlnet = networks
    build_signal_path(unet, controlnet, NUM_CHANNELS, noise_share=share)
    use_plain_layers(unet)
    use_plain_layers(controlnet)
    with torch.no_grad():
        last = only_convolution(controlnet.controlnet_cond_embedding.conv_out)
        last.weight[:NUM_CHANNELS].normal_(generator=torch.Generator().manual_seed(1))
    return unet, controlnet


def draw_map(share_of_air: float) -> Tensor:
    label_map = torch.randint(1, 120, (1, 16, 8, 24), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    label_map[:, :, :, : round(24 * share_of_air)] = 0
    return label_map


@pytest.mark.parametrize("share_of_air", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("time", [1.0, 0.4, 0.05])
@torch.no_grad()
def test_velocity_is_that_of_a_straight_flow_whatever_the_share_of_air(time: float, share_of_air: float) -> None:
    unet, controlnet = build()
    label_map = draw_map(share_of_air)
    drawn = controlnet.controlnet_cond_embedding(to_label_bits(label_map))[:, :NUM_CHANNELS]
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(2))
    image = drawn + SHARE * noise
    velocity = run_networks(unet, controlnet, (1 - time) * image + time * noise, time, label_map)
    torch.testing.assert_close(velocity, image - noise, atol=2e-3, rtol=1e-3)
    assert float(drawn.std()) > 0.1


@torch.no_grad()
def test_share_of_noise_can_be_changed_afterwards() -> None:
    unet, controlnet = build(share=0.3)
    set_noise_share(unet, NUM_CHANNELS, 0.05)
    noise = torch.randn((1, NUM_CHANNELS, 8, 4, 12), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        run_networks(unet, controlnet, noise, 1.0, draw_map(0.3)),
        run_networks(*build(share=0.05), noise, 1.0, draw_map(0.3)),
    )


def test_training_changes_what_is_free_and_nothing_of_the_signal_path() -> None:
    unet, controlnet = build()
    freeze_signals(unet, controlnet, NUM_CHANNELS)
    freeze_lookup(controlnet)
    parameters = [*unet.parameters(), *controlnet.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    noise = torch.randn((1, NUM_CHANNELS, 8, 4, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = run_networks(unet, controlnet, noise, 1.0, draw_map(0.3))
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        run_networks(unet, controlnet, noise, 1.0, draw_map(0.3)).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    signals = only_convolution(unet.out[2])
    place = next(i for i, parameter in enumerate(parameters) if parameter is signals.weight)
    assert torch.equal(signals.weight[:, :NUM_CHANNELS], before[place][:, :NUM_CHANNELS])
    assert not torch.equal(signals.weight, before[place])
    with torch.no_grad():
        signals.weight.copy_(before[place])
        # Without what the last layer has learnt of the free channels, the output is that of the start.
        torch.testing.assert_close(run_networks(unet, controlnet, noise, 1.0, draw_map(0.3)), first)


@pytest.mark.parametrize("whole_layers", [False, True])
def test_controlnet_beside_a_frozen_unet_keeps_its_signals(whole_layers: bool) -> None:
    unet, controlnet = build()
    before = [layer.weight.detach().clone() for layer in _control_layers(controlnet)]
    freeze_control_signals(controlnet, whole_layers=whole_layers)
    noise = torch.randn((1, NUM_CHANNELS, 8, 4, 12), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam([p for p in controlnet.parameters() if p.requires_grad], lr=1e-3)
    with torch.no_grad():
        only_convolution(unet.out[2]).weight.normal_()
    run_networks(unet, controlnet, noise, 1.0, draw_map(0.3)).square().mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for layer, old in zip(_control_layers(controlnet), before, strict=True):
        assert torch.equal(layer.weight[:NUM_CHANNELS], old[:NUM_CHANNELS])
        assert torch.equal(layer.weight, old) == whole_layers


@torch.no_grad()
def test_signals_are_not_rounded_under_autocast() -> None:
    noise = torch.randn((1, NUM_CHANNELS, 8, 4, 12), generator=torch.Generator().manual_seed(2))
    unet, controlnet = build()
    wanted = run_networks(unet, controlnet, noise, 0.2, draw_map(0.3))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = float((run_networks(unet, controlnet, noise, 0.2, draw_map(0.3)) - wanted).abs().mean())
        keep_signals_precise(unet, controlnet, NUM_CHANNELS)
        precise = float((run_networks(unet, controlnet, noise, 0.2, draw_map(0.3)) - wanted).abs().mean())
    assert precise < rounded / 3
