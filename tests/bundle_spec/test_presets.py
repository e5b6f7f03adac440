from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.bundle_spec.presets import find_preset, list_all_presets, list_presets, memory_presets
from maisi_aug.cohort.request import build_request, load_recipe, override
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.resolve import resolve as resolve_request
from maisi_aug.errors import RecipeError
from tests.builders.published_bundle import write_limited_bundle, write_published_bundle

NUM_BY_MEMORY, NUM_BY_REGION = 9, 9


@pytest.fixture(scope="module")
def rflow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """NVIDIA's definitions and limits without weights."""
    return write_published_bundle(tmp_path_factory.mktemp("bundles") / "rflow-ct")


def resolve(bundle: Bundle, **changes: Any) -> CohortRun:
    return resolve_request(build_request({"labels": ["liver"], "bundle": str(bundle.path), **changes}))


def test_published_bundle_takes_every_preset(rflow: Bundle) -> None:
    presets = list_presets(rflow.spec.grid_limits)
    assert len(memory_presets()) == NUM_BY_MEMORY
    assert len(presets) == len({preset.name for preset in presets}) == NUM_BY_MEMORY + NUM_BY_REGION
    for preset in presets:
        preset.grid.require_multiple_of(rflow.grid_factor, subject=preset.name)
        assert preset.peak_gb <= preset.memory_gb
        assert preset.source
        if preset.decode_window is not None:  # NVIDIA wants windows in multiples of 16
            assert all(side % 16 == 0 for side in preset.decode_window)
    assert presets[:NUM_BY_MEMORY] == memory_presets()


def test_preset_is_named_by_its_memory_and_shape() -> None:
    for preset in memory_presets():
        shape = "x".join(map(str, preset.shape))
        assert preset.name == f"{preset.memory_gb}g-{shape}"


@pytest.mark.parametrize(
    ("name", "shape", "window"),
    [
        ("16g-256x256x256", (256, 256, 256), (48, 48, 64)),
        ("24g-256x256x256", (256, 256, 256), None),
        ("80g-512x512x768", (512, 512, 768), (80, 80, 96)),
        ("chest", (512, 512, 128), (64, 64, 32)),
        ("chest-abdomen-lower", (512, 512, 256), (64, 64, 48)),
        ("lower", (512, 512, 384), (64, 64, 48)),
    ],
)
def test_preset_sets_grid_and_decode_window(
    rflow: Bundle, name: str, shape: tuple[int, int, int], window: tuple[int, int, int] | None
) -> None:
    cohort = resolve(rflow, preset=name, decoding={"mode": "windows"})
    assert cohort.grid.shape == tuple(cohort.configuration["shape"]) == shape
    assert cohort.grid.spacing_mm == pytest.approx(find_preset(name, rflow).spacing_mm)
    assert cohort.decoding.window == window
    assert resolve(rflow, preset=name).decoding == DecodingConfig(), "exact, unless windows are asked for"
    assert cohort.bundle.fingerprint == rflow.fingerprint
    again = resolve_request(build_request(cohort.to_document()["configuration"]))
    assert again.to_document() == cohort.to_document()


def test_shape_and_spacing_stand_above_the_preset(rflow: Bundle) -> None:
    cohort = resolve(
        rflow, preset="chest", shape=[512, 512, 256], spacing_mm=[0.8, 0.8, 2.0], decoding={"mode": "windows"}
    )
    assert cohort.grid.shape == (512, 512, 256)
    assert cohort.grid.spacing_mm == pytest.approx((0.8, 0.8, 2.0))
    assert cohort.decoding.window == (64, 64, 32)


def test_preset_as_a_flag_stands_above_the_grid_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("labels: [liver]\nshape: [64, 48, 48]\nspacing_mm: [6, 6, 6]\nseed: 3\n")
    config = load_recipe(str(path), {"preset": "chest"})
    assert (config.shape, config.spacing_mm, config.seed) == (None, None, 3)
    both = load_recipe(str(path), {"preset": "chest", "shape": (512, 512, 256)})
    assert (both.shape, both.spacing_mm) == ((512, 512, 256), None)
    assert load_recipe(str(path), {"seed": 4}).shape == (64, 48, 48)


