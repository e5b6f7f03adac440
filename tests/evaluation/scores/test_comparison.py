from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.scores.comparison import Comparison, Verdict, compare_arms
from maisi_aug.evaluation.scores.statistics import ALPHA, Interval
from tests.evaluation.scores.test_rank_tests import SECOND

COMPARISON = Comparison(Interval(0.03, 0.01, 0.05), 0.01, 0.02, 0.04, 20, (3, 3), margin=0.01)
Array = np.ndarray


def compare(arm: Array, other: Array, *, rng: np.random.Generator, **changes: float) -> Comparison:
    return compare_arms({"liver": (arm, other)}, rng=rng, num_resamples=500, **changes)["liver"]


def draw_arms(
    rng: np.random.Generator, num_patients: int, num_seeds: tuple[int, int], *, seed_spread: float = 0.0
) -> tuple[Array, Array]:
    """Two arms without a true difference: spread over patients, over seeds and over both."""
    patients = rng.normal(0.6, 0.2, num_patients)
    first, second = (
        patients
        + rng.normal(0, 0.07, num_patients)
        + rng.normal(0, seed_spread, (num, 1))
        + rng.normal(0, 0.03, (num, num_patients))
        for num in num_seeds
    )
    return first, second


@pytest.mark.parametrize(
    ("interval", "p_holm", "verdict", "is_loss"),
    [
        (Interval(0.03, 0.01, 0.05), 0.02, Verdict.GAIN, False),
        (Interval(0.005, 0.001, 0.011), 0.04, Verdict.UNDECIDED, False),
        (Interval(0.005, 0.001, 0.009), 0.04, Verdict.NO_GAIN, False),
        (Interval(0.03, 0.01, 0.05), 0.07, Verdict.UNDECIDED, False),
        (Interval(0.03, -0.01, 0.05), 0.02, Verdict.UNDECIDED, False),
        (Interval(0.0, -0.005, 0.005), 0.9, Verdict.NO_GAIN, False),
        (Interval(-0.03, -0.05, -0.01), 0.02, Verdict.NO_GAIN, True),
        (Interval(-0.03, -0.05, -0.01), 0.2, Verdict.NO_GAIN, False),
    ],
)
def test_verdict_needs_interval_and_test(interval: Interval, p_holm: float, verdict: Verdict, is_loss: bool) -> None:
    found = replace(COMPARISON, difference=interval, p_holm=p_holm)
    assert (found.verdict, found.is_loss) == (verdict, is_loss)
    assert found.to_json()["verdict"] == verdict.value
    assert found.obstacle == ""


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"num_patients": 5}, "5 test patients with the label"),
        ({"num_patients": 1}, "1 test patient with the label"),
        ({"num_patients": 0, "difference": None}, "no test patients with the label"),
        ({"num_seeds": (1, 1)}, "one training of each arm"),
        ({"is_found": False}, "neither arm finds it"),
    ],
)
@pytest.mark.parametrize("interval", [Interval(0.03, 0.01, 0.05), Interval(-0.03, -0.05, -0.01)])
def test_nothing_is_said_of_what_cannot_be_decided(changes: dict[str, Any], obstacle: str, interval: Interval) -> None:
    found = replace(replace(COMPARISON, difference=interval), **changes)
    assert (found.verdict, found.is_loss, found.obstacle) == (Verdict.UNDECIDED, False, obstacle)


def test_holm_corrects_over_the_labels_that_are_tested(rng: np.random.Generator) -> None:
    other = rng.normal(0.5, 0.1, (2, 7))
    shift = np.array([0.1, 0.12, 0.09, 0.11, 0.1, 0.13, 0.08])
    pairs = {
        "liver": (other + shift, other),
        "spleen": (other + shift * np.array([1, 1, 1, 1, 1, 1, -0.5]), other),
        "tumor": (other[:, :1] + 0.1, other[:, :1]),
        "cyst": (other[:, :0], other[:, :0]),
    }
    found = compare_arms(pairs, rng=rng, num_resamples=200)
    assert found["liver"].p_value == pytest.approx(2 / 128)
    assert found["liver"].p_holm == pytest.approx(2 * 2 / 128)
    assert found["spleen"].p_holm == pytest.approx(4 / 128)
    assert found["tumor"].p_holm is None
    assert found["tumor"].difference is not None
    assert found["tumor"].difference.mean == pytest.approx(0.1)
    assert found["tumor"].difference.low is None
    assert found["cyst"].difference is None
    assert [row.verdict for row in found.values()] == [Verdict.GAIN, Verdict.GAIN, *[Verdict.UNDECIDED] * 2]


