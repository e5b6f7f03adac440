from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.bundle_spec import bundle as bundle_module
from maisi_aug.bundle_spec.bundle import (
    BUNDLE_FILE,
    EMBEDDED_FOLDER,
    NETWORK_ROLES,
    Bundle,
    embedded_bundles,
    grid_factor,
    list_bundles,
    load_bundle,
    load_outline,
)
from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.errors import BundleError, RecipeError
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_bundle import TINY_SHAPE, TINY_SPACING_MM, build_header

WEIGHTS = b"not read by the tests here"
MAX_SHIPPED_BYTES = 40_000_000


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle whose weight files are there but hold no tensors, with some fields changed or left out (None)."""

    def call(place: str = "folder", **changes: Any) -> Path:
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        weights = {}
        for role in NETWORK_ROLES:
            path = folder / f"{role}.safetensors"
            path.write_bytes(WEIGHTS)
            weights[role] = {"file": path.name, "sha256": sha256_of(path)}
        content = {**build_header(), "weights": weights, **changes}
        content = {key: value for key, value in content.items() if value is not None}
        (folder / BUNDLE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
        return folder

    return call


@pytest.mark.parametrize(
    ("scheduler", "fewest", "limit"),
    [({"class": "RFlowScheduler"}, 2, 1000), ({"class": "DDPMScheduler", "num_train_timesteps": 20}, 20, 20)],
)
def test_steps_end_where_the_scheduler_does(
    write: Callable[..., Path], scheduler: dict[str, Any], fewest: int, limit: int
) -> None:
    bundle = load_bundle(write(scheduler=scheduler, num_inference_steps=fewest))
    assert (bundle.choose_steps(None), bundle.choose_steps(limit)) == (fewest, limit)
    with pytest.raises(RecipeError, match=f"num_inference_steps: at most {limit} .*, found {limit + 1}"):
        bundle.choose_steps(limit + 1)
    if fewest == limit:
        with pytest.raises(
            RecipeError,
            match="num_inference_steps: must be 20, because DDPM uses every time step .*, found 19",
        ):
            bundle.choose_steps(19, takes_fewer=False)
        assert bundle.choose_steps(19) == 19
        (sentence,) = bundle.warn_of_steps(19)
        assert sentence.startswith("num_inference_steps: bundle 'tiny' is a DDPM one of 20 steps, found 19.")
    assert bundle.warn_of_steps(limit) == ()


def test_fewer_steps_need_a_network_that_predicts_noise(write: Callable[..., Path]) -> None:
    scheduler = {"class": "DDPMScheduler", "num_train_timesteps": 20, "prediction_type": "v_prediction"}
    bundle = load_bundle(write(scheduler=scheduler, num_inference_steps=20))
    assert bundle.choose_steps(20) == 20
    with pytest.raises(RecipeError, match=r"num_inference_steps: must be 20, .*'tiny' predicts v_prediction; found 19"):
        bundle.choose_steps(19)


@pytest.mark.parametrize("steps", [[1000], [1000, 20], "1000", True, 0, 10**7])
def test_time_steps_are_one_whole_number(steps: Any, write: Callable[..., Path]) -> None:
    folder = write(scheduler={"class": "RFlowScheduler", "num_train_timesteps": steps})
    with pytest.raises(BundleError, match="scheduler: expected .* as 'num_train_timesteps', found ") as caught:
        load_bundle(folder)
    assert str(caught.value).endswith(f"found {steps!r}.")


def test_bundle_tells_what_its_file_says(write: Callable[..., Path]) -> None:
    folder = write()
    bundle = load_bundle(folder)
    assert isinstance(bundle, Bundle)
    assert (bundle.name, bundle.licence, bundle.default_steps, bundle.path) == ("tiny", "Apache-2.0", 2, folder)
    assert bundle.advice.startswith("tiny has random weights")
    assert bundle.grid.shape == TINY_SHAPE
    assert bundle.grid.spacing_mm == pytest.approx(TINY_SPACING_MM)
    assert bundle.weight_path("controlnet") == (folder / "controlnet.safetensors").resolve()
    assert load_bundle(str(folder)).spec == bundle.spec
    bundle.require_intact()


def test_slots_join_the_vocabulary(write: Callable[..., Path]) -> None:
    vocabulary = load_bundle(write()).vocabulary
    assert vocabulary.id_of("kidney tumor") == 129
    assert vocabulary.hosts_of(129) == (5, 14)
    assert 129 in vocabulary.tumor_ids
    assert 129 not in load_bundle(write("plain", slots=None)).vocabulary.tumor_ids


def test_window_of_the_decoder_is_three_whole_numbers_or_none(write: Callable[..., Path]) -> None:
    assert load_bundle(write()).spec.decode_window is None
    assert load_bundle(write("windowed", decode_window=[48, 48, 64])).spec.decode_window == (48, 48, 64)
    with pytest.raises(BundleError, match=r"decode_window\[1\]: expected greater than 0, found 0"):
        load_bundle(write("empty", decode_window=[48, 0, 64]))
    with pytest.raises(BundleError, match="a value is required"):
        load_bundle(write("flat", decode_window=[48, 48]))


def test_factor_is_that_of_both_networks(write: Callable[..., Path]) -> None:
    assert load_bundle(write()).grid_factor == 8
    assert latent_factor({"num_channels": [64, 128, 256]}) == 4
    assert grid_factor({"num_channels": [64, 128, 256]}, {"num_channels": [64, 128, 256, 512]}) == 32


def test_fingerprint_changes_with_the_content(write: Callable[..., Path]) -> None:
    before = load_bundle(write()).fingerprint
    assert load_bundle(write("twin")).fingerprint == before
    assert load_bundle(write("other", scale_factor=1.5)).fingerprint != before


def test_bundles_of_the_package_are_found_by_name(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("package/tiny_ct", name="tiny-ct")
    write("package/other", name="other")
    (folder.parent / "unfinished").mkdir()
    monkeypatch.setattr(bundle_module, "EMBEDDED_FOLDER", folder.parent)
    assert embedded_bundles() == ("other", "tiny-ct")
    assert [bundle.name for bundle in list_bundles()] == ["other", "tiny-ct"]
    assert load_bundle("tiny-ct").path == folder
    with pytest.raises(BundleError, match=r"Bundle 'tiny-cd': expected other or tiny-ct or a folder with bundle\.yaml"):
        load_bundle("tiny-cd")
    with pytest.raises(BundleError, match=r"found neither\. Did you mean 'tiny-ct'\?"):
        load_bundle("tiny-cd")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (BUNDLE_FILE, b"name: [", "cannot be read as YAML in bundle.yaml:"),
        (BUNDLE_FILE, b"name: torn", "bundle.yaml does not validate: "),
        ("controlnet.safetensors", None, "controlnet.safetensors is missing"),
    ],
    ids=["yaml", "fields", "weights"],
)
def test_damaged_bundle_is_named_and_hides_no_other(
    file: str,
    content: bytes | None,
    message: str,
    write: Callable[..., Path],
    user_folder: Path,
    run_process: Callable[..., Any],
) -> None:
    pulled = user_folder.relative_to(user_folder.parent) / "bundles"
    write(f"{pulled}/whole", name="whole")
    path = write(f"{pulled}/torn", name="torn") / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    outcome = run_process("bundles", "list", "--json")
    assert outcome.code == 0
    assert "whole" in [row["name"] for row in json.loads(outcome.stdout)]
    assert "torn" not in outcome.stdout
    (line,) = outcome.stderr.splitlines()
    assert message in line
    assert line.endswith("The list omits 'torn' until it is fetched or installed again.")


def test_folder_of_a_training_run_stands_for_its_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "bundle"
    folder.mkdir(parents=True)
    (folder / BUNDLE_FILE).write_text(yaml.safe_dump({**build_header(), "weights": {}}))
    assert load_bundle(tmp_path / "run").path == folder


def test_folder_without_bundle_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(BundleError, match="expected the name of a bundle or a folder with bundle.yaml, found neither"):
        load_bundle(tmp_path)


def test_all_problems_are_told_together_with_their_place(write: Callable[..., Path]) -> None:
    grid = {"shape": [64, 48], "spacing_mm": [6.4, "wide", 6.4]}
    folder = write(name="Has Blanks", num_inference_steps=0, grid=grid, licence=None, colour="red")
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert message.startswith(f"Bundle {folder}: bundle.yaml does not validate: ")
    for place in ("name", "num_inference_steps", "grid.spacing_mm[1]"):
        assert f" {place}: expected " in message
    for place in ("grid.shape[2]", "licence"):
        assert f" {place}: a value is required. " in message
    assert " colour: unknown key 'colour'." in message
    assert "\n" not in message


def test_hash_that_is_none_is_refused_with_its_place(write: Callable[..., Path]) -> None:
    weights = {"autoencoder": {"file": "autoencoder.safetensors", "sha256": "abc"}}
    with pytest.raises(BundleError, match=r"weights\.autoencoder\.sha256: expected a text like"):
        load_bundle(write(weights=weights))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "cannot be read as YAML in bundle.yaml:"),
        (b"\xff\xfe\x00name", "cannot be read as YAML in bundle.yaml:"),
        (b"", "does not validate: expected a mapping of fields, found None"),
        (b"format: 2", "format: expected less than or equal to 1, found 2"),
    ],
    ids=["yaml", "utf-8", "empty", "newer"],
)
def test_file_that_is_no_bundle_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / BUNDLE_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path)


def test_altered_weights_are_refused_by_their_hash(write: Callable[..., Path]) -> None:
    folder = write()
    path = folder / "diffusion_unet.safetensors"
    path.write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(BundleError, match="diffusion_unet.safetensors should have SHA-256 [0-9a-f]{12}..., found "):
        load_bundle(folder).require_intact()
    path.unlink()
    with pytest.raises(BundleError, match="weight file .*diffusion_unet.safetensors is missing"):
        load_bundle(folder).require_intact()


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/hostname", "sub/../../outside.safetensors"])
def test_weights_cannot_lie_outside_the_folder(file: str, write: Callable[..., Path]) -> None:
    weights = {"autoencoder": {"file": file, "sha256": "0" * 64}}
    folder = write(weights=weights)
    (folder.parent / "outside.safetensors").write_bytes(WEIGHTS)
    with pytest.raises(BundleError, match="weight files must be inside the bundle's folder, found /"):
        load_bundle(folder).weight_path("autoencoder")


@pytest.mark.parametrize("file", ["", "a\0b", "a" * 300, "ab/" * 1000], ids=["empty", "null", "part", "path"])
def test_what_no_file_can_be_called_is_refused(file: str, write: Callable[..., Path]) -> None:
    for changes, place in (
        ({"weights": {"autoencoder": {"file": file, "sha256": "0" * 64}}}, "weights.autoencoder.file"),
        ({"base": {"name": "base", "fingerprint": "0" * 64, "paths": [file]}}, r"base.paths\[0\]"),
    ):
        with pytest.raises(BundleError, match=f"{place}: .*the path is empty, too long or"):
            load_bundle(write(**changes))


def test_link_out_of_the_folder_is_refused(write: Callable[..., Path]) -> None:
    folder = write()
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(WEIGHTS)
    (folder / "controlnet.safetensors").unlink()
    (folder / "controlnet.safetensors").symlink_to(outside)
    with pytest.raises(BundleError, match="weight files must be inside the bundle's folder, found"):
        load_bundle(folder).weight_path("controlnet")


def test_missing_network_is_named(write: Callable[..., Path]) -> None:
    bundle = load_bundle(write(networks={"autoencoder": build_header()["networks"]["autoencoder"]}, weights={}))
    with pytest.raises(BundleError, match="has no definition networks.diffusion_unet; it has autoencoder"):
        _ = bundle.grid_factor
    with pytest.raises(BundleError, match="no weights for autoencoder; it has none"):
        bundle.weight_path("autoencoder")


@pytest.mark.skipif(not embedded_bundles(), reason="the package has no bundle yet")
def test_bundles_of_the_package_are_intact_and_small() -> None:
    bundles = {bundle.name: bundle for bundle in list_bundles()}
    assert sorted(bundles) == ["lung-nodule-ct", "phantom-ct"]
    for bundle in bundles.values():
        bundle.require_intact()
        assert set(bundle.spec.networks) == set(bundle.spec.weights) == set(NETWORK_ROLES)
        bundle.grid.require_multiple_of(bundle.grid_factor, subject=bundle.name)
        assert {"trained_on", "steps", "versions"} <= set(bundle.spec.provenance)
    assert bundles["phantom-ct"].vocabulary.id_of("kidney tumor") == 129
    assert bundles["phantom-ct"].licence == "Apache-2.0"
    nodules = bundles["lung-nodule-ct"]
    assert [nodules.vocabulary.id_of(f"{texture} nodule") for texture in ("part-solid", "ground-glass")] == [129, 130]
    assert nodules.licence.startswith("CC BY 3.0; trained on LIDC-IDRI")
    shipped = sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*.safetensors"))
    assert shipped <= MAX_SHIPPED_BYTES


@pytest.mark.parametrize("name", known_bundles())
def test_bundle_that_can_be_fetched_has_an_outline_before(name: str) -> None:
    with pytest.raises(BundleError, match="its weights have not been downloaded to this machine yet"):
        load_bundle(name)
    outline = load_outline(name)
    assert (outline.name, outline.is_fetched, outline.fingerprint) == (name, False, "")
    shapes = {"rflow-mr": (128, 256, 256), "rflow-mr-brain": (256, 256, 128)}
    assert outline.grid.shape == shapes.get(name, (256, 256, 256))
    assert outline.has_controlnet != outline.is_mr == (name in shapes)
    assert outline.check_grid(outline.grid) == ()
    assert outline.vocabulary.id_of("hepatic tumor") == 26


def test_outline_of_a_bundle_that_is_there_is_the_bundle() -> None:
    assert load_outline("phantom-ct") == load_bundle("phantom-ct")
    with pytest.raises(BundleError, match="Bundle 'phantom': expected "):
        load_outline("phantom")


def test_bundle_says_whether_maps_are_completed(write: Callable[..., Path]) -> None:
    assert not load_bundle(write("plain")).completes_maps
    assert load_bundle(write("completing", unlabelled="complete")).completes_maps


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"unlabelled": "guess"}, "guess"),
        ({"unlabelled": "complete", "modalities": ["mri_t1"]}, "for CT bundles with a ControlNet"),
        ({"unlabelled": "complete", "slots": {"gland": {"id": 133, "hosts": []}}}, "found 133 for 'gland'"),
    ],
)
def test_maps_that_cannot_be_completed_are_refused(
    write: Callable[..., Path], changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(BundleError, match=found):
        load_bundle(write(**changes))
