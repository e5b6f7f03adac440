"""From ten sizes to a label map as NVIDIA's published scripts do it, written plainly from MONAI's public classes.

The oracle of the tests and the other side of the benchmark, as ``reference_loop`` is for images: every DDPM step, the
logits of all classes for the whole map, and a clean-up that goes through the whole map once for every organ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from tests.oracles.reference_loop import load_networks

CLASSES = {"mask_autoencoder": AutoencoderKlMaisi, "mask_diffusion_unet": DiffusionModelUNet}
LIVER, HEPATIC_VESSEL, BODY = 1, 25, 200
HOSTS = {23: 28, 24: 4, 26: 1, 27: 62, 128: 200, 129: 5}
CUBE = np.ones((3, 3, 3), dtype=bool)


class ReferenceMasks:
    """The mask networks of a bundle and the loop over them."""

    def __init__(
        self,
        definitions: Mapping[str, Mapping[str, Any]],
        states: Mapping[str, Mapping[str, Tensor]],
        scheduler: Mapping[str, Any],
        *,
        scale_factor: float = 1.0,
        device: str = "cpu",
        is_exact: bool = False,
    ) -> None:
        self.device, self.scale_factor = device, scale_factor
        self.networks = load_networks(CLASSES, definitions, states, device, is_exact=is_exact)
        self.dtype = torch.float64 if is_exact else torch.float32
        self.scheduler = DDPMScheduler(**{key: value for key, value in scheduler.items() if key != "class"})

    @torch.no_grad()
    def sample(self, noise: Tensor, sizes: Sequence[float], *, generator: torch.Generator) -> Tensor:
        """From noise ``(1, C, i, j, k)`` to a latent through every time step."""
        context = torch.tensor([[list(sizes)]], dtype=torch.float32, device=self.device).to(self.dtype)
        self.scheduler.set_timesteps(self.scheduler.num_train_timesteps)
        latent = noise.to(self.device, self.dtype)
        for timestep in self.scheduler.timesteps:
            predicted = self.networks["mask_diffusion_unet"](
                x=latent, timesteps=torch.Tensor((timestep,)).to(self.device), context=context
            )
            latent = self.scheduler.step(predicted.float().cpu(), timestep, latent.cpu(), generator)[0].to(self.device)
        return latent

    @torch.no_grad()
    def decode_logits(self, latent: Tensor) -> Tensor:
        """Logits ``(1, C, I, J, K)`` of all classes, gathered on the CPU."""
        logits: Tensor = self.networks["mask_autoencoder"].decode_stage_2_outputs(latent / self.scale_factor)
        return logits.to(self.dtype).cpu()

    def decode(self, latent: Tensor, class_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Label ids ``(I, J, K)`` from the most likely of all classes."""
        classes: NDArray[np.int64] = torch.softmax(self.decode_logits(latent), dim=1).argmax(dim=1)[0].numpy()
        ids: NDArray[np.uint8] = class_ids[classes]
        return ids


def clean_organ_by_organ(label_map: NDArray[np.uint8], keep_tumor_ids: Sequence[int] = ()) -> NDArray[np.uint8]:
    """Put a drawn label map ``(I, J, K)`` right with whole-map operations: what the published post-processing does.

    Vessels and tumours that were not asked for go to their host, the body becomes one piece without holes, and of every
    organ the largest part stays, closed and without holes; what is left of it becomes body.
    """
    cleaned = label_map.copy()
    cleaned[cleaned == HEPATIC_VESSEL] = LIVER
    for tumor, host in HOSTS.items():
        if tumor not in keep_tumor_ids:
            cleaned[cleaned == tumor] = host
    body = ndimage.binary_fill_holes(_largest_part(cleaned > 0))
    cleaned[~body] = 0
    cleaned[body & (cleaned == 0)] = BODY
    for label_id in np.unique(cleaned):
        if label_id in (0, BODY):
            continue
        mask = cleaned == label_id
        closed = ndimage.binary_erosion(ndimage.binary_dilation(mask, CUBE), CUBE, border_value=1)
        whole = ndimage.binary_fill_holes(_largest_part(closed))
        cleaned[mask & ~whole] = BODY
        cleaned[whole & (cleaned == BODY)] = label_id
    return cleaned


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, num_parts = ndimage.label(mask, CUBE)
    if num_parts < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = parts == sizes.argmax()
    return largest
