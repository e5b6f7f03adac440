"""From a latent to an image: the VAE's decoder, whole or in overlapping windows."""

from __future__ import annotations

from typing import cast

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

LatentShape = tuple[int, int, int]


@torch.inference_mode()
def decode_latent(
    autoencoder: nn.Module,
    latent: Tensor,
    *,
    scale_factor: float,
    window_shape: LatentShape | None = None,
    overlap: float = 0.4,
) -> Tensor:
    """Decode a latent to intensities in [0, 1].

    Args:
        autoencoder: MAISI's VAE.
        latent: ``(B, C, i, j, k)``, still multiplied by ``scale_factor``.
        scale_factor: The bundle's.
        window_shape: Latent voxels decoded at once; None, or a latent that fits, decodes the whole.
        overlap: Share of a window that neighbours have in common, blended with Gaussian weights.

    Returns:
        ``(B, 1, I, J, K)`` float32, clipped to [0, 1].
    """
    unscaled = latent / scale_factor

    def decode(window: Tensor) -> Tensor:
        return cast(Tensor, autoencoder.decode(window)).float()  # type: ignore[operator]

    if window_shape is None or all(side <= limit for side, limit in zip(latent.shape[2:], window_shape, strict=True)):
        image = decode(unscaled)
    else:
        image = cast(
            Tensor,
            sliding_window_inference(
                unscaled, window_shape, sw_batch_size=1, predictor=decode, overlap=overlap, mode="gaussian"
            ),
        )
    return image.clamp(0.0, 1.0)
