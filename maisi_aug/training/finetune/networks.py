"""The networks of a fine-tuning run: the base's, of which the ControlNet learns, all of it or a part.

With low-rank tuning, convolutions and linear layers learn a product of two thin matrices on top of what they are:
W = W_0 + (s / r) B A with A of r rows and B of r columns (Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022); the kernel of a convolution is read as one matrix of ``(out, in x taps)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import Networks
from maisi_aug.networks.weights import load_networks
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.finetune.settings import FinetuneConfig
from maisi_aug.training.images.anchors import freeze_control_signals
from maisi_aug.training.images.lookup import freeze_lookup

PARTIAL_BLOCKS = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
"""Networks' parts that ``partial`` trains: the layers that read the label map, and those that feed the U-Net."""
SCALE = 2.0
"""Scale s of the added term, relative to the rank, so that its size does not grow with the rank."""


@dataclass(frozen=True)
class FinetuneNetworks:
    """Networks of a fine-tuning on one device, with the trainable parameters of the ControlNet chosen.

    Attributes:
        all: Networks of the base with plain layers, including the ControlNet that is trained.
        num_trained: Number of trainable parameters.
        num_parameters: Number of parameters of the ControlNet.
    """

    all: Networks
    num_trained: int
    num_parameters: int

    def merge(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a ControlNet's weights in the layout in which they are saved, with low-rank matrices merged.

        The ControlNet then has these weights, and no low-rank matrices any more.
        """
        self.all.controlnet.load_state_dict(state)
        merge_low_rank(self.all.controlnet)
        return {key: value.detach().cpu() for key, value in self.all.controlnet.state_dict().items()}


def load_trainable(base: Bundle, device: str) -> Networks:
    """Load the networks of a base for fine-tuning, with all parameters frozen.

    Args:
        base: Bundle to start from; its files are compared with their SHA-256.
        device: Name of the torch device.

    Raises:
        BundleError: Files are altered or missing.
    """
    networks = load_networks(base, device=device)
    if device == "cpu":
        # It trades time for memory, which small grids have.
        networks.controlnet.use_checkpointing = False  # type: ignore[assignment]
    return networks


def set_up(networks: Networks, config: FinetuneConfig, *, is_looked_up: bool) -> FinetuneNetworks:
    """Choose the trainable parameters of the ControlNet, in place.

    Args:
        networks: Result of :func:`load_trainable`.
        config: Settings, which say what to train: all, a part, or low-rank matrices.
        is_looked_up: Whether frozen layers of the ControlNet look up the intensities of labels.

    Raises:
        TrainingError: No parameter would be trained.
    """
    controlnet: Any = networks.controlnet
    num_parameters = sum(parameter.numel() for parameter in controlnet.parameters())
    networks.diffusion_unet.requires_grad_(False)
    controlnet.requires_grad_(config.tune != "partial")
    if config.tune == "partial":
        for block in PARTIAL_BLOCKS:
            getattr(controlnet, block).requires_grad_(True)
    if is_looked_up:
        freeze_lookup(controlnet)
        freeze_control_signals(controlnet, whole_layers=config.tune == "low-rank")
    if config.tune == "low-rank":
        add_low_rank(controlnet, config.rank, seed=derive_seed(config.seed, "low rank"))
    num_trained = sum(parameter.numel() for parameter in controlnet.parameters() if parameter.requires_grad)
    return FinetuneNetworks(networks, num_trained, num_parameters)


class LowRank(nn.Module):
    """Parametrisation of a weight as itself plus a matrix of low rank, which is zero at the start (LoRA)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.right = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.left = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight plus the low-rank matrix, in the shape of the weight."""
        return weight + SCALE * (self.left @ self.right).view_as(weight)


def add_low_rank(network: nn.Module, rank: int, *, seed: int) -> int:
    """Freeze a network, and add a trainable matrix of low rank to every convolution and linear layer, in place.

    Layers narrower than the rank get a matrix of their own width; layers that were frozen before get none.

    Args:
        network: Network; modified in place.
        rank: Rank of the added matrices.
        seed: Seed of their initial values.

    Returns:
        Number of layers with a trainable matrix.

    Raises:
        TrainingError: The rank is below 1, or no layer could be trained.
    """
    if rank < 1:
        raise TrainingError(f"Rank: expected an integer of at least 1, found {rank}. Choose 8, for instance.")
    layers = [
        layer for layer in network.modules() if isinstance(layer, nn.Conv3d | nn.Linear) and layer.weight.requires_grad
    ]
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            width = min(rank, layer.weight.shape[0], layer.weight[0].numel())
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, width))
    if not layers:
        raise TrainingError("Low-rank tuning: the network has no convolutions that can be tuned. Use --tune full.")
    return len(layers)


@torch.no_grad()
def merge_low_rank(network: nn.Module) -> None:
    """Merge low-rank matrices into the weights and remove them, in place; the network's function is unchanged."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
