"""Our label maps against those of the plain loop: the published mask networks, narrowed, every DDPM step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.schema import MASK_ROLES
from maisi_aug.networks.building import keep_norms_in_float32
from maisi_aug.networks.mask_decoding import class_ids, decode_label_map
from maisi_aug.networks.mask_diffusion import sample_mask_latent
from maisi_aug.networks.weights import load_mask_networks
from tests.builders.narrow_networks import FULL_WIDTH, NARROW, add_scaled_masks, scaled_header
from tests.builders.random_bundle import write_random_bundle
from tests.oracles.reference_masks import ReferenceMasks
from tests.oracles.rounding import depth_of, require_likeliest, require_rounding_alone

SIDE = 32
NUM_STEPS = 8
SIZES = (0.4, 0.5, -1.0, 0.6, 0.5, -1.0, -1.0, 0.3, -1.0, -1.0)
SEED = 5


def write_masks(folder: Path, divisor: int) -> Bundle:
    header = scaled_header("rflow-ct", divisor=NARROW)
    return write_random_bundle(
        folder, add_scaled_masks(header, folder, divisor=divisor, side=SIDE, num_train_steps=NUM_STEPS), seed=0
    )


def require_same_map(bundle: Bundle, *, plain_layers: bool) -> None:
    settings = bundle.spec.mask_generation
    assert settings is not None
    states = {role: safetensors.torch.load_file(bundle.weight_path(role)) for role in MASK_ROLES}
    definitions = {role: bundle.definition(role) for role in MASK_ROLES}
    reference, exact = (
        ReferenceMasks(definitions, states, settings.scheduler, scale_factor=0.7, is_exact=is_exact)
        for is_exact in (False, True)
    )
    shape = (4, SIDE // 4, SIDE // 4, SIDE // 4)

    def sample(loop: ReferenceMasks) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED)
        return loop.sample(torch.randn((1, *shape), generator=generator), SIZES, generator=generator)

    expected, exact_latent = sample(reference), sample(exact)
    depths = {role: depth_of(network) for role, network in exact.networks.items()}
    sampling = NUM_STEPS * depths["mask_diffusion_unet"]
    networks = load_mask_networks(bundle, plain_layers=plain_layers)
    keep_norms_in_float32(networks.autoencoder)
    latent = sample_mask_latent(networks, torch.tensor([SIZES]), shape, num_inference_steps=NUM_STEPS, seed=SEED)
    require_rounding_alone(latent, expected, exact_latent, depth=sampling)
    label_map = decode_label_map(networks.autoencoder, latent, scale_factor=0.7)
    assert label_map.shape == (SIDE, SIDE, SIDE)
    classes = torch.from_numpy(np.argsort(class_ids())[np.searchsorted(np.sort(class_ids()), label_map)])[None]
    require_likeliest(
        classes,
        reference.decode_logits(expected),
        exact.decode_logits(exact_latent),
        depth=sampling + depths["mask_autoencoder"],
    )
    assert np.unique(label_map).size > 10


@pytest.mark.parametrize("plain_layers", [False, True], ids=["own layers", "plain layers"])
def test_narrow_networks_draw_the_label_map_of_the_plain_loop(plain_layers: bool, tmp_path: Path) -> None:
    require_same_map(write_masks(tmp_path, NARROW), plain_layers=plain_layers)


@pytest.mark.slow
def test_full_width_networks_draw_the_label_map_of_the_plain_loop(tmp_path: Path) -> None:
    require_same_map(write_masks(tmp_path, FULL_WIDTH), plain_layers=False)
