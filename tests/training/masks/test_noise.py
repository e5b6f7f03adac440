from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn

from maisi_aug.networks.building import build_network, build_scheduler
from maisi_aug.training.loop.processes import Share
from maisi_aug.training.masks.noise import MaskNoiseObjective, MaskNoiseValidation, SizedLatents
from maisi_aug.training.masks.recipe import MaskNoiseLossConfig
from tests.builders.tiny_masks import build_mask_networks, build_mask_settings
from tests.oracles.rounding import depth_of, rounding

SCALE = 0.5


def build_cases(num_cases: int = 3) -> SizedLatents:
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, 4, 4, 2, generator=generator).half() for _ in range(num_cases)]
    return SizedLatents(latents, np.random.default_rng(0).random((num_cases, 10)).astype(np.float32))


def build_objective(
    unet: nn.Module,
    *,
    norm: Literal["l1", "l2"] = "l1",
    batch_count: int = 1,
    cases: SizedLatents | None = None,
) -> MaskNoiseObjective:
    scheduler = build_scheduler(build_mask_settings()["scheduler"])
    assert isinstance(scheduler, DDPMScheduler)
    config = MaskNoiseLossConfig(norm=norm, batch_count=batch_count)
    return MaskNoiseObjective(unet, scheduler, cases or build_cases(), config, scale_factor=SCALE, seed=2, device="cpu")


class Noting(nn.Module):
    """Predicts zeros, and remembers what it was asked."""

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        self.asked = x, timesteps, context
        return torch.zeros_like(x)


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(build_mask_networks()["mask_diffusion_unet"])
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_loss_is_the_distance_to_the_noise_in_the_scaled_latent(norm: Literal["l1", "l2"]) -> None:
    noting = Noting()
    objective = build_objective(noting, norm=norm)
    loss, figures = objective.loss(7)
    noisy, timesteps, context = noting.asked
    kept = objective.scheduler.alphas_cumprod[timesteps]
    cases = objective.cases
    (index,) = (n for n in range(3) if torch.equal(context[0, 0], torch.from_numpy(cases.sizes[n])))
    noise = (noisy - kept.sqrt() * cases.latents[index].float() * SCALE) / (1 - kept).sqrt()
    expected = noise.abs().mean() if norm == "l1" else noise.square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    assert context.shape == (1, 1, 10)
    assert float(figures["timestep"]) == float(timesteps)
    assert torch.equal(objective.loss(7)[0], loss)
    assert not torch.equal(objective.loss(8)[0], loss)


def test_mean_loss_of_two_shares_is_that_of_twice_the_batch(unet: nn.Module) -> None:
    with torch.no_grad():
        whole, _ = build_objective(unet, batch_count=2).loss(1)
        parts = [build_objective(unet).loss(1, Share(index, 2))[0] for index in range(2)]
    assert float(torch.stack(parts).mean()) == pytest.approx(float(whole), rel=rounding(depth_of(unet)))


def test_unet_hears_the_sizes(unet: nn.Module) -> None:
    objective = build_objective(unet)
    with torch.no_grad():
        figures = MaskNoiseValidation(objective, build_cases(2))()
        again = MaskNoiseValidation(objective, build_cases(2))()
    assert figures == again
    assert figures["loss"] != figures["loss_without_sizes"]


def test_few_steps_teach_it_what_is_noise() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build_network(build_mask_networks()["mask_diffusion_unet"])
    flat = SizedLatents([torch.full((4, 4, 4, 2), value) for value in (-1.0, 0.0, 1.0)], build_cases().sizes)
    objective = build_objective(unet, batch_count=4, cases=flat)
    validation = MaskNoiseValidation(objective, flat)
    optimizer = torch.optim.Adam(unet.parameters(), lr=5e-3)
    with torch.no_grad():
        before = validation()["loss"]
    assert before == pytest.approx(math.sqrt(2 / math.pi), abs=0.05)  # its last layer starts at zero
    for step in range(60):
        optimizer.zero_grad()
        objective.loss(step)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert validation()["loss"] < 0.75 * before
