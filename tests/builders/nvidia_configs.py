"""The configuration files of NV-Generate-CTMR, by the values in which they differ.

Source: NVIDIA's NV-Generate-CTMR of October 2026, configs/*.json (Apache-2.0).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Paired(NamedTuple):
    """What a ``config_infer*.json`` says of its own."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    window: tuple[int, int, int]
    overlap: float
    splits: int | None
    steps: int = 30
    region: tuple[str, ...] = ("chest",)
    anatomy: tuple[str, ...] = ("lung tumor",)
    sizes: tuple[tuple[str, float], ...] = ()


PAIRED = {
    "config_infer": Paired((256, 256, 256), (1.5, 1.5, 2.0), (48, 48, 48), 0.6666, None),
    "config_infer_16g_256x256x128": Paired((256, 256, 128), (1.5, 1.5, 4.0), (96, 96, 96), 0.25, 2),
    "config_infer_16g_256x256x256": Paired((256, 256, 256), (1.5, 1.5, 2.0), (48, 48, 64), 0.6666, 4),
    "config_infer_16g_512x512x128": Paired((512, 512, 128), (0.75, 0.75, 4.0), (64, 64, 32), 0.5, 2),
    "config_infer_24g_256x256x256": Paired((256, 256, 256), (1.5, 1.5, 2.0), (64, 64, 64), 0.25, 4, steps=1000),
    "config_infer_24g_512x512x128": Paired((512, 512, 128), (0.75, 0.75, 4.0), (80, 80, 32), 0.4, 2),
    "config_infer_24g_512x512x512": Paired((512, 512, 512), (0.75, 0.75, 1.0), (64, 64, 48), 0.4, 2),
    "config_infer_32g_512x512x512": Paired((512, 512, 512), (0.75, 0.75, 1.0), (80, 80, 48), 0.4, 4),
    "config_infer_80g_512x512x512": Paired((512, 512, 512), (0.75, 0.75, 1.0), (80, 80, 80), 0.4, 4, steps=1000),
    "config_infer_80g_512x512x768": Paired(
        (512, 512, 768), (0.75, 0.75, 0.66667), (80, 80, 96), 0.4, 4, region=("abdomen",), anatomy=("liver",)
    ),
    "config_infer_test_512x512x768": Paired(
        (512, 512, 768),
        (0.8, 0.8, 1.0),
        (80, 80, 96),
        0.4,
        4,
        region=("chest", "abdomen"),
        anatomy=("liver", "spleen", "left lung lower lobe", "right lung lower lobe"),
    ),
    "config_infer_test_v2": Paired(
        (256, 256, 256),
        (1.5, 1.5, 2.0),
        (48, 48, 48),
        0.6666,
        None,
        anatomy=("bone lesion",),
        sizes=(("bone lesion", 0.5),),
    ),
}


def paired(name: str, **changes: Any) -> dict[str, Any]:
    """The content of a ``config_infer*.json``, with changes."""
    own = PAIRED[name]
    return {
        "num_output_samples": 1,
        "body_region": list(own.region),
        "anatomy_list": list(own.anatomy),
        "controllable_anatomy_size": [list(pair) for pair in own.sizes],
        "controllable_demographics": None,
        "num_inference_steps": own.steps,
        "mask_generation_num_inference_steps": 100,
        "mask_generation_cfg_guidance_scale": 2.0,
        "output_size": list(own.size),
        "spacing": list(own.spacing),
        "image_output_ext": ".nii.gz",
        "label_output_ext": ".nii.gz",
        "autoencoder_sliding_window_infer_size": list(own.window),
        "autoencoder_sliding_window_infer_overlap": own.overlap,
        **({} if own.splits is None else {"autoencoder_tp_num_splits": own.splits}),
        **{
            key: f"$@{key}_def"
            for key in (
                "controlnet",
                "diffusion_unet",
                "autoencoder",
                "mask_generation_autoencoder",
                "mask_generation_diffusion",
            )
        },
        "modality": 1,
        "cfg_guidance_scale": 0.0,
        **changes,
    }


