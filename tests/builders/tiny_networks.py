"""A U-Net and a ControlNet wide enough for the start from label means, and one evaluation of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.conditioning import to_label_bits
from tests.builders.tiny_bundle import build_header


def build_networks(*, is_plain: bool = True, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """U-Net and ControlNet of two levels of 16 channels in two groups, always with the same random weights.

    Args:
        is_plain: Whether to have plain layers instead of MAISI's.
        changes: Entries of both definitions.
    """
    networks = build_header()["networks"]
    widths = {"num_channels": [16, 16], "attention_levels": [False, False], "num_head_channels": [8, 8]}
    shared = {**widths, "norm_num_groups": 2, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = build_network({**networks["diffusion_unet"], **shared})
        controlnet = build_network(
            {**networks["controlnet"], "conditioning_embedding_num_channels": [16, 16], **shared}
        )
    if is_plain:
        use_plain_layers(unet)
        use_plain_layers(controlnet)
    return unet.eval(), controlnet.eval()


def run_networks(unet: Any, controlnet: Any, noisy: Tensor, time: float, label_maps: Tensor) -> Tensor:
    """The velocity at a time from 0 to 1, of a batch of one."""
    told = {"timesteps": torch.tensor([1000.0 * time]), "class_labels": torch.tensor([1])}
    down, middle = controlnet(x=noisy, controlnet_cond=to_label_bits(label_maps), **told)
    output: Tensor = unet(
        x=noisy,
        spacing_tensor=torch.tensor([[400.0, 400.0, 400.0]]),
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        **told,
    )
    return output
