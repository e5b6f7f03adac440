from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import DecodeSettings
from maisi_aug.errors import MemoryShortageError
from maisi_aug.networks import decoder as decoder_module
from maisi_aug.networks import streaming
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.cpu_layers import use_cpu_layers
from maisi_aug.networks.encoder import Encoder, estimate_encode_bytes
from tests.builders.narrow_networks import scaled_header
from tests.builders.tiny_bundle import build_header

DEFINITION = build_header()["networks"]["autoencoder"]


@pytest.fixture(autouse=True)
def _thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MIN_CPU_ROWS", 1)


@pytest.fixture(scope="module")
def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    network = build_network(DEFINITION).eval().requires_grad_(False)
    use_plain_layers(network)
    use_cpu_layers(network)
    return network


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 1, 40, 24, 16, generator=torch.Generator().manual_seed(1))


def lend(monkeypatch: pytest.MonkeyPatch, free_bytes: int | None) -> None:
    monkeypatch.setattr(decoder_module, "find_free_bytes", lambda device: free_bytes)


def count_parts(autoencoder: nn.Module, image: Tensor, **settings: Any) -> tuple[Tensor, int]:
    """The latent, and how often the first convolution was called."""
    seen: list[int] = []
    first = cast(nn.ModuleList, cast(nn.Module, autoencoder.encoder).blocks)[0]
    hook = first.register_forward_hook(lambda *_: seen.append(1))
    latent = Encoder(autoencoder, **settings).encode(image)
    hook.remove()
    return latent, len(seen)


def test_latent_is_the_same_within_any_memory(
    autoencoder: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(monkeypatch, None)
    whole = cast(Any, autoencoder).encode(image)[0]
    latent, num_parts = count_parts(autoencoder, image)
    assert num_parts == 1
    assert torch.equal(latent, whole)
    scale = float(whole.max() - whole.min())
    needed = estimate_encode_bytes(autoencoder, DecodeSettings(None), image.shape)
    fewer = []
    for share in (0.99, 0.8, 0.1):
        latent, num_parts = count_parts(autoencoder, image, memory_gb=share * needed / 1e9)
        fewer.append(num_parts)
        assert not latent.requires_grad
        assert float((latent - whole).abs().max()) < 1e-4 * scale
    assert 1 < fewer[0] <= fewer[1] <= fewer[2]


def test_free_memory_counts_and_exceeded_memory_is_remembered(
    autoencoder: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = estimate_encode_bytes(autoencoder, DecodeSettings(None), image.shape)
    lend(monkeypatch, needed)
    assert count_parts(autoencoder, image)[1] > 1
    lend(monkeypatch, 2 * needed)
    encoder, seen = Encoder(autoencoder), []

    def refuse(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0].shape[2])
        if inputs[0].shape[2] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.99 GiB.")

    hook = cast(nn.ModuleList, cast(nn.Module, autoencoder.encoder).blocks)[0].register_forward_pre_hook(refuse)
    try:
        encoder.encode(image)
        assert seen[0] == 40
        seen.clear()
        encoder.encode(image)
        assert max(seen) <= 20
    finally:
        hook.remove()


def test_image_that_never_fits_is_named(autoencoder: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    lend(monkeypatch, None)

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = cast(nn.ModuleList, cast(nn.Module, autoencoder.encoder).blocks)[0].register_forward_pre_hook(refuse)
    try:
        with pytest.raises(
            MemoryShortageError, match="Encoding 40x24x16 voxels on cpu: out of memory even in 128 parts"
        ):
            Encoder(autoencoder).encode(image)
    finally:
        hook.remove()


PROGRAM = """
import json, sys
import torch
from maisi_aug.bundle_spec.decoding import DecodeSettings
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.cpu_layers import use_cpu_layers
from maisi_aug.networks.encoder import Encoder
from tests.builders.peak_memory import measure_growth

definition, side, num_splits = json.loads(sys.argv[1])
network = build_network(definition).eval().requires_grad_(False)
use_plain_layers(network)
use_cpu_layers(network)

def encode(side):
    with torch.no_grad():
        Encoder(network)._encode(torch.rand(1, 1, side, side, side), DecodeSettings(num_splits=num_splits))

print(measure_growth(lambda: encode(side), warm_up=lambda: encode(16)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("side", "num_splits"), [(96, 1), (64, 4), (96, 4), (64, 16), (64, 64)])
def test_estimate_is_close_to_the_measured_peak(side: int, num_splits: int) -> None:
    definition = scaled_header("rflow-ct", divisor=4)["networks"]["autoencoder"]
    command = [sys.executable, "-c", PROGRAM, json.dumps([definition, side, num_splits])]
    root = Path(__file__).parents[2]
    measured = int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
    network = build_network(definition, device="meta")
    settings = DecodeSettings(None, num_splits=num_splits)
    estimated = estimate_encode_bytes(network, settings, (1, 1, side, side, side))
    assert abs(estimated / measured - 1) < 0.25, f"{estimated / 1e6:.0f} MB against {measured / 1e6:.0f} MB"
