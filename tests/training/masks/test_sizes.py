from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.cohort.grammar import parse_requests
from maisi_aug.networks.mask_conditions import ABSENT, CONDITION_IDS, give_sizes
from maisi_aug.training.masks.sizes import MapFigures, measure_map, measure_maps
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.sizes import reference_distribution
from tests.builders.tiny_mask_training import ClassList, build_maps, class_of

LIVER, TUMOR = CONDITION_IDS.index(1), CONDITION_IDS.index(26)


def build_map(*, liver_side: int, tumor_sides: tuple[int, ...] = ()) -> np.ndarray:
    classes = np.full((30, 20, 20), class_of(200), dtype=np.uint8)
    classes[1 : 1 + liver_side, 1:11, 1:11] = class_of(1)
    for place, side in enumerate(tumor_sides):
        start = 2 + 7 * place
        classes[start : start + side, 2 : 2 + side, 2 : 2 + side] = class_of(26)
    return classes


def test_volumes_are_all_of_an_organ_and_the_largest_part_of_a_tumour() -> None:
    counts, volumes = measure_map(build_map(liver_side=20, tumor_sides=(2, 4)), voxel_ml=0.5)
    assert counts[class_of(26)] == 8 + 64
    assert volumes[TUMOR] == 32.0
    assert volumes[LIVER] == (2000 - 72) * 0.5
    assert not volumes[[place for place in range(10) if place not in (LIVER, TUMOR)]].any()


def test_organs_are_ranked_among_the_training_maps_and_absent_ones_are_minus_one() -> None:
    maps = ClassList([build_map(liver_side=side) for side in (4, 8, 12, 16, 20)])
    rows = [measure_map(one, voxel_ml=0.5) for one in maps.maps]
    figures = MapFigures(np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]))
    sizes = figures.to_sizes(figures.organ_volumes_ml())
    np.testing.assert_allclose(sizes[:, LIVER], [0, 0.25, 0.5, 0.75, 1])
    assert (np.delete(sizes, LIVER, axis=1) == ABSENT).all()
    # A held-out map lies among them, or beyond.
    _, between = measure_map(build_map(liver_side=10), voxel_ml=0.5)
    _, beyond = measure_map(build_map(liver_side=25), voxel_ml=0.5)
    other = MapFigures(np.zeros((2, 125), dtype=np.int64), np.stack([between, beyond]))
    np.testing.assert_allclose(other.to_sizes(figures.organ_volumes_ml())[:, LIVER], [0.375, 1.0])


def test_organ_of_a_single_map_is_of_middle_size() -> None:
    counts, volumes = measure_map(build_map(liver_side=10), voxel_ml=0.5)
    figures = MapFigures(counts[None], volumes[None])
    assert figures.to_sizes(figures.organ_volumes_ml())[0, LIVER] == 0.5


def test_tumour_is_told_as_generation_tells_it() -> None:
    _, volumes = measure_map(build_map(liver_side=20, tumor_sides=(3,)), voxel_ml=0.5)
    figures = MapFigures(np.zeros((1, 125), dtype=np.int64), volumes[None])
    (request,) = parse_requests(["hepatic tumor:13.5mL"], vocabulary=MAISI)
    assert volumes[TUMOR] == 13.5
    expected = reference_distribution("hepatic tumor").percentile(13.5)
    assert figures.to_sizes([np.zeros(0)] * 5)[0, TUMOR] == pytest.approx(expected, abs=1e-4)
    assert request is not None
    assert give_sizes((), {})[26] == ABSENT


def test_maps_are_measured_once(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    path = tmp_path / "figures.npz"
    first = measure_maps(build_maps(2), path, voxel_ml=2.0, report=lambda done, total: reports.append((done, total)))
    assert reports == [(1, 2), (2, 2)]
    again = measure_maps(ClassList([]), path, voxel_ml=2.0)
    np.testing.assert_array_equal(again.counts, first.counts)
    np.testing.assert_array_equal(again.volumes_ml, first.volumes_ml)
    assert first.counts.sum() == 2 * build_maps(1)[0].size
