"""Which option of this package corresponds to which key of NVIDIA's configuration files. Needs no torch.

Source: NV-Generate-CTMR, configs/*.json, scripts/*.py and docs/inference.md (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    """Kind of a configuration file of NVIDIA's scripts."""

    paired = "paired images and label maps"
    images = "images without label maps, and training of the diffusion U-Net"
    controlnet = "training of the ControlNet"
    vae = "training of the autoencoder"
    environment = "paths"
    networks = "network definitions"
    trt = "TensorRT"
    labels = "label names"
    modalities = "modality codes"


class Counterpart(NamedTuple):
    """Counterpart in maisi-aug of a key of NVIDIA's configuration files.

    Attributes:
        ours: Option, recipe field or command; empty if there is none.
        difference: Difference, or why there is no counterpart; empty if there is no difference.
    """

    ours: str
    difference: str = ""


_DEFINED = Counterpart("--bundle", "Network definitions belong to the bundle.")
_IN_RECIPE = "A field of the training recipe: 'maisi-aug recipes copy train-rflow-ct' writes one to edit."
_NO_CACHE = Counterpart("", "Cases are kept in a bounded amount of memory; there is nothing to set.")
_MASK_V2 = "For NVIDIA's second mask model (October 2026), which is not supported: label maps are those of the first."

OPTIONS: Final[Mapping[Kind, Mapping[str, Counterpart]]] = {
    Kind.paired: {
        "num_output_samples": Counterpart("-n"),
        "body_region": Counterpart(
            "--body-region",
            "chest and thorax are thorax, pelvis and lower are pelvis. It chooses among label maps of the database, "
            "and conditions the networks of ddpm-ct; it has no effect on generated label maps, as in NVIDIA's scripts.",
        ),
        "anatomy_list": Counterpart(
            "--labels",
            "labels/ID.nii.gz keeps the vocabulary's ids; NVIDIA's scripts number the labels in the order of the list. "
            "All other labels are in anatomy/ID.nii.gz.",
        ),
        "controllable_anatomy_size": Counterpart(
            "--mask-source diffusion, with --labels NAME:SIZE for a tumor and --size-of ORGAN:SIZE for an organ",
            "A tumor that the networks do not draw at the size asked for is planted, and the manifest records it.",
        ),
        "controllable_demographics": Counterpart("", _MASK_V2),
        "num_inference_steps": Counterpart("--steps"),
        "mask_generation_num_inference_steps": Counterpart(
            "--mask-steps", "Only for generated label maps. The default is a sampler that needs 50 steps."
        ),
        "mask_generation_cfg_guidance_scale": Counterpart("", _MASK_V2),
        "output_size": Counterpart("--shape"),
        "spacing": Counterpart("--spacing"),
        "autoencoder_sliding_window_infer_size": Counterpart(
            "--decode-window",
            "Without it images are decoded exactly, without windows and seams, in the available memory.",
        ),
        "autoencoder_sliding_window_infer_overlap": Counterpart("--decode-overlap"),
        "autoencoder_tp_num_splits": Counterpart(
            "--num-splits", "By default chosen by the available memory. The image is the same up to rounding."
        ),
        "modality": Counterpart("--modality", "By name instead of by number."),
        "cfg_guidance_scale": Counterpart("--guidance-scale"),
        "image_output_ext": Counterpart("", "Images are always .nii.gz."),
        "label_output_ext": Counterpart("", "Label maps are always .nii.gz."),
        "controlnet": _DEFINED,
        "diffusion_unet": _DEFINED,
        "autoencoder": _DEFINED,
        "mask_generation_autoencoder": _DEFINED,
        "mask_generation_diffusion": _DEFINED,
    },
    Kind.images: {
        "diffusion_unet_inference.dim": Counterpart("--shape"),
        "diffusion_unet_inference.spacing": Counterpart("--spacing"),
        "diffusion_unet_inference.top_region_index": Counterpart(
            "--body-region", "Only for ddpm-ct; other networks are not conditioned on it."
        ),
        "diffusion_unet_inference.bottom_region_index": Counterpart("--body-region", "As top_region_index."),
        "diffusion_unet_inference.random_seed": Counterpart(
            "--seed", "The same seed gives another image than NVIDIA's scripts draw: noise is drawn on the CPU."
        ),
        "diffusion_unet_inference.num_inference_steps": Counterpart("--steps"),
        "diffusion_unet_inference.modality": Counterpart("--modality", "By name instead of by number."),
        "diffusion_unet_inference.cfg_guidance_scale": Counterpart("--guidance-scale"),
        "diffusion_unet_train.batch_size": Counterpart("diffusion.batch_count", _IN_RECIPE),
        "diffusion_unet_train.cache_rate": _NO_CACHE,
        "diffusion_unet_train.lr": Counterpart("diffusion.loop.learning_rate", _IN_RECIPE),
        "diffusion_unet_train.n_epochs": Counterpart(
            "diffusion.loop.num_steps",
            f"Steps instead of epochs: epochs times cases, over the batch size. {_IN_RECIPE}",
        ),
    },
    Kind.controlnet: {
        "controlnet_train.batch_size": Counterpart("--batch-size"),
        "controlnet_train.cache_rate": _NO_CACHE,
        "controlnet_train.fold": Counterpart("--fold"),
        "controlnet_train.lr": Counterpart("--learning-rate"),
        "controlnet_train.n_epochs": Counterpart(
            "--steps", "Steps instead of epochs: epochs times training cases, over the batch size."
        ),
        "controlnet_train.weighted_loss_label": Counterpart(
            "--label and --slot", "A name for each id, which requests use afterwards."
        ),
        "controlnet_train.weighted_loss": Counterpart("--label-weight"),
        "controlnet_infer.num_inference_steps": Counterpart("--steps of synthesize"),
        "controlnet_infer.autoencoder_sliding_window_infer_size": Counterpart("--decode-window of synthesize"),
        "controlnet_infer.autoencoder_sliding_window_infer_overlap": Counterpart("--decode-overlap of synthesize"),
        "controlnet_infer.modality": Counterpart("--modality of synthesize"),
    },
    Kind.vae: {
        "data_option.random_aug": Counterpart("", "Always on."),
        "data_option.spacing_type": Counterpart("vae.loss.zoom_range", _IN_RECIPE),
        "data_option.spacing": Counterpart("prepare --spacing", "Decided when the CTs are prepared."),
        "data_option.select_channel": Counterpart("", "Images have one channel."),
        "autoencoder_train.batch_size": Counterpart("", "One patch a step; more with several processes."),
        "autoencoder_train.patch_size": Counterpart("vae.loss.patch_shape", _IN_RECIPE),
        "autoencoder_train.val_batch_size": Counterpart("", "One."),
        "autoencoder_train.val_patch_size": Counterpart("", "Whole cases."),
        "autoencoder_train.val_sliding_window_patch_size": Counterpart("", "Whole cases, decoded in parts."),
        "autoencoder_train.lr": Counterpart("vae.loop.learning_rate", _IN_RECIPE),
        "autoencoder_train.perceptual_weight": Counterpart("vae.loss.perceptual_weight", _IN_RECIPE),
        "autoencoder_train.kl_weight": Counterpart("vae.loss.kl_weight", _IN_RECIPE),
        "autoencoder_train.adv_weight": Counterpart("vae.loss.adversarial_weight", _IN_RECIPE),
        "autoencoder_train.recon_loss": Counterpart("", "Always l1."),
        "autoencoder_train.val_interval": Counterpart("vae.loop.validation_steps", _IN_RECIPE),
        "autoencoder_train.cache": _NO_CACHE,
        "autoencoder_train.amp": Counterpart("", "Half precision where the device computes in it."),
        "autoencoder_train.n_epochs": Counterpart("vae.loop.num_steps", f"Steps instead of epochs. {_IN_RECIPE}"),
    },
    Kind.environment: {
        "output_dir": Counterpart("--out", "One folder for a cohort; the same command continues it."),
        "output_prefix": Counterpart("", "Files are named by case, without a time stamp."),
        "trained_autoencoder_path": Counterpart(
            "--bundle", "Use bundles pull to download it, or bundles import to use an existing file."
        ),
        "trained_diffusion_path": Counterpart("--bundle", "As trained_autoencoder_path."),
        "trained_controlnet_path": Counterpart("--bundle", "As trained_autoencoder_path."),
        "trained_mask_generation_autoencoder_path": Counterpart("bundles pull --with-masks"),
        "trained_mask_generation_diffusion_path": Counterpart(
            "bundles pull --with-masks", "The first mask model; mask_generation_diffusion_unet_v2.pt is not supported."
        ),
        "model_dir": Counterpart("--bundle", "As trained_autoencoder_path; of a training --out."),
        "model_filename": Counterpart("--bundle", "As trained_autoencoder_path."),
        "existing_ckpt_filepath": Counterpart("", "An interrupted training continues by itself."),
        "all_mask_files_base_dir": Counterpart("--mask-bank"),
        "all_mask_files_json": Counterpart("--mask-bank", "Found next to the label maps."),
        "all_anatomy_size_conditions_json": Counterpart("bundles pull --with-masks"),
        "label_dict_json": Counterpart("maisi-aug labels", "The vocabulary comes with the package."),
        "label_dict_remap_json": Counterpart("", "Comes with the package."),
        "modality_mapping_path": Counterpart("--modality", "The codes come with the package."),
        "data_base_dir": Counterpart("prepare --images", "Of a training: --data."),
        "embedding_base_dir": Counterpart("", "The training encodes latents itself, into OUT."),
        "json_data_list": Counterpart("--data"),
        "tfevent_path": Counterpart("--tensorboard", "Written into OUT."),
        "exp_name": Counterpart("--out"),
        "finetune": Counterpart("", "train vae starts from new weights."),
    },
}
"""Key, ``section.key`` within sections, by kind of file."""