def test_no_gain_is_said_of_equal_arms(rng: np.random.Generator) -> None:
    patients = rng.normal(0.7, 0.1, 30)
    arms = [patients + rng.normal(0, 0.01, (3, 30)) for _ in range(2)]
    found = compare(*arms, rng=rng)
    assert found.verdict is Verdict.NO_GAIN
    assert found.p_holm is not None
    assert found.p_holm > ALPHA


def test_two_arms_that_find_nothing_are_no_proof(rng: np.random.Generator) -> None:
    found = compare(np.zeros((3, 24)), np.zeros((3, 24)), rng=rng)
    assert (found.verdict, found.obstacle) == (Verdict.UNDECIDED, "neither arm finds it")


@pytest.mark.parametrize("num_seeds", [(1, 1), (1, 3), (2, 2)])
def test_half_finished_trainings_seldom_show_what_is_not_there(num_seeds: tuple[int, int]) -> None:
    """No true difference, 30 patients, seeds that differ by 0.03; before, one training of each had a gain in 31%."""
    rng = np.random.default_rng(4)
    found = [compare(*draw_arms(rng, 30, num_seeds, seed_spread=0.03), rng=rng) for _ in range(150)]
    assert np.mean([one.verdict is Verdict.GAIN for one in found]) <= 0.08
    assert np.mean([one.is_loss for one in found]) <= 0.08


@pytest.mark.parametrize(("num_patients", "num_labels"), [(7, 1), (12, 1), (12, 5), (24, 3)])
def test_smallest_gain_is_shown_four_times_in_five(num_patients: int, num_labels: int) -> None:
    rng = np.random.default_rng(5)

    def draw(gain: float) -> Comparison:
        pairs = {str(n): draw_arms(rng, num_patients, (2, 2)) for n in range(num_labels)}
        pairs["0"] = (pairs["0"][0] + gain, pairs["0"][1])
        return compare_arms(pairs, rng=rng, num_resamples=200)["0"]

    promised = [draw(0.1).smallest_gain for _ in range(20)]
    gain = float(np.mean([value for value in promised if value is not None]))
    assert len(promised) == 20
    shown = np.mean([draw(gain).verdict is Verdict.GAIN for _ in range(100)])
    assert 0.62 <= shown <= 0.92


@pytest.mark.parametrize(("num_patients", "num_labels"), [(5, 1), (6, 3), (8, 10)])
def test_no_smallest_gain_is_promised_where_none_can_be_shown(num_patients: int, num_labels: int) -> None:
    rng = np.random.default_rng(5)
    pairs = {str(n): draw_arms(rng, num_patients, (2, 2)) for n in range(num_labels)}
    pairs["0"] = (pairs["0"][0] + 0.5, pairs["0"][1])
    found = compare_arms(pairs, rng=rng, num_resamples=200)["0"]
    assert found.smallest_gain is None
    assert found.verdict is Verdict.UNDECIDED


def test_no_gain_below_the_margin_is_called_one_that_could_be_shown(rng: np.random.Generator) -> None:
    arm = SECOND + 0.002 + 1e-4 * rng.standard_normal((2, len(SECOND)))
    found = compare(arm, np.tile(SECOND, (2, 1)), rng=rng, margin=0.01)
    assert found.difference is not None
    assert found.difference.low is not None
    assert found.difference.low > 0
    assert found.verdict is Verdict.NO_GAIN
    assert found.smallest_gain is not None
    assert 0.01 <= found.smallest_gain < 0.011


def test_seeds_that_differ_widen_what_is_found(rng: np.random.Generator) -> None:
    other = np.tile(SECOND, (3, 1))
    same, apart = other + 0.01 * rng.standard_normal(other.shape), other + np.array([[-0.1], [0.0], [0.1]])
    narrow, wide = (compare(arm, other, rng=rng) for arm in (same, apart))
    assert narrow.smallest_gain is not None
    assert wide.smallest_gain is not None
    assert wide.smallest_gain > 2 * narrow.smallest_gain


def test_more_than_all_is_neither_found_nor_promised(rng: np.random.Generator) -> None:
    other = np.tile(SECOND, (2, 1))
    found = compare(other + np.array([[-0.25], [0.25]]), other, rng=rng)
    assert found.difference is not None
    assert (found.difference.low, found.difference.high) == (-1.0, 1.0)
    assert found.smallest_gain is None


def test_other_patients_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(
        BenchmarkError, match="Comparison of liver: both arms must have the same patients, found 10 and 9"
    ):
        compare(SECOND[None], SECOND[None, :9], rng=rng)
