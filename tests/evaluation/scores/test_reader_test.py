from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.scores.reader_test import score_answers

KEY = {f"item-{n:02d}": ("real", "synthetic")[n % 2] for n in range(40)}


def answer(num_right: int, num: int = 40) -> dict[str, str]:
    """The first are right, the others wrong."""
    other = {"real": "synthetic", "synthetic": "real"}
    return {item: word if n < num_right else other[word] for n, (item, word) in enumerate(KEY.items()) if n < num}


def test_interval_is_clopper_and_pearsons() -> None:
    found: dict[str, Any] = score_answers(answer(28), KEY)["all"]
    assert found["share"] == 0.7
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, 28, 13))
    assert found["high"] == pytest.approx(stats.beta.ppf(0.975, 29, 12))


@pytest.mark.parametrize(
    ("num_right", "verdict"),
    [(38, "can tell"), (20, "cannot tell"), (25, "undecided"), (2, "can tell, but with the two answers swapped")],
)
def test_verdict_follows_the_share(num_right: int, verdict: str) -> None:
    assert score_answers(answer(num_right), KEY)["verdict"] == verdict


def test_items_without_an_answer_are_counted() -> None:
    found = score_answers(answer(10, num=20), KEY)
    assert (found["num_unanswered"], found["all"]["num"], found["real"]["num"]) == (20, 20, 10)


def test_verdicts_have_their_error_rates() -> None:
    verdicts = [score_answers(answer(num), KEY)["verdict"] for num in range(41)]
    told = np.array([verdict.startswith("can tell") for verdict in verdicts])
    alike = np.array([verdict == "cannot tell" for verdict in verdicts])
    assert 0.01 < stats.binom.pmf(range(41), 40, 0.5) @ told <= 0.05  # who guesses
    assert 0.01 < stats.binom.pmf(range(41), 40, 0.7) @ alike <= 0.05  # who is just as good as the margin


@pytest.mark.parametrize(
    ("answers", "words"),
    [({"item-99": "real"}, "'item-99'"), ({"item-00": "fake"}, "found 'fake'"), ({}, "none found")],
)
def test_answers_that_cannot_be_scored_are_named(answers: dict[str, str], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        score_answers(answers, KEY)
