"""The start from label means: networks that draw a label map before their first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import TrainingError
from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.training.cases.data import LatentSet
from maisi_aug.training.images.start import start_from_label_means
from maisi_aug.training.images.wavelet import haar_kernels
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.tiny_networks import build_networks, run_networks
from tests.builders.tiny_training import ArrayStore, build_store

SCALE_FACTOR = 8.0


def encode(store: ArrayStore) -> LatentSet:
    """Latents that are the wavelets of the image, as those of an autoencoder after its wavelet start."""
    latents = []
    for case in store.cases:
        image = hu_to_unit(torch.from_numpy(case.image_hu))[None, None]
        latents.append(functional.conv3d(image, haar_kernels()[:, None], stride=2)[0].half())
    return LatentSet(latents, SCALE_FACTOR)


@torch.no_grad()
def predict(unet: nn.Module, controlnet: nn.Module, noisy: Tensor, time: float, label_map: Tensor) -> Tensor:
    return run_networks(unet, controlnet, noisy, time, label_map[None])


@pytest.fixture(scope="module", params=[False, True], ids=["maisi layers", "plain layers"])
def started(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    store = build_store(4)
    networks = build_networks(is_plain=request.param)
    start_from_label_means(*networks, store, encode(store), vocabulary=MAISI, seed=1)
    return networks


@pytest.mark.parametrize("time", [1.0, 0.6, 0.2])
def test_velocity_is_right_before_the_first_step(time: float, started: tuple[nn.Module, nn.Module]) -> None:
    store = build_store(4)
    clean = encode(store).latents[3].float()[None] * SCALE_FACTOR
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    velocity = predict(*started, (1 - time) * clean + time * noise, time, torch.from_numpy(store.label_map(3)))
    error = (velocity - (clean - noise)).abs().mean()
    assert float(error) < 0.15
    assert float((clean - noise).abs().mean()) > 1.0


def test_only_what_need_not_learn_is_frozen(started: tuple[nn.Module, nn.Module]) -> None:
    unet, controlnet = started
    frozen = {name for name, parameter in controlnet.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith("controlnet_cond_embedding") and "conv_out" not in name for name in frozen)
    assert len(frozen) == 6
    assert all(parameter.requires_grad for parameter in unet.parameters())


@pytest.mark.parametrize(
    "changes",
    [{"norm_num_groups": 4}, {"norm_num_groups": 1}],
    ids=["groups too small", "groups too large"],
)
def test_other_architectures_are_refused(changes: dict[str, Any]) -> None:
    store = build_store(1)
    with pytest.raises(
        TrainingError, match=r"two or more groups of num_channels\[0\] / norm_num_groups of at least 7, found"
    ):
        start_from_label_means(*build_networks(**changes), store, encode(store), vocabulary=MAISI, seed=1)


def test_latents_of_another_width_are_refused() -> None:
    store = build_store(1)
    latents = LatentSet([functional.avg_pool3d(encode(store).latents[0].float(), 2)], 1.0)
    with pytest.raises(TrainingError, match="expected latents half as wide as images"):
        start_from_label_means(*build_networks(), store, latents, vocabulary=MAISI, seed=1)
