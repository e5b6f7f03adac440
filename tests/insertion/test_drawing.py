"""The painter of a bundle, with MAISI's own networks at tiny width: what is known comes back, the rest is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import GridError
from maisi_aug.insertion.drawing import (
    BundlePainter,
    _match_usual,
    coarsen_image,
    find_usual_hu,
    find_wall_hu,
    finer_factors,
    limit_brightness,
    refine_image,
)
from maisi_aug.insertion.painting import PaintTask
from maisi_aug.networks.building import compute_in
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.volumes.grid import Grid
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_header

SHAPE, SPACING_MM = (24, 16, 16), (0.8, 0.7, 2.0)


def write_bundle(folder: Path, *, num_control_channels: int) -> Bundle:
    header = build_header()
    header["networks"]["controlnet"]["conditioning_embedding_in_channels"] = num_control_channels
    return write_random_bundle(folder, header, seed=0)


@pytest.fixture(scope="module", params=[8, 10], ids=["label map alone", "shown surroundings"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(write_bundle(tmp_path_factory.mktemp("bundle"), num_control_channels=request.param), "cpu")


def build_task(**changes: Any) -> PaintTask:
    image = np.random.default_rng(3).normal(-850, 40, SHAPE).astype(np.float32)
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[8:14, 6:10, 6:9] = True
    hidden = np.zeros(SHAPE, dtype=bool)
    hidden[6:16, 4:12, 4:11] = True
    label_map = np.where(lesion, 23, 28).astype(np.uint8)
    values = {
        "image_hu": image,
        "label_map": label_map,
        "lesion": lesion,
        "hidden": hidden,
        "host": ~lesion,
        "spacing_mm": SPACING_MM,
        "texture": "solid",
        "seed": 4,
    }
    return PaintTask(**{**values, **changes})


def reconstruct(pipeline: Pipeline, image_hu: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of the whole crop."""
    unit = torch.from_numpy((image_hu.clip(-1000, 1000) + 1000) / 2000)[None, None]
    with torch.inference_mode(), compute_in(pipeline.precision, "cpu"):
        autoencoder: Any = pipeline.networks.autoencoder
        decoded = autoencoder.decode(autoencoder.encode(unit)[0].float())
    return np.asarray(decoded[0, 0].float().clamp(0, 1) * 2000 - 1000)


def test_nothing_hidden_is_what_the_autoencoder_makes_of_it(pipeline: Pipeline) -> None:
    task = build_task(hidden=np.zeros(SHAPE, dtype=bool))
    drawn = BundlePainter(pipeline, {}).paint(task)
    assert np.abs(drawn - reconstruct(pipeline, task.image_hu)).mean() < 2.0