@pytest.mark.parametrize(
    ("name", "overlap"),
    [
        *(("16g-256x256x256", 0.6666), ("16g-512x512x128", 0.5), ("24g-512x512x128", 0.4), ("24g-512x512x512", 0.4)),
        *(("32g-512x512x512", 0.4), ("80g-512x512x512", 0.4), ("80g-512x512x768", 0.4), ("chest", 0.5), ("lower", 0.4)),
    ],
)
def test_preset_takes_nvidias_overlap(rflow: Bundle, name: str, overlap: float) -> None:
    """NV-Generate-CTMR, configs/config_infer_*.json, autoencoder_sliding_window_infer_overlap."""
    assert resolve(rflow, preset=name, decoding={"mode": "windows"}).decoding.overlap == overlap
    assert resolve(rflow, preset=name, decoding={"mode": "windows", "overlap": 0.25}).decoding.overlap == 0.25
    own = resolve(rflow, preset=name, decoding={"window": [64, 64, 32]}).decoding
    assert (own.window, own.overlap) == ((64, 64, 32), 0.4)


def test_misspelt_preset_offers_the_closest(rflow: Bundle) -> None:
    with pytest.raises(
        RecipeError, match=r"preset: unknown name '16g-256x256'\. Did you mean '16g-256x256x256'.* bundles presets'"
    ):
        find_preset("16g-256x256", rflow)


@pytest.mark.parametrize("name", ["16g-256x256x256", "chest"])
def test_preset_of_other_networks_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="are not known to work on the grid of '"):
        find_preset(name, load_bundle("phantom-ct"))


def test_bundle_of_ones_own_has_the_presets_of_its_limits(tmp_path: Path) -> None:
    bundle = write_limited_bundle(tmp_path)
    (chest,) = list_presets(bundle.spec.grid_limits)
    assert (chest.name, chest.shape, chest.decode_window) == ("chest", (64, 64, 48), None)
    assert resolve(bundle, preset="chest").grid.spacing_mm == pytest.approx((6.4, 6.4, 6.0))
    assert list_presets(None) == ()


def test_window_of_the_preset_reaches_the_decoder(tmp_path: Path) -> None:
    from maisi_aug.networks.pipeline import Pipeline
    from maisi_aug.phantom import build_label_map

    bundle = write_limited_bundle(tmp_path, decode_window=[8, 8, 8])
    assert bundle.spec.decode_window == (8, 8, 8)
    anatomy = build_label_map(seed=1, grid=bundle.grid, region="abdomen").label_map
    pipeline = Pipeline.load(bundle, "cpu")
    images = [
        pipeline.synthesize_image(anatomy, bundle.grid, seed=1, decoding=decoding)
        for decoding in (
            DecodingConfig(mode="windows"),
            resolve(bundle, preset="chest", decoding={"mode": "windows"}).decoding,
            None,
        )
    ]
    assert (images[0] != images[1]).any()
    assert (images[1] == images[2]).all()


def test_all_presets_are_listed_with_their_bundles() -> None:
    rows = list_all_presets()
    counts = Counter(bundles for _, bundles in rows)
    of_ct = NUM_BY_MEMORY + NUM_BY_REGION
    assert counts == {("rflow-ct", "ddpm-ct"): of_ct, ("rflow-mr",): 7, ("rflow-mr-brain",): 10}
    (brain,) = (preset for preset, _ in rows if preset.name == "brain-t1")
    assert brain.shape == (128, 256, 256)
    assert brain.grid.extent_mm == pytest.approx((160, 256, 256))


def test_window_asked_for_stands_above_that_of_the_preset(tmp_path: Path) -> None:
    bundle = write_limited_bundle(tmp_path)
    assert resolve(bundle, preset="chest").decoding.window is None
    asked = resolve(bundle, preset="chest", decoding={"window": [16, 16, 16]})
    assert asked.decoding.window == (16, 16, 16)


def test_preset_flag_hides_the_window_of_the_recipe() -> None:
    decoding = {"window": [16, 16, 16], "overlap": 0.5, "num_splits": 2}
    recipe = {"labels": ["liver tumor"], "decoding": decoding, "shape": [64, 64, 48]}
    assert override(recipe, {"preset": "chest"})["decoding"] == {"num_splits": 2}
    assert override(recipe, {"preset": "chest", "decoding.overlap": 0.3})["decoding"]["overlap"] == 0.3
    assert override(recipe, {"preset": None})["decoding"] == recipe["decoding"]
