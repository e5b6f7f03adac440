"""The mask networks of the published bundles at full width, and how a bundle's own are loaded or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.schedulers.ddpm import DDPMScheduler

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.known_bundles import KnownMasks, known_bundles
from maisi_aug.bundle_spec.mask_networks import choose_mask_steps, generated_grid, require_inside, require_masks
from maisi_aug.bundle_spec.schema import MASK_ROLES, dump_bundle
from maisi_aug.errors import BundleError, GridError, RecipeError
from maisi_aug.networks.building import describe_tensors
from maisi_aug.networks.mask_generator import MaskGenerator
from maisi_aug.networks.weights import load_mask_networks, load_networks, verify_bundle
from maisi_aug.volumes.grid import Grid
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_masks import write_tiny_mask_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_mask_bundle(tmp_path_factory.mktemp("masks"))


def published() -> KnownMasks:
    masks = known_bundles()["rflow-ct"].require_masks()
    assert known_bundles()["ddpm-ct"].masks == masks
    return masks


def build_published() -> dict[str, torch.nn.Module]:
    """NVIDIA's config_network_rflow.json, spelt out once more."""
    with torch.device("meta"):
        autoencoder = AutoencoderKlMaisi(
            spatial_dims=3,
            in_channels=8,
            out_channels=125,
            latent_channels=4,
            num_channels=[32, 64, 128],
            num_res_blocks=[1, 2, 2],
            norm_num_groups=32,
            norm_eps=1e-6,
            attention_levels=[False, False, False],
            use_convtranspose=True,
            num_splits=8,
            dim_split=1,
        )
        unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=4,
            out_channels=4,
            channels=[64, 128, 256, 512],
            attention_levels=[False, False, True, True],
            num_head_channels=[0, 0, 32, 32],
            num_res_blocks=2,
            with_conditioning=True,
            upcast_attention=True,
            cross_attention_dim=10,
        )
    return {"mask_autoencoder": autoencoder, "mask_diffusion_unet": unet}


def test_definitions_have_the_published_tensors() -> None:
    expected = build_published()
    for role in MASK_ROLES:
        found = describe_tensors(published().networks[role])
        shapes = {key: tensor.shape for key, tensor in expected[role].state_dict().items()}
        assert {key: tensor.shape for key, tensor in found.items()} == shapes
    unet = describe_tensors(published().networks["mask_diffusion_unet"])
    context = "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert unet[context].shape == (256, 10), "ten sizes are what is attended to"


def test_numbers_of_parameters_fit_the_sizes_of_the_files() -> None:
    numbers = {
        role: sum(tensor.numel() for tensor in describe_tensors(published().networks[role]).values())
        for role in MASK_ROLES
    }
    assert numbers == {"mask_autoencoder": 5_256_509, "mask_diffusion_unet": 197_163_012}
    assert [round(number * 4 / 1e6) for number in numbers.values()] == [21, 789], "MB in float32"


def test_published_settings_are_nvidias() -> None:
    settings = dict(published().settings)
    assert settings["grid"] == {"shape": [256, 256, 256], "spacing_mm": [1.5, 1.5, 1.5]}
    arguments = {key: value for key, value in settings["scheduler"].items() if key != "class"}
    scheduler = DDPMScheduler(**arguments)
    assert (scheduler.num_train_timesteps, scheduler.clip_sample, scheduler.prediction_type) == (1000, False, "epsilon")
    assert float(scheduler.betas[0]) == pytest.approx(0.0015)
    assert float(scheduler.betas[-1]) == pytest.approx(0.0195)


def test_mask_networks_are_loaded_with_their_weights(bundle: Bundle) -> None:
    networks = load_mask_networks(bundle, plain_layers=False)
    assert type(networks.diffusion_unet) is DiffusionModelUNet
    assert not any(parameter.requires_grad for parameter in networks.autoencoder.parameters())
    assert [row["role"] for row in verify_bundle(bundle)][-2:] == list(MASK_ROLES)
    generator = MaskGenerator.load(bundle, "cpu")
    assert generator.latent_shape == (4, 16, 12, 12)
    assert (generator.num_inference_steps, generator.grid.shape) == (3, (64, 48, 48))


