from __future__ import annotations

import numpy as np
import pytest
from monai.metrics.regression import PSNRMetric, SSIMMetric
from numpy.typing import NDArray
from scipy import ndimage
from torch import from_numpy

from maisi_aug.evaluation.cohort.image_fidelity import (
    find_blur,
    measure_labels,
    measure_psnr,
    measure_spectrum,
    measure_ssim,
    measure_tissues,
    to_unit,
)

SHAPE, SPACING_MM = (33, 29, 37), (0.7, 0.8, 2.5)


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    smooth = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    original = np.clip(0.5 + smooth, 0, 1).astype(np.float32)
    return original, np.clip(original + rng.normal(0, 0.02, SHAPE), 0, 1).astype(np.float32)


def test_psnr_is_monais(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    tensors = [from_numpy(image)[None, None] for image in pair]
    assert measure_psnr(*pair) == pytest.approx(float(PSNRMetric(max_val=1.0)(*tensors)), rel=1e-5)
    assert measure_psnr(pair[0], pair[0]) == float("inf")


def test_ssim_is_monais(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    tensors = [from_numpy(image)[None, None] for image in pair]
    expected = float(SSIMMetric(spatial_dims=3, data_range=1.0, win_size=11, kernel_sigma=1.5)(*tensors))
    assert measure_ssim(*pair) == pytest.approx(expected, abs=1e-4)
    assert measure_ssim(pair[0][:10], pair[1][:10]) is None


def test_long_volumes_are_compared_in_slabs(rng: np.random.Generator) -> None:
    original = rng.random((12, 13, 130)).astype(np.float32)
    rebuilt = original.copy()
    rebuilt[:, :, 100:] = 0.5
    assert 0.5 < (measure_ssim(original, rebuilt) or 0) < 0.9


def test_hu_errors_are_those_put_in() -> None:
    original = np.full((20, 18, 16), 40, dtype=np.int16)
    label_map = np.ones(original.shape, dtype=np.uint8)
    label_map[5:10, 5:10, 5:10] = 3
    original[label_map == 3] = 140
    original[0] = 1800
    rebuilt = original.astype(np.float32)
    rebuilt[label_map == 3] = 90  # half of the contrast
    rebuilt[0] = 1000
    labels, tissues = measure_labels(original, rebuilt, label_map), measure_tissues(original, rebuilt)
    assert (labels[3].num_voxels, labels[3].bias_hu, labels[3].mean_error_hu) == (125, -50, 50)
    assert labels[3].contrast_kept == pytest.approx(0.5)
    assert tissues["dense bone and metal, above 1000 HU"].bias_hu == -800
    assert tissues["soft tissue, -30 to 150 HU"].bias_hu == pytest.approx(-50 * 125 / (19 * 18 * 16))
    assert set(labels) == {1, 3}


def test_every_tissue_has_its_voxels() -> None:
    original = np.array([-1000, -201, -200, -31, -30, 149, 150, 699, 700, 999, 1000, 3000]).reshape(2, 2, 3)
    assert [error.num_voxels for error in measure_tissues(original, original).values()] == [2] * 6


def test_spectrum_is_the_transfer_of_a_known_blur(rng: np.random.Generator) -> None:
    original = rng.normal(size=(48, 48, 48)).astype(np.float32)
    sigma_mm = 1.5
    blurred = ndimage.gaussian_filter(original, [sigma_mm / step for step in SPACING_MM], mode="wrap")
    frequencies, kept = measure_spectrum(original, blurred.astype(np.float32), SPACING_MM)
    expected = np.exp(-((2 * np.pi * frequencies * sigma_mm) ** 2))  # the square of the Gaussian's transform
    np.testing.assert_allclose(kept[2:], expected[2:], atol=0.03)
    half = np.sqrt(np.log(2)) / (2 * np.pi * sigma_mm)
    assert find_blur(frequencies, kept) == pytest.approx(0.5 / half, rel=0.15)
    assert find_blur(frequencies, np.ones_like(kept)) is None


def test_unit_is_what_networks_see() -> None:
    assert to_unit(np.array([-2000, -1000, 0, 1000, 3000])).tolist() == [0, 0, 0.5, 1, 1]
