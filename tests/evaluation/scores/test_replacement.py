from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from maisi_aug.evaluation.scores.replacement import Curve, find_worth, fit_curve

COUNTS = (3, 10, 30, 80)
TRUTH = Curve(0.85, 0.8, 0.7)
Array = NDArray[np.float64]


def draw_scores(
    rng: np.random.Generator, worth: float, *, num_draws: int = 5, num_patients: int = 20, truth: Curve = TRUTH
) -> tuple[Array, Array]:
    """Scores of the counts and of a training set of 10 real cases that is worth so many; as they spread in practice."""
    patients = rng.normal(0, 0.08, num_patients)  # some are harder, for every network
    counts = np.array([*COUNTS, worth])
    means = truth(counts)[:, None, None]
    # Few training cases make networks that differ more; those of one draw are alike, since they share cases.
    draws = (rng.normal(0, 1, (len(counts), num_draws)) + rng.normal(0, 1, num_draws)) * 0.06 / np.sqrt(counts[:, None])
    own = rng.normal(0, 0.04, (len(counts), num_draws, num_patients))
    # A patient to whom further cases do more good than to others.
    slopes = rng.normal(0, 0.1, num_patients) * (TRUTH.drop * counts[:, None, None] ** -TRUTH.exponent)
    scores = means + patients + slopes + draws[:, :, None] + own
    return scores[:-1], scores[-1]


@pytest.mark.parametrize("worth", [6.0, 15.0, 45.0])
def test_interval_holds_a_known_truth_in_nine_of_ten(rng: np.random.Generator, worth: float) -> None:
    held, said = 0, 0
    for _ in range(300):
        found = find_worth(COUNTS, *draw_scores(rng, worth))
        said += not found.obstacle
        held += (found.low or 0) <= worth <= (found.high or np.inf)
    assert held >= 0.9 * 300
    assert said >= 0.6 * 300  # and it says something


def test_curve_of_another_form_is_no_trap(rng: np.random.Generator) -> None:
    """A learning curve that levels off at once, which no power does."""
    held = 0
    for _ in range(200):
        scores, mixed = draw_scores(rng, 15.0)
        flat = 0.85 - 0.5 * np.exp(-np.array([*COUNTS, 15.0]) / 12)
        shift = flat - TRUTH(np.array([*COUNTS, 15.0]))
        found = find_worth(COUNTS, scores + shift[:-1, None, None], mixed + shift[-1])
        held += (found.low or 0) <= 15 <= (found.high or np.inf)
    assert held >= 0.9 * 200


def test_estimate_is_where_the_curve_passes_the_score() -> None:
    rng = np.random.default_rng(0)
    scores = np.repeat(TRUTH(np.array(COUNTS, dtype=float))[:, None, None], 5, axis=1) + rng.normal(0, 1e-5, (4, 5, 8))
    mixed = np.full((5, 8), float(TRUTH(np.array([17.0]))[0])) + rng.normal(0, 1e-5, (5, 8))
    found = find_worth(COUNTS, scores, mixed)
    assert found.estimate == pytest.approx(17, rel=0.02)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 17 < found.high


def test_fit_is_scipys() -> None:
    counts = np.array(COUNTS, dtype=float)
    scores = TRUTH(counts) + np.array([0.01, -0.01, 0.005, -0.002])
    (a, b, c), _ = curve_fit(lambda n, a, b, c: a - b * n**-c, counts, scores, p0=(0.8, 0.5, 0.5))
    found = fit_curve(counts, scores)
    np.testing.assert_allclose(found(counts), a - b * counts**-c, atol=2e-3)


def test_what_lies_beyond_the_counts_is_said_so(rng: np.random.Generator) -> None:
    scores, mixed = draw_scores(rng, 80.0)
    better = find_worth(COUNTS, scores, mixed + 0.3)
    assert (better.estimate, better.low, better.high, better.obstacle) == (None, 80.0, None, "")
    worse = find_worth(COUNTS, scores, mixed - 0.8)
    assert (worse.estimate, worse.low, worse.high) == (None, None, 3.0)


def test_flat_curve_says_nothing(rng: np.random.Generator) -> None:
    scores = 0.8 + rng.normal(0, 0.03, (4, 5, 12))
    assert find_worth(COUNTS, scores, 0.8 + rng.normal(0, 0.03, (5, 12))).obstacle.startswith("the curve of real")
    assert fit_curve(np.array(COUNTS, dtype=float), np.array([0.8, 0.7, 0.6, 0.5])).drop == 0


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 5, 12), "2 numbers of real cases"), ((4, 2, 12), "2 draws"), ((4, 5, 4), "4 test patients")],
)
def test_too_little_of_anything_is_named(shape: tuple[int, int, int], words: str) -> None:
    found = find_worth(COUNTS[: shape[0]], np.ones(shape), np.ones(shape[1:]))
    assert found.obstacle.startswith(words)
