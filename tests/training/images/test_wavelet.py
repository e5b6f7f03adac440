"""The wavelet start: an autoencoder that hands images through before its first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.training.images.wavelet import start_as_wavelet
from tests.oracles.rounding import depth_of, rounding

SHAPE = (16, 12, 8)


def build(**changes: Any) -> nn.Module:
    definition: dict[str, Any] = {
        "class": "AutoencoderKlMaisi",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "num_channels": [16, 32],
        "num_res_blocks": [1, 1],
        "attention_levels": [False, False],
        "norm_num_groups": 1,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "use_convtranspose": True,
        "norm_float16": False,
        "num_splits": 1,
        "dim_split": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_network({**definition, **changes})


def smooth_image(seed: int, *, level: float) -> Tensor:
    noise = torch.rand((1, 1, *SHAPE), generator=torch.Generator().manual_seed(seed)).numpy()
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 1.2, 1.2, 1.2)))
    return smooth - smooth.mean() + level


@torch.no_grad()
def rebuild(autoencoder: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    mean, _ = autoencoder.encode(image)  # type: ignore[operator]
    return mean, autoencoder.decode(mean)  # type: ignore[operator]


@pytest.mark.parametrize("is_plain", [False, True], ids=["maisi layers", "plain layers"])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_image_is_handed_through_at_any_brightness(is_plain: bool, level: float) -> None:
    autoencoder = build()
    if is_plain:
        use_plain_layers(autoencoder)
    start_as_wavelet(autoencoder)
    image = smooth_image(2, level=level)
    _, rebuilt = rebuild(autoencoder, image)
    # Nearest-neighbour blocks, what the mean alone would give, are the error to beat.
    blocks = nn.functional.interpolate(nn.functional.avg_pool3d(image, 2), scale_factor=2.0)
    assert (rebuilt - image).abs().mean() < 0.6 * (blocks - image).abs().mean()
    assert (rebuilt - image).mean().abs() < 0.01


def test_latent_holds_means_and_differences_of_blocks() -> None:
    autoencoder = build()
    start_as_wavelet(autoencoder)
    ramp = torch.linspace(0.2, 0.6, SHAPE[0]).view(1, 1, -1, 1, 1).expand(1, 1, *SHAPE).contiguous()
    mean, _ = rebuild(autoencoder, ramp)
    assert torch.allclose(mean[:, :1], nn.functional.avg_pool3d(ramp, 2), atol=0.01)
    assert (mean[:, 1] > 0.03).all()
    assert mean[:, 2:].abs().max() <= rounding(depth_of(autoencoder)) * mean.abs().max()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_eight_channels_lose_nothing(level: float) -> None:
    autoencoder = build(latent_channels=8)
    start_as_wavelet(autoencoder)
    noise = torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(3))
    image = (smooth_image(2, level=level) + 0.02 * noise).clamp(0.0, 1.0)
    mean, rebuilt = rebuild(autoencoder, image)
    assert mean.shape[1] == 8
    assert (rebuilt - image).abs().max() < 0.008
    assert mean.std(dim=(0, 2, 3, 4)).min() > 0.005


def test_gains_scale_mean_and_differences_and_lose_nothing() -> None:
    image = smooth_image(2, level=0.5) + 0.02 * torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(3))
    means = []
    for gains in ((1.0, 1.0, 1.0, 1.0), (2.0, 3.0, 4.0, 5.0)):
        autoencoder = build(latent_channels=8)
        start_as_wavelet(autoencoder, gains=gains)
        mean, rebuilt = rebuild(autoencoder, image)
        assert (rebuilt - image).abs().max() < 0.008
        means.append(mean)
    for channel, gain in enumerate((2, 3, 3, 3, 4, 4, 4, 5)):
        torch.testing.assert_close(means[1][:, channel], gain * means[0][:, channel], atol=2e-3, rtol=0.02)


def test_eight_channels_need_wider_levels() -> None:
    with pytest.raises(TrainingError, match="or 8 with 12, found 1 transposed convolutions, 1 groups, 8 channels"):
        start_as_wavelet(build(latent_channels=8, num_channels=[8, 16]))


@pytest.mark.parametrize(
    "changes",
    [{"norm_num_groups": 2}, {"latent_channels": 6}, {"use_convtranspose": False}, {"num_channels": [4, 4]}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_architecture_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="Wavelet start: expected an autoencoder with two levels"):
        start_as_wavelet(build(**changes))
