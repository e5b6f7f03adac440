from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg

from maisi_aug.evaluation.fid import frechet
from maisi_aug.evaluation.fid.frechet import (
    bootstrap_interval,
    case_influence,
    extrapolate_distance,
    frechet_distance,
    kernel_distance,
    measure_moments,
    reduce_to_span,
)

DIMENSION = 12


def draw_cases(seed: int, *, num_cases: int = 24, shift: float = 0.0, spread: float = 1.0) -> list[NDArray[np.float32]]:
    """Cases whose slices share a case's own mean, as slices of a volume do."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(DIMENSION, DIMENSION)) * spread
    cases = []
    for _ in range(num_cases):
        own = rng.normal(size=DIMENSION)
        slices = rng.normal(size=(rng.integers(8, 15), DIMENSION)) + own
        cases.append((slices @ mixing + shift).astype(np.float32))
    return cases


def frechet_with_matrix_root(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The formula of Heusel et al. as it is written."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = np.real(linalg.sqrtm(c1 @ c2))
    step = first.mean(axis=0) - second.mean(axis=0)
    return float(step @ step + np.trace(c1) + np.trace(c2) - 2 * np.trace(root))


def test_distance_is_that_of_monai_and_of_the_formula_as_written() -> None:
    from monai.metrics.fid import FIDMetric

    first, second = draw_cases(2), draw_cases(3, shift=0.4, spread=1.2)
    found = frechet_distance(measure_moments(first), measure_moments(second))
    a, b = np.concatenate(first), np.concatenate(second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an argument of scipy's that MONAI still passes
        expected = float(FIDMetric()(torch.from_numpy(b), torch.from_numpy(a)))
    assert found == pytest.approx(expected, rel=1e-8)
    assert found == pytest.approx(frechet_with_matrix_root(a, b), rel=1e-8)
    assert found > 1


def test_distance_of_known_gaussians() -> None:
    """Diagonal covariances: each axis adds the squared difference of means and of standard deviations."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4000, 3))
    base = (base - base.mean(axis=0)) @ np.linalg.inv(linalg.sqrtm(np.cov(base, rowvar=False)))
    other = base * [1.0, 3.0, 0.5] + [2.0, 0.0, 0.0]
    assert frechet_distance(measure_moments([base]), measure_moments([other])) == pytest.approx(4 + 4 + 0.25)


