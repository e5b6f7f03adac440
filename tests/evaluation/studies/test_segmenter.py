from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import TrainingError
from maisi_aug.evaluation.studies.segmenter import (
    WEIGHTS_NAME,
    SegmenterConfig,
    build_network,
    load_segmenter,
    save_segmenter,
    to_channels,
)

GRID = GridSpec(shape=(32, 24, 20), spacing_mm=(12.8, 12.8, 12.8))
CONFIG = SegmenterConfig(grid=GRID, slots={}, widths=(4, 8, 8), patch_shape=(16, 16, 16))


def save_random(folder: Path, config: SegmenterConfig = CONFIG) -> None:
    torch.manual_seed(3)
    save_segmenter(folder, build_network(config).state_dict(), config, num_steps=7)


def test_channels_are_the_whole_range_and_the_soft_tissue_window() -> None:
    image_hu = torch.tensor([-3000, -1000, -160, 0, 40, 240, 1000, 2000], dtype=torch.int16).view(1, 2, 2, 2)
    channels = to_channels(image_hu)
    assert channels.shape == (1, 2, 2, 2, 2)
    assert channels.dtype == torch.float32
    torch.testing.assert_close(channels[0, 0].ravel(), torch.tensor([-1, -1, -0.16, 0, 0.04, 0.24, 1, 1]))
    torch.testing.assert_close(channels[0, 1].ravel(), torch.tensor([-1, -1, -1, -0.2, 0, 1, 1, 1]))


def test_segments_any_shape_and_repeats_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    save_random(tmp_path)
    segmenter = load_segmenter(tmp_path)
    image_hu = rng.integers(-1000, 1000, (23, 9, 35)).astype(np.int16)
    classes = segmenter.segment(image_hu)
    assert classes.shape == image_hu.shape
    assert classes.dtype == np.uint8
    assert classes.max() <= len(segmenter.tissues)
    np.testing.assert_array_equal(segmenter.segment(image_hu), classes)


def test_file_keeps_configuration_and_steps(tmp_path: Path) -> None:
    save_random(tmp_path / "one")
    save_random(tmp_path / "two")
    one, two = load_segmenter(tmp_path / "one"), load_segmenter(tmp_path / "two")
    assert (one.config, one.num_steps) == (CONFIG, 7)
    assert one.fingerprint == two.fingerprint


def test_missing_segmenter_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="segmenter.safetensors is missing"):
        load_segmenter(tmp_path)


def test_foreign_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(b"no weights")
    with pytest.raises(TrainingError, match="not a trained segmenter:"):
        load_segmenter(tmp_path)


def test_weights_of_other_widths_are_an_error(tmp_path: Path) -> None:
    other = CONFIG.model_copy(update={"widths": (8, 8, 8)})
    save_segmenter(tmp_path, build_network(other).state_dict(), CONFIG, num_steps=1)
    with pytest.raises(TrainingError, match="not a trained segmenter:"):
        load_segmenter(tmp_path)
