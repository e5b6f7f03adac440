"""Images without a label map against a plain loop of MONAI's classes, of MR and of CT: the same bits in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.networks.building import FastPaths
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.system.seeds import derive_seed
from maisi_aug.vocabulary.modalities import MODALITY_CODES
from maisi_aug.volumes.grid import Grid
from tests.builders.narrow_networks import scaled_header
from tests.builders.random_bundle import write_random_bundle
from tests.oracles.reference_loop import Inputs, ReferenceLoop

SHAPE, SPACING_MM = (32, 96, 32), (1.25, 1.0, 1.5)
SEED, NUM_STEPS = 3, 2
DEFAULT_MODALITY = {"rflow-ct": "ct", "rflow-mr": "mri_t1", "rflow-mr-brain": "mri_t1"}
DEFAULT_GUIDANCE = {"rflow-ct": 0.0, "rflow-mr": 15.0, "rflow-mr-brain": 2.0}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """NVIDIA's networks of a bundle at an eighth of their width, with random weights."""
    written: dict[str, Bundle] = {}

    def find(name: str) -> Bundle:
        if name not in written:
            header = scaled_header(name, num_inference_steps=NUM_STEPS)
            written[name] = write_random_bundle(tmp_path_factory.mktemp(name), header, seed=0)
        return written[name]

    return find


def draw_plainly(bundle: Bundle, modality: str, guidance_scale: float) -> torch.Tensor:
    """``(I, J, K)`` as NVIDIA's ``diff_model_infer.py`` decodes it, neither clipped nor scaled."""
    roles = ("autoencoder", "diffusion_unet")
    states = {
        role: {key: value.float() for key, value in safetensors.torch.load_file(bundle.weight_path(role)).items()}
        for role in roles
    }
    definitions = {role: bundle.definition(role) for role in roles}
    loop = ReferenceLoop(definitions, states, bundle.spec.scheduler, scale_factor=bundle.spec.scale_factor)
    told = Inputs(None, torch.tensor([MODALITY_CODES[modality]]), torch.tensor([SPACING_MM]) * 100.0)
    shape = (1, 4, *(side // 4 for side in SHAPE))
    latent = loop.sample(
        torch.randn(shape, generator=torch.Generator().manual_seed(derive_seed(SEED, "latent noise"))),
        told,
        replace(told, modality=torch.tensor([0])) if guidance_scale else None,
        num_steps=NUM_STEPS,
        guidance_scale=guidance_scale,
    )
    with torch.no_grad():
        decoded: torch.Tensor = loop.networks["autoencoder"].decode_stage_2_outputs(latent / loop.scale_factor)
    return decoded[0, 0]


def draw(bundle: Bundle, **settings: Any) -> np.ndarray[Any, Any]:
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none())
    return pipeline.synthesize_image(None, Grid.from_spacing(SHAPE, SPACING_MM), seed=SEED, **settings)


@pytest.mark.parametrize(
    ("name", "modality", "guidance_scale"),
    [
        ("rflow-mr", None, None),
        ("rflow-mr", "mri_t2", 0.0),
        ("rflow-mr-brain", "mri_flair_skull_stripped", None),
        ("rflow-ct", None, None),
        ("rflow-ct", "ct_contrast", 2.0),
    ],
)
def test_image_without_a_label_map_is_that_of_the_plain_loop(
    name: str, modality: str | None, guidance_scale: float | None, bundles: Callable[[str], Bundle]
) -> None:
    bundle = bundles(name)
    found = draw(bundle, modality=modality, guidance_scale=guidance_scale)
    chosen = DEFAULT_GUIDANCE[name] if guidance_scale is None else guidance_scale
    decoded = draw_plainly(bundle, modality or DEFAULT_MODALITY[name], chosen).numpy()
    if bundle.is_mr:
        expected = np.int16(np.clip(decoded * 1000, 0, None))
        assert (decoded > 1).any(), "what is brighter than 1000 is kept"
    else:
        expected = np.rint(np.clip(decoded, 0, 1) * 2000 - 1000).astype(np.int16)
    assert np.unique(expected).size > 50
    assert np.array_equal(found, expected)


def test_guidance_and_modality_reach_the_networks(bundles: Callable[[str], Bundle]) -> None:
    images = [
        draw(bundles("rflow-mr"), modality=modality, guidance_scale=scale)
        for modality, scale in (("mri_t1", 15.0), ("mri_t2", 15.0), ("mri_t1", 0.0))
    ]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
