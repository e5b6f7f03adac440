"""Networks of any width from the files of NVIDIA's training scripts, against the image that MONAI's classes draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maisi_aug as ma
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle, pulled_bundles_folder
from maisi_aug.errors import BundleError, RequestError
from maisi_aug.networks.building import FastPaths, build_network
from maisi_aug.networks.checkpoints.folders import import_networks
from maisi_aug.networks.checkpoints.own_networks import read_network_file
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.system.seeds import derive_seed
from maisi_aug.volumes.grid import Grid
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_checkpoints import saved
from tests.oracles.reference_loop import Inputs, ReferenceLoop, encode, to_hu

HOMES = {
    "AutoencoderKlMaisi": "monai.apps.generation.maisi.networks.autoencoderkl_maisi",
    "DiffusionModelUNetMaisi": "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi",
    "ControlNetMaisi": "monai.apps.generation.maisi.networks.controlnet_maisi",
    "RFlowScheduler": "monai.networks.schedulers.rectified_flow",
}
ROLES = ("autoencoder", "diffusion_unet", "controlnet")
SHAPE, SPACING_MM, SEED, SCALE = (32, 24, 16), (2.0, 2.0, 3.0), 5, 0.8

Trained = tuple[Path, Path, dict[str, Any]]


def define(width: int) -> dict[str, Any]:
    """Definitions of a width as ``bundle.yaml`` has them."""
    networks: dict[str, Any] = build_header()["networks"]
    networks["autoencoder"]["num_channels"] = [width, width, 2 * width]
    for role in ("diffusion_unet", "controlnet"):
        networks[role] |= {"num_channels": [width, 2 * width], "num_head_channels": [0, width]}
    return networks


def write_network_file(path: Path, networks: dict[str, Any], **changes: Any) -> Path:
    """The same as NVIDIA's ``config_network_rflow.json``, references included."""
    content: dict[str, Any] = {"spatial_dims": 3, "latent_channels": 4, "mask_generation_scale_factor": 1.0}
    for role, definition in {**networks, "noise_scheduler": build_header()["scheduler"]}.items():
        entry = {"_target_": f"{HOMES[definition['class']]}.{definition['class']}", **definition}
        del entry["class"]
        entry |= {key: f"@{key}" for key in ("spatial_dims", "latent_channels") if key in entry}
        content[role if role == "noise_scheduler" else f"{role}_def"] = entry
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Trained]:
    """Writes the models of a width, and the file that defines them; returns both and the weights."""

    def write(width: int = 8, roles: tuple[str, ...] = ROLES) -> Trained:
        networks, folder = define(width), tmp_path / "NV" / "models"
        folder.mkdir(parents=True)
        states: dict[str, Any] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width)
            for role in roles:
                network = build_network(networks[role])
                for parameter in network.parameters():
                    if not parameter.any():
                        torch.nn.init.normal_(parameter, std=0.1)
                states[role] = network.state_dict()
        contents = {
            "autoencoder": ("autoencoder_epoch273.pt", {"epoch": 273, "unet_state_dict": states.get("autoencoder")}),
            "diffusion_unet": (
                "diff_unet_ckpt.pt",
                {"epoch": 9, "scale_factor": torch.tensor(SCALE), "unet_state_dict": states.get("diffusion_unet")},
            ),
            "controlnet": ("exp1_current.pt", {"epoch": 1, "controlnet_state_dict": states.get("controlnet")}),
        }
        for role in roles:
            name, content = contents[role]
            (folder / name).write_bytes(saved(content))
        return folder.parent, write_network_file(tmp_path / "config_network_rflow.json", networks), states

    return write


