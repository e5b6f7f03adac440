"""NVIDIA's networks at their full width, with random weights in files of NVIDIA's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch

from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.networks.building import describe_tensors
from maisi_aug.networks.checkpoints.folders import import_bundle
from maisi_aug.networks.weights import load_networks, verify_bundle
from tests.builders.tiny_checkpoints import SCALE_FACTOR, wrap

MILLIONS = {
    "rflow-ct": {"autoencoder": 20.9, "diffusion_unet": 180.5, "controlnet": 72.0},
    "ddpm-ct": {"autoencoder": 20.9, "diffusion_unet": 169.4, "controlnet": 68.6},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MILLIONS))
def test_every_tensor_of_nvidias_files_is_loaded(name: str, tmp_path: Path) -> None:
    known = known_bundles()[name]
    source, sums = tmp_path / "NV", {}
    states = {}
    for role, definition in known.header["networks"].items():
        generator = torch.Generator().manual_seed(len(role))
        # As MONAI's class names and shapes them, nothing of our own swapped or renamed.
        shapes = {key: value.shape for key, value in describe_tensors(definition).items()}
        states[role] = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        assert round(sum(value.numel() for value in states[role].values()) / 1e6, 1) == MILLIONS[name][role]
        sums[role] = {key: float(value.double().sum()) for key, value in states[role].items()}
    for role, content in wrap(states).items():
        path = source / known.files[role]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    del states

    bundle = import_bundle(source, accept_licence=lambda _: True, folder=tmp_path / "bundle")
    assert bundle.name == name
    assert bundle.spec.scale_factor == SCALE_FACTOR
    rows = {row["role"]: row for row in verify_bundle(bundle)}
    for role, expected in sums.items():
        assert rows[role]["num_tensors"] == len(expected)
        with safetensors.safe_open(bundle.weight_path(role), framework="pt") as file:
            assert {key: float(file.get_tensor(key).double().sum()) for key in file.keys()} == expected  # noqa: SIM118
    networks = load_networks(bundle, plain_layers=False)
    for role, expected in sums.items():
        state = getattr(networks, role).state_dict()
        # The last convolution of the decoder is wrapped, so that it leaves autocast.
        found = {key.replace(".inner.", "."): float(value.double().sum()) for key, value in state.items()}
        assert found == expected
