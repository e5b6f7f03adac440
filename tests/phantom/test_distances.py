"""Distances to masks, and the way from coarse blocks back to the voxels."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.phantom.distances import FAR_MM, coarse_steps, distance_to_hull, refined, signed_distance, to_blocks

SPACING_MM = (2.0, 2.5, 5.0)


def test_distance_is_negative_inside_and_in_millimetres() -> None:
    i, j, k = np.indices((45, 38, 30))
    away = 3.0 * np.sqrt((i - 22) ** 2 + (j - 19) ** 2 + (k - 15) ** 2)
    distance = signed_distance(away < 33, (3.0, 3.0, 3.0))
    assert np.abs(distance - (away - 33)).max() < 2.5


@pytest.mark.parametrize(("close_mm", "is_closed"), [(14.0, True), (4.0, False)])
def test_hull_closes_gaps_up_to_twice_the_radius(close_mm: float, is_closed: bool) -> None:
    mask = np.zeros((48, 32, 16), dtype=bool)
    mask[8:18], mask[28:38] = True, True  # 20 mm apart along I
    distance = np.asarray(distance_to_hull(mask, SPACING_MM, close_mm=close_mm))
    assert (distance[23, 16, 8] < 0) == is_closed
    assert distance[13, 16, 8] < 0 < distance[2, 16, 8]


def test_hull_of_nothing_is_far() -> None:
    assert distance_to_hull(np.zeros((4, 5, 6), dtype=bool), SPACING_MM, close_mm=1.0) == FAR_MM


def test_linear_field_on_blocks_is_refined_without_error() -> None:
    i, j, k = np.indices((12, 10, 9))
    fine = (2.0 * i - 3.0 * j + 0.5 * k).astype(np.float32)
    steps = coarse_steps(SPACING_MM)
    assert steps == (2, 2, 1)
    coarse = to_blocks(fine, steps, fill=0.0).mean(axis=(1, 3, 5))
    inner = slice(1, -1)  # beyond the outermost centres of blocks, values are repeated
    np.testing.assert_allclose(refined(coarse, steps, fine.shape)[inner, inner], fine[inner, inner], atol=1e-4)


def test_every_nth_voxel_is_found_again() -> None:
    rng = np.random.default_rng(1)
    coarse = rng.random((5, 4, 3)).astype(np.float32)
    fine = refined(coarse, (3, 2, 2), (15, 8, 6), first=(1, 0, 0))
    np.testing.assert_allclose(fine[1::3, ::2, ::2], coarse, atol=1e-6)
