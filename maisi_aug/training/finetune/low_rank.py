"""Low-rank tuning: convolutions and linear layers learn a product of two thin matrices on top of what they are.

W = W_0 + (s / r) B A with A of r rows and B of r columns (Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022); the kernel of a convolution is read as one matrix of ``(out, in x taps)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maisi_aug.errors import TrainingError

SCALE = 2.0
"""s of the definition, relative to the rank: what is added does not grow with it."""


class LowRank(nn.Module):
    """A weight plus a matrix of low rank, which is zero at the start."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.right = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.left = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum, in the shape of the weight."""
        return weight + SCALE * (self.left @ self.right).view_as(weight)


def add_low_rank(network: nn.Module, rank: int, *, seed: int) -> int:
    """Freeze a network and give every convolution and linear layer a trainable part of low rank, in place.

    Layers that are narrower than the rank get a part of their own width; layers that were frozen before get none.

    Args:
        network: To be changed.
        rank: Of the added matrices.
        seed: Of their start.

    Returns:
        The number of layers that learn.

    Raises:
        TrainingError: For a rank below 1, or a network in which nothing could learn.
    """
    if rank < 1:
        raise TrainingError(f"Rank: expected a whole number of at least 1, found {rank}. Choose 8, for instance.")
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
        raise TrainingError("Low-rank tuning: expected convolutions that may learn, found none. Use --tune full.")
    return len(layers)


@torch.no_grad()
def merge_low_rank(network: nn.Module) -> None:
    """Write what was added into the weights and take the added parts away, in place: the same function, fewer parts."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
