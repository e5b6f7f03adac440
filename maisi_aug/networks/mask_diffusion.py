"""Sample the latent of a label map from noise and ten sizes: all DDPM steps, or a few of a faster sampler.

DDPM: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, as MONAI's scheduler steps it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor

from maisi_aug.bundle_spec.decoding import ComputeType
from maisi_aug.networks.building import MaskNetworks, compute_in
from maisi_aug.networks.fewer_steps import PredictNoise, integrate_fast
from maisi_aug.system.progress import Report


@torch.inference_mode()
def sample_mask_latent(
    networks: MaskNetworks,
    condition: Tensor,
    latent_shape: Sequence[int],
    *,
    num_inference_steps: int,
    seed: int,
    report: Report | None = None,
    precision: ComputeType = "float32",
) -> Tensor:
    """Sample the latents of label maps.

    Args:
        networks: Mask U-Net and its scheduler.
        condition: ``(B, 10)`` float32 sizes in the order of ``mask_conditions.CONDITION_IDS``.
        latent_shape: Shape ``(C, i, j, k)`` of a latent.
        num_inference_steps: Number of steps; all time steps of the scheduler mean DDPM, fewer the faster sampler.
        seed: Seed of all noise, which is drawn on the CPU: the same on every device.
        report: Progress callback, called with (steps done, steps in all).
        precision: Precision of the network.

    Returns:
        ``(B, C, i, j, k)`` float32, still multiplied by the networks' scale factor.

    Raises:
        ValueError: There are more steps than the scheduler knows.
    """
    context = condition.unsqueeze(1).to(networks.device)  # (B, 1, 10): one token for cross-attention
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((len(condition), *latent_shape), generator=generator)  # (B, C, i, j, k)

    def predict(latent: Tensor, timesteps: Tensor) -> Tensor:
        moved = latent.to(networks.device)
        predicted: Tensor = networks.diffusion_unet(x=moved, timesteps=timesteps.to(networks.device), context=context)
        return predicted.float()

    with compute_in(precision, networks.device):
        if num_inference_steps == networks.scheduler.num_train_timesteps:
            return integrate_ddpm(predict, networks.scheduler, noise, generator=generator, report=report)
        noise = noise.to(networks.device)
        return integrate_fast(predict, networks.scheduler, noise, num_steps=num_inference_steps, report=report)


def integrate_ddpm(
    predict: PredictNoise,
    scheduler: DDPMScheduler,
    noise: Tensor,
    *,
    generator: torch.Generator,
    report: Report | None = None,
) -> Tensor:
    """Sample with every time step of DDPM.

    Args:
        predict: Function that predicts the noise in a latent at a time step.
        scheduler: MONAI's scheduler, with its time steps set.
        noise: ``(B, C, i, j, k)`` standard normal noise on the generator's device, where the steps are computed.
        generator: Generator of the noise that every step but the last adds.
        report: Progress callback, called with (steps done, steps in all).

    Returns:
        ``(B, C, i, j, k)`` latent.
    """
    scheduler.set_timesteps(scheduler.num_train_timesteps)
    latent = noise
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        output = predict(latent, timestep.float().expand(len(latent))).to(latent.device)
        latent, _ = scheduler.step(output, timestep, latent, generator)
        if report is not None:
            report(done, scheduler.num_train_timesteps)
    return latent
