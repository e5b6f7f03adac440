"""From ten sizes to a clean label map: our way, and the plain loop, on the same weights and the same spoilt map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.bundle_spec.schema import MASK_ROLES
from maisi_aug.networks.building import choose_precision
from maisi_aug.networks.mask_decoding import class_ids, decode_label_map
from maisi_aug.networks.mask_diffusion import sample_mask_latent
from maisi_aug.networks.weights import load_mask_networks
from maisi_aug.sources.map_cleanup import clean_label_map
from tests.benchmarks.cleanup import EXTENT_MM, HEPATIC_TUMOR, build_noisy_phantom
from tests.benchmarks.image_stages import Case, in_precision
from tests.benchmarks.measuring import Clock
from tests.oracles.reference_masks import ReferenceMasks, clean_organ_by_organ

STAGES = ("mask sampling", "mask decode", "clean-up")
SIZES = (0.5, 0.5, 0.5, 0.5, 0.5, -1.0, -1.0, 0.3, -1.0, -1.0)
PHANTOM_SEED = 3


def run_ours(case: Case, folder: Path, clock: Clock) -> dict[str, Any]:
    """The mask networks as ``synthesize --mask-source diffusion`` uses them; loading the weights is not timed."""
    bundle = load_bundle(case.bundle)
    networks = load_mask_networks(bundle, device=case.device)
    precision = choose_precision(case.own_precision, case.device, bears_half=bundle.spec.mixed_precision)
    spoilt, spacing_mm = _draw_spoilt_map(bundle)
    settings = bundle.spec.mask_generation
    assert settings is not None
    for number in range(case.repeats):
        clock.start("mask sampling")
        latent = sample_mask_latent(
            networks,
            torch.tensor(SIZES)[None],
            _latent_shape(bundle),
            num_inference_steps=settings.num_inference_steps,
            precision=precision,
            seed=number,
        )
        clock.start("mask decode")
        decode_label_map(networks.autoencoder, latent, scale_factor=networks.scale_factor, precision=precision)
        clock.start("clean-up")
        clean_label_map(spoilt, spacing_mm=(spacing_mm,) * 3, keep_tumor_ids=(HEPATIC_TUMOR,))
        clock.stop()
    return {"mask_steps": settings.num_inference_steps}


def run_reference(case: Case, folder: Path, clock: Clock) -> dict[str, Any]:
    """All time steps, all logits, and one organ after the other; loading the weights is not timed."""
    bundle = load_bundle(case.bundle)
    settings = bundle.spec.mask_generation
    assert settings is not None
    masks = ReferenceMasks(
        {role: bundle.definition(role) for role in MASK_ROLES},
        {role: safetensors.torch.load_file(bundle.weight_path(role)) for role in MASK_ROLES},
        settings.scheduler,
        scale_factor=settings.scale_factor,
        device=case.device,
    )
    spoilt, _ = _draw_spoilt_map(bundle)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, *_latent_shape(bundle)), generator=generator)
    # Once, whatever the number of rounds: a thousand steps are an average of their own.
    clock.start("mask sampling")
    with in_precision(case):
        latent = masks.sample(noise, SIZES, generator=generator)
        clock.start("mask decode")
        masks.decode(latent, class_ids())
    clock.start("clean-up")
    clean_organ_by_organ(spoilt, (HEPATIC_TUMOR,))
    clock.stop()
    return {"mask_steps": masks.scheduler.num_train_timesteps}


def _latent_shape(bundle: Bundle) -> tuple[int, ...]:
    settings, autoencoder = bundle.spec.mask_generation, bundle.definition("mask_autoencoder")
    assert settings is not None
    factor = latent_factor(autoencoder)
    return int(autoencoder["latent_channels"]), *(side // factor for side in settings.grid.shape)


def _draw_spoilt_map(bundle: Bundle) -> tuple[NDArray[np.uint8], float]:
    """What is cleaned on both sides, for random weights draw no anatomy, and its voxel side in mm."""
    settings = bundle.spec.mask_generation
    assert settings is not None
    side = settings.grid.shape[0]
    return build_noisy_phantom(side, PHANTOM_SEED), EXTENT_MM / side
