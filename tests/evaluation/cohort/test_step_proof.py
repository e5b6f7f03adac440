"""Cases drawn with fewer steps count as equal only where every quantity is within its margin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import JsonValue

from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.cohort.manifest import AttemptRecord, VerdictRecord
from maisi_aug.evaluation.cohort.step_proof import ArmResult, StepsReport, compare_arm, read_figures

SAMPLING = Sampling(8, "multistep")
HEADER = {"bundle": "tiny", "weights": "0" * 64, "command": "synthesize", "drawn": "44 maps", "full_steps": 30}
Figures = dict[str, float]


def build_record(index: int, figures: Figures, *, passed: bool = True) -> AttemptRecord:
    organs: list[JsonValue] = [
        {"organ": "liver", "median_hu": figures["liver"], "judged": True},
        {"organ": "spleen", "median_hu": 50.0 + index, "judged": index < 9},
    ]
    look: dict[str, JsonValue] = {
        "label": "hepatic tumor",
        "contrast_hu": figures["contrast"],
        "noise_hu": figures["noise"],
    }
    return AttemptRecord(
        case_id=f"case_{index + 1:04d}",
        case_index=index,
        attempt=0,
        seed=index,
        request="x",
        status="accepted" if passed else "rejected",
        lesions=(),
        required_ids=(),
        reason="",
        verdicts=(
            VerdictRecord("organ HU", passed, {"organs": organs}, ""),
            VerdictRecord("lesion visibility", True, look, ""),
            VerdictRecord("lesion visibility", True, {**look, "contrast_hu": figures["contrast"] + 10.0}, ""),
        ),
        mask_origin={},
        bundle="tiny",
        bundle_fingerprint="",
        licence="",
        settings={},
        files={},
        seconds={"mask": 1.0, "image": 2.0 if index % 2 else 4.0},
    )


def draw(num: int = 44, change: Callable[[Figures, np.random.Generator], Figures] | None = None) -> list[AttemptRecord]:
    rng, noise = np.random.default_rng(1), np.random.default_rng(2)
    records = []
    for index in range(num):
        figures = {
            "liver": 105.0 + rng.normal(0, 15),
            "contrast": -45.0 + rng.normal(0, 8),
            "noise": 12.0 * np.exp(rng.normal(0, 0.1)),
        }
        records.append(build_record(index, change(figures, noise) if change else figures))
    return records


def slightly(figures: Figures, rng: np.random.Generator) -> Figures:
    return {name: value * (1 + rng.normal(0, 0.03)) for name, value in figures.items()}


def names(entries: Sequence[Any]) -> list[str]:
    return [one.name for one in entries]


def test_figures_are_read_from_what_the_gates_noted() -> None:
    found = read_figures(build_record(3, {"liver": 101.0, "contrast": -40.0, "noise": np.exp(2.0)}))
    assert found.is_accepted
    assert found.figures == {
        ("organ", "liver"): 101.0,
        ("organ", "spleen"): 53.0,
        ("contrast", "hepatic tumor"): -35.0,
        ("texture", "hepatic tumor"): pytest.approx(2.0),
    }


def test_lesion_without_finite_figures_is_left_out() -> None:
    record = build_record(0, {"liver": 101.0, "contrast": -40.0, "noise": 5.0})
    gone = VerdictRecord("lesion contrast", False, {"label": "lung tumor", "contrast_hu": None}, "")
    texture = VerdictRecord("noise texture", False, {"label": "lung tumor", "lesion_to_host": None}, "")
    found = read_figures(replace(record, verdicts=(*record.verdicts, gone, texture)))
    assert not found.is_accepted
    assert not any(label == "lung tumor" for _, label in found.figures)


def test_arm_that_hardly_differs_is_proven() -> None:
    arm = compare_arm(draw(), draw(change=slightly), SAMPLING)
    assert names(arm.equivalences) == [
        "cases that pass the gates",
        "contrast of hepatic tumor",
        "spread of contrast of hepatic tumor",
        "HU of liver",
        "texture at hepatic tumor",
    ], "the spleen is judged in 9 maps"
    assert arm.is_proven
    assert arm.num_maps == 44
    assert arm.image_seconds == (3.0, 3.0)


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda figures, rng: {**figures, "liver": figures["liver"] + 5.0}, ["HU of liver"]),
        (lambda figures, rng: {**figures, "liver": figures["liver"] + rng.normal(0, 25)}, ["HU of liver"]),
        (lambda figures, rng: {**figures, "noise": 0.9 * figures["noise"]}, ["texture at hepatic tumor"]),
        (
            lambda figures, rng: {**figures, "contrast": 0.85 * figures["contrast"]},
            ["contrast of hepatic tumor"],
        ),
        (
            lambda figures, rng: {**figures, "contrast": -45.0 + 0.5 * (figures["contrast"] + 45.0)},
            ["spread of contrast of hepatic tumor"],
        ),
    ],
    ids=["brighter", "unsure", "smoother", "fainter", "all alike"],
)
def test_arm_that_differs_in_one_quantity_is_not(change: Callable[..., Figures], failed: list[str]) -> None:
    arm = compare_arm(draw(), draw(change=change), SAMPLING)
    assert names(arm.failed) == failed
    assert not arm.is_proven


def test_gates_that_fail_more_often_are_not_equal() -> None:
    fewer = draw(change=slightly)
    for index in (5, 6, 7):
        verdicts = (VerdictRecord("geometry", False, {}, ""), *fewer[index].verdicts)
        fewer[index] = replace(fewer[index], verdicts=verdicts)
    assert names(compare_arm(draw(), fewer, SAMPLING).failed) == ["cases that pass the gates"]


def test_only_cases_with_both_images_are_compared() -> None:
    full, fewer = draw(), draw()
    full[0] = replace(full[0], seconds={"mask": 1.0})
    fewer[1] = replace(fewer[1], seconds={"mask": 1.0})
    assert compare_arm(full, fewer[:-2], SAMPLING).num_maps == 40
    assert compare_arm(full, fewer[:-2], SAMPLING).is_proven
    few = compare_arm(full, fewer[:-3], SAMPLING)
    assert not few.failed
    assert not few.is_proven
    report = StepsReport(HEADER, (few,))
    assert "39 maps have an image, and 40 are needed. Use a larger --num-maps." in report.spell_result()
    assert compare_arm(full[:3], fewer[:3], SAMPLING).equivalences == ()


def test_report_names_the_fewest_steps_before_the_first_that_differ() -> None:
    good = compare_arm(draw(), draw(change=slightly), Sampling(15, "multistep"))
    bad = compare_arm(draw(), draw(change=lambda figures, rng: {**figures, "liver": 130.0}), Sampling(10, "multistep"))
    report = StepsReport(HEADER, (good, replace(good, sampling=SAMPLING), bad))
    assert report.proven == replace(good, sampling=SAMPLING)
    assert report.to_json()["proven"] == {"num_inference_steps": 8, "solver": "multistep"}
    text = report.to_markdown()
    assert "8 steps of multistep draw the same as 30, in 44 maps, with 3.8 times fewer evaluations" in text
    assert "## 10 steps, multistep: not shown to be equal" in text
    assert "| HU of liver | HU | 44 |" in text
    late = StepsReport(HEADER, (bad, replace(good, sampling=SAMPLING)))
    assert late.proven is None
    assert late.to_json()["proven"] is None
    assert "10 steps of multistep are not shown to draw the same as 30: HU of liver" in late.spell_result()


def test_arm_without_any_hu_proves_nothing() -> None:
    records = [replace(record, verdicts=()) for record in draw()]
    arm = compare_arm(records, records, SAMPLING)
    assert isinstance(arm, ArmResult)
    assert names(arm.equivalences) == ["cases that pass the gates"]
    assert not arm.is_proven
    assert "no HU to compare" in StepsReport(HEADER, (arm,)).spell_result()
