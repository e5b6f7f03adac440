from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import DecodeSettings, DecodingConfig, LatentShape
from maisi_aug.errors import MemoryShortageError
from maisi_aug.networks import decoder as decoder_module
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.decoder import Decoder, estimate_decode_bytes
from maisi_aug.system.memory import is_out_of_memory
from tests.builders.tiny_bundle import build_header

DEFINITION = build_header()["networks"]["autoencoder"]
SIDES: LatentShape = (32, 20, 6)
WHOLE = DecodeSettings(None)


@pytest.fixture(scope="module")
def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    network = build_network(DEFINITION).eval().requires_grad_(False)
    use_plain_layers(network)
    return network


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(1, 4, *SIDES, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def decoder(autoencoder: nn.Module) -> Decoder:
    return Decoder(autoencoder, DEFINITION, 1.3)


@pytest.fixture
def attempts(autoencoder: nn.Module, request: pytest.FixtureRequest) -> Iterator[list[tuple[int, ...]]]:
    """The parts that the decoder was asked for; those of more latent voxels than the parameter are too much for it."""
    seen: list[tuple[int, ...]] = []

    def refuse(_: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(tuple(inputs[0].shape[2:]))
        if inputs[0][0, 0].numel() > request.param:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.99 GiB.")

    hook = cast(nn.Module, autoencoder.post_quant_conv).register_forward_pre_hook(refuse)
    yield seen
    hook.remove()


def lend(monkeypatch: pytest.MonkeyPatch, free_bytes: int | None) -> None:
    monkeypatch.setattr(decoder_module, "find_free_bytes", lambda device: free_bytes)


def test_whole_is_decoded_at_once_where_it_fits(decoder: Decoder, latent: Tensor) -> None:
    image, used = decoder.decode(latent)
    assert used == WHOLE
    assert image.shape == (1, 1, *(4 * side for side in SIDES))


def test_config_stands_above_the_bundles_window(autoencoder: nn.Module, latent: Tensor) -> None:
    decoder = Decoder(autoencoder, DEFINITION, 1.3, default_window=(16, 16, 16))
    assert decoder.decode(latent)[1] == WHOLE
    assert decoder.decode(latent, DecodingConfig(mode="windows"))[1] == DecodeSettings((16, 16, 6))
    assert replace(decoder, may_split=False).decode(latent)[1] == DecodeSettings((16, 16, 6))
    assert decoder.decode(latent, DecodingConfig(window="whole"))[1] == WHOLE
    config = DecodingConfig(window=(16, 32, 16), overlap=0.25, num_splits=2)
    assert decoder.decode(latent, config)[1] == DecodeSettings((16, 20, 6), 0.25, 2)


@pytest.mark.parametrize("attempts", [16 * 16 * 6], indirect=True)
def test_used_up_memory_leads_to_less_at_once_and_is_said(
    attempts: list[tuple[int, ...]], decoder: Decoder, latent: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        image, used = decoder.decode(latent)
    assert used == DecodeSettings((16, 16, 6), num_splits=128)
    # The whole in 1, 2, 4, 8, 16, 32, 64 and 128 parts, half the longest side, then the windows that fit.
    assert attempts[:9] == [SIDES] * 8 + [(16, 20, 6)]
    assert set(attempts[9:]) == {(16, 16, 6)}
    assert len(caplog.messages) == 9
    assert caplog.messages[0] == (
        "Decoding 32x20x6 latent voxels on cpu: out of memory for whole; trying smaller parts."
    )
    assert "windows of 16x20x6 in 128 parts" in caplog.messages[8]
    assert image.shape == (1, 1, *(4 * side for side in SIDES))
    attempts.clear()
    assert decoder.decode(latent)[1] == used
    assert set(attempts) == {(16, 16, 6)}  # what was too much is not tried again


@pytest.mark.parametrize("attempts", [0], indirect=True)
def test_memory_that_never_suffices_ends_in_one_sentence(
    attempts: list[tuple[int, ...]], decoder: Decoder, latent: Tensor
) -> None:
    message = "Decoding 32x20x6 latent voxels on cpu: out of memory even for windows of"
    with pytest.raises(MemoryShortageError, match=message):
        decoder.decode(latent)
    assert len(attempts) == 10
    with pytest.raises(MemoryShortageError, match="Free some memory, choose a smaller --shape"):
        decoder.decode(latent)
    assert len(attempts) == 10


def test_other_errors_are_not_taken_for_want_of_memory(decoder: Decoder) -> None:
    with pytest.raises(RuntimeError, match="channels"):
        decoder.decode(torch.zeros(1, 3, *SIDES))


def test_free_memory_chooses_ahead_and_says_so(
    decoder: Decoder, latent: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = {
        splits: estimate_decode_bytes(DEFINITION, DecodeSettings(None, num_splits=splits), SIDES) for splits in (1, 4)
    }
    lend(monkeypatch, int(needed[4] / 0.89))
    with caplog.at_level(logging.WARNING):
        assert decoder.decode(latent)[1] == DecodeSettings(None, num_splits=4)
    assert len(caplog.messages) == 1
    assert (
        "about 0.1 GB are needed for whole, 0.0 GB are free; decoding whole in 4 parts instead" in (caplog.messages[0])
    )
    # A number of splits that was asked for stays; windows are what is left.
    lend(monkeypatch, int(estimate_decode_bytes(DEFINITION, DecodeSettings((16, 20, 6)), SIDES) / 0.89))
    used = decoder.decode(latent, DecodingConfig(num_splits=1))[1]
    assert used == DecodeSettings((16, 20, 6), num_splits=1)
    lend(monkeypatch, 1)
    assert decoder.decode(latent)[1] == DecodeSettings((16, 16, 6), num_splits=128)
    lend(monkeypatch, None)
    assert decoder.decode(latent)[1] == WHOLE


def test_memory_that_may_be_taken_decides_without_a_word(
    decoder: Decoder, latent: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lend(monkeypatch, None)
    needed = estimate_decode_bytes(DEFINITION, DecodeSettings(None, num_splits=8), SIDES)
    with caplog.at_level(logging.WARNING):
        assert decoder.decode(latent, DecodingConfig(memory_gb=needed / 1e9))[1] == DecodeSettings(None, num_splits=8)
        assert caplog.messages == []
        assert decoder.decode(latent, DecodingConfig(memory_gb=1e-6))[1] == DecodeSettings((16, 16, 6), num_splits=128)
        assert "0.0 GB are free; decoding windows of 16x16x6 in 128 parts instead" in caplog.messages[0]
    lend(monkeypatch, needed)  # less is free than may be taken
    assert decoder.decode(latent, DecodingConfig(memory_gb=1e3))[1].num_splits > 8


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


def test_allocator_of_the_cpu_speaks_as_expected() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.gpu
def test_gpu_that_is_nearly_full_decodes_in_windows(autoencoder: nn.Module) -> None:
    network: Any = build_network({**DEFINITION, "num_channels": [64, 128, 256]}, device="cuda").requires_grad_(False)
    use_plain_layers(network)
    latent = torch.randn(1, 4, 64, 64, 64, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    hoard = torch.empty(free - (4 << 30), dtype=torch.uint8, device="cuda")
    image, used = Decoder(network, {**DEFINITION, "num_channels": [64, 128, 256]}, 1.0).decode(latent)
    assert image.shape == (1, 1, 256, 256, 256)
    assert used.window is not None
    del hoard
