from __future__ import annotations

from dataclasses import replace

from pydantic import JsonValue

from maisi_aug.cohort.manifest import VerdictRecord
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.generate.attempts import Attempt
from maisi_aug.generate.writer import describe_attempt
from maisi_aug.lesions.lesion import Lesion

CASE = CasePlan("case_0001", 0, "hepatic tumor:10-30mmx2", (), ())
SMALL = Lesion(26, "hepatic tumor", 1.0, None, 0.96, 12.2)
LARGE = Lesion(26, "hepatic tumor", 9.0, None, 8.96, 25.8)
LOST = Lesion(23, "lung tumor", 2.0)


def visibility(num_voxels: int, contrast_hu: float, *, passed: bool = True) -> VerdictRecord:
    figures: dict[str, JsonValue] = {"label": "hepatic tumor", "num_voxels": num_voxels, "contrast_hu": contrast_hu}
    return VerdictRecord("lesion visibility", passed, figures, "hepatic tumor: expected darker.")


def test_caption_tells_sizes_and_contrasts_the_largest_lesion_first() -> None:
    verdicts = (visibility(30, -12.4), visibility(280, -34.6))
    attempt = Attempt(replace(CASE, lesions=(SMALL, LOST, LARGE)), 1, 77, verdicts=verdicts)
    caption = describe_attempt(attempt, 0.032, "phantom-ct")
    assert caption.title == "case_0001"
    assert caption.lines == (
        "hepatic tumor: 8.96 mL (25.8 mm), requested 9.00 mL; -35 HU to host",
        "hepatic tumor: 0.96 mL (12.2 mm), requested 1.00 mL; -12 HU to host",
        "lung tumor: absent, requested 2.00 mL",
        "hepatic tumor:10-30mmx2; bundle phantom-ct; attempt 2; seed 77",
    )


def test_caption_of_a_failed_attempt_says_why() -> None:
    attempt = Attempt(CASE, 0, 7, verdicts=(visibility(30, 12.0, passed=False),))
    caption = describe_attempt(attempt, 0.032, "phantom-ct")
    assert caption.lines[-1] == "Rejected: hepatic tumor: expected darker."


def test_caption_stays_short_for_many_lesions() -> None:
    caption = describe_attempt(Attempt(replace(CASE, lesions=(SMALL,) * 9), 0, 7), 0.032, "phantom-ct")
    assert len(caption.lines) == 6
    assert "and 5 more lesions" in caption.lines
