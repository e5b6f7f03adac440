"""Sample the latent of a label map from noise and ten sizes: all DDPM steps, or a few of a faster sampler.

Notation: x_t = a_t x_0 + s_t e, where a_t^2 + s_t^2 = 1, e is the noise that the U-Net predicts, l_t = log(a_t / s_t).
DDPM: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, as MONAI's scheduler steps it.
The faster sampler is DPM-Solver++(2M): Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
Probabilistic Models", 2022, algorithm 2, at time steps that are evenly spread in l_t. For Gaussian data, whose perfect
noise predictor is known, 50 of its steps come nearer to the data's spread than 1000 steps of DDPM; 100 steps of DDIM do
not. MONAI's DDIMScheduler also removes the noise of T // N time steps wherever the next one lies, so that it is exact
for numbers of steps alone that divide T, and not at its own time steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor

from maisi_aug.bundle_spec.decoding import ComputeType
from maisi_aug.networks.building import MaskNetworks, compute_in
from maisi_aug.system.progress import Report

PredictNoise = Callable[[Tensor, Tensor], Tensor]
"""Predict the noise e from x_t ``(B, C, i, j, k)`` and t ``(B,)``."""


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
    """Draw the latents of label maps.

    Args:
        networks: The mask U-Net and its scheduler.
        condition: ``(B, 10)`` float32 sizes, of ``mask_conditions``.
        latent_shape: ``(C, i, j, k)``.
        num_inference_steps: All time steps of the scheduler for DDPM, fewer for the faster sampler.
        seed: Seed of all noise, which is drawn on the CPU: the same on every device.
        report: Called with (steps done, steps in all).
        precision: What the network computes in.

    Returns:
        ``(B, C, i, j, k)`` float32, still multiplied by the networks' scale factor.

    Raises:
        ValueError: For more steps than the scheduler knows.
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
    """Take every time step of DDPM.

    Args:
        predict: Predicts the noise.
        scheduler: MONAI's, with its steps.
        noise: ``(B, C, i, j, k)`` on the generator's device, where the steps are taken as well.
        generator: Generator of the noise that every step but the last adds.
        report: Called with (steps done, steps in all).
    """
    scheduler.set_timesteps(scheduler.num_train_timesteps)
    latent = noise
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        output = predict(latent, timestep.float().expand(len(latent))).to(latent.device)
        latent, _ = scheduler.step(output, timestep, latent, generator)
        if report is not None:
            report(done, scheduler.num_train_timesteps)
    return latent


def integrate_fast(
    predict: PredictNoise,
    scheduler: DDPMScheduler,
    noise: Tensor,
    *,
    num_steps: int,
    report: Report | None = None,
) -> Tensor:
    """Take fewer steps, each with one prediction, and add no noise on the way.

    Args:
        predict: Predicts the noise.
        scheduler: Tells how much noise there is at every time step.
        noise: ``(B, C, i, j, k)``.
        num_steps: How many.
        report: Called with (steps done, steps in all).

    Raises:
        ValueError: For more steps than the scheduler knows.
    """
    # (T,)
    kept = scheduler.alphas_cumprod.double().cpu()  # a_t^2
    # l_t = log(a_t / s_t), half the log signal-to-noise ratio
    levels = [0.5 * math.log(share / (1 - share)) for share in kept.tolist()]
    timesteps = choose_timesteps(levels, num_steps)
    latent, clean, before, h_before = noise, noise, None, 0.0
    for done, timestep in enumerate(timesteps, start=1):
        a, s = math.sqrt(kept[timestep]), math.sqrt(1 - kept[timestep])
        predicted = predict(latent, torch.full((len(latent),), float(timestep)))  # (B, C, i, j, k) noise e
        clean = (latent - s * predicted) / a  # x_0
        if done < num_steps:
            following = timesteps[done]
            a_next, s_next = math.sqrt(kept[following]), math.sqrt(1 - kept[following])
            h = levels[following] - levels[timestep]
            # A line through this x_0 and the one before stands for x_0 along the step.
            lean = 0.0 if before is None else h / (2 * h_before)
            along = clean if before is None else (1 + lean) * clean - lean * before
            latent = (s_next / s) * latent - a_next * math.expm1(-h) * along  # exact for a constant x_0 along the step
            before, h_before = clean, h
        if report is not None:
            report(done, num_steps)
    return clean


def choose_timesteps(levels: Sequence[float], num_steps: int) -> list[int]:
    """Return distinct time steps from the noisiest to the last, evenly spread in l_t as far as integers allow.

    Args:
        levels: l_t of every time step, falling.
        num_steps: How many to choose.

    Raises:
        ValueError: For more than there are.
    """
    last = len(levels) - 1
    if not 1 <= num_steps <= len(levels):
        raise ValueError(f"Mask sampling: expected 1 to {len(levels)} steps, found {num_steps}.")
    if num_steps == 1:
        return [last]
    share = [done / (num_steps - 1) for done in range(num_steps)]
    wanted = [levels[-1] + part * (levels[0] - levels[-1]) for part in share]
    chosen = [min(range(len(levels)), key=lambda t: abs(levels[t] - level)) for level in wanted]
    for place in range(num_steps - 2, -1, -1):  # near the end several levels fall on one time step
        chosen[place] = max(chosen[place], chosen[place + 1] + 1)
    return [min(timestep, last - place) for place, timestep in enumerate(chosen)]
