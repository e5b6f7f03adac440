"""The scanner: kernel and noise are described in mm, so that they are right on any grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maisi_aug.phantom.intensity import Appearance, draw_appearance
from maisi_aug.phantom.scanner import blur_voxels, draw_noise, noise_level_hu

SHARP = replace(draw_appearance(4, "portal"), sharpness=0.9, slice_mm=2.0, noise_hu=24.0)
SOFT = replace(SHARP, sharpness=0.1)


def test_sharp_kernel_blurs_less_and_has_finer_grain() -> None:
    spacing_mm = (0.8, 0.8, 2.0)
    assert blur_voxels(SHARP, spacing_mm)[0] < blur_voxels(SOFT, spacing_mm)[0]
    grains = [neighbour_correlation(appearance, spacing_mm) for appearance in (SHARP, SOFT)]
    assert grains[0] < grains[1] - 0.05


def neighbour_correlation(appearance: Appearance, spacing_mm: tuple[float, float, float]) -> float:
    noise = draw_noise((40, 40, 30), appearance, spacing_mm, np.random.default_rng(1))
    return float(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1])


@pytest.mark.parametrize("spacing_mm", [(0.75, 0.75, 2.0), (1.5, 1.5, 1.5), (3.0, 3.0, 3.0)])
def test_noise_has_its_level_and_no_offset(spacing_mm: tuple[float, float, float]) -> None:
    noise = draw_noise((30, 24, 26), SHARP, spacing_mm, np.random.default_rng(2))
    assert noise.shape == (30, 24, 26)
    assert float(noise.std()) == pytest.approx(noise_level_hu(SHARP, spacing_mm), rel=1e-3)
    assert abs(float(noise.mean())) < 2.0


def test_larger_voxels_average_noise_away() -> None:
    levels = [noise_level_hu(SHARP, (side, side, 2.0)) for side in (0.75, 1.5, 3.0)]
    assert levels[0] == pytest.approx(SHARP.noise_hu)
    assert levels[0] > 1.3 * levels[1] > 1.3 * 1.3 * levels[2]


def test_blur_is_the_same_in_millimetres_where_voxels_are_small() -> None:
    fine, finer = blur_voxels(SOFT, (0.5, 0.5, 0.5)), blur_voxels(SOFT, (0.25, 0.25, 0.25))
    assert 0.5 * fine[0] == pytest.approx(0.25 * finer[0], rel=0.05)
