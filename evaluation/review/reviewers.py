"""Agreement between reviewers of a cohort, and how well blinded readers distinguished its images from real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.review import Review, load_review
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.review.reader_test import load_readings, measure_readings
from maisi_aug.system.printed_text import spell_count

REPORT_NAME = "reviewers"
NUM_RESAMPLES = 5000
NOBODY = "(no name)"


def measure_reviewers(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Summarise a folder's reviews: decisions by reviewer, pairwise agreement, and readings of the blinded test.

    Args:
        folder: Folder with ``review.jsonl``, ``reader_test.jsonl`` or both.
        seed: Seed of the bootstrap over cases.

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: The folder has no decisions or readings.
        CohortError: A decision cannot be read.
    """
    review, readings = load_review(folder), load_readings(folder)
    names = review.reviewers
    if not names and not readings:
        raise EvaluationError(f"{folder}: has no decisions or readings. View the cases first: maisi-aug view {folder}.")
    readers = sorted({reading.reviewer for reading in readings})
    return {
        "measurement": REPORT_NAME,
        "path": str(folder),
        "reviewers": [_describe_reviewer(review, name) for name in names],
        "pairs": [_compare(review, a, b, seed) for a, b in combinations(names, 2)],
        "readers": [
            {"reviewer": name or NOBODY, **measure_readings([r for r in readings if r.reviewer == name])}
            for name in readers
        ],
    }


def _describe_reviewer(review: Review, name: str) -> dict[str, Any]:
    decisions = review.decisions_of(name).values()
    reasons: dict[str, int] = {}
    for decision in decisions:
        if decision.choice == "reject":
            reasons[decision.reason or "no reason"] = reasons.get(decision.reason or "no reason", 0) + 1
    return {
        "reviewer": name or NOBODY,
        "num_accepted": sum(decision.choice == "accept" for decision in decisions),
        "num_rejected": sum(decision.choice == "reject" for decision in decisions),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


def _compare(review: Review, a: str, b: str, seed: int) -> dict[str, Any]:
    """Two reviewers on the cases that both decided on."""
    mine, theirs = review.decisions_of(a), review.decisions_of(b)
    keys = sorted(mine.keys() & theirs.keys())
    votes = np.array([[mine[key].choice == "reject", theirs[key].choice == "reject"] for key in keys], dtype=bool)
    kappa = find_kappa(votes)
    low, high = _find_interval(votes, seed) if kappa is not None else (None, None)
    return {
        "reviewers": [a or NOBODY, b or NOBODY],
        "num_both": len(keys),
        "agreement": float(np.mean(votes[:, 0] == votes[:, 1])) if keys else None,
        "kappa": kappa,
        "low": low,
        "high": high,
        "disagreements": [
            {
                "case": key.case_id,
                "attempt": key.attempt,
                "rejected_by": a or NOBODY if mine[key].choice == "reject" else b or NOBODY,
                "reason": mine[key].reason or theirs[key].reason,
            }
            for key in keys
            if mine[key].choice != theirs[key].choice
        ],
    }


def find_kappa(votes: NDArray[np.bool_]) -> float | None:
    """Return Cohen's kappa of two reviewers (Cohen, "A coefficient of agreement for nominal scales", 1960).

    Args:
        votes: ``(N, 2)`` whether each reviewer rejects the case.

    Returns:
        Kappa; None if it is undefined: without cases, or if both always decide the same.
    """
    if len(votes) == 0:
        return None
    observed = float(np.mean(votes[:, 0] == votes[:, 1]))
    share = votes.mean(axis=0)
    expected = float(share[0] * share[1] + (1 - share[0]) * (1 - share[1]))
    return None if expected >= 1.0 else (observed - expected) / (1.0 - expected)


def _find_interval(votes: NDArray[np.bool_], seed: int) -> tuple[float, float] | tuple[None, None]:
    """Percentiles of a bootstrap over cases; draws without a kappa are left out."""
    rng = np.random.default_rng(seed)
    drawn = (find_kappa(votes[rng.integers(len(votes), size=len(votes))]) for _ in range(NUM_RESAMPLES))
    kappas = [kappa for kappa in drawn if kappa is not None]
    if len(votes) < 2 or not kappas:
        return None, None
    low, high = np.percentile(kappas, [2.5, 97.5])
    return float(low), float(high)


def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of reviews as Markdown."""
    parts = [f"# Reviewers of {document['path']}\n"]
    for row in document["reviewers"]:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in row["reasons"].items())
        parts.append(
            f"- {row['reviewer']}: {row['num_accepted']} accepted, {row['num_rejected']} rejected"
            + (f" ({reasons})" if reasons else "")
        )
    for pair in document["pairs"]:
        parts += ["", f"## {pair['reviewers'][0]} and {pair['reviewers'][1]}\n", *_spell_pair(pair)]
    if document["readers"]:
        parts += ["", "## Blinded test\n", *map(_spell_reader, document["readers"])]
    return "\n".join(parts) + "\n"


def _spell_pair(pair: Mapping[str, Any]) -> Sequence[str]:
    if not pair["num_both"]:
        return ["- No case was decided by both."]
    kappa = "undefined, because both decided the same way throughout"
    if pair["kappa"] is not None:
        ends = "" if pair["low"] is None else f" ({pair['low']:.2f} to {pair['high']:.2f})"
        kappa = f"{pair['kappa']:.2f}{ends}"
    return [
        (
            f"- {spell_count(pair['num_both'], 'case')} decided by both; the same decision on "
            f"{pair['agreement']:.0%}; kappa {kappa}."
        ),
        *(
            f"- {row['case']}, attempt {row['attempt'] + 1}: rejected by {row['rejected_by']} alone"
            + (f": {row['reason']}" if row["reason"] else "")
            for row in pair["disagreements"]
        ),
    ]


def _spell_reader(row: Mapping[str, Any]) -> str:
    auc = "" if row["auc"] is None else f", AUC {row['auc']:.2f}"
    return (
        f"- {row['reviewer']}: {row['num_right']} of {row['num_images']} right, {row['accuracy']:.0%} "
        f"({row['low']:.0%} to {row['high']:.0%}; chance 50%, p = {row['p_chance']:.2g}): {row['verdict']}{auc}; "
        f"{row['median_seconds']:.0f} s per image."
    )
