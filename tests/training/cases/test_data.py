from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import build_network
from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.phantom import ids
from maisi_aug.training.cases.data import Memory, PhantomStore, encode_store
from maisi_aug.vocabulary.modalities import MODALITY_CODES
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_training import BODY, SHAPE, SPACING_MM, ArrayStore, build_store


@pytest.fixture(scope="module")
def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    return build_network(build_header()["networks"]["autoencoder"]).eval()


def build_phantoms(folder: Path, seed: int = 5) -> PhantomStore:
    return PhantomStore(folder, seed=seed, shape=SHAPE, spacing_mm=SPACING_MM)


def hash_of(store: PhantomStore, index: int) -> str:
    return hashlib.sha256(store.path_of(index).read_bytes()).hexdigest()


def test_phantoms_are_built_once_and_do_not_depend_on_their_number(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    store = build_phantoms(tmp_path / "grown")
    store.ensure(1, num_workers=1)
    first = hash_of(store, 0)
    store.path_of(0).touch()
    built = store.path_of(0).stat().st_mtime_ns
    store.ensure(3, num_workers=2, report=lambda done, total: told.append((done, total)))
    assert len(store) == 3
    assert told == [(2, 3), (3, 3)]
    assert store.path_of(0).stat().st_mtime_ns == built
    alone = build_phantoms(tmp_path / "alone")
    alone.ensure(3, num_workers=1)
    assert [hash_of(alone, index) for index in range(3)] == [first, hash_of(store, 1), hash_of(store, 2)]
    assert len({hash_of(store, index) for index in range(3)}) == 3


def test_noise_of_a_phantom_is_the_noise_in_its_image(tmp_path: Path) -> None:
    store = PhantomStore(tmp_path, seed=5, shape=(44, 40, 24), spacing_mm=(3.0, 3.0, 3.0))
    store.ensure(1, num_workers=1)
    label_map, white = store.label_map(0), store.noise(0)
    muscle = ndimage.binary_erosion(np.isin(label_map, (ids.HEART, *ids.MUSCLES)))
    assert muscle.sum() > 100
    grain = [volume - ndimage.gaussian_filter(volume, 2.0) for volume in (store.image_hu(0).astype(np.float32), white)]
    assert np.corrcoef(grain[0][muscle], grain[1][muscle])[0, 1] > 0.2  # the rest is texture


def test_phantoms_have_fields_of_view_of_their_own_and_show_detail(tmp_path: Path) -> None:
    store = PhantomStore(tmp_path, seed=5, shape=SHAPE, spacing_mm=SPACING_MM, zoom_range=(0.8, 1.2), completes=True)
    spacings = {store.spacing_of(index) for index in range(20)}
    assert len(spacings) > 15
    assert all(0.79 < side / own < 1.21 for place in spacings for side, own in zip(place, SPACING_MM, strict=True))
    store.ensure(1, num_workers=1)
    assert store.facts(0).spacing_mm == store.spacing_of(0)
    shown, label_map = store.condition_map(0), store.label_map(0)
    assert not (shown == ids.BODY).any()
    np.testing.assert_array_equal(shown > 0, label_map > 0)
    assert store.folder != build_phantoms(tmp_path).folder


def test_phantom_becomes_a_training_case(tmp_path: Path) -> None:
    store = build_phantoms(tmp_path)
    store.ensure(1, num_workers=1)
    facts, image_hu, label_map = store.facts(0), store.image_hu(0), store.label_map(0)
    assert image_hu.shape == label_map.shape == facts.shape == SHAPE
    assert (image_hu.dtype.name, label_map.dtype.name) == ("int16", "uint8")
    assert facts.spacing_mm == SPACING_MM
    assert facts.modality in MODALITY_CODES
    assert (image_hu[label_map == 0] == -1000).all()
    assert np.shares_memory(store.image_hu(0), image_hu)
    box = (slice(3, 9), slice(2, 4), slice(0, 7))
    np.testing.assert_array_equal(store.label_map(0, box), label_map[box])
    np.testing.assert_array_equal(store.image_hu(0, box), image_hu[box])
    assert len(build_phantoms(tmp_path)) == 0


def test_stores_of_other_seeds_and_grids_lie_apart(tmp_path: Path) -> None:
    coarser = PhantomStore(tmp_path, seed=5, shape=SHAPE, spacing_mm=(16.0, 16.0, 16.0))
    folders = {build_phantoms(tmp_path).folder, build_phantoms(tmp_path, seed=6).folder, coarser.folder}
    assert len(folders) == 3


def test_completed_phantoms_show_their_detail_on_grids_of_their_own(tmp_path: Path) -> None:
    store = PhantomStore(tmp_path, seed=5, shape=SHAPE, spacing_mm=SPACING_MM, zoom_range=(0.5, 1.5), completes=True)
    store.ensure(2, num_workers=1)
    spacings = [store.facts(index).spacing_mm for index in range(2)]
    assert spacings[0] != spacings[1]
    for spacing in spacings:
        assert all(0.5 * step <= own <= 1.5 * step for own, step in zip(spacing, SPACING_MM, strict=True))
    shown, label_map = store.condition_map(0), store.label_map(0)
    np.testing.assert_array_equal(shown == 0, label_map == 0)
    assert not (shown == BODY).any()
    assert store.folder != build_phantoms(tmp_path).folder


def test_noise_of_a_phantom_is_made_from_the_white_noise_that_the_store_tells(tmp_path: Path) -> None:
    store = PhantomStore(tmp_path, seed=5, shape=SHAPE, spacing_mm=(3.0, 3.0, 3.0))
    store.ensure(1, num_workers=1)
    white = store.noise(0)
    assert white.shape == SHAPE
    assert float(white.std()) == pytest.approx(1.0, abs=0.05)
    image = store.image_hu(0).astype(float)
    change = np.diff(image, axis=0)
    is_flat = (np.abs(change) < 60) & (np.diff(store.label_map(0).astype(int), axis=0) == 0) & (image[1:] > -200)
    assert np.corrcoef(change[is_flat], np.diff(white, axis=0)[is_flat])[0, 1] > 0.4
    assert abs(np.corrcoef(change[is_flat], np.diff(np.roll(white, 5, axis=2), axis=0)[is_flat])[0, 1]) < 0.1


def test_latents_are_the_means_of_the_posterior(autoencoder: nn.Module, tmp_path: Path) -> None:
    store = build_store(2)
    latents = encode_store(store, autoencoder, tmp_path, weights_hash="0" * 64, deviation=1.0, device="cpu").latents
    assert len(latents) == 2
    for case, latent in zip(store.cases, latents, strict=True):
        image = hu_to_unit(torch.from_numpy(case.image_hu))[None, None]
        with torch.no_grad():
            mean = autoencoder.encode(image)[0][0]  # type: ignore[operator]
        assert latent.shape == (4, 8, 6, 6)
        assert latent.dtype == torch.float16
        assert float((latent.float() - mean).abs().max()) < 0.05 * float(mean.abs().max())


@pytest.mark.parametrize("deviation", [1.0, 2.5])
def test_scale_factor_gives_latents_the_deviation(deviation: float, autoencoder: nn.Module, tmp_path: Path) -> None:
    store = build_store(3)
    encoded = encode_store(store, autoencoder, tmp_path, weights_hash="0" * 64, deviation=deviation, device="cpu")
    everything = torch.stack([latent.float() for latent in encoded.latents]) * encoded.scale_factor
    assert float(everything.std()) == pytest.approx(deviation, rel=1e-3)


def test_latents_are_encoded_once_for_the_same_weights(autoencoder: nn.Module, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    store = build_store(2)
    first = encode_store(
        store,
        autoencoder,
        tmp_path,
        weights_hash="a" * 64,
        deviation=1.0,
        device="cpu",
        report=lambda *done: told.append(done),
    )
    assert told == [(1, 2), (2, 2)]
    unread = ArrayStore(store.cases)
    again = encode_store(unread, autoencoder, tmp_path, weights_hash="a" * 64, deviation=1.0, device="cpu")
    assert unread.reads == []
    assert again.scale_factor == first.scale_factor
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.latents, first.latents, strict=True))
    grown = encode_store(build_store(3), autoencoder, tmp_path, weights_hash="a" * 64, deviation=1.0, device="cpu")
    assert torch.equal(grown.latents[1], first.latents[1])
    torch.manual_seed(1)
    other = build_network(build_header()["networks"]["autoencoder"]).eval()
    fresh = encode_store(store, other, tmp_path, weights_hash="b" * 64, deviation=1.0, device="cpu")
    assert not torch.equal(fresh.latents[0], first.latents[0])


def test_store_without_cases_is_refused(autoencoder: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Latents: there is no training case"):
        encode_store(ArrayStore([]), autoencoder, tmp_path, weights_hash="0" * 64, deviation=1.0, device="cpu")


def test_memory_keeps_what_was_used_last_within_its_bound() -> None:
    read: list[str] = []

    def read_zeros(name: str) -> NDArray[np.uint8]:
        read.append(name)
        return np.zeros(10, dtype=np.uint8)

    memory = Memory(20)
    for name in "abacbac":
        memory.get(name, partial(read_zeros, name))
    assert read == list("abcbac"), "c gives up b, then b gives up a, and so on"
    small = Memory(0)
    kept = small.get("a", lambda: np.zeros(3))
    assert small.get("a", lambda: np.ones(3)) is kept, "the array read last"
