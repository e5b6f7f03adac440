"""Bundles of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, Bundle
from maisi_aug.bundle_spec.schema import MASK_ROLES
from maisi_aug.networks.building import build_network
from maisi_aug.networks.weights import write_bundle


def write_random_bundle(folder: Path, header: Mapping[str, Any], *, seed: int) -> Bundle:
    """Write a bundle of randomly initialised networks, which takes the code path of a trained one.

    MAISI starts some layers at zero, its U-Net's last one among them, so that nothing would depend on the label map;
    they are drawn, too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        roles = [role for role in (*NETWORK_ROLES, *MASK_ROLES) if role in header["networks"]]
        networks = {role: build_network(header["networks"][role]) for role in roles}
        for network in networks.values():
            for parameter in network.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1)
    return write_bundle(folder, header, {role: network.state_dict() for role, network in networks.items()})
