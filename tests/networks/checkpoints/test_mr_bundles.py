"""MR bundles from a local hub and from a folder, and cohorts of their images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maisi_aug.bundle_spec import known_bundles as table
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.known_bundles import KnownBundle
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import resolve
from maisi_aug.errors import BundleError, RecipeError
from maisi_aug.networks.checkpoints import folders
from maisi_aug.networks.checkpoints.folders import import_bundle
from maisi_aug.networks.checkpoints.hub import Hub, pull_bundle
from maisi_aug.volumes.image_files import load_image
from tests.builders.hub_server import COMMIT, HubServer, serve
from tests.builders.narrow_networks import scaled_header
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_checkpoints import saved

NAMES = ("rflow-mr", "rflow-mr-brain")
ROLES = ("autoencoder", "diffusion_unet")
CT_REPOSITORY = "nvidia/NV-Generate-CT"


def narrow(name: str) -> KnownBundle:
    """A known MR bundle with tiny networks, on a tiny grid that any side is taken of."""
    real = table.known_bundles()[name]
    networks = {role: build_header()["networks"][role] for role in ROLES}
    changes = {"networks": networks, "num_inference_steps": 2, "grid": {"shape": [32, 24, 16], "spacing_mm": [5, 5, 6]}}
    header = {key: value for key, value in real.header.items() if key != "grid_limits"}
    return replace(real, header={**header, **changes})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Checkpoint by role, in NVIDIA's layout."""
    import safetensors.torch
    import torch

    bundle = write_random_bundle(
        tmp_path_factory.mktemp("tiny"), {**narrow("rflow-mr").header, "scale_factor": 1.0}, seed=0
    )
    states = {
        role: {key: value.float() for key, value in safetensors.torch.load_file(bundle.weight_path(role)).items()}
        for role in ROLES
    }
    unet = {"unet_state_dict": states["diffusion_unet"], "scale_factor": torch.tensor(1.1)}
    return {"autoencoder": saved(states["autoencoder"]), "diffusion_unet": saved(unet)}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, KnownBundle]:
    """All known bundles, those of MR with tiny networks."""
    fake = {**table.known_bundles(), **{name: narrow(name) for name in NAMES}}
    monkeypatch.setattr(table, "known_bundles", lambda: fake)
    monkeypatch.setattr(folders, "known_bundles", lambda: fake)
    return fake


@pytest.fixture
def source(tmp_path: Path, known: dict[str, KnownBundle], checkpoints: dict[str, bytes]) -> Callable[[str], Path]:
    """Writes NV-Generate-CTMR's folder with the models of a bundle."""

    def write(name: str) -> Path:
        for role, file in known[name].files.items():
            path = tmp_path / "NV" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(checkpoints[role])
        return tmp_path / "NV"

    return write


@pytest.fixture
def mr(source: Callable[[str], Path]) -> Bundle:
    return import_bundle(source("rflow-mr"), accept_licence=lambda _: True)


