from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.evaluation.distribution.neighbours import (
    NAMES,
    choose_nearest,
    find_neighbour_intervals,
    measure_neighbours,
)


def test_figures_are_those_of_the_published_package(rng: np.random.Generator) -> None:
    prdc = pytest.importorskip("prdc", reason="the package prdc is not installed")
    real, synthetic = rng.normal(size=(40, 6)), 0.6 + rng.normal(size=(25, 6))
    expected = prdc.compute_prdc(real, synthetic, nearest_k=5)
    assert measure_neighbours(real, synthetic, 5) == pytest.approx(expected)


def test_figures_are_those_counted_by_hand(rng: np.random.Generator) -> None:
    real, synthetic = rng.normal(size=(14, 3)), 0.4 + rng.normal(size=(11, 3))

    def reach(side: np.ndarray, index: int) -> float:
        return sorted(float(np.linalg.norm(side[index] - other)) for other in side)[3]

    balls = [[np.linalg.norm(r - s) < reach(real, i) for s in synthetic] for i, r in enumerate(real)]
    others = [[np.linalg.norm(r - s) < reach(synthetic, j) for j, s in enumerate(synthetic)] for r in real]
    found = measure_neighbours(real, synthetic, 3)
    assert found["precision"] == pytest.approx(np.mean([any(ball[j] for ball in balls) for j in range(11)]))
    assert found["density"] == pytest.approx(sum(map(sum, balls)) / 3 / 11)
    assert found["coverage"] == pytest.approx(np.mean([any(ball) for ball in balls]))
    assert found["recall"] == pytest.approx(np.mean([any(row) for row in others]))


def test_sets_apart_have_nothing_and_narrow_sets_cover_little(rng: np.random.Generator) -> None:
    real = rng.normal(size=(40, 4))
    assert measure_neighbours(real, real + 100, 5) == dict.fromkeys(NAMES, 0.0)
    narrow = measure_neighbours(real, 0.05 * rng.normal(size=(40, 4)), 5)
    assert narrow["precision"] == 1.0
    assert narrow["coverage"] < 0.6
    assert narrow["recall"] < 0.1


def test_intervals_hold_what_very_many_draws_give(rng: np.random.Generator) -> None:
    def draw() -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(30, 5)), 0.5 + rng.normal(size=(30, 5))

    truth = {name: np.mean([measure_neighbours(*draw(), 5)[name] for _ in range(300)]) for name in NAMES}
    held = dict.fromkeys(NAMES, 0)
    for _ in range(60):
        for name, (low, high) in find_neighbour_intervals(*draw(), 5, rng).items():
            held[name] += int(low <= truth[name] <= high)
    assert min(held.values()) >= 0.88 * 60, held


def test_few_cases_have_fewer_neighbours() -> None:
    assert [choose_nearest(19, 50), choose_nearest(20, 20)] == [3, 5]
