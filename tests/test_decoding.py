from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.decoding import LatentShape, decode_latent
from maisi_aug.networks import build_network
from tests.tiny_bundle import build_header

SCALE_FACTOR = 1.7


class LocalDecoder(nn.Module):
    """A decoder that looks at the neighbouring voxels alone, so that windows change nothing away from their edges."""

    def decode(self, latent: Tensor) -> Tensor:
        return functional.interpolate(latent.mean(1, keepdim=True), scale_factor=4, mode="nearest") + 0.5


@pytest.fixture(scope="module")
def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    return build_network(build_header()["networks"]["autoencoder"]).eval()


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(1, 4, 12, 9, 7, generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("window_shape", [(12, 9, 7), (16, 16, 16)])
def test_latent_that_fits_the_window_is_decoded_whole(
    window_shape: LatentShape, autoencoder: nn.Module, latent: Tensor
) -> None:
    whole = decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR)
    assert torch.equal(decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR, window_shape=window_shape), whole)


@pytest.mark.parametrize(("window_shape", "overlap"), [((8, 8, 8), 0.4), ((5, 4, 3), 0.25), ((12, 9, 4), 0.0)])
def test_windows_join_to_the_whole(window_shape: LatentShape, overlap: float, latent: Tensor) -> None:
    whole = decode_latent(LocalDecoder(), latent, scale_factor=SCALE_FACTOR)
    joined = decode_latent(
        LocalDecoder(), latent, scale_factor=SCALE_FACTOR, window_shape=window_shape, overlap=overlap
    )
    assert joined.shape == whole.shape
    assert float((joined - whole).abs().max()) < 1e-6


def test_windows_of_the_autoencoder_differ_by_its_normalisation_alone(autoencoder: nn.Module, latent: Tensor) -> None:
    whole = decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR)
    joined = decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR, window_shape=(8, 8, 6))
    assert joined.shape == whole.shape
    correlation = torch.corrcoef(torch.stack((joined.flatten(), whole.flatten())))[0, 1]
    assert float(correlation) > 0.7
    assert not torch.equal(joined, whole)


def test_window_longer_than_a_side_is_cut_to_it(autoencoder: nn.Module, latent: Tensor) -> None:
    cut = decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR, window_shape=(8, 8, 7))
    assert torch.equal(decode_latent(autoencoder, latent, scale_factor=SCALE_FACTOR, window_shape=(8, 8, 64)), cut)
