"""The objective of the mask generator's diffusion: the noise in latents of label maps, conditioned on ten sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.networks.mask_conditions import ABSENT
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.loop.processes import ALONE, WHOLE, Processes, Share
from maisi_aug.training.loop.run import Stateless
from maisi_aug.training.masks.recipe import MaskNoiseLossConfig

NUM_LEVELS = 8
"""Number of evenly spread noise levels at which every held-out map is validated."""


@dataclass(frozen=True, eq=False)
class SizedLatents:
    """Latents of label maps, with the size conditions that generation would use.

    Attributes:
        latents: One ``(C, i, j, k)`` tensor per map, not yet scaled.
        sizes: ``(N, 10)`` float32 sizes in the order of ``mask_conditions.CONDITION_IDS``.
    """

    latents: Sequence[Tensor]
    sizes: NDArray[np.float32]

    def gather(self, indices: Sequence[int], scale_factor: float) -> tuple[Tensor, Tensor]:
        """Return scaled latents ``(B, C, i, j, k)`` and their conditions ``(B, 1, 10)``, float32, of some maps.

        Args:
            indices: Numbers of the maps, from 0.
            scale_factor: Factor by which latents are multiplied.
        """
        clean = torch.stack([self.latents[index].float() for index in indices]) * scale_factor
        return clean, torch.from_numpy(self.sizes[list(indices)])[:, None]


@dataclass(frozen=True, eq=False)
class MaskNoiseObjective(Stateless):
    """Training objective of the mask U-Net: predict the noise e in x_t = a_t x_0 + s_t e, given organ sizes.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020.
    """

    unet: nn.Module
    scheduler: DDPMScheduler
    cases: SizedLatents
    config: MaskNoiseLossConfig
    scale_factor: float
    seed: int
    device: str

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that are trained: the U-Net."""
        return {"mask_diffusion_unet": self.unet}

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a share of a step's latents, and figures to log; every latent has a seed of its own.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            Scalar loss with gradients, and name -> figure to log.
        """
        own = share.slice_of(self.config.batch_count)
        indices, timesteps, noises = [], [], []
        for place in range(own.start, own.stop):
            generator = torch.Generator().manual_seed(derive_seed("mask diffusion", self.seed, step, place))
            indices.append(int(torch.randint(len(self.cases.latents), (), generator=generator)))
            timesteps.append(torch.randint(self.scheduler.num_train_timesteps, (), generator=generator))
            noises.append(torch.randn(self.cases.latents[0].shape, generator=generator))
        clean, condition = self.cases.gather(indices, self.scale_factor)
        noise, times = torch.stack(noises), torch.stack(timesteps)
        loss = self.compare(self.predict(clean, condition, noise, times), noise)
        return loss, {"timestep": times.float().mean()}

    def predict(self, clean: Tensor, condition: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the ``(B, C, i, j, k)`` float32 noise that the U-Net predicts.

        Args:
            clean: ``(B, C, i, j, k)`` scaled latents.
            condition: ``(B, 1, 10)`` sizes.
            noise: ``(B, C, i, j, k)`` noise that is added.
            timesteps: ``(B,)`` time steps.
        """
        noisy = self.scheduler.add_noise(original_samples=clean, noise=noise, timesteps=timesteps)
        output: Tensor = self.unet(
            x=noisy.to(self.device), timesteps=timesteps.to(self.device), context=condition.to(self.device)
        )
        return output.float()

    def compare(self, found: Tensor, noise: Tensor) -> Tensor:
        """Return the mean distance between predicted and added noise, L1 or L2 by the settings.

        Args:
            found: ``(B, C, i, j, k)`` predicted noise.
            noise: ``(B, C, i, j, k)`` noise that was added, on any device.

        Returns:
            Scalar mean over all values.
        """
        distance = functional.l1_loss if self.config.norm == "l1" else functional.mse_loss
        return distance(found, noise.to(self.device))


@dataclass(frozen=True, eq=False)
class MaskNoiseValidation:
    """Validation of the mask U-Net: loss on held-out maps, always with the same noise and time steps.

    Attributes:
        objective: Training objective.
        held_out: Latents and sizes of the held-out maps.
        processes: Processes that share the maps.
    """

    objective: MaskNoiseObjective
    held_out: SizedLatents
    processes: Processes = ALONE

    def __call__(self) -> dict[str, float]:
        """Return ``loss``; and ``loss_without_sizes``, with all sizes absent, to show how much they help."""
        own = [
            self._compare_case(index)
            for index in range(self.processes.rank, len(self.held_out.latents), self.processes.count)
        ]
        rows = [row for rows in self.processes.gather(own) for row in rows]
        return {"loss": fmean(told for told, _ in rows), "loss_without_sizes": fmean(untold for _, untold in rows)}

    def _compare_case(self, index: int) -> tuple[float, float]:
        objective = self.objective
        clean, condition = self.held_out.gather([index], objective.scale_factor)
        num_steps = objective.scheduler.num_train_timesteps
        timesteps = torch.tensor([int((level + 0.5) / NUM_LEVELS * num_steps) for level in range(NUM_LEVELS)])
        clean, condition = clean.expand(NUM_LEVELS, -1, -1, -1, -1), condition.expand(NUM_LEVELS, -1, -1)
        generator = torch.Generator().manual_seed(derive_seed("mask validation", objective.seed, index))
        noise = torch.randn(clean.shape, generator=generator)
        told, untold = (
            float(objective.compare(objective.predict(clean, context, noise, timesteps), noise))
            for context in (condition, torch.full_like(condition, ABSENT))
        )
        return told, untold
