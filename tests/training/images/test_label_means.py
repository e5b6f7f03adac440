"""The start from label means: networks that draw a label map before their first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.conditioning import hu_to_unit, to_label_bits
from maisi_aug.training.cases.data import LatentSet
from maisi_aug.training.images.label_means import measure_label_means, start_from_label_means
from maisi_aug.training.images.wavelet import haar_kernels
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.components import Box
from tests.builders.tiny_training import BODY, HEPATIC_TUMOR, LIVER, ArrayStore, build_case, build_store

SCALE_FACTOR = 8.0
GAS = 248
SHARED = {
    "spatial_dims": 3,
    "in_channels": 4,
    "num_channels": [16, 16],
    "attention_levels": [False, False],
    "num_head_channels": [8, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 2,
    "use_flash_attention": False,
    "num_class_embeds": 128,
    "resblock_updown": True,
    "include_fc": True,
}


def build_networks(*, is_plain: bool = True, **changes: Any) -> tuple[nn.Module, nn.Module]:
    embedding = {"conditioning_embedding_in_channels": 8, "conditioning_embedding_num_channels": [16, 16]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = build_network(
            {"class": "DiffusionModelUNetMaisi", "out_channels": 4, "include_spacing_input": True, **SHARED, **changes}
        )
        controlnet = build_network({"class": "ControlNetMaisi", **embedding, **SHARED, **changes})
    if is_plain:
        use_plain_layers(unet)
        use_plain_layers(controlnet)
    return unet.eval(), controlnet.eval()


def encode(store: ArrayStore) -> LatentSet:
    """Latents that are the wavelets of the image, as those of an autoencoder after its wavelet start."""
    latents = []
    for case in store.cases:
        image = hu_to_unit(torch.from_numpy(case.image_hu))[None, None]
        latents.append(functional.conv3d(image, haar_kernels()[:, None], stride=2)[0].half())
    return LatentSet(latents, SCALE_FACTOR)


def run_networks(unet: Any, controlnet: Any, noisy: Tensor, time: float, label_maps: Tensor) -> Tensor:
    """The velocity at a time from 0 to 1, of a batch of one."""
    told = {"timesteps": torch.tensor([1000.0 * time]), "class_labels": torch.tensor([1])}
    down, middle = controlnet(x=noisy, controlnet_cond=to_label_bits(label_maps), **told)
    output: Tensor = unet(
        x=noisy,
        spacing_tensor=torch.tensor([[400.0, 400.0, 400.0]]),
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        **told,
    )
    return output


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


def test_means_are_those_of_the_labels() -> None:
    means = measure_label_means(build_store(3), range(3), MAISI)
    for label_id, hu in ((0, -1000), (BODY, 20), (LIVER, 110), (HEPATIC_TUMOR, 60)):
        assert float(means.intensity[label_id]) == pytest.approx((hu + 1000) / 2000, abs=1e-4)
    assert set(means.num_voxels.nonzero()[:, 0].tolist()) == {0, LIVER, HEPATIC_TUMOR, BODY}


def test_contrast_of_a_tumor_is_that_of_its_core_within_the_patient() -> None:
    bright, dark = build_case(1), build_case(2)
    dark.image_hu[dark.label_map > 0] -= 40
    tumor = bright.label_map == HEPATIC_TUMOR
    rim = tumor & ~ndimage.binary_erosion(tumor)
    bright.image_hu[rim] += 30
    dark.image_hu[dark.label_map == HEPATIC_TUMOR] -= 6
    means = measure_label_means(ArrayStore([bright, dark]), range(2), MAISI)
    contrast_hu = 2000 * float(means.intensity[HEPATIC_TUMOR] - means.intensity[LIVER])
    # 50 HU darker in one patient, 56 in the other, with as many voxels in each core.
    assert contrast_hu == pytest.approx(-53, abs=0.1)


def test_level_of_a_host_is_that_of_its_own_parts() -> None:
    """Where an id is shown in the host and elsewhere, as gas in the bowel, the host's share of it counts."""
    case = build_case(1)
    liver = np.argwhere(case.label_map == LIVER)
    shown = case.label_map.copy()
    gas = [tuple(place) for place in liver[: len(liver) // 4]]
    for place in gas:
        shown[place], case.image_hu[place] = GAS, -900
    shown[4:12, 4:8], case.image_hu[4:12, 4:8] = GAS, -900

    class Store(ArrayStore):
        def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
            return shown[box]

    means = measure_label_means(Store([case]), range(1), MAISI)
    core_hu = 2000 * float(means.intensity[HEPATIC_TUMOR]) - 1000
    assert core_hu == pytest.approx(60, abs=1)


def test_gain_raises_the_contrast_of_faint_tumors_alone() -> None:
    faint, strong = build_case(1), build_case(2)
    strong.image_hu[strong.label_map == HEPATIC_TUMOR] -= 200
    contrasts_hu = []
    for case in (faint, strong):
        means = measure_label_means(ArrayStore([case]), range(1), MAISI, faint_gain=1.5)
        contrasts_hu.append(2000 * float(means.intensity[HEPATIC_TUMOR] - means.intensity[LIVER]))
    assert contrasts_hu == pytest.approx([-75, -250], abs=0.1)


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