def draw_plainly(bundle: Bundle, states: dict[str, Any], label_map: np.ndarray[Any, Any] | None) -> Any:
    definitions = {role: bundle.definition(role) for role in states}
    loop = ReferenceLoop(definitions, states, bundle.spec.scheduler, scale_factor=float(torch.tensor(SCALE)))
    if label_map is None:
        told = Inputs(None, torch.tensor([1]), torch.tensor([SPACING_MM]) * 100.0)
    else:
        told = encode(label_map, SPACING_MM)
    noise = torch.randn(
        (1, 4, *(side // 4 for side in SHAPE)),
        generator=torch.Generator().manual_seed(derive_seed(SEED, "latent noise")),
    )
    image = loop.decode(loop.sample(noise, told, num_steps=2))
    return to_hu(image, np.ones(SHAPE, dtype=np.uint8) if label_map is None else label_map)


@pytest.mark.parametrize("width", [8, 16, 24])
def test_networks_of_any_width_draw_as_monais_classes_do(width: int, trained: Callable[..., Trained]) -> None:
    source, network_file, states = trained(width)
    bundle = import_networks(source, network_file)
    assert load_bundle("nv") == bundle
    assert bundle.path == pulled_bundles_folder() / "nv"
    assert (bundle.spec.networks, bundle.default_steps) == (define(width), 30)
    label_map = np.full(SHAPE, 200, dtype=np.uint8)
    label_map[4:20, 4:20, 2:12] = 1
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none())
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    found = pipeline.synthesize_image(label_map, grid, seed=SEED, num_inference_steps=2)
    assert np.unique(found).size > 50
    assert np.array_equal(found, draw_plainly(bundle, states, label_map))


def test_folder_without_a_controlnet_draws_images_alone(
    trained: Callable[..., Trained], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    source, network_file, states = trained(roles=("autoencoder", "diffusion_unet"))
    done = run_cli("bundles", "import", source, "--network", network_file, "--as", "mine")
    assert done.code == 0, done.stderr
    assert "No ControlNet in" in done.stderr
    assert done.stdout.endswith("Use it with: --bundle mine --mask-source none\n")
    bundle = load_bundle("mine")
    assert bundle.image_roles == ("autoencoder", "diffusion_unet")
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none())
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    found = pipeline.synthesize_image(None, grid, seed=SEED, num_inference_steps=2)
    assert np.array_equal(found, draw_plainly(bundle, states, None))
    with pytest.raises(BundleError, match="'mine': has no ControlNet, .* Use --mask-source none"):
        pipeline.synthesize_image(np.full(SHAPE, 200, dtype=np.uint8), grid, seed=SEED)
    refused = run_cli("synthesize", "--labels", "liver", "--bundle", "mine", "--out", tmp_path / "out", "--dry-run")
    assert refused.code != 0
    assert "has no ControlNet, which images of label maps need" in refused.stderr
    assert "mine: all 2 files are intact." in run_cli("bundles", "verify", "mine").stdout
    assert "autoencoder" in run_cli("bundles", "show", "mine").stdout


def test_second_import_is_the_first_unless_the_modalities_are_others(trained: Callable[..., Trained]) -> None:
    source, network_file, _ = trained(roles=("autoencoder", "diffusion_unet"))
    first = import_networks(source, network_file)
    assert import_networks(source, network_file).fingerprint == first.fingerprint
    assert not first.is_mr
    second = import_networks(source, network_file, modalities=["mri_t2", "mri_t1"])
    assert second.is_mr
    assert second.choose_modality(None) == "mri_t2"
    with pytest.raises(BundleError, match="modalities.*expected"):
        import_networks(source, network_file, modalities=["t2"])
    with pytest.raises(BundleError, match="expected only CT modalities or only MR modalities, found ct, mri_t1"):
        import_networks(source, network_file, modalities=["ct", "mri_t1"])
    assert load_bundle("nv").fingerprint == second.fingerprint


def test_weights_of_another_width_are_told_by_their_differences(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    source, _, _ = trained(8)
    other = write_network_file(tmp_path / "wide.json", define(16))
    difference = r"wide.json, autoencoder against autoencoder_epoch273.pt: .* of a different shape .*instead of \(32"
    with pytest.raises(BundleError, match=difference):
        import_networks(source, other)
    assert not list(pulled_bundles_folder().glob("*"))


def test_of_two_checkpoints_of_a_controlnet_the_best_is_taken(trained: Callable[..., Trained]) -> None:
    source, network_file, states = trained()
    said: list[str] = []
    best = {"controlnet_state_dict": {key: value + 1 for key, value in states["controlnet"].items()}}
    (source / "models" / "exp1_best.pt").write_bytes(saved(best))
    bundle = import_networks(source, network_file, report=said.append)
    assert "Of exp1_best.pt and exp1_current.pt, exp1_best.pt is taken." in said
    assert bundle.spec.provenance["files"]["controlnet"]["file"] == "exp1_best.pt"
    (source / "models" / "exp2_best.pt").write_bytes(saved(best))
    with pytest.raises(BundleError, match="expected one checkpoint of the controlnet, found exp1_best.pt and "):
        import_networks(source, network_file)


def test_missing_network_is_named(trained: Callable[..., Trained]) -> None:
    source, network_file, _ = trained(roles=("autoencoder",))
    with pytest.raises(BundleError, match="expected a checkpoint of the diffusion_unet .*, found none among autoenc"):
        import_networks(source, network_file)
    (source / "models" / "diff_unet_ckpt.pt").write_bytes(b"broken")
    with pytest.raises(BundleError, match="diff_unet_ckpt.pt: must contain weights only, found a file that cannot be"):
        import_networks(source, network_file)
    with pytest.raises(BundleError, match="'rflow-ct': this is the name of another bundle"):
        import_networks(source, network_file, name="rflow-ct")
    with pytest.raises(BundleError, match="expected checkpoints .*, found none"):
        import_networks(network_file.parent / "nowhere", network_file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_scheduler": 1}, "expected noise_scheduler among its definitions, found spatial_dims"),
        ({"latent_channels": "$4"}, "autoencoder_def.latent_channels: expected a value, .*, found '@latent_channels'"),
        ({"spatial_dims": "@nothing"}, "autoencoder_def.spatial_dims: expected a value, .*, found '@spatial_dims'"),
        ({"autoencoder_def": {"in_channels": 1}}, "expected the path of a class as autoencoder_def._target_, found No"),
    ],
)
def test_file_that_defines_no_networks_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=message):
        read_network_file(write_network_file(tmp_path / "network.json", define(8), **changes))


def test_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a config_network"):
        read_network_file(tmp_path / "absent.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(BundleError, match="expected definitions of networks by name, found a list"):
        read_network_file(tmp_path / "list.json")


def test_modality_goes_with_a_network_file(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    refused = run_cli("bundles", "import", tmp_path, "--modality", "mri_t1")
    assert refused.code == 2
    assert "--modality can only be used with --network." in refused.stderr
    with pytest.raises(RequestError, match="--modality can only be used with --network"):
        ma.import_bundle(tmp_path, modalities=["mri_t1"])
