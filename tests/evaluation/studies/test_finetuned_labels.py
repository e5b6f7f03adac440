from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import BundleError, TrainingError
from maisi_aug.evaluation.studies.finetuned_labels import main, measure_finetuned, measure_label
from maisi_aug.evaluation.studies.segmenter import SegmenterConfig
from maisi_aug.evaluation.studies.train_segmenter import describe_data, train_on
from maisi_aug.preparation.prepared import load_prepared
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.finetune.run import Finetuning
from maisi_aug.training.loop.settings import LoopConfig
from tests.builders.tiny_prepared import GLAND, write_prepared, write_tiny_base
from tests.builders.tiny_training import BODY
from tests.training.finetune.test_run import build_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data"), num_cases=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Bundle:
    folder = tmp_path_factory.mktemp("run")
    base = write_tiny_base(folder / "base")
    config = build_config(labels=("gland",), num_pictures=0, slots={"gland": "dummy3"}, loop={"num_steps": 1})
    return Finetuning(base, PreparedStore.from_folder(data), config, folder / "run", "cpu").train().bundle


def test_label_is_measured_inside_and_against_its_surroundings() -> None:
    label_map = np.full((20, 22, 24), BODY, dtype=np.uint8)
    label_map[:, :, :2] = 0
    label_map[8:12, 8:12, 2:6] = GLAND
    image = np.where(label_map == GLAND, 80, np.where(label_map == 0, -1000, 20)).astype(np.int16)
    found = np.zeros(label_map.shape, dtype=bool)
    found[8:12, 8:12, 2:4] = True
    measured = measure_label(image, label_map, GLAND, found)
    assert measured == {
        "median_hu": 80.0,
        "contrast_hu": 60.0,
        "spread_hu": 0.0,
        "dice": pytest.approx(2 * 32 / (32 + 64)),
    }
    assert measure_label(image, label_map, GLAND, None)["dice"] is None


def configure_segmenter(store: PreparedStore, labels: Sequence[str], fold: int) -> SegmenterConfig:
    """A segmenter of one step that learns from all folds but one."""
    return SegmenterConfig(
        grid=store.spec.grid,
        slots={},
        widths=(4, 8, 8),
        patch_shape=(16, 16, 16),
        loop=LoopConfig(num_steps=1, mixed_precision=False),
        **describe_data(store.dataset, labels, fold),
    )


def test_report_compares_before_and_after(data: Path, bundle: Bundle, tmp_path: Path) -> None:
    store = PreparedStore.from_folder(data)
    config = configure_segmenter(store, ["gland"], 0)
    train_on(config, store.select(exclude_fold=0), tmp_path / "segmenter", device="cpu")
    words = ["--bundle", str(bundle.path), "--data", str(data), "--fold", "0", "--out", str(tmp_path / "out")]
    assert main([*words, "--segmenter", str(tmp_path / "segmenter"), "--device", "cpu"]) == 0
    document = json.loads((tmp_path / "out" / "finetuned_labels.json").read_text())
    found = document["labels"]["gland"]
    assert found["num_cases"] == 1
    assert found["real"]["median_hu"] == 45.0
    assert found["real"]["shift_hu"] == 0.0
    assert found["after"]["shift_hu"] == pytest.approx(found["after"]["median_hu"] - 45.0)
    assert found["after"]["dice"] is not None
    assert "| gland, after |" in (tmp_path / "out" / "finetuned_labels.md").read_text()
    assert (tmp_path / "out" / "finetuned_labels.png").stat().st_size > 1000
    before = (tmp_path / "out" / "cases" / "p0.npz").stat().st_mtime_ns
    assert main([*words, "--segmenter", str(tmp_path / "segmenter"), "--device", "cpu"]) == 0
    assert (tmp_path / "out" / "cases" / "p0.npz").stat().st_mtime_ns == before  # gone on with


def test_segmenter_that_has_seen_the_cases_is_refused(data: Path, bundle: Bundle, tmp_path: Path) -> None:
    store = PreparedStore.from_folder(data)
    config = configure_segmenter(store, [], 1)
    assert set(config.labels) == {"gland", "bright nodule"}
    segmenter = train_on(config, store.select(exclude_fold=1), tmp_path / "segmenter", device="cpu")
    held_out = load_prepared(data).select(folds=[0])
    with pytest.raises(TrainingError, match="other folds of lab, found one trained on lab without fold 1"):
        measure_finetuned(bundle, held_out, tmp_path / "out", segmenter=segmenter, device="cpu")


def test_data_and_bundle_have_to_fit(data: Path, bundle: Bundle, tmp_path: Path) -> None:
    held_out = load_prepared(data).select(folds=[0])
    assert bundle.base is not None
    with pytest.raises(BundleError, match="does not name the bundle that it was fine-tuned from"):
        measure_finetuned(bundle.base, held_out, tmp_path / "out")
    with pytest.raises(TrainingError, match="has none of the labels that bundle 'tiny' was taught"):
        measure_finetuned(bundle.base, held_out, tmp_path / "out", before=bundle)


def test_segmenter_needs_labels(tmp_path: Path) -> None:
    dataset = load_prepared(write_prepared(tmp_path, num_cases=2, new_labels={}))
    with pytest.raises(TrainingError, match="has no new labels to tell apart"):
        describe_data(dataset, [], 0)
