from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from maisi_aug.bundle_spec import known_bundles as table
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.known_bundles import KnownBundle
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints import folders
from maisi_aug.networks.checkpoints.folders import MONAI_NAMES, find_checkpoints, import_bundle
from maisi_aug.networks.weights import verify_bundle, write_bundle
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header, write_tiny_bundle
from tests.builders.tiny_checkpoints import SCALE_FACTOR, States, draw_states, narrow, saved, wrap

NAMES = ("rflow-ct", "ddpm-ct")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    ddpm = write_random_bundle(folder / "ddpm", build_ddpm_header(), seed=1)
    return dict(zip(NAMES, (write_tiny_bundle(folder / "rflow"), ddpm), strict=True))


@pytest.fixture(scope="module")
def states(bundles: dict[str, Bundle]) -> dict[str, States]:
    return {name: draw_states(bundle) for name, bundle in bundles.items()}


@pytest.fixture(autouse=True)
def known(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> dict[str, KnownBundle]:
    """The known bundles with networks of tiny width."""
    fake = {name: narrow(table.find_known_bundle(name), bundles[name]) for name in NAMES}
    monkeypatch.setattr(table, "known_bundles", lambda: fake)
    monkeypatch.setattr(folders, "known_bundles", lambda: fake)
    return fake


@pytest.fixture
def nvidia(tmp_path: Path, states: dict[str, States], known: dict[str, KnownBundle]) -> Callable[..., Path]:
    """Writes NV-Generate-CTMR's folder with the models of some bundles."""

    def write(*names: str) -> Path:
        for name in names:
            for role, content in wrap(states[name]).items():
                path = tmp_path / "NV" / known[name].files[role]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(saved(content))
        return tmp_path / "NV"

    return write


@pytest.fixture
def monai(tmp_path: Path, states: dict[str, States]) -> Callable[[str], Path]:
    """Writes the folder of MONAI's bundle with the model of one."""

    def write(name: str) -> Path:
        folder = tmp_path / "maisi_ct_generative"
        (folder / "models").mkdir(parents=True)
        for role, content in wrap(states[name]).items():
            (folder / "models" / MONAI_NAMES[role]).write_bytes(saved(content))
        return folder

    return write


def accept(_: KnownBundle) -> bool:
    return True


@pytest.mark.parametrize("name", NAMES)
def test_folder_of_nvidia_becomes_a_bundle(name: str, nvidia: Callable[..., Path], states: dict[str, States]) -> None:
    bundle = import_bundle(nvidia(name), accept_licence=accept)
    assert load_bundle(name) == bundle
    assert bundle.path == pulled_bundles_folder() / name
    assert bundle.spec.scale_factor == SCALE_FACTOR
    assert bundle.licence == "NVIDIA Open Model License"
    assert "bundles import" in (bundle.path / "LICENCE.txt").read_text()
    for role, state in states[name].items():
        written = safetensors.torch.load_file(bundle.weight_path(role))
        assert set(written) == set(state)
        assert all(torch.equal(written[key], state[key]) for key in state)


@pytest.mark.parametrize("name", NAMES)
def test_folder_of_monai_is_told_by_its_unet(name: str, monai: Callable[[str], Path]) -> None:
    known, files = find_checkpoints(monai(name))
    assert known.name == name
    assert "non-commercial" in known.licence
    assert [path.name for path in files.values()] == ["autoencoder.pt", "diff_unet.pt", "controlnet.pt"]
    assert find_checkpoints(files["autoencoder"].parent)[0].name == name, "the folder of the files will do, too"


def test_folder_of_both_asks_which(nvidia: Callable[..., Path]) -> None:
    source = nvidia(*NAMES)
    with pytest.raises(BundleError, match="has the checkpoints of several bundles, rflow-ct and ddpm-ct"):
        find_checkpoints(source)
    assert find_checkpoints(source, "ddpm-ct")[0].name == "ddpm-ct"


def test_missing_checkpoint_is_named(nvidia: Callable[..., Path], known: dict[str, KnownBundle]) -> None:
    source = nvidia("rflow-ct")
    (source / known["rflow-ct"].files["diffusion_unet"]).unlink()
    with pytest.raises(BundleError, match="diff_unet_3d_rflow-ct.pt.*found autoencoder_v1.pt, controlnet_3d_rflow-ct"):
        find_checkpoints(source)
    with pytest.raises(BundleError, match="not a folder"):
        find_checkpoints(source / "nowhere")


def test_folder_without_a_controlnet_is_a_bundle_of_images_alone(
    nvidia: Callable[..., Path], known: dict[str, KnownBundle]
) -> None:
    source = nvidia("rflow-ct")
    (source / known["rflow-ct"].files["controlnet"]).unlink()
    said: list[str] = []
    bundle = import_bundle(source, accept_licence=accept, report=said.append)
    assert (
        f"No ControlNet in {source}: the bundle can only draw images without label maps (--mask-source none)." in said
    )
    assert not bundle.has_controlnet
    assert [row["role"] for row in verify_bundle(bundle)] == ["autoencoder", "diffusion_unet"]
    nvidia("ddpm-ct")
    assert find_checkpoints(source)[0].name == "ddpm-ct", "the bundle that lacks nothing goes before"


def test_unet_of_neither_is_explained(monai: Callable[[str], Path]) -> None:
    source = monai("rflow-ct")
    (source / "models" / "diff_unet.pt").write_bytes(saved({"unet_state_dict": {"odd": torch.ones(1)}}))
    with pytest.raises(BundleError, match="its U-Net is not that of rflow-ct or ddpm-ct"):
        find_checkpoints(source)
    with pytest.raises(BundleError, match="diff_unet.pt: tensors differ from the definition:"):
        import_bundle(source, accept_licence=accept, name="ddpm-ct")
    assert not list(pulled_bundles_folder().glob("*"))


def test_nothing_is_written_before_the_licence_is_accepted(nvidia: Callable[..., Path]) -> None:
    source = nvidia("rflow-ct")
    with pytest.raises(BundleError, match=r"maisi-aug bundles import .* --to '/a b' --accept-license"):
        import_bundle(source, accept_licence=lambda _: False, folder=Path("/a b"))
    assert not pulled_bundles_folder().exists()


def test_second_import_replaces_the_first_and_nothing_else(
    nvidia: Callable[..., Path], bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    source = nvidia("rflow-ct")
    first = import_bundle(source, accept_licence=accept)
    assert import_bundle(source, accept_licence=lambda _: pytest.fail("asked")) == first, "nothing has changed"
    first.weight_path("controlnet").write_bytes(b"altered")
    assert import_bundle(source, accept_licence=accept).fingerprint == first.fingerprint
    other, pulled = tmp_path / "other", tmp_path / "pulled"
    shutil.copytree(bundles["rflow-ct"].path, other)
    shutil.copytree(first.path, pulled)
    text = (pulled / "bundle.yaml").read_text()
    (pulled / "bundle.yaml").write_text(text.replace(folders.ORIGIN, "nvidia/NV-Generate-CT"))
    for folder in (other, pulled, source):
        before = sorted(path.name for path in folder.rglob("*"))
        with pytest.raises(BundleError, match="must be a new folder, or an earlier copy of 'rflow-ct'"):
            import_bundle(source, accept_licence=accept, folder=folder)
        assert sorted(path.name for path in folder.rglob("*")) == before


def test_verify_finds_what_is_wrong(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    rows = verify_bundle(bundles["ddpm-ct"])
    assert [row["role"] for row in rows] == ["autoencoder", "diffusion_unet", "controlnet"]
    assert all(row["num_tensors"] > 0 for row in rows)
    spec = bundles["ddpm-ct"].spec
    weights = {role: safetensors.torch.load_file(bundles["ddpm-ct"].weight_path(role)) for role in spec.weights}
    weights["controlnet"].popitem()
    header = spec.model_dump(mode="json", exclude={"weights"})
    with pytest.raises(BundleError, match="controlnet.safetensors: tensors differ from the definition:"):
        verify_bundle(write_bundle(tmp_path / "lacking", header, weights))
    del weights["controlnet"]
    with pytest.raises(BundleError, match="no weights for controlnet"):
        verify_bundle(write_bundle(tmp_path / "without", header, weights))


def test_commands_import_and_verify(run_cli: Callable[..., Any], nvidia: Callable[..., Path]) -> None:
    source = nvidia("rflow-ct")
    refused = run_cli("bundles", "import", str(source))
    assert (refused.code, refused.stdout) == (1, "")
    outcome = run_cli("bundles", "import", str(source), "--accept-license")
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.endswith("Use it with: --bundle rflow-ct\n")
    verified = run_cli("bundles", "verify", "rflow-ct", "--json")
    assert next(row["file"] for row in json.loads(verified.stdout)["files"]) == "autoencoder.safetensors"
    assert run_cli("bundles", "verify", "rflow-ct").stdout.endswith("rflow-ct: all 3 files are intact.\n")
    path = load_bundle("rflow-ct").weight_path("controlnet")
    path.write_bytes(path.read_bytes()[:-1])
    broken = run_cli("bundles", "verify", "rflow-ct")
    assert (broken.code, broken.stdout) == (1, "")
    assert "controlnet.safetensors should have SHA-256" in broken.stderr
