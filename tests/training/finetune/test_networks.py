from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from maisi_aug.errors import TrainingError
from maisi_aug.training.finetune.networks import add_low_rank, merge_low_rank
from tests.oracles.rounding import error_of, rounding

NUM_LAYERS = 3


def build_network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), nn.GroupNorm(1, 5), nn.SiLU(), nn.Conv3d(5, 3, 1), nn.Flatten())


def test_added_matrices_change_nothing_at_first() -> None:
    network = build_network()
    image = torch.randn(1, 2, 3, 4, 5)
    before = network(image)
    assert add_low_rank(network, 2, seed=0) == 2
    assert error_of(network(image), before.double()) <= rounding(NUM_LAYERS)


def test_only_the_added_matrices_learn() -> None:
    network = build_network()
    add_low_rank(network, 2, seed=0)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.endswith((".left", ".right")) for name in learning)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 2 * (5 + 54) + 2 * (3 + 5)


def test_merged_network_is_the_unmerged_one() -> None:
    network: Any = build_network()
    image = torch.randn(1, 2, 3, 4, 5)
    names = list(network.state_dict())
    add_low_rank(network, 2, seed=0)
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        network(image).square().mean().backward()
        optimizer.step()
    trained = network(image)
    frozen = network.state_dict()["0.parametrizations.weight.original"].clone()
    merge_low_rank(network)
    assert error_of(network(image), trained.double()) <= rounding(NUM_LAYERS)
    assert sorted(network.state_dict()) == sorted(names)
    assert not torch.allclose(network.state_dict()["0.weight"], frozen)


def test_rank_and_layers_are_checked() -> None:
    with pytest.raises(TrainingError, match="Rank: expected an integer of at least 1, found 0"):
        add_low_rank(build_network(), 0, seed=0)
    with pytest.raises(TrainingError, match="Low-rank tuning: the network has no convolutions that can be tuned"):
        add_low_rank(build_network().requires_grad_(False), 2, seed=0)
