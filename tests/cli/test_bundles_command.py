from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec import bundle as bundle_module
from maisi_aug.bundle_spec import known_bundles as table
from maisi_aug.bundle_spec.bundle import Bundle
from tests.builders.tiny_bundle import build_header, write_tiny_bundle


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A package whose only bundle is the tiny one, with another that can be fetched."""
    bundle = write_tiny_bundle(tmp_path / "bundles" / "tiny")
    monkeypatch.setattr(bundle_module, "EMBEDDED_FOLDER", tmp_path / "bundles")
    header = {**build_header(), "name": "large", "description": "Large networks."}
    masks = table.KnownMasks({}, "", {}, {})
    known = table.KnownBundle(header, "owner/large", {}, "2.6 GB", "https://example.org/licence", "", masks)
    monkeypatch.setattr(table, "known_bundles", lambda: {"large": known})
    monkeypatch.setenv("MAISI_AUG_HOME", str(tmp_path / "pulled"))
    return bundle


def test_list_shows_what_is_at_hand_and_what_can_be_fetched(run_cli: Callable[..., Any], package: Bundle) -> None:
    outcome = run_cli("bundles", "list")
    assert (outcome.code, outcome.stderr) == (0, "")
    for text in ("2 bundles", "tiny", "Random weights for tests.", "Apache-2.0", "64x48x48 at 6.4x6.4x6.4 mm"):
        assert text in outcome.stdout
    assert "0.5 MB" in outcome.stdout
    assert "maisi-aug bundles pull large (2.6 GB)" in outcome.stdout


def test_list_as_json(run_cli: Callable[..., Any], package: Bundle) -> None:
    tiny, large = json.loads(run_cli("bundles", "list", "--json").stdout)
    assert tiny == {
        "name": "tiny",
        "description": "Random weights for tests.",
        "licence": "Apache-2.0",
        "grid": {"shape": [64, 48, 48], "spacing_mm": [6.4, 6.4, 6.4]},
        "num_bytes": sum(path.stat().st_size for path in package.path.glob("*.safetensors")),
        "has_masks": False,
        "path": str(package.path),
        "pull": None,
        "download_size": None,
    }
    assert (large["name"], large["pull"], large["num_bytes"]) == ("large", "maisi-aug bundles pull large", None)


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "folder"])
def test_show_tells_all_that_matters(by_name: bool, run_cli: Callable[..., Any], package: Bundle) -> None:
    outcome = run_cli("bundles", "show", "tiny" if by_name else package.path)
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[0] == "tiny: Random weights for tests."
    for line in (
        "  advice: tiny has random weights: its images are noise.",
        "  licence: Apache-2.0",
        "  default grid: 64x48x48 at 6.4x6.4x6.4 mm (410x307x307 mm); sides are multiples of 8",
        "  sampling: RFlowScheduler, 2 steps",
        f"  on disk: 0.5 MB in {package.path}",
        "  slot 129: kidney tumor, grows in right kidney, left kidney",
    ):
        assert line in lines
    assert "autoencoder: AutoencoderKlMaisi, num_channels 8/8/8, latent_channels 4" in outcome.stdout
    assert "attention_levels no/yes" in outcome.stdout


def test_show_as_json(run_cli: Callable[..., Any], package: Bundle) -> None:
    shown = json.loads(run_cli("bundles", "show", "tiny", "--json").stdout)
    assert shown["slots"]["kidney tumor"]["hosts"] == [
        {"id": 5, "name": "right kidney"},
        {"id": 14, "name": "left kidney"},
    ]
    assert list(shown["networks"]) == ["autoencoder", "diffusion_unet", "controlnet"]
    unet = shown["networks"]["diffusion_unet"]
    assert (unet["class"], unet["num_channels"]) == ("DiffusionModelUNetMaisi", [8, 16])
    assert unet["sha256"] == package.spec.weights["diffusion_unet"].sha256
    assert shown["sides_multiple_of"] == 8
    assert shown["provenance"] == {}


def test_provenance_is_shown(run_cli: Callable[..., Any], package: Bundle) -> None:
    path = package.path / "bundle.yaml"
    path.write_text(
        path.read_text(encoding="utf-8")
        + "provenance: {trained_on: '400 phantoms, seed 1', steps: {vae: 3000, controlnet: 6000}}\n",
        encoding="utf-8",
    )
    lines = run_cli("bundles", "show", "tiny").stdout.splitlines()
    assert "  trained on: 400 phantoms, seed 1" in lines
    assert "  steps: vae 3000, controlnet 6000" in lines


def test_unknown_bundle_is_refused_with_the_closest(run_cli: Callable[..., Any], package: Bundle) -> None:
    outcome = run_cli("bundles", "show", "tinny")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "Bundle 'tinny': expected tiny or a folder with bundle.yaml" in outcome.stderr
    assert "Did you mean 'tiny'?" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
