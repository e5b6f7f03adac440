from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maisi_aug.errors import PreparationError, TrainingError, VolumeError
from maisi_aug.networks.building import build_network
from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.preparation.prepared import load_prepared
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.training.cases.data import CaseFacts
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_training import SHAPE, SPACING_MM
from tests.builders.tiny_training import build_case as build_training_case
from tests.preparation.test_prepared import build_case, write_folder

WEIGHTS = "a" * 64


@pytest.fixture(scope="module")
def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    return build_network(build_header()["networks"]["autoencoder"]).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cases(tmp_path)
    return tmp_path


def write_cases(folder: Path, first_seed: int = 0) -> None:
    cases = []
    for number in range(3):
        case = build_training_case(first_seed + number)
        paths = [folder / name / f"p{number}.nii.gz" for name in ("images", "labels")]
        save_image(paths[0], case.image_hu, Grid.from_spacing(SHAPE, SPACING_MM))
        save_label_map(paths[1], case.label_map, Grid.from_spacing(SHAPE, SPACING_MM))
        hashes = {"image_sha256": sha256_of(paths[0]), "label_sha256": sha256_of(paths[1])}
        cases.append(build_case(number, shape=SHAPE, spacing_mm=SPACING_MM, modality="ct_contrast", **hashes))
    write_folder(folder, cases, grid={"shape": list(SHAPE), "spacing_mm": list(SPACING_MM)})


def encode(store: PreparedStore, autoencoder: nn.Module, weights_hash: str = WEIGHTS) -> list[torch.Tensor]:
    return list(store.encode(autoencoder, weights_hash=weights_hash, device="cpu", scale_factor=0.7).latents)


def test_store_hands_out_what_was_prepared(folder: Path) -> None:
    store = PreparedStore.from_folder(folder)
    assert len(store) == 3
    image_hu, label_map, expected = store.image_hu(1), store.label_map(1), build_training_case(1)
    np.testing.assert_array_equal(image_hu, expected.image_hu)
    np.testing.assert_array_equal(label_map, expected.label_map)
    assert (image_hu.dtype, label_map.dtype) == (expected.image_hu.dtype, expected.label_map.dtype)
    assert store.facts(1) == CaseFacts(SHAPE, SPACING_MM, "ct_contrast")
    assert np.shares_memory(store.image_hu(1), image_hu)
    box = (slice(3, 9), slice(2, 4), slice(0, 7))
    np.testing.assert_array_equal(store.label_map(1, box), expected.label_map[box])
    assert store.vocabulary.id_of("node") == 2


def test_subset_shares_what_was_read(folder: Path) -> None:
    store = PreparedStore.from_folder(folder)
    train, held_out = store.select(exclude_fold=1), store.select(folds=(1,))
    assert [case.id for case in train.cases] == ["p0", "p2"]
    assert [case.id for case in held_out.cases] == ["p1"]
    assert np.shares_memory(train.label_map(1), store.label_map(2))


def test_label_map_is_read_without_its_image(folder: Path) -> None:
    store = PreparedStore.from_folder(folder)
    (folder / "images" / "p0.nii.gz").unlink()
    assert store.label_map(0).shape == store.facts(0).shape == SHAPE
    with pytest.raises(VolumeError, match="p0"):
        store.image_hu(0)


def test_latents_are_posterior_means_encoded_once(folder: Path, autoencoder: nn.Module) -> None:
    store = PreparedStore.from_folder(folder)
    first = encode(store.select(exclude_fold=1), autoencoder)
    with torch.no_grad():
        mean = autoencoder.encode(hu_to_unit(torch.from_numpy(store.image_hu(2)))[None, None])[0][0]  # type: ignore[operator]
    torch.testing.assert_close(first[1].float(), mean, atol=2e-3, rtol=2e-3)
    files = {path: path.stat().st_mtime_ns for path in (folder / "latents").rglob("*.npy")}
    assert len(files) == 2
    again = encode(store, autoencoder)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert torch.equal(again[2], first[1])
    assert len(list((folder / "latents").rglob("*.npy"))) == 3


def test_latents_follow_the_content_and_the_weights(folder: Path, autoencoder: nn.Module) -> None:
    before = encode(PreparedStore.from_folder(folder), autoencoder)
    write_cases(folder, first_seed=5)
    after = encode(PreparedStore.from_folder(folder), autoencoder)
    assert not torch.equal(before[0], after[0])
    torch.manual_seed(1)
    other = build_network(build_header()["networks"]["autoencoder"]).eval()
    assert not torch.equal(encode(PreparedStore.from_folder(folder), other, "b" * 64)[0], after[0])


def test_scale_factor_is_given_or_measured(folder: Path, autoencoder: nn.Module) -> None:
    store = PreparedStore.from_folder(folder)
    arguments = {"weights_hash": WEIGHTS, "device": "cpu"}
    assert store.encode(autoencoder, scale_factor=0.7, **arguments).scale_factor == 0.7  # type: ignore[arg-type]
    measured = store.encode(autoencoder, deviation=1.0, **arguments)  # type: ignore[arg-type]
    scaled = torch.stack([latent.float() for latent in measured.latents]) * measured.scale_factor
    assert float(scaled.std()) == pytest.approx(1.0, rel=1e-2)
    with pytest.raises(TrainingError, match="either a scale factor or a deviation, found neither"):
        store.encode(autoencoder, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="either a scale factor or a deviation, found both"):
        store.encode(autoencoder, scale_factor=1.0, deviation=1.0, **arguments)  # type: ignore[arg-type]


def test_file_of_another_shape_is_refused(folder: Path) -> None:
    save_image(
        folder / "images" / "p0.nii.gz", np.zeros((4, 4, 4), dtype=np.int16), Grid.from_spacing((4, 4, 4), SPACING_MM)
    )
    store = PreparedStore(load_prepared(folder))
    with pytest.raises(PreparationError, match="case p0: was prepared with the shape"):
        store.image_hu(0)