def images(version: str) -> dict[str, Any]:
    """The content of ``config_maisi_diff_model_VERSION.json``."""
    dim, spacing, seed, steps, modality, guidance = {
        "rflow-ct": ([256, 256, 128], [1.0, 1.0, 0.75], 0, 30, 1, 0),
        "ddpm-ct": ([256, 256, 128], [1.0, 1.0, 0.75], 0, 1000, 1, 0),
        "rflow-mr": ([128, 256, 256], [1.25, 1.0, 1.0], 0, 30, 9, 15),
        "rflow-mr-brain": ([256, 256, 256], [0.8, 1, 1], 1234, 30, 31, 10),
    }[version]
    return {
        "diffusion_unet_train": {"batch_size": 1, "cache_rate": 0, "lr": 0.0001, "n_epochs": 1000},
        "diffusion_unet_inference": {
            "dim": dim,
            "spacing": spacing,
            "top_region_index": [0, 1, 0, 0],
            "bottom_region_index": [0, 0, 1, 0],
            "random_seed": seed,
            "num_inference_steps": steps,
            "modality": modality,
            "cfg_guidance_scale": guidance,
        },
    }


CONTROLNET: dict[str, Any] = {
    "controlnet_train": {
        "batch_size": 1,
        "cache_rate": 0.0,
        "fold": 0,
        "lr": 1e-5,
        "n_epochs": 100,
        "weighted_loss_label": [129],
        "weighted_loss": 100,
    },
    "controlnet_infer": {
        "num_inference_steps": 30,
        "autoencoder_sliding_window_infer_size": [80, 80, 80],
        "autoencoder_sliding_window_infer_overlap": 0.4,
        "modality": 1,
    },
}
VAE: dict[str, Any] = {
    "data_option": {"random_aug": True, "spacing_type": "rand_zoom", "spacing": None, "select_channel": 0},
    "autoencoder_train": {
        "batch_size": 1,
        "patch_size": [64, 64, 64],
        "val_batch_size": 1,
        "val_patch_size": None,
        "val_sliding_window_patch_size": [96, 96, 64],
        "lr": 0.0001,
        "perceptual_weight": 0.3,
        "kl_weight": 1e-07,
        "adv_weight": 0.1,
        "recon_loss": "l1",
        "val_interval": 10,
        "cache": 0.5,
        "amp": True,
        "n_epochs": 1,
    },
}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "environment_rflow-ct": {
        "output_dir": "output",
        "trained_autoencoder_path": "models/autoencoder_v1.pt",
        "trained_diffusion_path": "models/diff_unet_3d_rflow-ct.pt",
        "trained_controlnet_path": "models/controlnet_3d_rflow-ct.pt",
        "trained_mask_generation_autoencoder_path": "models/mask_generation_autoencoder.pt",
        "trained_mask_generation_diffusion_path": "models/mask_generation_diffusion_unet_v2.pt",
        "all_mask_files_base_dir": "datasets/all_masks_flexible_size_and_spacing_4000",
        "all_mask_files_json": "datasets/candidate_masks_flexible_size_and_spacing_4000.json",
        "all_anatomy_size_conditions_json": "datasets/all_anatomy_size_conditions.json",
        "label_dict_json": "./configs/label_dict.json",
        "label_dict_remap_json": "./configs/label_dict_124_to_132.json",
    },
    "environment_ddpm-ct": {
        "output_dir": "output",
        "trained_autoencoder_path": "models/autoencoder_v1.pt",
        "trained_diffusion_path": "models/diff_unet_3d_ddpm-ct.pt",
        "trained_controlnet_path": "models/controlnet_3d_ddpm-ct.pt",
        "trained_mask_generation_autoencoder_path": "models/mask_generation_autoencoder.pt",
        "trained_mask_generation_diffusion_path": "models/mask_generation_diffusion_unet.pt",
        "all_mask_files_base_dir": "datasets/all_masks_flexible_size_and_spacing_4000",
        "all_mask_files_json": "./configs/candidate_masks_flexible_size_and_spacing_3000.json",
        "all_anatomy_size_conditions_json": "./configs/all_anatomy_size_conditions.json",
        "label_dict_json": "./configs/label_dict.json",
        "label_dict_remap_json": "./configs/label_dict_124_to_132.json",
    },
    "environment_maisi_diff_model_rflow-mr-brain": {
        "data_base_dir": "./data",
        "embedding_base_dir": "./embeddings",
        "json_data_list": "./dataset.json",
        "model_dir": "./models",
        "model_filename": "diff_unet_3d_rflow-mr-brain_v1.pt",
        "output_dir": "./output",
        "output_prefix": "unet_3d",
        "trained_autoencoder_path": "models/autoencoder_v1.pt",
        "existing_ckpt_filepath": "./models/diff_unet_3d_rflow-mr-brain_v1.pt",
        "modality_mapping_path": "./configs/modality_mapping.json",
    },
    "environment_maisi_vae_train": {
        "model_dir": "./models/",
        "tfevent_path": "./tfevent",
        "trained_autoencoder_path": "models/autoencoder_v1.pt",
        "finetune": True,
    },
}


def write_config(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write a configuration file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path
