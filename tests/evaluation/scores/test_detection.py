from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.evaluation.scores.detection import LesionMatch, count_by_size, match_lesions

# (lesions, predicted lesions, found, made up, missed) as panoptica 2.1.7 counts them: connected components, then
# NaiveThresholdMatching on IoU from 0.1 on. It cannot be installed beside numpy 2.3 and later.
PANOPTICA = [
    (23, 23, 14, 9, 9),
    (29, 26, 18, 8, 11),
    (23, 26, 14, 12, 9),
    (30, 30, 20, 10, 10),
    (25, 25, 18, 7, 7),
    (31, 25, 21, 4, 10),
]


@pytest.mark.parametrize("seed", range(len(PANOPTICA)))
def test_counts_equal_panoptica(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = ndimage.gaussian_filter(rng.standard_normal((40, 36, 28)), 2.2)
    second = first + 0.6 * ndimage.gaussian_filter(rng.standard_normal((40, 36, 28)), 2.2)
    figures = count_by_size(match_lesions(first > 0.09, second > 0.10, voxel_ml=0.01))[0]
    num_real, num_predicted, num_found, num_made_up, num_missed = PANOPTICA[seed]
    assert (figures.num_found, figures.num_made_up, figures.num_missed) == (num_found, num_made_up, num_missed)
    assert figures.num_found + figures.num_missed == num_real
    assert figures.num_found + figures.num_made_up == num_predicted


def balls(*places: tuple[int, int, int, int]) -> np.ndarray:
    """Cubes ``(corner, corner, corner, side)`` in a volume of voxels of 0.1 mL."""
    mask = np.zeros((30, 30, 30), dtype=bool)
    for i, j, k, side in places:
        mask[i : i + side, j : j + side, k : k + side] = True
    return mask


def test_one_prediction_finds_one_lesion_only() -> None:
    reference = balls((2, 2, 2, 4), (2, 2, 8, 4))
    joined = reference.copy()
    joined[2:6, 2:6, 2:12] = True
    lesions = match_lesions(reference, joined, voxel_ml=0.1)
    assert [lesion.is_found for lesion in lesions] == [True, False]
    assert lesions[0].iou == pytest.approx(64 / 160)


def test_overlap_below_the_threshold_is_a_miss_and_a_false_positive() -> None:
    lesions = match_lesions(balls((2, 2, 2, 6)), balls((7, 7, 2, 6)), voxel_ml=0.1)
    assert [(lesion.is_real, lesion.is_found) for lesion in lesions] == [(True, False), (False, False)]


def test_lesions_are_counted_in_the_bin_of_their_own_size() -> None:
    lesions = [
        LesionMatch(7.3, True, True, 0.5),
        LesionMatch(10.0, True, False, 0.0),
        LesionMatch(35.0, True, True, 0.9),
        LesionMatch(36.0, False, False, 0.0),
    ]
    figures = {row.name: row for row in count_by_size(lesions)}
    assert list(figures) == ["all", "under 10 mm", "10-20 mm", "20-30 mm", "30 mm and more"]
    assert figures["under 10 mm"].sensitivity == 1
    assert figures["10-20 mm"].sensitivity == 0
    assert figures["10-20 mm"].f1 == 0
    assert figures["30 mm and more"].f1 == pytest.approx(2 / 3)
    assert figures["all"].sensitivity == pytest.approx(2 / 3)
    assert figures["all"].f1 == pytest.approx(4 / 6)


def test_empty_masks_mean_what_the_table_says() -> None:
    nothing, something = balls(), balls((2, 2, 2, 4))
    assert match_lesions(nothing, nothing, voxel_ml=0.1) == ()
    missed = count_by_size(match_lesions(something, nothing, voxel_ml=0.1))[0]
    assert (missed.num_missed, missed.num_made_up, missed.f1) == (1, 0, 0.0)
    made_up = count_by_size(match_lesions(nothing, something, voxel_ml=0.1))[0]
    assert (made_up.num_missed, made_up.num_made_up, made_up.sensitivity, made_up.f1) == (0, 1, None, 0.0)
    neither = count_by_size([])[0]
    assert (neither.sensitivity, neither.f1) == (None, None)
    assert neither.to_json()["f1"] is None


def test_diameter_is_that_of_the_sphere_of_the_same_volume() -> None:
    (lesion,) = match_lesions(balls((2, 2, 2, 5)), balls((2, 2, 2, 5)), voxel_ml=0.1)
    assert lesion.diameter_mm == pytest.approx((6 * 12.5 / np.pi * 1000) ** (1 / 3))
    assert lesion.to_json() == {"diameter_mm": lesion.diameter_mm, "is_real": True, "is_found": True, "iou": 1.0}