def test_what_is_hidden_is_drawn_and_one_of_the_seed(pipeline: Pipeline) -> None:
    painter, hidden = BundlePainter(pipeline, {}), build_task().hidden
    first, again, other = (painter.paint(build_task(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first[hidden] != other[hidden]).mean() > 0.5
    assert np.abs(first - reconstruct(pipeline, build_task().image_hu))[hidden].mean() > 1.0


@pytest.mark.parametrize("method", ["replace", "difference", "whole"])
@pytest.mark.parametrize("num_resamplings", [1, 2])
def test_every_method_draws_finite_hu(pipeline: Pipeline, method: Any, num_resamplings: int) -> None:
    task = build_task()
    before = task.image_hu.copy()
    drawn = BundlePainter(pipeline, {}, method=method, num_resamplings=num_resamplings).paint(task)
    assert drawn.shape == SHAPE
    assert np.isfinite(drawn).all()
    np.testing.assert_array_equal(task.image_hu, before)


def test_surroundings_matter_to_a_controlnet_that_is_shown_them(tmp_path: Path) -> None:
    for num_channels in (8, 10):
        pipeline = Pipeline.load(write_bundle(tmp_path / str(num_channels), num_control_channels=num_channels), "cpu")
        for parameter in pipeline.networks.controlnet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        painter = BundlePainter(pipeline, {}, method="whole")
        plain = painter.paint(build_task())
        brighter = painter.paint(build_task(image_hu=build_task().image_hu + 300))
        assert np.array_equal(plain, brighter) == (num_channels == 8)


def test_textures_have_ids_of_their_own(pipeline: Pipeline) -> None:
    for parameter in pipeline.networks.controlnet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    painter = BundlePainter(pipeline, {"ground-glass": 129})
    solid, glass = (painter.paint(build_task(texture=name)) for name in ("solid", "ground-glass"))
    assert not np.array_equal(solid, glass)


def test_crop_of_other_sides_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(GridError, match="Crop for bundle 'tiny': expected sides that are multiples of 8"):
        pipeline.redraw_images(
            np.zeros((10, 16, 16), dtype=np.float32),
            [np.zeros((10, 16, 16), dtype=np.uint8)],
            np.ones((10, 16, 16), dtype=bool),
            Grid.from_spacing((10, 16, 16), SPACING_MM),
            seed=0,
        )


def test_drawings_of_several_maps_are_those_of_each(pipeline: Pipeline) -> None:
    task = build_task()
    maps = [task.label_map, np.full(SHAPE, 28, dtype=np.uint8)]
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    for num_resamplings in (1, 2):
        both = pipeline.redraw_images(task.image_hu, maps, task.hidden, grid, seed=2, num_resamplings=num_resamplings)
        each = [
            pipeline.redraw_images(task.image_hu, [one], task.hidden, grid, seed=2, num_resamplings=num_resamplings)
            for one in maps
        ]
        np.testing.assert_allclose(both, np.concatenate(each), atol=0.5)


def test_networks_are_shown_the_part_around_the_lesion(pipeline: Pipeline) -> None:
    shape, hidden = (64, 64, 32), np.zeros((64, 64, 32), dtype=bool)
    hidden[40:46, 50:60, 2:6] = True
    image = np.random.default_rng(5).normal(-850, 40, shape).astype(np.float32)
    lesion = np.zeros(shape, dtype=bool)
    lesion[42:44, 53:57, 3:5] = True
    task = build_task(
        image_hu=image, label_map=np.where(lesion, 23, 28).astype(np.uint8), lesion=lesion, hidden=hidden, host=~lesion
    )
    painter = BundlePainter(pipeline, {}, least_shape=(16, 16, 8))
    box = painter._choose_part(task, (1, 1, 1))
    assert [part.stop - part.start for part in box] == [24, 32, 16]
    assert not np.delete(hidden, np.r_[box[0]], axis=0).any()
    assert [(part.start, part.stop) for part in box[1:]] == [(32, 64), (0, 16)]
    drawn = painter.paint(task)
    changed = np.argwhere(drawn != image)
    assert (changed.min(axis=0) >= [part.start for part in box]).all()
    assert (changed.max(axis=0) < [part.stop for part in box]).all()


def test_faint_nodules_are_raised_inside_and_not_at_their_rim() -> None:
    shape, spacing_mm = (48, 48, 24), (0.7, 0.7, 1.25)
    steps = np.meshgrid(*((np.arange(n) - n // 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)), indexing="ij")
    distance_mm = np.sqrt(sum(step**2 for step in steps))
    image = np.full(shape, -850, dtype=np.float32)
    cores = []
    for radius_mm in (4.0, 10.0):
        lesion = distance_mm < radius_mm
        task = build_task(image_hu=image, lesion=lesion, host=~lesion, spacing_mm=spacing_mm)
        added = _match_usual(np.where(lesion, 300, 0).astype(np.float32), image, lesion, spacing_mm, task)
        rim = lesion & (distance_mm > radius_mm - 0.8)
        core = distance_mm < radius_mm - 2.5
        assert added[core].mean() > added[rim].mean() + 150
        assert not added[~lesion].any()
        cores.append(added[core].std())
    assert cores[1] > cores[0] + 8  # large ones are uneven inside


def test_coarse_cts_are_drawn_finer_and_brought_back() -> None:
    task = build_task(spacing_mm=(1.6, 0.7, 5.0))
    assert finer_factors(task) == (2, 1, 2)
    fine = refine_image(task.image_hu, (2, 1, 2))
    assert fine.shape == (48, 16, 32)
    back = coarsen_image(fine, (2, 1, 2))
    assert np.abs(back - task.image_hu).mean() < 25
    assert back.mean() == pytest.approx(task.image_hu.mean(), abs=2)
    assert refine_image(task.image_hu, (1, 1, 1)) is task.image_hu
    assert coarsen_image(task.image_hu, (1, 1, 1)) is task.image_hu


def build_nodule(peak_hu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lung with a vessel of 250 HU, what a round nodule of 12 mm adds to it, and the nodule's core."""
    rng = np.random.default_rng(5)
    shape = (40, 40, 24)
    image = rng.normal(-850, 30, shape).astype(np.float32)
    image[:, 18:21, 10:13] = 250
    places = (np.indices(shape).T - (20, 20, 12)) * (0.7, 0.7, 1.25)
    distance_mm = np.linalg.norm(places, axis=-1).T
    added = (peak_hu + 850) / (1 + np.exp((distance_mm - 6) / 0.7)) + rng.normal(0, 20, shape)
    return image, added.astype(np.float32), (distance_mm < 4) & (image < 0)


def test_nodule_is_no_brighter_than_the_wall_however_much_is_added() -> None:
    medians, deviations = [], []
    for peak_hu in (-300.0, -100.0, 50.0, 300.0, 900.0):
        image, added, core = build_nodule(peak_hu)
        limited = limit_brightness(image, added, np.zeros_like(core), 50.0, (0.7, 0.7, 1.25))
        drawn = image + limited
        assert (limited <= added + 1e-3).all()
        assert (np.maximum(limited, 0) <= np.maximum(added, 0)).all()
        medians.append(float(np.median(drawn[core])))
        deviations.append(float(drawn[core].std()))
    assert medians[0] == pytest.approx(-300, abs=15)
    assert medians == sorted(medians)
    assert 40 < medians[-1] < 110
    assert min(deviations) > 20  # the noise is still there: no plateau


@pytest.mark.parametrize(("is_opaque", "least", "most"), [(False, 225, 275), (True, 40, 160)])
def test_vessel_shows_through_what_is_not_solid(is_opaque: bool, least: float, most: float) -> None:
    image, added, _ = build_nodule(400.0)
    opaque = np.zeros(image.shape, dtype=bool)
    opaque[14:27, 14:27, 8:16] = is_opaque
    drawn = image + limit_brightness(image, added, opaque, 50.0, (0.7, 0.7, 1.25))
    assert least < np.median(drawn[16:25, 19, 11]) < most
    assert np.median(drawn[:6, 19, 11]) == pytest.approx(250, abs=5)


def test_usual_hu_grow_with_the_nodule() -> None:
    assert find_usual_hu("solid", 4.0) == (-550, -140)
    assert find_usual_hu("solid", 30.0) == (-170, 75)
    lows = [find_usual_hu("solid", size_mm)[0] for size_mm in (6.1, 8.0, 12.0, 20.0)]
    assert lows == sorted(set(lows))
    assert sum(find_usual_hu("ground-glass", 20.0)) < sum(find_usual_hu("part-solid", 20.0))


def test_wall_is_the_soft_tissue_of_the_crop() -> None:
    image = np.full((20, 20, 4), -850.0, dtype=np.float32)
    assert find_wall_hu(image) == 50.0
    image[:10] = 62.0
    image[:2] = 700.0
    image[2:4] = -90.0
    assert find_wall_hu(image) == 62.0
