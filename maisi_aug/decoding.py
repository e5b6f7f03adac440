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
        window_shape: Latent voxels decoded at once, fewer along sides that are shorter; None, or a latent that fits,
            decodes the whole.
        overlap: Share of a window that neighbours have in common, blended with Gaussian weights.

    Returns:
        ``(B, 1, I, J, K)`` float32, clipped to [0, 1].
    """
    # Windows are blended in the latent's type, and neighbouring bfloat16 values are up to 8 HU apart.
    unscaled = latent.float() / scale_factor
    sides = cast(LatentShape, tuple(latent.shape[2:]))
    # Not filled up with zeros where a side is shorter: they would change what the decoder's norms see.
    window = sides if window_shape is None else tuple(map(min, window_shape, sides))

    def decode(part: Tensor) -> Tensor:
        return cast(Tensor, autoencoder.decode(part)).float()  # type: ignore[operator]

    if window == sides:
        image = decode(unscaled)
    else:
        image = cast(
            Tensor,
            sliding_window_inference(
                unscaled, window, sw_batch_size=1, predictor=decode, overlap=overlap, mode="gaussian"
            ),
        )
    return image.clamp(0.0, 1.0)
