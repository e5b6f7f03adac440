"""Fewer evaluations of the networks for the same latent, against solutions that are known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor

from maisi_aug.networks.building import Networks
from maisi_aug.networks.flow_solvers import integrate_flow, spread_times
from maisi_aug.networks.sampling import Conditions, KnownLatent, sample_latent
from tests.networks.test_sampling import build_networks, draw_conditions, draw_noise

NOISE = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64).reshape(1, 3, 1, 1, 1)


def times(num_steps: int, *, power: float = 1.0) -> list[float]:
    return [(1 - done / num_steps) ** power for done in range(num_steps + 1)]


def decay(latent: Tensor, time: float) -> Tensor:
    """dx = -v dt with v = -x cos t, whose solution at 0 is x_1 exp(sin 1 * -1)."""
    return -latent * math.cos(time)


def error(num_steps: int, **changes: Any) -> float:
    found = integrate_flow(decay, NOISE, times(num_steps, **changes), solver="multistep")
    return float((found - NOISE * math.exp(-math.sin(1.0))).abs().max())


@pytest.mark.parametrize("power", [1.0, 1.7], ids=["even", "uneven"])
def test_error_falls_with_the_square_of_the_step(power: float) -> None:
    assert 3.4 < error(20, power=power) / error(40, power=power) < 5.0
    assert error(10, power=power) < 3e-3


def test_fewer_steps_come_nearer_than_eulers() -> None:
    euler = NOISE
    for start, stop in pairwise(times(30)):
        euler = euler + (start - stop) * decay(euler, start)
    assert error(8) < float((euler - NOISE * math.exp(-math.sin(1.0))).abs().max())


def test_velocity_that_is_a_line_in_time_is_integrated_exactly_after_the_first_step() -> None:
    """v = a t: the first step, Euler's, is corrected by the second."""
    found = integrate_flow(
        lambda latent, time: 4.0 * time * torch.ones_like(latent), NOISE, times(5), solver="multistep"
    )
    assert torch.allclose(found, NOISE + 2.0, rtol=0, atol=1e-12)


def test_known_part_is_put_back_before_every_evaluation_and_steps_are_reported() -> None:
    seen: list[tuple[float, float]] = []
    told: list[tuple[int, int]] = []

    def velocity(latent: Tensor, time: float) -> Tensor:
        seen.append((time, float(latent[0, 0])))
        return decay(latent, time)

    def restore(latent: Tensor, time: float) -> Tensor:
        return torch.full_like(latent, 7.0 + time)

    report = lambda done, total: told.append((done, total))  # noqa: E731
    integrate_flow(velocity, NOISE, times(4), solver="multistep", restore=restore, report=report)
    assert seen == [(time, 7.0 + time) for time in times(4)[:-1]]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("is_shifted", [False, True])
def test_times_are_those_of_the_scheduler_without_its_rounding(is_shifted: bool) -> None:
    scheduler = RFlowScheduler(
        num_train_timesteps=1000,
        use_discrete_timesteps=False,
        use_timestep_transform=is_shifted,
        base_img_size_numel=64,
    )
    scheduler.set_timesteps(30, input_img_size_numel=4096)
    found = spread_times(scheduler, 30, 4096)
    assert found[0] == 1.0
    assert found[-1] == 0.0
    assert all(before > after for before, after in pairwise(found))
    assert [time * 1000 for time in found[:-1]] == pytest.approx(scheduler.timesteps.double().tolist(), rel=5e-4)


def sample(networks: Networks, conditions: Conditions, **settings: Any) -> Tensor:
    settings = {"num_inference_steps": 3, "solver": "multistep", **settings}
    return sample_latent(networks, conditions, draw_noise(), **settings)


def predict(networks: Networks, conditions: Conditions, latent: Tensor, time: float) -> Tensor:
    """The networks as MAISI's plain loop calls them."""
    timesteps = torch.tensor([time * 1000])
    down, middle = networks.controlnet(
        x=latent, timesteps=timesteps, controlnet_cond=conditions.label_bits, class_labels=conditions.modality
    )
    found: Tensor = networks.diffusion_unet(
        x=latent,
        timesteps=timesteps,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        **conditions.for_unet,
    )
    return found


@torch.inference_mode()
def test_latent_equals_the_rule_written_out() -> None:
    networks, conditions = build_networks("rflow"), draw_conditions(1)
    first, noise = predict(networks, conditions, draw_noise(), 1.0), draw_noise()
    second = predict(networks, conditions, noise + first / 3, 2 / 3)
    corrected = noise + (first + second) / 6
    third = predict(networks, conditions, corrected + (1.5 * second - 0.5 * first) / 3, 1 / 3)
    corrected = corrected + (second + third) / 6
    expected = corrected + (1.5 * third - 0.5 * second) / 3
    assert torch.allclose(sample(networks, conditions), expected, rtol=1e-4, atol=1e-4)


def test_known_part_is_kept_and_seen() -> None:
    networks, conditions = build_networks("rflow"), draw_conditions(1)
    is_known = torch.zeros(1, 1, *draw_noise().shape[2:], dtype=torch.bool)
    is_known[..., :2] = True
    known = KnownLatent(torch.full_like(draw_noise(), 0.5), is_known)
    found = sample(networks, conditions, known=known)
    where = is_known.expand_as(found)
    assert bool((found[where] == 0.5).all())
    assert not torch.equal(found[~where], sample(networks, conditions)[~where])


def test_what_has_no_second_order_is_refused() -> None:
    networks, conditions = build_networks("ddpm"), draw_conditions(1)
    with pytest.raises(ValueError, match="rectified flow for solver 'multistep', found DDPM"):
        sample(networks, conditions)
    known = KnownLatent(draw_noise(), torch.ones(1, 1, *draw_noise().shape[2:], dtype=torch.bool), num_resamplings=2)
    with pytest.raises(ValueError, match="solver 'multistep' cannot be combined with resampling"):
        sample(build_networks("rflow"), conditions, known=known)


def test_four_steps_of_random_networks_come_nearer_than_thirty_of_eulers() -> None:
    networks, conditions = build_networks("rflow"), draw_conditions(1)
    converged = sample(networks, conditions, num_inference_steps=48)
    few, many = (
        float((sample(networks, conditions, num_inference_steps=steps, solver=solver) - converged).square().mean())
        for steps, solver in ((4, "multistep"), (30, "euler"))
    )
    assert few < 0.5 * many
