"""Mask networks come with a pull or an import, or are added later, and the bundle is the same in the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from maisi_aug.bundle_spec import known_bundles as table
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.known_bundles import KnownBundle, KnownMasks
from maisi_aug.bundle_spec.schema import MASK_ROLES
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints import folders
from maisi_aug.networks.checkpoints import hub as hub_module
from maisi_aug.networks.checkpoints.folders import MONAI_NAMES, import_bundle
from maisi_aug.networks.checkpoints.hub import Hub
from maisi_aug.networks.weights import load_mask_networks, verify_bundle
from tests.builders.hub_server import COMMIT, HubServer
from tests.builders.tiny_checkpoints import FILES, States, draw_states, narrow, saved, wrap
from tests.builders.tiny_masks import (
    build_mask_networks,
    build_mask_settings,
    write_size_conditions,
    write_tiny_mask_bundle,
)

MASK_SCALE_FACTOR = 1.0055984258651733
MASK_FILES = {
    "mask_autoencoder": "models/mask_generation_autoencoder.pt",
    "mask_diffusion_unet": "models/mask_generation_diffusion_unet.pt",
    "size_conditions": "datasets/all_anatomy_size_conditions.json",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_mask_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def states(tiny: Bundle) -> States:
    drawn = {role: safetensors.torch.load_file(tiny.weight_path(role)) for role in MASK_ROLES}
    return {role: {key: value.float() * 1.001 for key, value in state.items()} for role, state in drawn.items()}


@pytest.fixture(scope="module")
def contents(tiny: Bundle, states: States, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """NVIDIA's repository at tiny width."""
    sizes = write_size_conditions(tmp_path_factory.mktemp("sizes") / "sizes.json")
    unet = {"unet_state_dict": states["mask_diffusion_unet"], "scale_factor": torch.tensor(MASK_SCALE_FACTOR)}
    return {
        **{FILES[role]: saved(content) for role, content in wrap(draw_states(tiny)).items()},
        MASK_FILES["mask_autoencoder"]: saved(states["mask_autoencoder"]),
        MASK_FILES["mask_diffusion_unet"]: saved(unet),
        MASK_FILES["size_conditions"]: sizes.read_bytes(),
    }


@pytest.fixture(autouse=True)
def known(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> KnownBundle:
    """The entry of rflow-ct with networks of tiny width."""
    real = table.find_known_bundle("rflow-ct")
    assert real.require_masks().files == MASK_FILES
    masks = KnownMasks(MASK_FILES, "1 MB", build_mask_networks(), build_mask_settings())
    narrowed = narrow(real, tiny)
    image = {role: definition for role, definition in tiny.spec.networks.items() if role not in MASK_ROLES}
    header = {**narrowed.header, "networks": image}
    fake = KnownBundle(**{**vars(narrowed), "header": header, "masks": masks})
    monkeypatch.setattr(table, "known_bundles", lambda: {"rflow-ct": fake})
    monkeypatch.setattr(folders, "known_bundles", lambda: {"rflow-ct": fake})
    return fake


def fetched(server: HubServer) -> list[str]:
    return [line.split("/", 6)[-1] for line, _ in server.requests if line.startswith("GET")]


def require_masks_as_they_came(bundle: Bundle, states: States) -> None:
    spec = bundle.spec.mask_generation
    assert spec is not None
    assert spec.scale_factor == pytest.approx(MASK_SCALE_FACTOR, rel=1e-7)
    for role in MASK_ROLES:
        written = safetensors.torch.load_file(bundle.weight_path(role))
        assert set(written) == set(states[role])
        assert all(torch.equal(written[key], value) for key, value in states[role].items())
    load_mask_networks(bundle)
    assert len(verify_bundle(bundle)) == 5


def test_masks_come_only_when_asked_for(pull: Callable[..., Bundle], server: HubServer) -> None:
    bundle = pull()
    assert bundle.spec.mask_generation is None
    assert len(fetched(server)) == 3
    assert not any("mask" in name or "anatomy" in name for name in fetched(server))


def test_masks_pulled_at_once_or_added_later_make_the_same_bundle(
    pull: Callable[..., Bundle], server: HubServer, states: States, tmp_path: Path
) -> None:
    at_once = pull(with_masks=True, folder=tmp_path / "at once")
    require_masks_as_they_came(at_once, states)
    assert at_once.spec.provenance["masks"]["revision"] == COMMIT
    plain = pull()
    before = plain.fingerprint
    server.requests.clear()
    later = pull(with_masks=True)
    assert not any(name.endswith((*FILES.values(),)) for name in fetched(server)), "the images' networks are there"
    require_masks_as_they_came(later, states)
    assert (later.path / "bundle.yaml").read_bytes() == (at_once.path / "bundle.yaml").read_bytes()
    assert later.fingerprint == at_once.fingerprint == before, "cohorts begun without masks can be gone on with"
    assert sorted(path.name for path in pulled_bundles_folder().iterdir()) == ["rflow-ct"]
    assert (later.path / "LICENCE.txt").is_file()
    assert load_bundle("rflow-ct") == later


def test_masks_that_are_there_are_kept(pull: Callable[..., Bundle], server: HubServer) -> None:
    bundle = pull(with_masks=True)
    server.requests.clear()
    assert pull() == pull(with_masks=True) == bundle
    assert server.requests == []
    bundle.weight_path("mask_autoencoder").write_bytes(b"altered")
    again = pull()
    again.require_intact()
    assert again.spec.mask_generation is not None


@pytest.mark.parametrize("role", MASK_ROLES)
def test_other_networks_are_explained_and_leave_the_bundle_as_it_was(
    role: str, pull: Callable[..., Bundle], server: HubServer, states: States
) -> None:
    before = pull()
    odd = {"surplus": torch.ones(1), **dict(list(states[role].items())[1:])}
    server.files[MASK_FILES[role]] = saved({"unet_state_dict": odd, "scale_factor": 1.0})
    missing = next(iter(states[role]))
    with pytest.raises(BundleError, match=rf"{Path(MASK_FILES[role]).name}: .*1 missing \({missing}\); 1 surplus"):
        pull(with_masks=True)
    assert load_bundle("rflow-ct") == before
    before.require_intact()
    assert sorted(path.name for path in pulled_bundles_folder().iterdir()) == ["rflow-ct"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mask_diffusion_unet", {"scale_factor": 1.0}, "no state dict, either directly or under 'unet_state_dict'"),
        ("size_conditions", b"[]", "rows must have 10 numbers, found the shape"),
    ],
)
def test_unusable_file_is_refused(
    name: str, content: Any, message: str, pull: Callable[..., Bundle], server: HubServer
) -> None:
    server.files[MASK_FILES[name]] = content if isinstance(content, bytes) else saved(content)
    with pytest.raises(BundleError, match=message):
        pull(with_masks=True)
    assert not list(pulled_bundles_folder().glob("*"))


