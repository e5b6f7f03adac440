"""A reader test: can readers of unlabelled images tell which are synthetic? Needs no torch.

A reader says "real" or "synthetic" of every image. Chance gives half of the answers right, so the share of right
answers is compared with one half: by the exact two-sided binomial test, and with the interval of Clopper and Pearson,
"The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 1934.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scipy import stats

from maisi_aug.errors import EvaluationError

ANSWERS: Final = ("real", "synthetic")
CHANCE: Final = 0.5
ALPHA: Final = 0.05
DEFAULT_MARGIN: Final = 0.2
"""Margin around one half: a reader with less than 70% right answers cannot tell synthetic from real in practice."""


@dataclass(frozen=True, slots=True)
class Share:
    """A fraction of right answers with its exact 95% interval.

    Attributes:
        num_right: Number of right answers.
        num: Number of all answers; with 0 there is no fraction.
    """

    num_right: int
    num: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the fraction and its interval as a JSON-able dict."""
        if not self.num:
            return {"num_right": 0, "num": 0, "share": None, "low": None, "high": None}
        found = stats.binomtest(self.num_right, self.num).proportion_ci(1 - ALPHA, method="exact")
        share = self.num_right / self.num
        return {
            "num_right": self.num_right,
            "num": self.num,
            "share": share,
            "low": float(found.low),
            "high": float(found.high),
        }


def score_answers(
    answers: Mapping[str, str], key: Mapping[str, str], *, margin: float = DEFAULT_MARGIN
) -> dict[str, Any]:
    """Score a reader's answers in a blinded test by the answer key.

    Args:
        answers: Item -> ``real`` or ``synthetic``; items without an answer are counted and left out.
        key: Item -> ``real`` or ``synthetic``.
        margin: Largest deviation of the share of right answers from one half that counts as "cannot tell".

    Returns:
        The shares of right answers in all, of real and of synthetic items, with exact 95% intervals; p of the exact
        test against one half; and the verdict: "can tell" if the test is below 0.05 and more than half are right,
        "cannot tell" if the 90% interval lies within the margin around one half (two one-sided tests of 5% each),
        otherwise "undecided". If more than half are wrong, beyond chance, the names were confused: "can tell, with the
        names the other way round".

    Raises:
        EvaluationError: An item is not in the key, a word is not an answer, or there are no answers.
    """
    unknown = sorted(set(answers) - set(key))
    if unknown:
        raise EvaluationError(f"Answer for '{unknown[0]}': the pack has no such item. Correct the answers.")
    wrong = next((item for item, word in answers.items() if word not in ANSWERS), None)
    if wrong is not None:
        raise EvaluationError(
            f"Answer for '{wrong}': expected real or synthetic, found '{answers[wrong]}'. Correct the answers."
        )
    if not answers:
        raise EvaluationError("Answers: none found. Fill in real or synthetic for each item.")
    parts = {
        kind: Share(sum(answers[i] == kind for i in answers if key[i] == kind), sum(key[i] == kind for i in answers))
        for kind in ANSWERS
    }
    whole = Share(sum(part.num_right for part in parts.values()), len(answers))
    return {
        "num_items": len(key),
        "num_unanswered": len(key) - len(answers),
        "all": whole.to_json(),
        **{kind: part.to_json() for kind, part in parts.items()},
        "p_value": float(stats.binomtest(whole.num_right, whole.num, CHANCE).pvalue),
        "margin": margin,
        "verdict": _judge(whole, margin),
    }


def _judge(whole: Share, margin: float) -> str:
    result = stats.binomtest(whole.num_right, whole.num, CHANCE)
    narrow = result.proportion_ci(1 - 2 * ALPHA, method="exact")
    if CHANCE - margin < narrow.low and narrow.high < CHANCE + margin:
        return "cannot tell"
    if result.pvalue < ALPHA:
        is_right = whole.num_right > CHANCE * whole.num
        return "can tell" if is_right else "can tell, but with the two answers swapped"
    return "undecided"
