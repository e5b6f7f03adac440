from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maisi_aug.networks.building import Networks, build_network, build_scheduler
from maisi_aug.networks.conditioning import to_region_tensors
from maisi_aug.networks.sampling import Conditions, KnownLatent, sample_latent
from tests.builders.tiny_bundle import build_ddpm_header, build_header
from tests.oracles.reference_loop import Inputs, ReferenceLoop
from tests.oracles.rounding import depth_of, error_of, in_float64, require_rounding_alone, rounding

LATENT_SHAPE = (8, 6, 4)
NUM_STEPS = 4
RFLOW: dict[str, Any] = build_header()["scheduler"]
# All of its time steps, as in MAISI: fewer of them are another sampler's.
DDPM: dict[str, Any] = {**build_ddpm_header()["scheduler"], "num_train_timesteps": NUM_STEPS}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "rflow": RFLOW,
    "rflow shifted": {**RFLOW, "use_timestep_transform": True, "base_img_size_numel": 64, "transform_scale": 1.4},
    "rflow whole steps": {**RFLOW, "use_discrete_timesteps": True},
    "ddpm": {**DDPM, "schedule": "linear_beta"},
    "ddpm-ct": DDPM,
}


def definitions_for(scheduler: str) -> dict[str, dict[str, Any]]:
    header = build_ddpm_header() if scheduler == "ddpm-ct" else build_header()
    return dict(header["networks"])


def build_networks(scheduler: str) -> Networks:
    torch.manual_seed(0)
    networks = {role: build_network(definition) for role, definition in definitions_for(scheduler).items()}
    for network in networks.values():
        network.eval().requires_grad_(False)
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return Networks(**networks, scheduler=build_scheduler(SCHEDULERS[scheduler]), scale_factor=1.0, device="cpu")


def draw_conditions(seed: int, scheduler: str = "rflow") -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(1, 8, *(4 * side for side in LATENT_SHAPE), generator=generator).round()
    regions = to_region_tensors([("thorax", "pelvis")]) if scheduler == "ddpm-ct" else None
    return Conditions(bits, torch.tensor([seed % 4]), torch.tensor([[320.0, 250.0, 70.0]]), regions)


def draw_noise() -> Tensor:
    return torch.randn(1, 4, *LATENT_SHAPE, generator=torch.Generator().manual_seed(7))


def sample_plainly(
    networks: Networks,
    scheduler: str,
    wanted: Conditions,
    unconditional: Conditions | None,
    guidance_scale: float,
    *,
    is_exact: bool,
) -> Tensor:
    """The same latent by MAISI's plain loop, in float32 or in float64."""
    states = {role: getattr(networks, role).state_dict() for role in ("diffusion_unet", "controlnet")}
    loop = ReferenceLoop(definitions_for(scheduler), states, SCHEDULERS[scheduler], is_exact=is_exact)
    return loop.sample(
        draw_noise(),
        to_inputs(wanted),
        None if unconditional is None else to_inputs(unconditional),
        num_steps=NUM_STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(11),
    )


def depth_of_sampling(networks: Networks) -> int:
    return NUM_STEPS * depth_of(networks.diffusion_unet, networks.controlnet)


def convert(conditions: Conditions, dtype: torch.dtype) -> Conditions:
    """The same for networks of another type; codes stay what they are."""
    inputs = to_inputs(conditions).to(dtype)
    return replace(conditions, label_bits=inputs.label_bits, spacing=inputs.spacing, regions=inputs.regions)


def to_inputs(conditions: Conditions) -> Inputs:
    return Inputs(conditions.label_bits, conditions.modality, conditions.spacing, conditions.regions)


@pytest.mark.parametrize("embed_once", [True, False], ids=["embedded once", "embedded each step"])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_latent_equals_that_of_maisis_plain_loop(scheduler: str, guidance_scale: float, embed_once: bool) -> None:
    networks = build_networks(scheduler)
    wanted = draw_conditions(1, scheduler)
    unconditional = draw_conditions(4, scheduler) if guidance_scale else None

    def draw(networks: Networks, dtype: torch.dtype) -> Tensor:
        return sample_latent(
            networks,
            convert(wanted, dtype),
            draw_noise().to(dtype),
            num_inference_steps=NUM_STEPS,
            guidance_scale=guidance_scale,
            unconditional=None if unconditional is None else convert(unconditional, dtype),
            embed_once=embed_once,
            generator=torch.Generator().manual_seed(11),
        )

    found = draw(networks, torch.float32)
    expected, exact = (
        sample_plainly(networks, scheduler, wanted, unconditional, guidance_scale, is_exact=is_exact)
        for is_exact in (False, True)
    )
    require_rounding_alone(found, expected, exact, depth=depth_of_sampling(networks))
    in_double = replace(
        networks, diffusion_unet=in_float64(networks.diffusion_unet), controlnet=in_float64(networks.controlnet)
    )
    # Every step takes the networks' answer as float32.
    assert error_of(draw(in_double, torch.float64), exact) <= rounding(NUM_STEPS)
    assert found.shape == (1, 4, *LATENT_SHAPE)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_latent_without_a_label_map_equals_that_of_maisis_plain_loop(scheduler: str) -> None:
    networks = build_networks(scheduler)
    wanted = replace(draw_conditions(1, scheduler), label_bits=None)
    found = sample(networks, wanted, generator=torch.Generator().manual_seed(11))
    expected, exact = (
        sample_plainly(networks, scheduler, wanted, None, 0.0, is_exact=is_exact) for is_exact in (False, True)
    )
    require_rounding_alone(found, expected, exact, depth=depth_of_sampling(networks))
    assert not torch.equal(found, sample(networks, draw_conditions(1, scheduler)))


