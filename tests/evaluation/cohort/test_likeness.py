from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.banks.case_reader import load_ct
from maisi_aug.evaluation.cohort.likeness import SIDE, Portrait, measure_likeness, plant_copy
from maisi_aug.evaluation.cohort.memorization import calibrate_threshold, draw_portrait, find_nearest
from maisi_aug.system.progress import report_nothing
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume

SIZE_MM = (400.0, 300.0, 500.0)


def draw_pictures(rng: np.random.Generator, num: int) -> list[NDArray[np.float32]]:
    """Smooth pictures of nothing, no two alike."""
    drawn = (ndimage.gaussian_filter(rng.normal(size=(SIDE,) * 3), 3.0) for _ in range(num))
    return [np.clip(1000 + 400 * picture / picture.std(), 0, 2000).astype(np.float32) for picture in drawn]


def test_flips_and_turns_are_found_and_others_are_not_alike(rng: np.random.Generator) -> None:
    pictures = draw_pictures(rng, 4)
    others = [Portrait(picture, SIZE_MM) for picture in pictures]
    flipped = Portrait(np.ascontiguousarray(np.flip(pictures[2], (0, 2))), SIZE_MM)
    shifted = Portrait(np.clip(pictures[3] + 40, 0, 2000), SIZE_MM)
    distances = measure_likeness([flipped, shifted], others, report_nothing)
    assert distances[0, 2] < 0.02
    assert distances[1, 3] < 0.02
    distances[0, 2] = distances[1, 3] = 1
    assert np.nanmin(distances) > 0.3


def test_turn_is_one_of_millimetres(rng: np.random.Generator) -> None:
    """A body that is longer than wide is turned in its own proportions, not in those of its picture."""
    long = ndimage.gaussian_filter(rng.normal(size=(48, 40, 96)), 5.0)
    image_hu = np.clip(300 * long / long.std(), -250, 900).astype(np.float32)
    grid = Grid.from_spacing((48, 40, 96), (4.0, 4.0, 4.0))
    turned = ndimage.rotate(image_hu, 8, axes=(0, 2), reshape=False, order=1, mode="nearest").astype(np.float32)
    mirrored = np.ascontiguousarray(image_hu[:, ::-1, ::-1] * -0.5)  # as smooth, and another body
    own, other, another = (draw_portrait(Volume(image, grid)) for image in (image_hu, turned, mirrored))
    distances = measure_likeness([other], [own, another], report_nothing)[0]
    assert distances[0] < 0.25
    assert distances[1] > 0.5


def test_planted_copy_is_another_image_of_the_same_patient(rng: np.random.Generator) -> None:
    image = Volume(rng.integers(-1000, 1000, (70, 66, 41)).astype(np.int16), Grid.from_spacing((70, 66, 41), (1, 1, 3)))
    before = image.array.copy()
    planted = plant_copy(image, rng)
    assert all(0.7 * 41 <= side <= 64 for side in planted.array.shape)
    assert planted.grid.spacing_mm == pytest.approx((70 / 64, 66 / 64, 3))
    np.testing.assert_array_equal(image.array, before)


@pytest.mark.slow
def test_fifty_planted_copies_among_five_hundred_real_images(real_data: Path) -> None:
    """Of CTs of 43 patients: 15 to train on, 14 held out, and 450 moved images of 14 others among 50 planted copies.

    The threshold is from other planted copies, as in an audit.
    """
    rng = np.random.default_rng(1)
    paths = sorted((real_data / "openkbp").glob("*_ct.nii.gz"))
    volumes = [load_ct(path) for path in paths]
    train, held_out, others = volumes[:15], volumes[15:29], volumes[29:]
    portraits = [draw_portrait(volume) for volume in train]
    copies = [draw_portrait(plant_copy(train[n % 15], rng)) for n in range(50)]
    new = [draw_portrait(plant_copy(others[n % len(others)], rng)) for n in range(450)]
    known = [draw_portrait(plant_copy(volume, rng)) for volume in train]
    distances = [
        measure_likeness(side, portraits, report_nothing)
        for side in (copies, new, [draw_portrait(volume) for volume in held_out], known)
    ]
    relative = [find_nearest(side, float(np.nanmedian(distances[2]))).relative for side in distances]
    threshold = calibrate_threshold(relative[2], relative[3], num_train=len(train))
    num_found, num_false = int((relative[0] < threshold).sum()), int((relative[1] < threshold).sum())
    assert num_found >= 45, (num_found, threshold, np.sort(relative[0])[-8:])
    assert num_false <= 10, (num_false, threshold, np.sort(relative[1])[:12])


def test_threshold_parts_planted_copies_from_real_cases() -> None:
    real, planted = np.array([0.5, 0.7, 0.8, 0.9, 0.9]), np.array([0.1, 0.15, 0.2, 0.2, 0.3, 0.6])
    assert calibrate_threshold(real, planted, num_train=9) == pytest.approx(0.4)  # not 0.65, which flags a real case
    assert calibrate_threshold(real[:4], planted, num_train=9) == 0.05
    assert calibrate_threshold(real, planted, num_train=4) == 0.05
