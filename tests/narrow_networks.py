"""NVIDIA's published network definitions at a fraction of their width: the exact classes and switches, little work."""

from __future__ import annotations

from typing import Any

from maisi_aug.known_bundles import known_bundles

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
    embedding = networks["controlnet"]["conditioning_embedding_num_channels"]
    networks["controlnet"]["conditioning_embedding_num_channels"] = [8, *(n // divisor for n in embedding[1:])]
    header |= {"networks": networks, "scale_factor": 1.0}
    if num_inference_steps is not None:
        header["num_inference_steps"] = num_inference_steps
        if header["scheduler"]["class"] == "DDPMScheduler":
            header["scheduler"] = {**header["scheduler"], "num_train_timesteps": num_inference_steps}
    return header