def rewrite(bundle: Bundle, folder: Path, change: Any) -> Bundle:
    """A copy of a bundle whose ``bundle.yaml`` is changed."""
    folder.mkdir()
    for path in bundle.path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = yaml.safe_load((folder / "bundle.yaml").read_text())
    change(content)
    (folder / "bundle.yaml").write_text(dump_bundle(content))
    return load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["mask_generation"]["scheduler"].update({"clip_sample": True}), "predicts noise and clips nothing"),
        (
            lambda c: c["mask_generation"].update({"scheduler": {"class": "RFlowScheduler"}}),
            "mask_generation.scheduler must be a DDPMScheduler that predicts noise and",
        ),
        (
            lambda c: c["networks"]["mask_diffusion_unet"].update({"cross_attention_dim": 9}),
            "cross_attention_dim must be 10",
        ),
        (lambda c: c["networks"]["mask_autoencoder"].update({"out_channels": 9}), "out_channels must be 125"),
        (lambda c: c["networks"]["mask_diffusion_unet"].update({"num_res_blocks": 2}), r"definition: \d+ missing"),
        (lambda c: c["weights"].pop("mask_autoencoder"), "no weights for mask_autoencoder"),
    ],
)
def test_bundle_that_cannot_generate_is_refused(change: Any, message: str, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        MaskGenerator.load(rewrite(bundle, tmp_path / "changed", change), "cpu")


def test_grid_that_the_networks_cannot_make_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["mask_generation"]["grid"]["shape"] = [64, 48, 44]

    with pytest.raises(GridError, match="expected sides that are multiples of 8, found 64x48x44"):
        MaskGenerator.load(rewrite(bundle, tmp_path / "changed", change), "cpu")


def test_damaged_mask_weights_do_not_keep_images_from_being_made(bundle: Bundle, tmp_path: Path) -> None:
    damaged = rewrite(bundle, tmp_path / "damaged", lambda _: None)
    damaged.weight_path("mask_autoencoder").write_bytes(b"altered")
    load_networks(damaged)
    for fails in (lambda: load_mask_networks(damaged), lambda: verify_bundle(damaged)):
        with pytest.raises(BundleError, match="mask_autoencoder.safetensors should have SHA-256"):
            fails()
    (damaged.path / "size_conditions.json").write_text("[]")
    with pytest.raises(BundleError, match="should have SHA-256"):
        damaged.require_intact()


def test_bundle_without_mask_networks_names_the_command(tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path)
    assert plain.roles == ("autoencoder", "diffusion_unet", "controlnet")
    with pytest.raises(BundleError, match="needs mask networks.* Run: maisi-aug bundles pull rflow-ct --with-masks"):
        require_masks(plain)
    named = Bundle(plain.spec.model_copy(update={"name": "ddpm-ct"}), tmp_path)
    with pytest.raises(BundleError, match="Run: maisi-aug bundles pull ddpm-ct --with-masks"):
        choose_mask_steps(named, None)


def test_steps_are_the_bundles_unless_others_are_asked_for(bundle: Bundle) -> None:
    assert [choose_mask_steps(bundle, steps) for steps in (None, 7, 1000)] == [3, 7, 1000]
    with pytest.raises(RecipeError, match="mask_steps: at most 1000 .* found 1001. Choose fewer with --mask"):
        choose_mask_steps(bundle, 1001)


def test_grid_longer_than_the_generated_maps_is_refused(bundle: Bundle) -> None:
    field = generated_grid(bundle)
    require_inside(bundle, field)
    require_inside(bundle, Grid.from_spacing((512, 512, 48), (3.0, 3.0, 6.4)))
    with pytest.raises(GridError, match="cover 307 mm from feet to head, this grid 320 mm"):
        require_inside(bundle, Grid.from_spacing((64, 48, 50), (6.4, 6.4, 6.4)))
