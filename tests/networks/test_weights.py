from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from torch import Tensor

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, NETWORK_ROLES, Bundle, load_bundle
from maisi_aug.errors import BundleError
from maisi_aug.networks.building import build_network
from maisi_aug.networks.weights import load_networks, require_same_tensors, write_bundle
from maisi_aug.system.whole_files import sha256_of
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_header
from tests.oracles.rounding import depth_of, in_float64, require_rounding_alone

MAISI_CLASSES = {
    "autoencoder": AutoencoderKlMaisi,
    "diffusion_unet": DiffusionModelUNetMaisi,
    "controlnet": ControlNetMaisi,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_random_bundle(tmp_path_factory.mktemp("bundle"), build_header(), seed=0)


@pytest.fixture(scope="module")
def weights(bundle: Bundle) -> dict[str, dict[str, Tensor]]:
    return {role: safetensors.torch.load_file(bundle.weight_path(role)) for role in NETWORK_ROLES}


@pytest.fixture
def rewrite(weights: dict[str, dict[str, Tensor]], tmp_path: Path) -> Callable[..., Bundle]:
    """Write the bundle again with other tensors of its U-Net."""

    def call(change: Callable[[dict[str, Tensor]], object]) -> Bundle:
        tensors = dict(weights["diffusion_unet"])
        change(tensors)
        return write_bundle(tmp_path, build_header(), {**weights, "diffusion_unet": tensors})

    return call


def test_files_hold_float16_tensors_that_maisis_classes_take_strictly(
    bundle: Bundle, weights: dict[str, dict[str, Tensor]]
) -> None:
    for role, maisi_class in MAISI_CLASSES.items():
        arguments = {key: value for key, value in bundle.definition(role).items() if key != "class"}
        assert {tensor.dtype for tensor in weights[role].values()} == {torch.float16}
        maisi_class(**arguments).load_state_dict(weights[role], strict=True)


def test_networks_carry_the_weights_of_the_files(bundle: Bundle, weights: dict[str, dict[str, Tensor]]) -> None:
    networks = load_networks(bundle, plain_layers=False)
    state = networks.diffusion_unet.state_dict()
    assert state.keys() == weights["diffusion_unet"].keys()
    assert all(torch.equal(state[key], weights["diffusion_unet"][key].float()) for key in state)
    assert networks.scale_factor == 1.0


def test_networks_are_ready_for_inference(bundle: Bundle) -> None:
    networks = load_networks(bundle)
    for network in (networks.autoencoder, networks.diffusion_unet, networks.controlnet):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_plain_layers_change_no_image(bundle: Bundle, weights: dict[str, dict[str, Tensor]]) -> None:
    latent = torch.randn(1, 4, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    untouched = build_network(bundle.definition("autoencoder")).eval()
    untouched.load_state_dict(weights["autoencoder"])
    with torch.inference_mode():
        found, expected = (
            load_networks(bundle, plain_layers=plain).autoencoder.decode(latent)  # type: ignore[operator]
            for plain in (True, False)
        )
        exact = in_float64(untouched).decode(latent.double())  # type: ignore[operator]
    assert found.shape == (1, 1, 24, 16, 20)
    require_rounding_alone(found, expected, exact, depth=depth_of(untouched))


def test_random_bundle_is_the_same_for_the_same_seed(bundle: Bundle, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    same = write_random_bundle(tmp_path / "same", build_header(), seed=0)
    other = write_random_bundle(tmp_path / "other", build_header(), seed=1)
    assert same.fingerprint == bundle.fingerprint
    assert other.spec.weights["controlnet"].sha256 != bundle.spec.weights["controlnet"].sha256
    assert torch.equal(torch.random.get_rng_state(), state)


def test_missing_surplus_and_misshapen_tensors_are_named(rewrite: Callable[..., Bundle]) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["conv_in.conv.wait"] = tensors.pop("conv_in.conv.weight")
        tensors["out.0.weight"] = torch.zeros(16, dtype=torch.float16)

    bundle = rewrite(change)
    with pytest.raises(BundleError) as caught:
        load_networks(bundle)
    assert str(caught.value) == (
        "Bundle 'tiny', diffusion_unet.safetensors: tensors differ from the definition: 1 missing "
        "(conv_in.conv.weight); 1 surplus (conv_in.conv.wait); 1 of a different shape (out.0.weight (16,) instead of "
        "(8,))."
    )


def test_long_lists_of_tensors_are_cut(weights: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(BundleError, match=r"Checkpoint: .* definition: \d\d+ missing \((?:[^,]+, ){5}\.\.\.\)\.$"):
        require_same_tensors(weights["diffusion_unet"], {}, subject="Checkpoint")
    require_same_tensors(weights["diffusion_unet"], weights["diffusion_unet"], subject="Checkpoint")


def test_altered_file_is_refused_before_it_is_read(rewrite: Callable[..., Bundle]) -> None:
    bundle = rewrite(lambda tensors: None)
    path = bundle.weight_path("autoencoder")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="autoencoder.safetensors should have SHA-256"):
        load_networks(bundle)


def test_file_that_is_no_safetensors_is_refused(rewrite: Callable[..., Bundle]) -> None:
    bundle = rewrite(lambda tensors: None)
    path = bundle.weight_path("autoencoder")
    path.write_bytes(path.read_bytes()[:100])
    content = yaml.safe_load((bundle.path / BUNDLE_FILE).read_text(encoding="utf-8"))
    content["weights"]["autoencoder"]["sha256"] = sha256_of(path)
    (bundle.path / BUNDLE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(BundleError, match="Bundle 'tiny': autoencoder.safetensors is not a readable safetensors file"):
        load_networks(load_bundle(bundle.path))


def test_bundle_without_a_network_is_refused(weights: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    header: dict[str, Any] = build_header()
    del header["networks"]["autoencoder"]
    bundle = write_bundle(tmp_path, header, weights)
    with pytest.raises(BundleError, match="has no definition networks.autoencoder; it has diffusion_unet"):
        load_networks(bundle)


def test_invalid_header_is_refused_on_writing(weights: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="scale_factor: expected greater than 0"):
        write_bundle(tmp_path, {**build_header(), "scale_factor": 0.0}, weights)