def test_missing_scale_factor_is_refused(pull: Callable[..., Bundle], server: HubServer, states: States) -> None:
    server.files[MASK_FILES["mask_diffusion_unet"]] = saved({"unet_state_dict": states["mask_diffusion_unet"]})
    with pytest.raises(
        BundleError, match="mask_generation_diffusion_unet.pt: 'scale_factor' must be a positive number, found None"
    ):
        pull(with_masks=True)


def write_folder(folder: Path, contents: Mapping[str, bytes], *, in_monais_layout: bool) -> Path:
    monai = {file: f"models/{MONAI_NAMES[role]}" for role, file in FILES.items()}
    for name, content in contents.items():
        path = folder / (monai.get(name, name) if in_monais_layout else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("in_monais_layout", [False, True], ids=["NVIDIA", "MONAI"])
def test_folder_with_mask_networks_becomes_a_bundle_with_them(
    in_monais_layout: bool, contents: Mapping[str, bytes], states: States, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "source", contents, in_monais_layout=in_monais_layout)
    bundle = import_bundle(source, accept_licence=lambda _: True)
    require_masks_as_they_came(bundle, states)
    assert import_bundle(source, accept_licence=lambda _: pytest.fail("asked")) == bundle
    nested = import_bundle(source / "models", accept_licence=lambda _: True, folder=tmp_path / "nested")
    assert nested.fingerprint == bundle.fingerprint


def test_import_adds_mask_networks_that_came_later(
    contents: Mapping[str, bytes], states: States, tmp_path: Path
) -> None:
    image = {name: content for name, content in contents.items() if name in FILES.values()}
    source = write_folder(tmp_path / "source", image, in_monais_layout=False)
    plain = import_bundle(source, accept_licence=lambda _: True)
    assert plain.spec.mask_generation is None
    fingerprint = plain.fingerprint
    said: list[str] = []
    write_folder(source, {MASK_FILES["mask_autoencoder"]: b""}, in_monais_layout=False)
    import_bundle(source, accept_licence=lambda _: True, report=said.append)
    missing = "mask_generation_diffusion_unet.pt and all_anatomy_size_conditions.json are missing"
    assert any("left out" in line and missing in line for line in said)
    write_folder(source, contents, in_monais_layout=False)
    later = import_bundle(source, accept_licence=lambda _: True)
    require_masks_as_they_came(later, states)
    assert later.fingerprint == fingerprint


def test_commands_pull_list_show_and_verify(
    run_cli: Callable[..., Any], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "Hub", lambda: hub)
    refused = run_cli("bundles", "pull", "rflow-ct", "--with-masks")
    assert refused.code == 1
    assert "bundles pull rflow-ct --with-masks --accept-license" in refused.stderr
    outcome = run_cli("bundles", "pull", "rflow-ct", "--with-masks", "--accept-license")
    assert outcome.code == 0, outcome.stderr
    rows = {row["name"]: row["has_masks"] for row in json.loads(run_cli("bundles", "list", "--json").stdout)}
    assert rows == {"lung-nodule-ct": False, "phantom-ct": False, "rflow-ct": True}
    assert "with mask networks" in run_cli("bundles", "list").stdout
    shown = run_cli("bundles", "show", "rflow-ct").stdout
    assert "mask_diffusion_unet: DiffusionModelUNet, channels 8/16" in shown
    assert "label maps: generated, 64x48x48 at 6.4x6.4x6.4 mm (410x307x307 mm), 3 steps" in shown
    assert run_cli("bundles", "verify", "rflow-ct").stdout.endswith("all 5 files are intact.\n")
