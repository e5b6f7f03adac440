"""Networks as nnU-Net's plans describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def describe_network(features: Sequence[int], *, num_convolutions: int = 1, **blocks: Any) -> dict[str, Any]:
    """A U-Net of plain blocks that halves all axes from stage to stage.

    Args:
        features: Channels of each stage.
        num_convolutions: Of each stage, down and up.
        blocks: What takes the place of ``n_conv_per_stage``, for other blocks on the way down.
    """
    num_stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": num_stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * num_stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (num_stages - 1),
            **(blocks or {"n_conv_per_stage": [num_convolutions] * num_stages}),
            "n_conv_per_stage_decoder": [num_convolutions] * (num_stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
