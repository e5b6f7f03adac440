from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.insertion.crops import blend, choose_box, cut_crop, weigh_zone

SPACING_MM = (0.7, 0.8, 2.5)


def test_crop_beyond_the_image_repeats_its_edge_and_says_so() -> None:
    image = np.arange(7 * 9 * 11, dtype=np.int16).reshape(7, 9, 11)
    crop = cut_crop(image, (-2, 3, 8), (6, 4, 8), SPACING_MM)
    np.testing.assert_array_equal(crop.image_hu[0], crop.image_hu[2])
    assert crop.is_inside.sum() == 4 * 4 * 3
    in_image, in_crop = crop.box_in(image.shape)
    np.testing.assert_array_equal(crop.image_hu[in_crop], image[in_image])
    assert crop.is_inside[in_crop].all()


def test_box_has_sides_that_the_networks_can_take() -> None:
    start, shape = choose_box((50, 60, 9), 15.0, SPACING_MM, factor=8, least_shape=(40, 16, 8))
    assert shape == (48, 40, 16)
    assert all(s <= c < s + side for s, c, side in zip(start, (50, 60, 9), shape, strict=True))


def test_zone_ends_where_it_should() -> None:
    lesion = np.zeros((31, 31, 9), dtype=bool)
    lesion[15, 15, 4] = True
    weight = weigh_zone(lesion, SPACING_MM)
    assert weight[15, 15, 4] == 1.0
    assert weight[19, 15, 4] > 0
    assert weight[20, 15, 4] == 0
    assert 0 < weight[15, 15, 5] < 1
    assert weight[15, 15, 6] == 0


def test_zone_of_coarse_voxels_takes_in_two_of_them() -> None:
    lesion = np.zeros((15, 15, 5), dtype=bool)
    lesion[7, 7, 2] = True
    weight = weigh_zone(lesion, (2.0, 2.0, 5.0))
    assert (weight[5:10, 7, 2] > 0).all()
    assert weight[4, 7, 2] == 0


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_voxels_without_weight_are_the_very_same(dtype: type) -> None:
    rng = np.random.default_rng(0)
    image: NDArray[Any] = (1000 * rng.normal(size=(7, 9, 11))).astype(dtype)
    weight = rng.random((7, 9, 11)).astype(np.float32) * (rng.random((7, 9, 11)) < 0.5)
    before = image.tobytes()
    blended = blend(image, np.full(image.shape, 1e6, dtype=np.float32), weight)
    assert image.tobytes() == before
    assert blended.dtype == image.dtype
    assert blended[weight == 0].tobytes() == image[weight == 0].tobytes()
    assert (blended[weight > 0.2] > image[weight > 0.2]).all()
