"""The published definitions, narrowed, with random weights: what is known comes back, and it costs no more."""

from __future__ import annotations

from time import process_time
from typing import Any

import numpy as np
import pytest
import torch

from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.networks.sampling import KnownLatent, sample_latent
from maisi_aug.volumes.grid import Grid
from tests.builders.narrow_networks import scaled_header
from tests.builders.random_bundle import write_random_bundle

SHAPE, SPACING_MM, NUM_STEPS, MOST_COST = (64, 64, 32), (1.0, 1.0, 1.5), 6, 1.1
NUM_ROUNDS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["rflow-ct", "ddpm-ct"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    header = scaled_header(request.param, num_inference_steps=NUM_STEPS)
    return Pipeline.load(write_random_bundle(tmp_path_factory.mktemp("narrow"), header, seed=0), "cpu")


def draw_crop() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, label map and what is hidden: a box in the middle."""
    image = np.random.default_rng(1).normal(-700, 150, SHAPE).astype(np.float32)
    hidden = np.zeros(SHAPE, dtype=bool)
    hidden[28:36, 28:36, 12:20] = True
    return image, np.where(hidden, 23, 28).astype(np.uint8), hidden


def test_known_region_comes_back_as_the_autoencoder_renders_it(pipeline: Pipeline) -> None:
    image, label_map, hidden = draw_crop()
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    (drawn,) = pipeline.redraw_images(image, [label_map], hidden, grid, seed=3, num_inference_steps=NUM_STEPS)
    unit = hu_to_unit(torch.from_numpy(image))[None, None]
    with torch.inference_mode():
        autoencoder: Any = pipeline.networks.autoencoder
        latent = autoencoder.encode(unit)[0].float() * pipeline.networks.scale_factor
        decoded, _ = pipeline.decoder.decode(latent)
    rendered = decoded[0, 0].clamp(0, 1).numpy() * 2000 - 1000
    far = np.ones(SHAPE, dtype=bool)
    far[12:52, 12:52, :] = False
    own_error = np.abs(rendered - image)[far].mean()
    assert np.abs(drawn - image)[far].mean() <= 1.001 * own_error
    assert np.abs(drawn - rendered)[far].mean() < 0.2 * own_error  # norms take in what was drawn
    assert np.abs(drawn - rendered)[hidden].mean() > np.abs(drawn - rendered)[far].mean()


def test_loop_costs_little_more_than_plain_sampling(pipeline: Pipeline) -> None:
    image, label_map, hidden = draw_crop()
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    noise = pipeline._draw_noise(grid, 1)
    conditions = pipeline._conditions_of(label_map[None], grid)
    is_known = torch.from_numpy(~hidden)[None]
    with torch.inference_mode():
        known = pipeline._encode_known(hu_to_unit(torch.from_numpy(image))[None], is_known, noise, 1)

    def time_loop(known: KnownLatent | None) -> float:
        started = process_time()
        generator = torch.Generator().manual_seed(0)
        sample_latent(
            pipeline.networks, conditions, noise, num_inference_steps=NUM_STEPS, generator=generator, known=known
        )
        return process_time() - started

    time_loop(known)
    plain, kept = zip(*((time_loop(None), time_loop(known)) for _ in range(NUM_ROUNDS)), strict=True)
    assert min(kept) <= MOST_COST * min(plain)
