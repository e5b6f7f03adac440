from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler
from torch import Tensor, nn

from maisi_aug.errors import BundleError, RecipeError
from maisi_aug.networks.building import (
    TrainableUNet,
    build_network,
    build_scheduler,
    choose_precision,
    computes_in,
    keep_decoder_output_precise,
    require_sound_cudnn,
    use_plain_layers,
)
from tests.builders.tiny_bundle import build_header
from tests.oracles.rounding import depth_of, error_of, in_float64, require_rounding_alone, require_same_formula

LATENT_SHAPE = (8, 6, 4)


def definition(role: str, **changes: Any) -> dict[str, Any]:
    return {**build_header()["networks"][role], **changes}


def build(role: str, **changes: Any) -> nn.Module:
    """A network none of whose layers is silent: MAISI starts some at zero."""
    torch.manual_seed(0)
    network = build_network(definition(role, **changes)).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def encode_and_decode(autoencoder: nn.Module, image: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of an image's latent, and the image of another latent."""
    with torch.no_grad():
        mean, deviation = autoencoder.encode(image)  # type: ignore[operator]
        return mean, deviation, autoencoder.decode(latent)  # type: ignore[operator]


class Inputs:
    """What U-Net and ControlNet are called with, twice in a batch."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        self.noisy = torch.randn(2, 4, *LATENT_SHAPE, generator=generator)
        self.timesteps = torch.tensor([900.0, 120.5])
        self.classes = torch.tensor([1, 3])
        self.spacing = torch.tensor([[320.0, 320.0, 320.0], [70.0, 80.0, 250.0]])
        bits = torch.rand(2, 8, *(4 * side for side in LATENT_SHAPE), generator=generator)
        self.label_bits = bits.round().to(dtype)
        self.noisy, self.spacing = self.noisy.to(dtype), self.spacing.to(dtype)

    def residuals(self, controlnet: nn.Module) -> tuple[list[Tensor], Tensor]:
        down, middle = controlnet(
            x=self.noisy, timesteps=self.timesteps, controlnet_cond=self.label_bits, class_labels=self.classes
        )
        return down, middle

    def run(self, unet: nn.Module, **residuals: Any) -> Tensor:
        output: Tensor = unet(
            x=self.noisy,
            timesteps=self.timesteps,
            class_labels=self.classes,
            spacing_tensor=self.spacing,
            **residuals,
        )
        return output


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_convtranspose": True},
        {"num_splits": 2, "dim_split": 1},
        {"attention_levels": [False, False, True], "with_encoder_nonlocal_attn": True},
    ],
    ids=["as shipped", "transposed", "split", "attention"],
)
def test_plain_layers_equal_maisis_layers(changes: dict[str, Any]) -> None:
    theirs, ours = build("autoencoder", **changes), build("autoencoder", **changes)
    ours.load_state_dict(theirs.state_dict())
    assert use_plain_layers(ours) > 20
    image = torch.rand(2, 1, 32, 24, 16, generator=torch.Generator().manual_seed(2))
    latent = torch.randn(2, 4, *LATENT_SHAPE, generator=torch.Generator().manual_seed(3))
    single = [encode_and_decode(network, image, latent) for network in (ours, theirs)]
    double = [encode_and_decode(in_float64(network), image.double(), latent.double()) for network in (ours, theirs)]
    for found, expected, our_exact, exact in zip(*single, *double, strict=True):
        require_rounding_alone(found, expected, exact, depth=depth_of(theirs))
        require_same_formula(our_exact, exact, depth=depth_of(theirs))
    assert single[0][2].shape == image.shape


def test_swapping_keeps_the_parameters_and_their_order() -> None:
    network = build("autoencoder")
    before = dict(network.named_parameters())
    use_plain_layers(network)
    after = dict(network.named_parameters())
    assert all(ours is theirs for ours, theirs in zip(after.values(), before.values(), strict=True))
    assert set(after) != set(before)
    assert use_plain_layers(network) == 0


def test_unet_and_controlnet_have_no_layers_to_swap() -> None:
    for role in ("diffusion_unet", "controlnet"):
        network = build(role)
        names = list(network.state_dict())
        assert use_plain_layers(network) == 0
        assert list(network.state_dict()) == names


@pytest.mark.parametrize("parts", [(), ("down",), ("middle",), ("down", "middle")], ids="+".join)
def test_trainable_unet_equals_maisis_with_residuals(parts: tuple[str, ...]) -> None:
    ours, controlnet, inputs = build("diffusion_unet"), build("controlnet"), Inputs()
    arguments = {k: v for k, v in definition("diffusion_unet").items() if k != "class"}
    theirs = DiffusionModelUNetMaisi(**arguments).eval()
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, TrainableUNet)

    def run(unet: nn.Module, controlnet: nn.Module, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            down, middle = inputs.residuals(controlnet)
            chosen: dict[str, Any] = {"down_block_additional_residuals": down} if "down" in parts else {}
            if "middle" in parts:
                chosen["mid_block_additional_residual"] = middle
            return inputs.run(unet, **chosen)

    found, expected = (run(unet, controlnet, inputs) for unet in (ours, theirs))
    exact_controlnet, exact_inputs = in_float64(controlnet), Inputs(torch.float64)
    our_exact, exact = (run(in_float64(unet), exact_controlnet, exact_inputs) for unet in (ours, theirs))
    depth = depth_of(ours, controlnet)
    require_rounding_alone(found, expected, exact, depth=depth)
    require_same_formula(our_exact, exact, depth=depth)
    if parts:
        with torch.no_grad():
            assert error_of(inputs.run(ours), exact) > 1e-3


def test_every_parameter_learns_when_unet_and_controlnet_train_together() -> None:
    unet, controlnet, inputs = build("diffusion_unet").train(), build("controlnet").train(), Inputs()
    down, middle = inputs.residuals(controlnet)
    output = inputs.run(unet, down_block_additional_residuals=down, mid_block_additional_residual=middle)
    output.square().mean().backward()  # type: ignore[no-untyped-call]
    for network in (unet, controlnet):
        silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert silent == []


def test_residuals_have_the_gradient_of_a_finite_difference() -> None:
    unet, controlnet, inputs = build("diffusion_unet").double(), build("controlnet").double(), Inputs(torch.float64)
    bias = dict(controlnet.named_parameters())["controlnet_mid_block.conv.bias"]
    deepest = dict(controlnet.named_parameters())["controlnet_down_blocks.3.conv.bias"]

    def loss() -> Tensor:
        down, middle = inputs.residuals(controlnet)
        output = inputs.run(unet, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        return output.square().mean()

    loss().backward()  # type: ignore[no-untyped-call]
    for parameter in (bias, deepest):
        assert parameter.grad is not None
        expected, step = float(parameter.grad[0]), 1e-4
        with torch.no_grad():
            parameter[0] += step
            above = float(loss())
            parameter[0] -= 2 * step
            below = float(loss())
            parameter[0] += step
        assert (above - below) / (2 * step) == pytest.approx(expected, rel=1e-4)


def test_last_convolution_of_the_decoder_leaves_autocast() -> None:
    network = build("autoencoder")
    use_plain_layers(network)
    latent = torch.randn(1, 4, *LATENT_SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = network.decode(latent)  # type: ignore[operator]
        keep_decoder_output_precise(network)
        assert torch.equal(network.decode(latent), before)  # type: ignore[operator]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = network.decode(latent)  # type: ignore[operator]
    assert image.dtype == torch.float32
    assert not torch.equal(image, image.bfloat16().float())


def test_definitions_are_maisis_own_words() -> None:
    network = build_network(definition("autoencoder"))
    assert isinstance(network, AutoencoderKlMaisi)
    assert build_network(definition("controlnet", use_flash_attention=True)) is not None


def test_class_that_is_no_network_is_refused_with_the_closest() -> None:
    with pytest.raises(BundleError, match="unknown class 'ControlNetMaisy'; expected one of AutoencoderKlMaisi") as e:
        build_network({"class": "ControlNetMaisy"})
    assert "Did you mean 'ControlNetMaisi'" in str(e.value)
    with pytest.raises(BundleError, match="Network definition: unknown class '';"):
        build_network({})


@pytest.mark.parametrize("changes", [{"num_chanels": [8]}, {"norm_num_groups": 3}], ids=["misspelt", "impossible"])
def test_hyper_parameters_that_maisi_refuses_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(
        BundleError, match="definition of DiffusionModelUNetMaisi: rejected by MONAI: .*(chanels|group)"
    ):
        build_network(definition("diffusion_unet", **changes))


def test_schedulers_are_built_from_definitions() -> None:
    rflow = build_scheduler(build_header()["scheduler"])
    assert isinstance(rflow, RFlowScheduler)
    assert rflow.use_discrete_timesteps is False
    ddpm = build_scheduler({"class": "DDPMScheduler", "num_train_timesteps": 10, "schedule": "linear_beta"})
    assert isinstance(ddpm, DDPMScheduler)
    assert len(ddpm.betas) == 10
    with pytest.raises(
        BundleError, match="Scheduler definition: unknown class .*; expected one of DDPMScheduler, RFlowScheduler"
    ):
        build_scheduler({"class": "DDIMScheduler"})
    with pytest.raises(BundleError, match="Scheduler definition of RFlowScheduler: rejected by MONAI: .*sample_method"):
        build_scheduler({"class": "RFlowScheduler", "sample_method": "normal"})


@pytest.mark.parametrize(
    ("device", "bears_half", "expected"),
    [
        ("cpu", True, "float32"),
        ("cpu", False, "float32"),
        ("cuda", True, "float16"),
        ("cuda:1", True, "float16"),
        ("cuda", False, "float32"),
        ("mps", True, "float32"),
    ],
)
def test_auto_is_float16_on_cuda_and_float32_elsewhere(device: str, bears_half: bool, expected: str) -> None:
    assert choose_precision("auto", device, bears_half=bears_half) == expected


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_is_taken_whatever_the_bundle_says(wanted: str) -> None:
    assert choose_precision(wanted, "cuda", bears_half=False) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(("wanted", "device"), [("float16", "mps"), ("bfloat16", "mps")])
def test_precision_that_a_device_could_only_emulate_is_refused(wanted: str, device: str) -> None:
    message = f"precision: device '{device}' does not compute in '{wanted}' natively.* Use --precision flo"
    with pytest.raises(RecipeError, match=message):
        choose_precision(wanted, device, bears_half=True)  # type: ignore[arg-type]


def test_half_precision_of_a_processor_is_taken_only_where_it_computes_in_it() -> None:
    for wanted in ("float16", "bfloat16"):
        if computes_in(wanted, "cpu"):
            assert choose_precision(wanted, "cpu", bears_half=True) == wanted
        else:
            with pytest.raises(RecipeError, match=f"'cpu' does not compute in '{wanted}'"):
                choose_precision(wanted, "cpu", bears_half=True)


@pytest.mark.parametrize(("version", "spelt"), [(90800, "9.8.0"), (91002, "9.10.2")])
def test_cudnn_that_computes_bfloat16_wrongly_is_refused(version: int, spelt: str) -> None:
    with pytest.raises(RecipeError, match=f"needs cuDNN 9.11 or later, found cuDNN {spelt}, whose 3D convolutions"):
        require_sound_cudnn(version)


@pytest.mark.parametrize("version", [None, 8907, 90701, 91100, 92400])
def test_other_cudnn_is_taken(version: int | None) -> None:
    require_sound_cudnn(version)
