"""Decode the latent of a label map to ids with MAISI's mask decoder, without holding 125 classes for the whole map.

The decoder runs up to its last convolution. That one, and the choice of the most likely class, go through the map in
slabs along I with a margin of one voxel, which is all that a convolution of width 3 sees: same values, same classes.
Where the features of the map take much memory, all layers go through it in slabs as well (``streaming``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiUpsample
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import ComputeType
from maisi_aug.networks.building import compute_in
from maisi_aug.networks.streaming import is_streamable, stream_slabs
from maisi_aug.system.content import read_json

Function = Callable[[Tensor], Tensor]
MAX_LOGITS = 1 << 23
"""Number of logits held at once: 32 MB in float32."""
MIN_SLAB = 4
"""Voxels along I that are classified at once, whatever their logits take: of thinner slabs the margin is most."""
MAX_FEATURES = 1 << 28
"""Features of the whole map, in numbers, above which the decoder goes through it in slabs: 1 GB in float32."""


@cache
def class_ids() -> NDArray[np.uint8]:
    """Return the ``(125,)`` label ids of the classes of MAISI's mask decoder."""
    path = Path(__file__).parents[1].joinpath("data") / "mask_channels.json"
    return np.array(read_json(path)["ids"], dtype=np.uint8)


@torch.inference_mode()
def decode_label_map(
    autoencoder: nn.Module,
    latent: Tensor,
    *,
    scale_factor: float,
    precision: ComputeType = "float32",
) -> NDArray[np.uint8]:
    """Decode one latent to a label map.

    Args:
        autoencoder: MAISI's VAE of label maps; with plain layers, large maps are decoded in slabs.
        latent: ``(1, C, i, j, k)``, still multiplied by ``scale_factor``.
        scale_factor: Scale factor of the mask networks.
        precision: Precision of the network.

    Returns:
        ``(I, J, K)`` uint8 MAISI label ids.
    """
    with compute_in(precision, latent.device.type):
        classes = decode_classes(autoencoder, latent.float() / scale_factor)
    ids: NDArray[np.uint8] = class_ids()[classes[0].cpu().numpy()]
    return ids


def decode_classes(
    autoencoder: nn.Module, latent: Tensor, *, max_features: int = MAX_FEATURES, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Decode latents to the most likely class of every voxel.

    Args:
        autoencoder: MAISI's VAE of label maps.
        latent: ``(B, C, i, j, k)``, not scaled.
        max_features: Number of features of a map above which it is decoded in slabs.
        max_logits: Number of logits held at once; a slab is at least ``MIN_SLAB`` voxels thick.

    Returns:
        ``(B, I, J, K)`` uint8 classes, on the device of the latent.
    """
    *blocks, convolution = cast(nn.ModuleList, cast(nn.Module, autoencoder.decoder).blocks)
    features = cast(Tensor, cast(nn.Module, autoencoder.post_quant_conv)(latent))  # (B, C', i, j, k)
    num_classes, num_channels = next(convolution.parameters()).shape[:2]

    def classify(part: Tensor) -> Tensor:
        # Classes whose logits bfloat16 cannot tell apart would be decided by their order.
        with torch.autocast(part.device.type, enabled=False):
            logits: Tensor = convolution(part.float())  # (B, classes, slab, J, K)
        return logits.argmax(dim=1, keepdim=True).to(torch.uint8)  # (B, 1, slab, J, K)

    def classify_slabs(part: Tensor) -> Tensor:
        thickness = _thickness(part[:, 0], num_classes, max_logits)
        return torch.cat(list(_by_slab(classify, part, thickness)), dim=2)

    factor = 2 ** sum(isinstance(block, MaisiUpsample) for block in blocks)
    num_parts = math.ceil(4 * features[:, 0].numel() * factor**3 * num_channels / max_features)
    if num_parts > 4 and is_streamable(cast(nn.Module, autoencoder.decoder)):
        return torch.cat(list(stream_slabs(blocks, features, classify_slabs, num_parts=num_parts)), dim=2)[:, 0]
    for block in blocks:
        features = cast(Tensor, block(features))
    return classify_slabs(features)[:, 0]


def _thickness(like: Tensor, num_channels: int, max_numbers: int) -> int:
    """Return the thickness along I of slabs of a ``(B, I, J, K)`` map with at most ``max_numbers``."""
    return max(MIN_SLAB, max_numbers // (like[:, 0].numel() * num_channels))


def _by_slab(function: Function, features: Tensor, thickness: int) -> Iterator[Tensor]:
    """Apply a function that needs one neighbouring voxel to every slab along I."""
    side = features.shape[2]
    for start in range(0, side, thickness):
        stop = min(side, start + thickness)
        low, high = max(0, start - 1), min(side, stop + 1)  # one voxel more on either side, which is cut off again
        yield function(features[:, :, low:high])[:, :, start - low : stop - low]
