"""The latent loop: from noise and conditions to a latent.

Notation: x_t latent at time t, v the U-Net's output (velocity of rectified flow, noise of DDPM), c the condition.
Guidance: v = v(uncond) + s (v(c) - v(uncond)) with s = guidance_scale (Ho and Salimans, "Classifier-Free Diffusion
Guidance", 2022); MAISI's unconditional branch is the same label map with every tumour turned into its host organ and
the modality code "unknown", or the code alone where there is no label map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn

from maisi_aug.bundle_spec.solvers import PLAIN_SOLVER, Sampling, SolverName
from maisi_aug.networks.building import Networks, count_control_channels
from maisi_aug.networks.conditioning import name_for_unet, to_control
from maisi_aug.networks.fewer_steps import integrate_fast
from maisi_aug.networks.flow_solvers import integrate_flow, spread_times
from maisi_aug.system.progress import Report


@dataclass(frozen=True)
class Conditions:
    """Encoded conditions of one sampling run.

    Attributes:
        label_bits: ``(B, 8, I, J, K)`` float bits of the label map; None to draw without the ControlNet.
        modality: ``(B,)`` int64 codes of modalities.
        spacing: ``(B, 3)`` float spacing in hundredths of a millimetre along I, J, K.
        regions: Uppermost and lowest body region, ``(B, 4)`` each; None for networks that are not conditioned on it.
        surroundings: ``(B, 2, I, J, K)`` result of ``to_surroundings``, for ControlNets that take it; None if nothing
            of the image is known.
    """

    label_bits: Tensor | None
    modality: Tensor
    spacing: Tensor
    regions: tuple[Tensor, Tensor] | None = None
    surroundings: Tensor | None = None

    @property
    def for_unet(self) -> dict[str, Tensor]:
        """Conditions of the U-Net by argument name."""
        return name_for_unet(self.modality, self.spacing, self.regions)


@dataclass(frozen=True)
class KnownLatent:
    """Known part of a latent, which is restored at every sampling step so that the rest fits to it.

    Source: Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", CVPR 2022.

    Attributes:
        latent: ``(B, C, i, j, k)`` of the known image, multiplied by the bundle's scale factor.
        is_known: ``(B, 1, i, j, k)`` bool.
        num_resamplings: Number of times that each step but the last is taken. In between, noise is added again, so that
            the drawn part adapts to the known part.
    """

    latent: Tensor
    is_known: Tensor
    num_resamplings: int = 1


_PASS_ON = nn.Identity()
"""Stands in for the condition embedding once its value is known; always the same, or compilers would start anew."""


@torch.inference_mode()
def sample_latent(
    networks: Networks,
    conditions: Conditions,
    noise: Tensor,
    *,
    num_inference_steps: int,
    solver: SolverName = PLAIN_SOLVER,
    guidance_scale: float = 0.0,
    unconditional: Conditions | None = None,
    embed_once: bool = True,
    generator: torch.Generator | None = None,
    known: KnownLatent | None = None,
    report: Report | None = None,
) -> Tensor:
    """Integrate from noise to a latent.

    Args:
        networks: ControlNet, U-Net and scheduler.
        conditions: Conditions of the images wanted.
        noise: ``(B, C, i, j, k)`` standard normal.
        num_inference_steps: Steps of the scheduler; fewer than all of DDPM are those of ``integrate_fast``.
        solver: Solver of a rectified flow.
        guidance_scale: 0 for none; 1-5 enforces tumours at twice the cost.
        unconditional: Conditions of the unconditional branch; needed when ``guidance_scale`` is above 0.
        embed_once: Compute the condition embedding once; False computes it at every step, as MAISI does.
        generator: Generator of the noise that DDPM adds at every step and resampling between steps, on the device of
            ``noise``; rectified flow alone adds none.
        known: Known part, which is put back at every step; None for none.
        report: Called with (steps done, steps in all).

    Returns:
        ``(B, C, i, j, k)`` latent, still multiplied by the bundle's scale factor.

    Raises:
        ValueError: When ``guidance_scale`` is above 0 and the unconditional branch is missing, for more steps than the
            scheduler knows, for fewer of DDPM while a part is put back, or for a solver of second order with DDPM or
            with steps that are taken again.
    """
    sampling = Sampling(num_inference_steps, solver)
    if guidance_scale <= 0:
        predict = _predictor(networks, conditions, embed_once)
        return _integrate(networks, noise, predict, sampling, generator, known, report)
    if unconditional is None:
        raise ValueError("Guidance: the conditions of the unconditional branch are missing.")
    with_condition = _predictor(networks, conditions, embed_once)
    without_condition = _predictor(networks, unconditional, embed_once)

    def guided(latent: Tensor, timesteps: Tensor) -> Tensor:
        base = without_condition(latent, timesteps)
        return base + guidance_scale * (with_condition(latent, timesteps) - base)  # classifier-free guidance

    return _integrate(networks, noise, guided, sampling, generator, known, report)


Predict = Callable[[Tensor, Tensor], Tensor]


def _predictor(networks: Networks, conditions: Conditions, embed_once: bool) -> Predict:
    if conditions.label_bits is None:
        return partial(_forward, networks, conditions, None)
    embedding = networks.controlnet.controlnet_cond_embedding
    assert isinstance(embedding, nn.Module)
    num_channels = count_control_channels(networks.controlnet)
    control = to_control(conditions.label_bits, conditions.surroundings, num_channels=num_channels)
    known = embedding(control) if embed_once else None  # (B, channels, i, j, k)

    def predict(latent: Tensor, timesteps: Tensor) -> Tensor:
        if known is None:
            return _forward(networks, conditions, control, latent, timesteps)
        networks.controlnet.controlnet_cond_embedding = _PASS_ON
        try:
            return _forward(networks, conditions, known, latent, timesteps)
        finally:
            networks.controlnet.controlnet_cond_embedding = embedding

    return predict


def _forward(
    networks: Networks, conditions: Conditions, controlnet_cond: Tensor | None, latent: Tensor, timesteps: Tensor
) -> Tensor:
    down, middle = None, None
    if controlnet_cond is not None:
        # residuals of the U-Net's levels, and of its middle block
        down, middle = networks.controlnet(
            x=latent, timesteps=timesteps, controlnet_cond=controlnet_cond, class_labels=conditions.modality
        )
    output: Tensor = networks.diffusion_unet(
        x=latent,
        timesteps=timesteps,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        **conditions.for_unet,
    )
    return output.float()


def _integrate(
    networks: Networks,
    noise: Tensor,
    predict: Predict,
    sampling: Sampling,
    generator: torch.Generator | None,
    known: KnownLatent | None,
    report: Report | None,
) -> Tensor:
    scheduler, num_steps = networks.scheduler, sampling.num_steps
    if sampling.solver != PLAIN_SOLVER:
        return _integrate_flow(scheduler, noise, predict, sampling, known, report)
    if isinstance(scheduler, DDPMScheduler) and num_steps < scheduler.num_train_timesteps:
        if known is not None:
            raise ValueError(f"DDPM: expected every time step where a part is known, found {num_steps} of them.")
        return integrate_fast(predict, scheduler, noise, num_steps=num_steps, report=report)
    if isinstance(scheduler, RFlowScheduler):
        scheduler.set_timesteps(num_steps, device=noise.device, input_img_size_numel=noise[0, 0].numel())
    else:
        scheduler.set_timesteps(num_steps, device=noise.device)
    latent = noise
    timesteps = scheduler.timesteps
    if timesteps.is_floating_point():
        timesteps = timesteps.float()  # MONAI keeps float16, which autocast on a CPU cannot concatenate; same values
    # (steps,) the time step after each, 0 at the end
    following = torch.cat((timesteps[1:], torch.zeros(1, dtype=timesteps.dtype, device=timesteps.device)))
    for done, (timestep, next_timestep) in enumerate(zip(timesteps, following, strict=True), start=1):
        num_times = 1 if known is None or done == num_steps else known.num_resamplings
        for time in range(num_times):
            if known is not None:
                latent = _put_back(scheduler, known, latent, noise, timestep)
            output = predict(latent, timestep.expand(len(latent)).to(noise.device))  # timesteps: (B,)
            if isinstance(scheduler, RFlowScheduler):
                latent, _ = scheduler.step(output, timestep, latent, next_timestep)
            else:
                latent, _ = scheduler.step(output, timestep, latent, generator)
            if time + 1 < num_times:
                latent = _noise_again(scheduler, latent, timestep, next_timestep, generator)
        if report is not None:
            report(done, num_steps)
    # the known part ends without noise
    return latent if known is None else torch.where(known.is_known, known.latent, latent)


def _integrate_flow(
    scheduler: RFlowScheduler | DDPMScheduler,
    noise: Tensor,
    predict: Predict,
    sampling: Sampling,
    known: KnownLatent | None,
    report: Report | None,
) -> Tensor:
    """The latent by a solver of second order."""
    if not isinstance(scheduler, RFlowScheduler):
        raise ValueError(f"Sampling: expected a rectified flow for solver '{sampling.solver}', found DDPM.")
    if known is not None and known.num_resamplings > 1:
        raise ValueError(
            f"Sampling: solver '{sampling.solver}' cannot be combined with resampling, which repeats steps."
        )
    num_training = scheduler.num_train_timesteps

    def velocity(latent: Tensor, time: float) -> Tensor:
        return predict(latent, torch.full((len(latent),), time * num_training, device=latent.device))

    def restore(latent: Tensor, time: float) -> Tensor:
        if known is None:
            return latent
        return _put_back(scheduler, known, latent, noise, torch.tensor(time * num_training))

    times = spread_times(scheduler, sampling.num_steps, noise[0, 0].numel())
    latent = integrate_flow(velocity, noise, times, solver=sampling.solver, restore=restore, report=report)
    return latent if known is None else torch.where(known.is_known, known.latent, latent)


def _put_back(
    scheduler: RFlowScheduler | DDPMScheduler, known: KnownLatent, latent: Tensor, noise: Tensor, timestep: Tensor
) -> Tensor:
    """The latent with its known part as noisy as the rest: along the same noise at every step."""
    timesteps = timestep.expand(len(latent)).to(noise.device)
    noisy = scheduler.add_noise(original_samples=known.latent, noise=noise, timesteps=timesteps)
    mixed: Tensor = torch.where(known.is_known, noisy, latent)  # is_known (B, 1, i, j, k) broadcasts over C
    return mixed


def _noise_again(
    scheduler: RFlowScheduler | DDPMScheduler,
    latent: Tensor,
    timestep: Tensor,
    next_timestep: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Bring a latent from the next, less noisy time step back to this one.

    With signal a and noise s at either time (rectified flow: a = 1 - t, s = t; DDPM: a^2 = alpha-bar, s^2 = 1 - a^2):
    x_t = (a / a') x_t' + (s^2 - (a s' / a')^2)^(1/2) e.
    """
    if isinstance(scheduler, RFlowScheduler):
        level, next_level = (float(t) / scheduler.num_train_timesteps for t in (timestep, next_timestep))
        share = (1 - level) / (1 - next_level)
        variance = level**2 - (share * next_level) ** 2
    else:
        signal, next_signal = (float(scheduler.alphas_cumprod[int(t)]) for t in (timestep, next_timestep))
        share, variance = (signal / next_signal) ** 0.5, 1 - signal / next_signal
    fresh = torch.randn(latent.shape, generator=generator, device=latent.device)  # (B, C, i, j, k)
    noisy: Tensor = share * latent + max(0.0, variance) ** 0.5 * fresh
    return noisy