def sample(networks: Networks, conditions: Conditions, **settings: Any) -> Tensor:
    return sample_latent(networks, conditions, draw_noise(), **{"num_inference_steps": NUM_STEPS, **settings})


def test_every_condition_matters() -> None:
    networks, conditions, other = build_networks("rflow"), draw_conditions(1), draw_conditions(2)
    latent = sample(networks, conditions)
    assert torch.equal(sample(networks, conditions), latent)
    for name in ("label_bits", "modality"):
        assert not torch.equal(sample(networks, replace(conditions, **{name: getattr(other, name)})), latent)
    assert not torch.equal(sample(networks, replace(conditions, spacing=conditions.spacing * 2)), latent)


def test_guidance_of_one_is_no_guidance() -> None:
    networks, conditions = build_networks("rflow"), draw_conditions(1)
    guided = sample(networks, conditions, guidance_scale=1.0, unconditional=draw_conditions(2))
    plain = sample(networks, conditions)
    exact = sample_plainly(networks, "rflow", conditions, None, 0.0, is_exact=True)
    require_rounding_alone(guided, plain, exact, depth=depth_of_sampling(networks))


def test_ddpm_noise_comes_from_the_generator() -> None:
    networks, conditions = build_networks("ddpm"), draw_conditions(1)
    draws: list[Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(draws))
        draws.append(sample(networks, conditions, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_progress_is_told_after_every_step() -> None:
    told: list[tuple[int, int]] = []
    sample(build_networks("rflow"), draw_conditions(1), report=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_inputs_and_networks_are_left_as_they_were() -> None:
    networks, conditions, noise = build_networks("rflow"), draw_conditions(1), draw_noise()
    assert conditions.label_bits is not None
    embedding, bits = networks.controlnet.controlnet_cond_embedding, conditions.label_bits.clone()
    state = {key: value.clone() for key, value in networks.controlnet.state_dict().items()}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for report in (None, stop):
        with suppress(KeyboardInterrupt):
            sample_latent(networks, conditions, noise, num_inference_steps=2, report=report)
        assert networks.controlnet.controlnet_cond_embedding is embedding
    assert torch.equal(noise, draw_noise())
    assert torch.equal(conditions.label_bits, bits)
    assert all(torch.equal(value, state[key]) for key, value in networks.controlnet.state_dict().items())


def test_guidance_without_its_other_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="Guidance: the conditions of the unconditional branch are missing"):
        sample(build_networks("rflow"), draw_conditions(1), guidance_scale=2.0)


def test_more_steps_than_the_scheduler_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="1001"):
        sample(build_networks("rflow"), draw_conditions(1), num_inference_steps=1001)


def know_half(num_resamplings: int = 1) -> KnownLatent:
    latent = torch.randn(1, 4, *LATENT_SHAPE, generator=torch.Generator().manual_seed(21))
    is_known = torch.zeros(1, 1, *LATENT_SHAPE, dtype=torch.bool)
    is_known[:, :, : LATENT_SHAPE[0] // 2] = True
    return KnownLatent(latent, is_known, num_resamplings)


@pytest.mark.parametrize("num_resamplings", [1, 3])
@pytest.mark.parametrize("scheduler", ["rflow", "rflow shifted", "ddpm"])
def test_known_part_comes_back_and_the_rest_knows_of_it(scheduler: str, num_resamplings: int) -> None:
    networks, conditions = build_networks(scheduler), draw_conditions(1)
    known = know_half(num_resamplings)

    def draw(known: KnownLatent | None) -> Tensor:
        return sample(networks, conditions, known=known, generator=torch.Generator().manual_seed(11))

    latent, without = draw(known), draw(None)
    hidden = (~known.is_known).expand_as(latent)
    assert torch.equal(latent[~hidden], known.latent[~hidden])
    assert not torch.equal(latent[hidden], without[hidden])
    assert torch.isfinite(latent).all()
    assert torch.equal(latent, draw(known))


class StraightToImage(nn.Module):
    """A U-Net that knows the image: its velocity leads straight there."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.levels: list[float] = []

    def forward(self, x: Tensor, timesteps: Tensor, **conditions: Any) -> Tensor:
        level = float(timesteps[0]) / 1000.0
        self.levels.append(level)
        noise = (x - (1 - level) * self.image) / level
        self.deviation = float(noise.std())
        return self.image - noise


@pytest.mark.parametrize("num_resamplings", [1, 4])
def test_noise_that_is_added_again_is_as_strong_as_the_step_wants(num_resamplings: int) -> None:
    networks = build_networks("rflow")
    unet = StraightToImage(know_half().latent)
    networks = replace(networks, diffusion_unet=unet)
    found = sample(
        networks,
        draw_conditions(1),
        known=know_half(num_resamplings),
        generator=torch.Generator().manual_seed(11),
    )
    torch.testing.assert_close(found, know_half().latent, atol=0.01, rtol=0)
    assert len(unet.levels) == num_resamplings * (NUM_STEPS - 1) + 1
    assert unet.deviation == pytest.approx(1.0, abs=0.1)
