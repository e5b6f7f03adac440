"""The latent of MONAI's plain loop, and a faster sampler whose output for known data is the data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.inferers.inferer import DiffusionInferer
from monai.networks.schedulers.ddim import DDIMScheduler
from monai.networks.schedulers.ddpm import DDPMScheduler
from scipy import stats
from torch import Tensor, nn

from maisi_aug.networks.building import MaskNetworks, build_network
from maisi_aug.networks.fewer_steps import PredictNoise, choose_timesteps, integrate_fast
from maisi_aug.networks.mask_diffusion import integrate_ddpm, sample_mask_latent
from tests.builders.tiny_masks import build_mask_networks, build_mask_settings

BETAS = {key: value for key, value in build_mask_settings()["scheduler"].items() if key != "class"}
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
VARIANCES = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)
TURN = torch.linalg.qr(torch.tensor([[1.0, 2.0, 0.5], [0.3, -1.0, 1.0], [0.7, 0.2, 1.5]], dtype=torch.float64))[0]
COVARIANCE = TURN @ torch.diag(VARIANCES) @ TURN.T


def scheduler_of(num_train_timesteps: int = 1000) -> DDPMScheduler:
    return DDPMScheduler(**{**BETAS, "num_train_timesteps": num_train_timesteps})


def predict_for_gaussian(scheduler: DDPMScheduler) -> PredictNoise:
    """The best guess of the noise e in x_t = a x_0 + s e, x_0 from N(m, C): s (a^2 C + s^2)^-1 (x_t - a m)."""
    kept = scheduler.alphas_cumprod.double()

    def predict(latent: Tensor, timesteps: Tensor) -> Tensor:
        share = kept[int(timesteps[0])]
        inverse = torch.linalg.inv(share * COVARIANCE + (1 - share) * torch.eye(3, dtype=torch.float64))
        offset = latent.double().flatten(1) - share.sqrt() * MEAN
        noise: Tensor = (1 - share).sqrt() * offset @ inverse
        return noise.view_as(latent)

    return predict


def spread_of(outputs: Tensor) -> Tensor:
    """Standard deviation along the data's axes relative to the data's, from the images of 0 and the unit vectors.

    Every step is affine in the latent, so that these tell the whole output distribution for normal noise.
    """
    points = outputs.flatten(1)
    matrix = (points[1:] - points[0]).T
    turned = TURN.T @ matrix @ matrix.T @ TURN
    return (torch.diag(turned) / VARIANCES).sqrt()


def unit_noise() -> Tensor:
    return torch.cat((torch.zeros(1, 3), torch.eye(3))).double().view(4, 3, 1, 1, 1)


@pytest.mark.parametrize(("num_steps", "tolerance"), [(15, 0.03), (25, 0.015), (50, 0.01), (200, 0.01), (999, 0.01)])
def test_fast_sampler_has_the_spread_and_the_mean_of_gaussian_data(num_steps: int, tolerance: float) -> None:
    scheduler = scheduler_of()
    outputs = integrate_fast(predict_for_gaussian(scheduler), scheduler, unit_noise(), num_steps=num_steps)
    assert spread_of(outputs).tolist() == pytest.approx([1.0] * 3, abs=tolerance)
    # Noise has mean 0 at the first time step, data have a little of their own left there: 1% of MEAN.
    assert outputs[0].flatten().tolist() == pytest.approx(MEAN.tolist(), abs=0.05)


def test_fast_sampler_clips_what_the_scheduler_clips() -> None:
    scheduler = DDPMScheduler(**{**BETAS, "clip_sample": True, "clip_sample_max": 0.75})
    outputs = integrate_fast(predict_for_gaussian(scheduler), scheduler, unit_noise(), num_steps=25)
    assert -1.0 <= float(outputs.min()) < 0
    assert float(outputs.max()) == 0.75, "the data reach beyond 2"


def test_as_many_steps_of_monais_ddim_are_much_further_off() -> None:
    scheduler, ddim = scheduler_of(), DDIMScheduler(**BETAS)
    ddim.set_timesteps(50)
    predict, latent = predict_for_gaussian(scheduler), unit_noise()
    for timestep in ddim.timesteps:
        latent, _ = ddim.step(predict(latent, timestep.expand(4)), timestep, latent)
    assert (spread_of(latent) - 1).abs().max() > 0.08
    ours = integrate_fast(predict, scheduler, unit_noise(), num_steps=50)
    assert (spread_of(ours) - 1).abs().max() < 0.01


def test_all_steps_of_ddpm_have_the_spread_of_gaussian_data() -> None:
    scheduler, generator = scheduler_of(), torch.Generator().manual_seed(0)
    noise = torch.randn((3000, 3, 1, 1, 1), generator=generator, dtype=torch.float64)
    points = integrate_ddpm(predict_for_gaussian(scheduler), scheduler, noise, generator=generator).flatten(1)
    spread = (((points - points.mean(0)) @ TURN).var(0) / VARIANCES).sqrt()
    assert spread.tolist() == pytest.approx([0.973, 0.994, 0.997], abs=0.04)
    assert points.mean(0).tolist() == pytest.approx(MEAN.tolist(), abs=0.15)


def test_fast_sampler_keeps_the_shares_and_the_widths_of_two_kinds_of_data() -> None:
    scheduler = scheduler_of()
    kept = scheduler.alphas_cumprod.double()
    shares, means, widths = np.array([0.3, 0.7]), np.array([-1.0, 1.0]), np.array([0.15, 0.3])

    def predict(latent: Tensor, timesteps: Tensor) -> Tensor:
        share = float(kept[int(timesteps[0])])
        variance = share * widths**2 + 1 - share
        offset = latent.numpy().reshape(-1, 1) - np.sqrt(share) * means
        weights = shares * stats.norm.pdf(offset / np.sqrt(variance)) / np.sqrt(variance) + 1e-300
        score = -(weights * offset / variance).sum(1) / weights.sum(1)
        return torch.from_numpy(-np.sqrt(1 - share) * score).view_as(latent)

    quantiles = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    noise = torch.from_numpy(quantiles).view(-1, 1, 1, 1, 1)
    points = integrate_fast(predict, scheduler, noise, num_steps=50).flatten().numpy()
    low, high = points[points < -0.3], points[points >= -0.3]
    assert len(low) / 2000 == pytest.approx(0.3, abs=0.01)
    assert [low.mean(), high.mean()] == pytest.approx(means, abs=0.02)
    assert [low.std(), high.std()] == pytest.approx(widths, rel=0.05)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50, 500, 999, 1000])
def test_time_steps_fall_from_the_noisiest_to_the_last_one_without_repeats(num_steps: int) -> None:
    kept = scheduler_of().alphas_cumprod.double()
    timesteps = choose_timesteps((kept / (1 - kept)).log().mul(0.5).tolist(), num_steps)
    assert len(timesteps) == num_steps
    assert timesteps[0] == 999
    assert num_steps == 1 or timesteps[-1] == 0
    assert all(earlier > later for earlier, later in pairwise(timesteps))


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 1000 steps, found {num_steps}"):
        integrate_fast(lambda x, _: x, scheduler_of(), unit_noise(), num_steps=num_steps)


@pytest.fixture(scope="module")
def networks() -> MaskNetworks:
    torch.manual_seed(0)
    unet = build_network(build_mask_networks()["mask_diffusion_unet"]).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return MaskNetworks(nn.Identity(), unet.requires_grad_(False), scheduler_of(12), 1.0, "cpu")


CONDITION = torch.tensor([[0.5, 0.4, -1.0, 0.2, 0.9, -1.0, -1.0, 0.3, -1.0, -1.0]])
SHAPE = (4, 8, 6, 4)


def test_ddpm_is_monais_plain_loop(networks: MaskNetworks) -> None:
    scheduler = scheduler_of(12)
    scheduler.set_timesteps(12)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        expected = DiffusionInferer(scheduler).sample(
            input_noise=torch.randn(1, *SHAPE),
            diffusion_model=networks.diffusion_unet,
            scheduler=scheduler,
            conditioning=CONDITION[None],
            verbose=False,
        )
    calls: list[tuple[int, int]] = []
    found = sample_mask_latent(
        networks, CONDITION, SHAPE, num_inference_steps=12, seed=5, report=lambda *call: calls.append(call)
    )
    assert torch.equal(found, expected)
    assert calls == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize("num_steps", [5, 12])
def test_seed_and_condition_decide(num_steps: int, networks: MaskNetworks) -> None:
    def draw(seed: int, condition: Tensor = CONDITION) -> Tensor:
        return sample_mask_latent(networks, condition, SHAPE, num_inference_steps=num_steps, seed=seed)

    first = draw(1)
    assert first.shape == (1, *SHAPE)
    assert first.dtype == torch.float32
    assert torch.equal(draw(1), first)
    assert not torch.allclose(draw(2), first)
    assert not torch.allclose(draw(1, CONDITION.flip(1)), first)