FLAGS: Final[Mapping[str, Counterpart]] = {
    "--environment-file, -e": Counterpart("a file of 'maisi-aug migrate'"),
    "--config-file, -t": Counterpart("--bundle", "For networks of your own: bundles import --network."),
    "--inference-file, -i": Counterpart("a file of 'maisi-aug migrate'"),
    "--extra-config-file, -x": Counterpart("--compile trt"),
    "--random-seed, -s": Counterpart("--seed", "The same seed gives another image than NVIDIA's scripts draw."),
    "--version": Counterpart("--bundle"),
    "--mask": Counterpart("--mask-source given --mask-bank"),
    "--modality": Counterpart("--modality"),
    "--output-dir": Counterpart("--out"),
    "--cfg-guidance-scale": Counterpart("--guidance-scale"),
    "--num-inference-steps": Counterpart("--steps"),
    "--sliding-window-roi": Counterpart("--decode-window"),
    "--sliding-window-overlap": Counterpart("--decode-overlap"),
    "--num_gpus, --gpus, -g": Counterpart("--devices", "Of a training: torchrun."),
    "--low-vram": Counterpart("--decode-memory", "Weights stay on the device; decoding uses the free memory."),
    "--model_only": Counterpart("bundles pull", "Without --with-masks and --with-mask-database."),
    "--root_dir": Counterpart("bundles pull --to", "Or the variable MAISI_AUG_HOME, for MONAI_DATA_DIRECTORY."),
}
"""Flags of NVIDIA's scripts."""
