from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.insertion.painting import PaintTask, ProceduralPainter, draw_noise_like, measure_noise, set_contrast

SHAPE, SPACING_MM = (48, 44, 16), (0.8, 0.7, 2.0)


def build_task(texture: str, *, seed: int = 0, noise_hu: float = 40.0) -> PaintTask:
    noise = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal(SHAPE), (0.7, 0.7, 0))
    image = (-860 + noise_hu * noise / noise.std()).astype(np.float32)
    steps = [(np.arange(n) - n // 2) * mm for n, mm in zip(SHAPE, SPACING_MM, strict=True)]
    x, y, z = np.meshgrid(*steps, indexing="ij")
    lesion = x**2 + y**2 + z**2 <= 7.0**2
    label_map = np.full(SHAPE, 28, dtype=np.uint8)
    return PaintTask(image, label_map, lesion, lesion, ~lesion, SPACING_MM, texture, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texture", "low", "high"), [("solid", -150, 200), ("part-solid", -700, 100), ("ground-glass", -750, -350)]
)
@pytest.mark.parametrize("seed", range(4))
def test_lesion_is_as_dense_as_its_texture(texture: str, low: float, high: float, seed: int) -> None:
    task = build_task(texture, seed=seed)
    drawn = ProceduralPainter().paint(task)
    core = ndimage.binary_erosion(task.lesion, iterations=2)
    assert low < np.median(drawn[core]) < high
    far = ndimage.distance_transform_edt(~task.lesion, sampling=SPACING_MM) > 5.0
    np.testing.assert_allclose(drawn[far], task.image_hu[far], atol=2.0)


def test_lesion_is_as_noisy_as_its_surroundings() -> None:
    for noise_hu in (15.0, 60.0):
        task = build_task("solid", noise_hu=noise_hu)
        drawn = ProceduralPainter().paint(task)
        core = ndimage.binary_erosion(task.lesion, iterations=2)
        outside = ~ndimage.binary_dilation(task.lesion, iterations=4)
        ratio = measure_noise(drawn, core, SPACING_MM) / measure_noise(task.image_hu, outside, SPACING_MM)
        assert 0.7 < ratio < 1.5


def test_part_solid_lesion_has_a_solid_core_in_ground_glass() -> None:
    drawn = ProceduralPainter().paint(build_task("part-solid"))
    inside = drawn[build_task("part-solid").lesion]
    assert (inside > -150).mean() > 0.05
    assert (inside < -250).mean() > 0.3


def test_noise_is_as_strong_and_as_coarse_as_that_of_the_image() -> None:
    task = build_task("solid")
    everywhere = np.ones(SHAPE, dtype=bool)
    drawn = draw_noise_like(task.image_hu, everywhere, SPACING_MM, np.random.default_rng(1))
    real = task.image_hu - task.image_hu.mean()

    def neighbour(image: np.ndarray, axis: int) -> float:
        a, b = np.moveaxis(image, axis, 0)[:-1].ravel(), np.moveaxis(image, axis, 0)[1:].ravel()
        return float(np.corrcoef(a, b)[0, 1])

    assert drawn.std() == pytest.approx(measure_noise(task.image_hu, everywhere, SPACING_MM), rel=0.05)
    assert neighbour(drawn, 0) == pytest.approx(neighbour(real, 0), abs=0.25)
    assert neighbour(drawn, 2) == pytest.approx(neighbour(real, 2), abs=0.2)


def test_drawing_is_one_of_the_seed() -> None:
    first, again, other = (ProceduralPainter().paint(build_task("solid", seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_nothing_is_noise_where_nothing_is_measured() -> None:
    assert measure_noise(np.zeros(SHAPE, dtype=np.float32), np.zeros(SHAPE, dtype=bool), SPACING_MM) == 0.0


@pytest.mark.parametrize("sign", [-1, 1])
def test_soft_lesion_differs_from_its_host_as_its_kind_does(sign: int) -> None:
    task = build_task("soft", noise_hu=12.0)
    liver = replace(task, image_hu=task.image_hu + 960.0, label_map=np.ones(SHAPE, dtype=np.uint8), sign=sign)
    drawn = ProceduralPainter().paint(liver)
    core = ndimage.binary_erosion(task.lesion, iterations=2)
    contrast_hu = np.median(drawn[core]) - np.median(liver.image_hu[~task.lesion])
    assert 15 < sign * contrast_hu < 75


def test_contrast_is_set_without_touching_the_noise() -> None:
    task = build_task("solid")
    drawn = ProceduralPainter().paint(task)
    brighter, darker = (set_contrast(task, drawn, contrast_hu) for contrast_hu in (900.0, 300.0))
    lung_hu = np.median(task.image_hu[task.host])
    assert np.median(brighter[task.lesion]) > np.median(darker[task.lesion]) + 300
    core = ndimage.distance_transform_edt(task.lesion, sampling=SPACING_MM) >= 3
    assert np.median(brighter[core]) - lung_hu == pytest.approx(900, abs=60)
    fine = [image - ndimage.gaussian_filter(image, 1.0) for image in (brighter, darker)]
    assert fine[0][core].std() == pytest.approx(fine[1][core].std(), rel=0.3)
