"""A bundle of MAISI's own networks at tiny width with random weights: the real code path in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import Bundle

TINY_SHAPE = (64, 48, 48)
TINY_SPACING_MM = (6.4, 6.4, 6.4)


def write_tiny_bundle(folder: Path, *, seed: int = 0) -> Bundle:
    """Write the bundle; its images are noise, so only a cohort with the image gates off accepts its cases."""
    from tests.builders.random_bundle import write_random_bundle

    return write_random_bundle(folder, build_header(), seed=seed)


def build_header() -> dict[str, Any]:
    """Everything of ``bundle.yaml`` but the weight files, to be changed as a test needs."""
    autoencoder = {
        "class": "AutoencoderKlMaisi",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 4,
        "num_channels": [8, 8, 8],
        "num_res_blocks": [1, 1, 1],
        "norm_num_groups": 4,
        "norm_eps": 1e-6,
        "attention_levels": [False, False, False],
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "use_checkpointing": False,
        "use_convtranspose": False,
        "norm_float16": False,
        "num_splits": 1,
        "dim_split": 1,
    }
    shared = {
        "spatial_dims": 3,
        "in_channels": 4,
        "num_channels": [8, 16],
        "attention_levels": [False, True],
        "num_head_channels": [0, 8],
        "num_res_blocks": 1,
        "norm_num_groups": 4,
        "use_flash_attention": False,
        "num_class_embeds": 128,
        "resblock_updown": True,
        "include_fc": True,
    }
    return {
        "format": 1,
        "name": "tiny",
        "description": "Random weights for tests.",
        "advice": "tiny has random weights: its images are noise.",
        "licence": "Apache-2.0",
        "grid": {"shape": list(TINY_SHAPE), "spacing_mm": list(TINY_SPACING_MM)},
        "num_inference_steps": 2,
        "scale_factor": 1.0,
        "slots": {"kidney tumor": {"id": 129, "hosts": [5, 14]}},
        "scheduler": {
            "class": "RFlowScheduler",
            "num_train_timesteps": 1000,
            "use_discrete_timesteps": False,
            "use_timestep_transform": False,
            "sample_method": "uniform",
        },
        "networks": {
            "autoencoder": autoencoder,
            "diffusion_unet": {
                "class": "DiffusionModelUNetMaisi",
                "out_channels": 4,
                "include_spacing_input": True,
                **shared,
            },
            "controlnet": {
                "class": "ControlNetMaisi",
                "conditioning_embedding_in_channels": 8,
                "conditioning_embedding_num_channels": [8, 8, 8],
                **shared,
            },
        },
    }


def build_ddpm_header() -> dict[str, Any]:
    """The same in the manner of ``ddpm-ct``: told body regions in place of a modality, other residual blocks, DDPM."""
    header = build_header()
    networks = header["networks"]
    for role in ("diffusion_unet", "controlnet"):
        del networks[role]["num_class_embeds"]
        networks[role] |= {"resblock_updown": False, "include_fc": False}
    networks["diffusion_unet"] |= {"include_top_region_index_input": True, "include_bottom_region_index_input": True}
    scheduler = {"class": "DDPMScheduler", "num_train_timesteps": 20, "schedule": "scaled_linear_beta"}
    return {
        **header,
        "name": "tiny-ddpm",
        "num_inference_steps": scheduler["num_train_timesteps"],
        "scheduler": {**scheduler, "clip_sample": False},
    }