@pytest.mark.parametrize("name", NAMES)
def test_bundle_is_pulled_from_where_its_files_lie(
    name: str,
    known: dict[str, KnownBundle],
    checkpoints: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    own: dict[str, bytes] = {}
    others: dict[str, bytes] = {}
    for role, file in known[name].files.items():
        (own if known[name].repositories.get(role) is None else others)[file] = checkpoints[role]
    with serve(known[name].repository, own) as server:
        server.others = {CT_REPOSITORY: others}
        hub = Hub(server.endpoint, tmp_path / "cache")
        with pytest.raises(BundleError, match=f"{known[name].licence[:20]}.*{known[name].licence_url}"):
            pull_bundle(known[name], accept_licence=lambda _: False, hub=hub)
        bundle = pull_bundle(known[name], accept_licence=lambda _: True, hub=hub)
        server.requests.clear()
        assert pull_bundle(known[name], accept_licence=lambda _: pytest.fail("asked"), hub=hub) == bundle
        assert server.requests == []
        refuse(server, known[name], tmp_path)
    assert load_bundle(name) == bundle
    assert bundle.is_mr
    assert bundle.spec.provenance["revision"] == COMMIT
    file = bundle.spec.provenance["files"]["autoencoder"]
    assert file.get("repository") == (CT_REPOSITORY if name == "rflow-mr-brain" else None)


def refuse(server: HubServer, known: KnownBundle, tmp_path: Path) -> None:
    """A gated repository is told from one that lacks the file."""
    server.status = HTTPStatus.FORBIDDEN
    empty = Hub(server.endpoint, tmp_path / "empty")
    with pytest.raises(BundleError, match="answer 403. .*HF_TOKEN"):
        pull_bundle(known, accept_licence=lambda _: True, hub=empty, folder=tmp_path / "gated")
    assert not (tmp_path / "gated").exists()


def test_licence_of_the_mr_bundle_is_not_for_commercial_use(mr: Bundle) -> None:
    assert "non-commercial" in mr.licence
    assert "not for commercial use" in (mr.path / "LICENCE.txt").read_text()
    assert "NVIDIA Open Model License" in table.known_bundles()["rflow-mr-brain"].licence


def test_folder_of_both_asks_which(source: Callable[[str], Path]) -> None:
    for name in NAMES:
        folder = source(name)
    with pytest.raises(BundleError, match="several bundles, rflow-mr and rflow-mr-brain. Choose one with --as"):
        import_bundle(folder, accept_licence=lambda _: True)
    assert import_bundle(folder, accept_licence=lambda _: True, name="rflow-mr-brain").name == "rflow-mr-brain"


def test_cohort_of_mr_images(mr: Bundle, run_cli: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["synthesize", "--bundle", "rflow-mr", "--mask-source", "none", "--modality", "mri_t2", "-n", "1"]
    done = run_cli(*words, "--gate", "organ-hu=off", "--out", out)
    assert done.code == 0, done.stderr
    (record,) = load_manifest(out).accepted
    assert record.settings["modality"] == "mri_t2"
    assert record.settings["guidance_scale"] == 15.0
    assert record.licence == mr.licence
    image = load_image(out / record.files["image"].path).array
    assert image.min() >= 0
    assert record.verdicts[0].figures["lowest"] == image.min()
    with Image.open(out / record.files["preview"].path) as preview:
        assert preview.width > 2 * preview.height
    exported = run_cli("export", "dicom", out, "--out", tmp_path / "dicom")
    assert exported.code == 1
    assert "case_0001: expected a CT image, found 'mri_t2'." in exported.stderr
    again = run_cli(*words, "--gate", "organ-hu=off", "--out", tmp_path / "again")
    assert again.code == 0
    other = load_image(tmp_path / "again" / record.files["image"].path).array
    assert np.array_equal(image, other)


def test_listings_name_the_modalities(mr: Bundle, run_cli: Callable[..., Any]) -> None:
    shown = json.loads(run_cli("bundles", "show", "rflow-mr", "--json").stdout)
    assert shown["modalities"][:2] == ["mri_t1", "mri_t2"]
    assert shown["guidance_scale"] == 15.0
    text = run_cli("bundles", "show", "rflow-mr").stdout
    assert "modalities: mri_t1, mri_t2, mri_flair" in text
    assert "draws: images without label maps only (--mask-source none)" in text
    assert "rflow-mr: all 2 files are intact." in run_cli("bundles", "verify", "rflow-mr").stdout
    listed = {row["name"]: row for row in json.loads(run_cli("bundles", "list", "--json").stdout)}
    assert listed["rflow-mr-brain"]["pull"] == "maisi-aug bundles pull rflow-mr-brain"
    assert listed["rflow-mr"]["path"] == str(mr.path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"labels": ["liver"]},
            "'rflow-mr': has no ControlNet, .*NVIDIA has not published one for MR.. Use --mask-source",
        ),
        (
            {"mask_source": "none", "modality": "ct"},
            "modality: bundle 'rflow-mr' draws mri_t1, .*, found 'ct'. Use a CT bundle such as",
        ),
        ({"mask_source": "diffusion", "labels": ["liver"]}, "'rflow-mr': has no ControlNet"),
    ],
)
def test_what_an_mr_bundle_does_not_draw_is_refused(mr: Bundle, values: dict[str, Any], message: str) -> None:
    with pytest.raises((BundleError, RecipeError), match=message):
        resolve(build_request({"bundle": "rflow-mr", **values}))


def test_ct_bundle_draws_no_mr() -> None:
    request = build_request({"labels": ["liver"], "modality": "mri_t1"})
    with pytest.raises(RecipeError, match="draws ct, ct_contrast, .*, found 'mri_t1'. Use an MR bundle such as rflow"):
        resolve(request)


def test_sequence_that_was_not_taught_is_warned_of(mr: Bundle) -> None:
    request = build_request({"bundle": "rflow-mr", "mask_source": "none", "modality": "mri_swi"})
    with pytest.warns(UserWarning, match="bundle 'rflow-mr' was trained with mri_t1, .*, not with 'mri_swi'"):
        run = resolve(request)
    assert (run.modality, run.guidance_scale) == ("mri_swi", 15.0)
    quiet = resolve(build_request({"bundle": "rflow-mr", "mask_source": "none"}))
    assert (quiet.modality, quiet.configuration["modality"]) == ("mri_t1", "mri_t1")


@pytest.mark.parametrize("name", NAMES)
def test_grids_with_a_side_of_128_are_known(name: str) -> None:
    header = scaled_header(name)
    assert header["grid_limits"]["sides"][0][0] == 128
    assert "controlnet" not in header["networks"]
