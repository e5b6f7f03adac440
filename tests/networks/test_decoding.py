from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.bundle_spec.decoding import DEFAULT_OVERLAP, DecodeSettings, LatentShape
from maisi_aug.networks.building import build_network
from maisi_aug.networks.decoding import decode_latent, decode_windows, window_starts
from tests.builders.tiny_bundle import build_header
from tests.oracles.rounding import depth_of, in_float64, require_rounding_alone

SCALE_FACTOR = 1.7


class LocalDecoder(nn.Module):
    """A decoder that looks at the neighbouring voxels alone, so that windows change nothing away from their edges."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Identity()

    def decode(self, latent: Tensor) -> Tensor:
        return functional.interpolate(latent.mean(1, keepdim=True), scale_factor=4, mode="nearest") + 0.5


@pytest.fixture(scope="module")
def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    return build_network(build_header()["networks"]["autoencoder"]).eval()


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(1, 4, 12, 9, 7, generator=torch.Generator().manual_seed(1))


def decode(autoencoder: nn.Module, latent: Tensor, window: LatentShape | None, **changes: Any) -> Tensor:
    settings = DecodeSettings(window, **changes)
    return decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR, settings=settings)


def num_windows(window: LatentShape, overlap: float, latent: Tensor) -> int:
    """How many windows meet in a voxel at most, whose sum it is."""
    axes = zip(latent.shape[2:], window, strict=True)
    starts = [(length, window_starts(side, length, overlap)) for side, length in axes]
    return prod(max(sum(x <= y < x + length for x in places) for y in places) for length, places in starts)


def test_whole_latent_is_unscaled_decoded_and_clipped(autoencoder: nn.Module, latent: Tensor) -> None:
    before = latent.clone()
    image = decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR)
    with torch.no_grad():
        expected = autoencoder.decode(latent / SCALE_FACTOR).clamp(0, 1)  # type: ignore[operator]
    assert image.shape == (1, 1, 48, 36, 28)
    assert image.dtype == torch.float32
    assert torch.equal(image, expected)
    assert float(image.min()) >= 0.0
    assert float(image.max()) <= 1.0
    assert torch.equal(latent, before)


@pytest.mark.parametrize("window", [(12, 9, 7), (16, 16, 16), None])
def test_latent_that_fits_the_window_is_decoded_whole(
    window: LatentShape | None, autoencoder: nn.Module, latent: Tensor
) -> None:
    whole = decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR)
    assert torch.equal(decode(autoencoder, latent, window), whole)


@pytest.mark.parametrize(("window", "overlap"), [((8, 8, 8), 0.4), ((5, 4, 3), 0.25), ((12, 9, 4), 0.0)])
def test_windows_join_to_the_whole(window: LatentShape, overlap: float, latent: Tensor) -> None:
    whole = decode_latent(LocalDecoder(), latent, scale_factor=SCALE_FACTOR)
    joined = decode(LocalDecoder(), latent, window, overlap=overlap)
    assert joined.shape == whole.shape
    exact = LocalDecoder().decode(latent.double() / SCALE_FACTOR).clamp(0, 1)
    require_rounding_alone(joined, whole, exact, depth=num_windows(window, overlap, latent))


@pytest.mark.parametrize("on_host", [False, True], ids=["whole image", "slab by slab"])
@pytest.mark.parametrize(
    ("window", "overlap"),
    [((8, 8, 6), 0.4), ((5, 4, 3), 0.25), ((12, 9, 4), 0.0), ((4, 9, 7), 0.0), ((5, 5, 5), 0.67), ((2, 3, 7), 0.9)],
)
def test_blended_windows_equal_those_of_monai(
    window: LatentShape, overlap: float, on_host: bool, autoencoder: nn.Module, latent: Tensor
) -> None:
    pair = torch.cat((latent, latent.flip(2)))
    # Scaled by what a window happens to hold: none agrees with its neighbour, so that every weight shows.
    decoder = LocalDecoder() if on_host else autoencoder

    def predict(part: Tensor) -> Tensor:
        decoded: Tensor = decoder.decode(part)  # type: ignore[operator]
        return decoded * part.std()

    with torch.no_grad():
        expected = sliding_window_inference(pair, window, 1, predict, overlap=overlap, mode="gaussian")
        one_by_one = [decode_windows(each[None], window, predict, overlap=overlap, on_host=on_host) for each in pair]
    found = torch.cat(one_by_one)
    decoder = in_float64(decoder)
    with torch.no_grad():
        exact = sliding_window_inference(pair.double(), window, 1, predict, overlap=overlap, mode="gaussian")
    assert isinstance(expected, Tensor)
    assert isinstance(exact, Tensor)
    depth = depth_of(decoder) + num_windows(window, overlap, latent)
    require_rounding_alone(found, expected, exact, depth=depth)


def test_slabs_of_a_batch_are_those_of_each_case(latent: Tensor) -> None:
    pair = torch.cat((latent, latent.flip(2)))
    joined = [decode_windows(pair, (5, 4, 3), LocalDecoder().decode, on_host=on_host) for on_host in (True, False)]
    assert torch.equal(joined[0], joined[1])
    assert torch.equal(joined[0][1:], decode_windows(pair[1:], (5, 4, 3), LocalDecoder().decode))


@pytest.mark.parametrize(
    ("side", "window", "overlap", "starts"),
    [(12, 12, 0.4, [0]), (12, 8, 0.4, [0, 4]), (13, 5, 0.0, [0, 5, 8]), (10, 3, 0.9, list(range(8)))],
)
def test_windows_begin_at_equal_steps_and_end_with_the_side(
    side: int, window: int, overlap: float, starts: list[int]
) -> None:
    assert window_starts(side, window, overlap) == starts


def test_windows_of_the_autoencoder_differ_by_its_normalisation_alone(autoencoder: nn.Module, latent: Tensor) -> None:
    whole = decode(autoencoder, latent, None)
    joined = decode(autoencoder, latent, (8, 8, 6))
    assert joined.shape == whole.shape
    correlation = torch.corrcoef(torch.stack((joined.flatten(), whole.flatten())))[0, 1]
    assert float(correlation) > 0.7
    assert not torch.equal(joined, whole)


def test_window_longer_than_a_side_is_cut_to_it(autoencoder: nn.Module, latent: Tensor) -> None:
    cut = decode(autoencoder, latent, (8, 8, 7))
    assert torch.equal(decode(autoencoder, latent, (8, 8, 64)), cut)


@pytest.mark.gpu
@pytest.mark.parametrize("on_host", [False, True])
def test_gpu_blends_windows_as_the_cpu(on_host: bool, latent: Tensor) -> None:
    expected = decode(LocalDecoder(), latent, (5, 4, 3))
    found = decode(LocalDecoder(), latent.cuda(), (5, 4, 3), on_host=on_host)
    assert found.is_cuda != on_host
    exact = LocalDecoder().decode(latent.double() / SCALE_FACTOR).clamp(0, 1)
    require_rounding_alone(found.cpu(), expected, exact, depth=num_windows((5, 4, 3), DEFAULT_OVERLAP, latent))