def test_fewer_slices_than_features_still_give_a_distance() -> None:
    first, second = (np.random.default_rng(seed).normal(size=(6, 40)) for seed in (0, 1))
    found = frechet_distance(measure_moments([first]), measure_moments([second]))
    # tr((C1 C2)^(1/2)) is the sum of singular values of the centred features' product.
    a, b = ((x - x.mean(axis=0)) / np.sqrt(5) for x in (first, second))
    step = first.mean(axis=0) - second.mean(axis=0)
    expected = step @ step + (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_moments_do_not_depend_on_how_slices_are_dealt_out() -> None:
    cases = draw_cases(4)
    together, apart = measure_moments([np.concatenate(cases)]), measure_moments(cases)
    assert together.num == apart.num
    np.testing.assert_allclose(together.covariance, apart.covariance, rtol=1e-10)
    np.testing.assert_allclose(apart.covariance, np.cov(np.concatenate(cases).astype(np.float64), rowvar=False))


def test_rest_of_a_set_has_the_moments_of_its_cases() -> None:
    cases = draw_cases(4)
    rest = measure_moments(cases).without(measure_moments(cases[:5]))
    expected = measure_moments(cases[5:])
    assert rest.num == expected.num
    np.testing.assert_allclose(rest.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, expected.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_constant", [0, 1])
def test_distance_and_influence_bear_features_that_never_change_or_repeat(num_constant: int) -> None:
    """Of such features covariances are singular however many slices there are."""
    first, second = (draw_cases(seed, shift=0.3 * seed) for seed in (1, 2))
    wider = [
        [np.c_[case, case[:, :2], np.ones((len(case), num_constant))] for case in cases] for cases in (first, second)
    ]
    # What repeats counts twice, as it does when both are one feature that is sqrt(2) times as large.
    stretched = [
        [case * np.r_[np.full(2, 2**0.5), np.ones(DIMENSION - 2)] for case in cases] for cases in (first, second)
    ]
    expected, found = ([measure_moments(cases) for cases in sets] for sets in (stretched, wider))
    assert frechet_distance(*found) == pytest.approx(frechet_distance(*expected), rel=1e-6)
    np.testing.assert_allclose(
        case_influence(wider[0], *found), case_influence(stretched[0], *expected), rtol=1e-4, atol=1e-6
    )


def test_influence_is_the_derivative_by_a_cases_weight() -> None:
    first, second = draw_cases(5), draw_cases(6, shift=0.5)
    own, other = measure_moments(first), measure_moments(second)
    influence = case_influence(first, own, other)
    assert influence.sum() == pytest.approx(0.0, abs=1e-9)
    repeats = 400  # one case more among 400 copies of the set moves it by a small weight
    for index in (0, 7, 13):
        moved = measure_moments([*first * repeats, first[index]])
        change = frechet_distance(moved, other) - frechet_distance(measure_moments(first * repeats), other)
        assert change * repeats == pytest.approx(influence[index], rel=0.02, abs=2e-3)


def test_interval_spreads_as_recomputed_draws_do() -> None:
    first, second = draw_cases(7, num_cases=60), draw_cases(8, num_cases=60, shift=0.8)
    own, other = measure_moments(first), measure_moments(second)
    value = frechet_distance(own, other)
    influences = case_influence(first, own, other), case_influence(second, other, own)
    interval = bootstrap_interval(value, influences, np.random.default_rng(0))
    assert interval is not None
    assert interval[0] < value < interval[1]
    rng = np.random.default_rng(1)
    recomputed = [
        frechet_distance(*(measure_moments([s[i] for i in rng.integers(len(s), size=len(s))]) for s in (first, second)))
        for _ in range(300)
    ]
    low, high = np.percentile(recomputed, [2.5, 97.5])
    assert interval[1] - interval[0] == pytest.approx(high - low, rel=0.25)
    # What recomputing adds: drawn sets are poorer, so that the value itself lies at the lower end.
    assert np.mean(recomputed) > value


def test_one_case_has_no_interval() -> None:
    assert bootstrap_interval(1.0, [np.zeros(1), np.zeros(5)], np.random.default_rng(0)) is None


def test_kernel_distance_is_the_mean_over_pairs_of_different_cases() -> None:
    rng = np.random.default_rng(0)
    sets = [[rng.normal(size=(num, 4)) + shift for num in (2, 1, 3)] for shift in (0.0, 1.0)]

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within = sum(
        np.mean([kernel(x, y) for i, a in enumerate(s) for j, b in enumerate(s) if i != j for x in a for y in b])
        for s in sets
    )
    across = np.mean([kernel(x, y) for x in np.concatenate(sets[0]) for y in np.concatenate(sets[1])])
    found = kernel_distance(sets[0], sets[1], np.random.default_rng(0))
    assert found == pytest.approx(float(within - 2 * across))
    one_case = kernel_distance([np.concatenate(sets[0])], sets[1], np.random.default_rng(0))
    assert np.isfinite(one_case)
    assert one_case != pytest.approx(found)


def test_kernel_distance_of_like_sets_is_zero_on_average_however_alike_slices_of_a_case_are() -> None:
    values = [
        kernel_distance(draw_cases(s, num_cases=8), draw_cases(500 + s, num_cases=8), np.random.default_rng(0))
        for s in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_subsets_give_about_the_exact_kernel_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = (list(rng.normal(size=(600, 1, 6)) + shift) for shift in (0.0, 0.5))
    exact = kernel_distance(first, second, np.random.default_rng(1))
    monkeypatch.setattr(frechet, "KID_EXACT_ROWS", 500)
    monkeypatch.setattr(frechet, "KID_SUBSET", 250)
    assert kernel_distance(first, second, np.random.default_rng(1)) == pytest.approx(exact, rel=0.1)


def test_span_keeps_distance_and_influence() -> None:
    rng = np.random.default_rng(3)
    first, second = ([rng.normal(size=(3, 40)) + shift for _ in range(4)] for shift in (0.0, 0.5))
    reduced = reduce_to_span(first, second)
    assert reduced[0][0].shape == (3, 24)
    plain, small = ([measure_moments(cases) for cases in sets] for sets in ((first, second), reduced))
    assert frechet_distance(*small) == pytest.approx(frechet_distance(*plain), rel=1e-6)
    expected = case_influence(first, *plain)
    np.testing.assert_allclose(case_influence(reduced[0], *small), expected, rtol=1e-6, atol=1e-8)


def test_extrapolation_comes_nearer_to_very_many_cases() -> None:
    truth = frechet_distance(*(measure_moments(draw_cases(s, num_cases=8000, shift=0.1 * s)) for s in (0, 8)))
    raw, limits = [], []
    for seed in range(12):
        first, second = draw_cases(100 + seed), draw_cases(200 + seed, shift=0.8)
        moments = measure_moments(first), measure_moments(second)
        raw.append(frechet_distance(*moments))
        limit = extrapolate_distance(first, second, moments, raw[-1], np.random.default_rng(seed))
        assert limit is not None
        limits.append(limit)
    assert np.mean(raw) > 2 * truth
    assert abs(np.mean(limits) - truth) < 0.25 * abs(np.mean(raw) - truth)
    assert extrapolate_distance(first[:3], second, moments, 1.0, np.random.default_rng(0)) is None


@pytest.mark.slow
def test_interval_of_the_extrapolated_distance_covers_that_of_very_many_cases() -> None:
    truth = frechet_distance(*(measure_moments(draw_cases(s, num_cases=20000, shift=0.1 * s)) for s in (0, 8)))
    num_covered = 0
    for seed in range(100):
        first, second = draw_cases(1000 + seed, num_cases=60), draw_cases(2000 + seed, num_cases=60, shift=0.8)
        own, other = measure_moments(first), measure_moments(second)
        generator = np.random.default_rng(seed)
        limit = extrapolate_distance(first, second, (own, other), frechet_distance(own, other), generator)
        assert limit is not None
        interval = bootstrap_interval(
            limit, [case_influence(first, own, other), case_influence(second, other, own)], generator
        )
        assert interval is not None
        num_covered += interval[0] <= truth <= interval[1]
    assert 88 <= num_covered <= 100
