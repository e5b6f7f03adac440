"""The objective of the mask generator's diffusion: the noise in latents of label maps, told ten sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.networks import mixed_precision
from maisi_aug.seeds import derive_seed
from maisi_aug.training.mask_recipe import MaskNoiseLossConfig

NUM_VALIDATION_LEVELS = 8


@dataclass(frozen=True, eq=False)
class SizedLatents:
    """Latents of label maps with what generation would be told of them.

    Attributes:
        latents: One ``(C, i, j, k)`` tensor a map, not yet scaled.
        sizes: ``(N, 10)`` float32 in the order of ``mask_conditions.CONDITION_IDS``.
    """

    latents: Sequence[Tensor]
    sizes: NDArray[np.float32]

    def gather(self, indices: Sequence[int], scale_factor: float) -> tuple[Tensor, Tensor]:
        """Scaled latents ``(B, C, i, j, k)`` and their conditions ``(B, 1, 10)``, float32."""
        clean = torch.stack([self.latents[index].float() for index in indices]) * scale_factor
        return clean, torch.from_numpy(self.sizes[list(indices)])[:, None]


class MaskNoiseObjective:
    """Predict the noise e in x_t = a_t x_0 + s_t e (Ho et al., NeurIPS 2020), the sizes told by cross-attention."""

    def __init__(
        self,
        unet: nn.Module,
        scheduler: DDPMScheduler,
        cases: SizedLatents,
        config: MaskNoiseLossConfig,
        *,
        scale_factor: float,
        seed: int,
        device: str,
    ) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.cases = cases
        self.config = config
        self.scale_factor = scale_factor
        self.seed = seed
        self.device = device

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The U-Net."""
        return {"mask_diffusion_unet": self.unet}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of the latents of a step."""
        generator = torch.Generator().manual_seed(derive_seed("mask diffusion", self.seed, step))
        count = self.config.batch_count
        indices = torch.randint(len(self.cases.latents), (count,), generator=generator).tolist()
        clean, condition = self.cases.gather(indices, self.scale_factor)
        timesteps = torch.randint(self.scheduler.num_train_timesteps, (count,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        found = self.predict(self.unet, clean, condition, noise, timesteps)
        loss = self._compare(found, noise.to(self.device))
        return loss, {"timestep": float(timesteps.float().mean())}

    def predict(self, unet: nn.Module, clean: Tensor, condition: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a U-Net finds, ``(B, C, i, j, k)`` float32."""
        noisy = self.scheduler.add_noise(original_samples=clean, noise=noise, timesteps=timesteps)
        output: Tensor = unet(
            x=noisy.to(self.device), timesteps=timesteps.to(self.device), context=condition.to(self.device)
        )
        return output.float()

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, Any]:
        """Nothing beside the network."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""

    @torch.no_grad()
    def validate(self, unet: nn.Module, held_out: SizedLatents) -> dict[str, float]:
        """The loss on maps that were held out, with the same noise and time steps at every call.

        Returns:
            ``loss``; and ``loss_without_sizes``, where all sizes are told as absent: how much the sizes help.
        """
        levels = (np.arange(NUM_VALIDATION_LEVELS) + 0.5) / NUM_VALIDATION_LEVELS
        timesteps = torch.from_numpy((levels * self.scheduler.num_train_timesteps).astype(np.int64))
        told, untold = [], []
        for index in range(len(held_out.latents)):
            clean, condition = held_out.gather([index], self.scale_factor)
            clean, condition = clean.expand(len(levels), -1, -1, -1, -1), condition.expand(len(levels), -1, -1)
            generator = torch.Generator().manual_seed(derive_seed("mask validation", self.seed, index))
            noise = torch.randn(clean.shape, generator=generator)
            with mixed_precision(self.device):
                for losses, context in ((told, condition), (untold, torch.full_like(condition, -1.0))):
                    found = self.predict(unet, clean, context, noise, timesteps)
                    losses.append(float(self._compare(found, noise.to(self.device))))
        return {"loss": round(float(np.mean(told)), 6), "loss_without_sizes": round(float(np.mean(untold)), 6)}

    def _compare(self, found: Tensor, noise: Tensor) -> Tensor:
        return functional.l1_loss(found, noise) if self.config.norm == "l1" else functional.mse_loss(found, noise)
