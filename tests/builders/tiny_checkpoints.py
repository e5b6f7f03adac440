"""Checkpoints of tiny networks in NVIDIA's layout, training leftovers included."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import safetensors.torch
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import TraceKeys

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, Bundle
from maisi_aug.bundle_spec.known_bundles import KnownBundle

SCALE_FACTOR = 1.25
FILES = {
    "autoencoder": "models/autoencoder_v1.pt",
    "diffusion_unet": "models/diff_unet_3d_rflow-ct.pt",
    "controlnet": "models/controlnet_3d_rflow-ct.pt",
}

States = dict[str, dict[str, torch.Tensor]]


def saved(content: object) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def wrap(states: States) -> dict[str, Any]:
    """NVIDIA's layout, training leftovers included."""
    unet = states["diffusion_unet"]
    first = next(iter(unet.values()))
    return {
        "autoencoder": states["autoencoder"],
        "diffusion_unet": {
            "epoch": 3,
            "loss": np.float64(0.1),
            "num_train_timesteps": 1000,
            "scale_factor": MetaTensor(torch.tensor(SCALE_FACTOR), meta={"origin": TraceKeys.NONE}),
            "optimizer_state_dict": {"state": {0: {"exp_avg": first}}, "param_groups": [{"lr": 1e-4}]},
            "unet_state_dict": unet,
        },
        "controlnet": {"epoch": 1, "loss": 0.2, "controlnet_state_dict": states["controlnet"]},
    }


def draw_states(tiny: Bundle) -> States:
    """The weights of a bundle, changed to values that float16 cannot hold: they must arrive as they are."""
    loaded = {role: safetensors.torch.load_file(tiny.weight_path(role)) for role in NETWORK_ROLES}
    return {role: {key: value.float() * 1.001 for key, value in state.items()} for role, state in loaded.items()}


def narrow(known: KnownBundle, tiny: Bundle) -> KnownBundle:
    """A known bundle with networks of tiny width in place of the real ones."""
    header = {**known.header, "networks": tiny.spec.networks, "num_inference_steps": 2}
    return KnownBundle(**{**vars(known), "header": header})
