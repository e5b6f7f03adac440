"""A tiny bundle with mask networks: their real classes at tiny width, random weights, and a few size conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_bundle import TINY_SHAPE, TINY_SPACING_MM, build_header

SIZES_NAME = "size_conditions.json"
NUM_TRAIN_STEPS = 1000
# Classes that random weights shall prefer, so that there is a body, and a liver that can host something.
FAVOURED = {1: 0.5, 124: 0.7}


def build_size_rows(num_rows: int = 60) -> list[list[float]]:
    """Rows like NVIDIA's: five organs, some of them absent, and one kind of tumour at most."""
    rng = np.random.default_rng(0)
    sizes = np.round(rng.random((num_rows, 10)), 4)
    sizes[:, :5][rng.random((num_rows, 5)) < 0.1] = -1
    kinds = rng.integers(4, 10, num_rows)  # 4: none
    sizes[:, 5:][np.arange(5) + 5 != kinds[:, None]] = -1
    rows: list[list[float]] = sizes.tolist()
    return rows


def write_size_conditions(path: Path) -> Path:
    """The file in NVIDIA's layout."""
    path.write_text(json.dumps([{"organ_size": row} for row in build_size_rows()]))
    return path


def build_mask_networks() -> dict[str, dict[str, Any]]:
    """The definitions by role."""
    autoencoder = build_header()["networks"]["autoencoder"]
    return {
        "mask_autoencoder": {
            **autoencoder,
            "in_channels": 8,
            "out_channels": 125,
            "use_convtranspose": True,
            "use_checkpointing": True,
            "num_splits": 2,
        },
        "mask_diffusion_unet": {
            "class": "DiffusionModelUNet",
            "spatial_dims": 3,
            "in_channels": 4,
            "out_channels": 4,
            "channels": [8, 16],
            "attention_levels": [False, True],
            "num_head_channels": [0, 8],
            "num_res_blocks": 1,
            "norm_num_groups": 4,
            "use_flash_attention": True,
            "with_conditioning": True,
            "upcast_attention": True,
            "cross_attention_dim": 10,
        },
    }


def build_mask_settings(**changes: Any) -> dict[str, Any]:
    """What ``bundle.yaml`` says of their use, without scale factor and sizes."""
    return {
        "grid": {"shape": list(TINY_SHAPE), "spacing_mm": list(TINY_SPACING_MM)},
        "num_inference_steps": 3,
        "scheduler": {
            "class": "DDPMScheduler",
            "num_train_timesteps": NUM_TRAIN_STEPS,
            "beta_start": 0.0015,
            "beta_end": 0.0195,
            "schedule": "scaled_linear_beta",
            "clip_sample": False,
        },
        **changes,
    }


def write_tiny_mask_bundle(folder: Path, *, seed: int = 0, **settings: Any) -> Bundle:
    """Write the bundle; its maps are noise in which body and liver prevail."""
    import safetensors.torch

    from maisi_aug.networks.weights import write_bundle
    from tests.builders.random_bundle import write_random_bundle

    folder.mkdir(parents=True, exist_ok=True)
    path = write_size_conditions(folder / SIZES_NAME)
    header = build_header()
    header["networks"] |= build_mask_networks()
    named = {"file": path.name, "sha256": sha256_of(path)}
    header["mask_generation"] = {**build_mask_settings(), "scale_factor": 1.0, "size_conditions": named, **settings}
    bundle = write_random_bundle(folder, header, seed=seed)
    states = {role: safetensors.torch.load_file(bundle.weight_path(role)) for role in bundle.roles}
    decoder = states["mask_autoencoder"]
    (bias,) = (value for key, value in decoder.items() if key.startswith("decoder.") and value.shape == (125,))
    for number, extra in FAVOURED.items():
        bias[number] += extra
    return write_bundle(folder, header, states)
