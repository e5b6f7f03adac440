"""NVIDIA's published network definitions at a fraction of their width: the exact classes and switches, little work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_masks import SIZES_NAME, write_size_conditions

FULL_WIDTH = 1
NARROW = 8


def scaled_header(name: str, *, divisor: int = NARROW, num_inference_steps: int | None = None) -> dict[str, Any]:
    """What ``bundle.yaml`` says of a known bundle, every number of channels divided."""
    header = dict(known_bundles()[name].header)
    networks = {role: dict(definition) for role, definition in header["networks"].items()}
    for role, definition in networks.items():
        definition["num_channels"] = [number // divisor for number in definition["num_channels"]]
        definition["norm_num_groups"] = max(32 // divisor, 1)
        if role != "autoencoder":
            definition["num_head_channels"] = [number // divisor for number in definition["num_head_channels"]]
    if "controlnet" in networks:
        embedding = networks["controlnet"]["conditioning_embedding_num_channels"]
        networks["controlnet"]["conditioning_embedding_num_channels"] = [8, *(n // divisor for n in embedding[1:])]
    header |= {"networks": networks, "scale_factor": 1.0}
    if num_inference_steps is not None:
        header["num_inference_steps"] = num_inference_steps
        if header["scheduler"]["class"] == "DDPMScheduler":
            header["scheduler"] = {**header["scheduler"], "num_train_timesteps": num_inference_steps}
    return header


def add_scaled_masks(
    header: dict[str, Any], folder: Path, *, divisor: int = NARROW, side: int, num_train_steps: int
) -> dict[str, Any]:
    """The same with the published mask networks, narrowed likewise, for maps of ``side``^3 voxels that fill 384 mm.

    Args:
        header: From ``scaled_header``.
        folder: Of the bundle; the size conditions are written there.
        divisor: Of every number of channels.
        side: A multiple of 32.
        num_train_steps: Time steps of the scheduler; NVIDIA's has 1000.
    """
    masks = known_bundles()["rflow-ct"].require_masks()
    networks = {role: dict(definition) for role, definition in masks.networks.items()}
    for definition in networks.values():
        key = "num_channels" if "num_channels" in definition else "channels"
        definition[key] = [number // divisor for number in definition[key]]
        definition["norm_num_groups"] = max(32 // divisor, 1)
        if "num_head_channels" in definition:
            definition["num_head_channels"] = [number // divisor for number in definition["num_head_channels"]]
    if side < 96:  # MAISI's own splits want three latent voxels or more in each of eight parts
        networks["mask_autoencoder"]["num_splits"] = 1
    folder.mkdir(parents=True, exist_ok=True)
    sizes = write_size_conditions(folder / SIZES_NAME)
    settings = {
        **masks.settings,
        "grid": {"shape": [side] * 3, "spacing_mm": [384.0 / side] * 3},
        "num_inference_steps": min(masks.settings["num_inference_steps"], num_train_steps),
        "scheduler": {**masks.settings["scheduler"], "num_train_timesteps": num_train_steps},
        "scale_factor": 1.0,
        "size_conditions": {"file": sizes.name, "sha256": sha256_of(sizes)},
    }
    return {**header, "networks": {**header["networks"], **networks}, "mask_generation": settings}
