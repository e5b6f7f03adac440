from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.distribution.features import (
    DIRECTIONS,
    FEATURE_NAMES,
    INTENSITY_NAMES,
    NUM_LEVELS,
    TEXTURE_NAMES,
    count_pairs,
    measure_intensities,
    measure_regions,
    measure_shape,
    measure_texture,
    to_levels,
)
from maisi_aug.volumes.components import bounding_box
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.made_cases import GRID, HEPATIC_TUMOR, build_case, write_folder


@pytest.fixture
def region(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return rng.normal(40, 60, (7, 9, 11)), rng.random((7, 9, 11)) < 0.7


def test_intensities_are_scipys(region: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    values = region[0][region[1]]
    found = dict(zip(INTENSITY_NAMES, measure_intensities(values), strict=True))
    assert found["skewness"] == pytest.approx(stats.skew(values))
    assert found["kurtosis"] == pytest.approx(stats.kurtosis(values))
    _, counts = np.unique(np.floor(values / 25), return_counts=True)
    assert found["entropy"] == pytest.approx(stats.entropy(counts, base=2))
    assert found["uniformity"] == pytest.approx(((counts / counts.sum()) ** 2).sum())


def test_pairs_are_those_counted_one_by_one(region: tuple[NDArray[np.float64], NDArray[np.bool_]]) -> None:
    hu, mask = region
    levels = to_levels(hu)
    slow = np.zeros((NUM_LEVELS, NUM_LEVELS))
    inside = {tuple(place) for place in np.argwhere(mask)}
    for place in inside:
        for step in np.ndindex(3, 3, 3):
            there = tuple(p + s - 1 for p, s in zip(place, step, strict=True))
            if step != (1, 1, 1) and there in inside:
                slow[levels[place], levels[there]] += 1
    assert len(DIRECTIONS) == 13
    np.testing.assert_array_equal(count_pairs(levels, mask), slow)


def test_texture_is_what_scikit_image_gives_of_one_slice(rng: np.random.Generator) -> None:
    from skimage.feature import graycomatrix, graycoprops

    hu = rng.normal(0, 80, (12, 15, 1))
    levels = to_levels(hu)[:, :, 0].astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    # Diagonal neighbours are 1.41 pixels away, where its distance of 1 would lead to the pixel itself.
    counts = sum(
        graycomatrix(levels, [np.sqrt(2) if a in angles[1::2] else 1], [a], levels=NUM_LEVELS, symmetric=True)
        for a in angles
    )
    found = dict(zip(TEXTURE_NAMES, measure_texture(hu, np.ones(hu.shape, dtype=bool)), strict=True))
    chances = counts / counts.sum()
    for name, theirs in (
        ("contrast", "contrast"),
        ("dissimilarity", "dissimilarity"),
        ("correlation", "correlation"),
        ("joint_energy", "ASM"),
        ("inverse_difference_moment", "homogeneity"),
    ):
        assert found[name] == pytest.approx(float(graycoprops(chances, theirs)[0, 0])), name
    assert found["joint_entropy"] == pytest.approx(stats.entropy(chances.ravel(), base=2))


def test_one_value_has_no_texture() -> None:
    mask = np.ones((4, 4, 4), dtype=bool)
    assert measure_texture(np.full(mask.shape, 7.0), mask) == (0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    assert measure_intensities(np.full(30, 7.0))[1:4] == (0.0, 0.0, 0.0)


def test_shapes_of_a_ball_and_of_an_ellipsoid() -> None:
    place = np.indices((61, 61, 61)) - 30.0
    ball = measure_shape((place**2).sum(0) < 20**2, 2.0)
    assert ball == pytest.approx((np.log(2), 1, 1, 1), abs=0.1)  # the mesh of voxels is 7% larger than the ball's
    long = measure_shape((place[0] / 28) ** 2 + (place[1] / 14) ** 2 + (place[2] / 7) ** 2 < 1, 1.0)
    assert long[2:] == pytest.approx((0.5, 0.25), abs=0.02)
    assert long[1] < 0.85 * ball[1]


def test_regions_of_a_case_are_in_their_units_and_places(tmp_path: Path) -> None:
    case_set = find_case_set(write_folder(tmp_path / "real", [1]))
    found = measure_regions(case_set, 3.0, case_set.cases[0])
    by_name = {region.name: region for region in found.regions}
    assert list(by_name) == ["body", "liver", "spleen", "hepatic tumor"]
    image, label_map = build_case(1)
    tumor = by_name["hepatic tumor"]
    assert tumor.is_lesion
    assert np.exp(tumor.of("log_volume")) == pytest.approx((label_map == HEPATIC_TUMOR).sum() * GRID.voxel_ml)
    assert tumor.of("mean") == pytest.approx(image[label_map == HEPATIC_TUMOR].mean(), abs=8)
    assert all(0.3 < share < 0.7 for share in tumor.place)  # it grows in the middle of the liver
    assert by_name["liver"].place[0] > 0.5 > by_name["spleen"].place[0]
    assert len(tumor.features) == len(FEATURE_NAMES)


def test_lesion_without_a_labelled_host_has_its_place_in_the_body(tmp_path: Path) -> None:
    image, label_map = build_case(1)
    save_image(tmp_path / "images" / "a.nii.gz", image, GRID)
    alone = np.where(label_map == HEPATIC_TUMOR, label_map, 0).astype(np.uint8)
    save_label_map(tmp_path / "labels" / "a.nii.gz", alone, GRID)
    (tmp_path / "labels.json").write_text(json.dumps({str(HEPATIC_TUMOR): "hepatic tumor"}))
    case_set = find_case_set(tmp_path)
    _, tumor = measure_regions(case_set, 3.0, case_set.cases[0]).regions
    assert tumor.name == "hepatic tumor"
    box = bounding_box(image > -500)
    centre = np.argwhere(alone).mean(axis=0)
    expected = [(c - side.start) / (side.stop - side.start) for c, side in zip(centre, box, strict=True)]
    assert tumor.place == pytest.approx(expected, abs=0.06)
    assert max(np.abs(np.array(tumor.place) - 0.5)) > 0.07  # not the middle of itself


def test_case_without_a_label_map_has_a_body(tmp_path: Path) -> None:
    case_set = find_case_set(write_folder(tmp_path / "real", [1], labelled=False))
    assert [region.name for region in measure_regions(case_set, 3.0, case_set.cases[0]).regions] == ["body"]
