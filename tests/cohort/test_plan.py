from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest

from maisi_aug.cohort.plan import (
    CasePlan,
    CohortPlan,
    plan_bare_images,
    plan_from_texts,
    plan_given_maps,
)
from maisi_aug.cohort.request import load_recipe
from maisi_aug.errors import RequestError, VocabularyError
from maisi_aug.system.seeds import case_seed
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, MAISI, SlotBinding
from maisi_aug.vocabulary.sizes import SizeDistribution, reference_distribution, volume_ml


def plan(*texts: str, num_cases: int = 12, seed: int = 3, **options: Any) -> CohortPlan:
    return plan_from_texts(texts, vocabulary=MAISI, num_cases=num_cases, seed=seed, **options)


def test_plan_as_json_holds_all_of_it() -> None:
    planned = plan("hepatic tumor:0.1-0.9", "lung tumor:8-15mmx2+liver")
    document = json.loads(json.dumps(planned.to_json()))
    assert document["requested_ids"] == list(planned.requested_ids)
    for row, case in zip(document["cases"], planned.cases, strict=True):
        assert row["lesions"] == [lesion.to_plan() for lesion in case.lesions]
        assert CasePlan(**{**row, "lesions": case.lesions, "required_ids": tuple(row["required_ids"])}) == case
        assert [lesion.index for lesion in case.lesions] == list(range(len(case.lesions)))


def test_same_seed_same_plan_and_next_seed_another() -> None:
    assert plan("hepatic tumor:0.1-0.9") == plan("hepatic tumor:0.1-0.9")
    assert plan("hepatic tumor:0.1-0.9") != plan("hepatic tumor:0.1-0.9", seed=4)


def test_case_ids_are_unique_sortable_and_follow_the_index() -> None:
    cases = plan("liver", num_cases=10_001).cases
    assert [case.index for case in cases] == list(range(10_001))
    assert [case.case_id for case in cases] == sorted({case.case_id for case in cases})
    assert (plan("liver").cases[0].case_id, cases[-1].case_id) == ("case_0001", "case_10001")


def test_every_stratum_of_a_range_gets_one_case() -> None:
    percentiles = [case.lesions[0].percentile for case in plan("hepatic tumor:0.2-0.8", num_cases=30).cases]
    strata = sorted(int((percentile - 0.2) / 0.6 * 30) for percentile in percentiles if percentile is not None)
    assert strata == list(range(30))
    assert percentiles != sorted(percentiles)  # type: ignore[type-var]  # none of them is None


def test_each_of_several_lesions_covers_the_range() -> None:
    cases = plan("lung tumor:8-20mmx3", num_cases=20).cases
    for number in range(3):
        diameters = [case.lesions[number].requested_mm for case in cases]
        assert min(diameters) < 9.0
        assert max(diameters) > 18.0
        assert all(8.0 <= diameter <= 20.0 for diameter in diameters)
    assert len({case.lesions for case in cases}) == 20


def test_volume_diameter_and_percentile_of_a_lesion_agree() -> None:
    sizes = reference_distribution("hepatic tumor")
    for case in plan("hepatic tumor:0.1-0.9").cases:
        (lesion,) = case.lesions
        assert lesion.percentile is not None
        assert lesion.requested_ml == pytest.approx(sizes.volume_ml(lesion.percentile))
        assert volume_ml(lesion.requested_mm) == pytest.approx(lesion.requested_ml)


def test_single_percentile_is_met_exactly() -> None:
    expected = reference_distribution("hepatic tumor").volume_ml(0.3)
    assert {case.lesions[0].requested_ml for case in plan("hepatic tumor:0.3").cases} == {expected}


def test_absolute_size_has_no_percentile() -> None:
    assert {case.lesions[0].percentile for case in plan("hepatic tumor:8-20mm").cases} == {None}


def test_lesion_names_what_its_percentile_refers_to() -> None:
    planned = plan("pancreatic tumor:0.5+hepatic tumor:0.5", "bone lesion:10mm+liver")
    sources = {lesion.label: lesion.size_source for case in planned.cases for lesion in case.lesions}
    assert sources["hepatic tumor"] == reference_distribution("hepatic tumor").source
    assert str(sources["pancreatic tumor"]).startswith("estimated, not measured: hepatic tumor cut at 0.5-30 mL")
    assert sources["bone lesion"] is None
    assert planned.size_sources == {label: source for label, source in sources.items() if source is not None}
    assert planned.to_json()["cases"][0]["lesions"][0]["size_source"] == sources["pancreatic tumor"]


def test_requests_take_turns_so_that_every_beginning_is_balanced() -> None:
    cases = plan("hepatic tumor:0.3", "lung tumor:0.3", "bone lesion:10mm@50%", num_cases=24).cases
    for length in range(1, 25):
        counts = Counter(case.request for case in cases[:length])
        assert abs(counts["bone lesion:10mm@50%"] - length / 2) <= 1
        assert abs(counts["hepatic tumor:0.3"] - length / 4) <= 1
        assert abs(counts["lung tumor:0.3"] - length / 4) <= 1


def test_organs_are_required_and_lesions_are_not() -> None:
    planned = plan("liver+spleen+hepatic tumor:10mm", "left kidney")
    assert {case.required_ids for case in planned.cases} == {(1, 3), (14,)}
    assert planned.requested_ids == (1, 3, 14, 26)


def test_percentiles_can_refer_to_other_sizes() -> None:
    own = SizeDistribution("hepatic tumor", tuple(float(step) for step in range(1, 22)), "mine")
    (case,) = plan("hepatic tumor:0.5", num_cases=1, distributions={"hepatic tumor": own}).cases
    assert case.lesions[0].requested_ml == pytest.approx(11.0)
    assert case.lesions[0].size_source == "mine"


@pytest.mark.parametrize(
    ("texts", "num_cases", "error", "message"),
    [
        (("hepatic tumr",), 4, VocabularyError, "hepatic tumr.*Did you mean 'hepatic tumor'"),
        (("hepatic tumor:1.5",), 4, RequestError, r"expected a percentile in \[0, 1\]"),
        (
            ("liver", "spleen", "pancreas"),
            2,
            RequestError,
            "Number of cases: expected at least 3, one per label request, found 2",
        ),
    ],
)
def test_impossible_request_is_refused(
    texts: tuple[str, ...], num_cases: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(*texts, num_cases=num_cases)


def test_recipe_of_six_tumours_has_ten_of_each_evenly_from_8_to_50_mm() -> None:
    config = load_recipe("six-tumours")
    vocabulary = MAISI.with_slots({"kidney tumor": SlotBinding(129, (5, 14))})
    planned = plan_from_texts(config.labels, vocabulary=vocabulary, num_cases=config.num_cases or 4, seed=config.seed)
    assert planned.requested_ids == vocabulary.tumor_ids
    for label_id in vocabulary.tumor_ids:
        lesions = [lesion for case in planned.cases for lesion in case.lesions if lesion.label_id == label_id]
        places = [math.log(lesion.requested_mm / 8) / math.log(50 / 8) for lesion in lesions]
        assert sorted(int(10 * place) for place in places) == list(range(10))
    assert all(len(case.lesions) == 1 for case in planned.cases)


@pytest.mark.parametrize("steps", [(4,), (4, 5), (4, 5, 6, 7, 13)])
def test_grown_cohort_keeps_its_cases_and_its_shares(steps: tuple[int, ...]) -> None:
    requests = ("hepatic tumor:0.1-0.9@50%", "lung tumor:8-15mm", "kidney tumor:0.5")
    options: dict[str, Any] = {"vocabulary": FULL_VOCABULARY, "seed": 3}
    begun = plan_from_texts(requests, num_cases=4, **options)
    grown = plan_from_texts(requests, num_cases=20, grown_from=steps, **options)
    assert grown.cases[:4] == begun.cases
    assert [case.index for case in grown.cases] == list(range(20))
    counts = Counter(case.request for case in grown.cases)
    assert [counts[text] for text in requests] == [10, 5, 5]
    between = plan_from_texts(requests, num_cases=steps[-1], grown_from=steps[:-1], **options)
    assert grown.cases[: steps[-1]] == between.cases


def test_sizes_of_further_cases_cover_the_range_and_are_other_ones() -> None:
    grown = plan("hepatic tumor:0-1", num_cases=24, grown_from=(12,))
    percentiles = [case.lesions[0].percentile or 0.0 for case in grown.cases]
    assert sorted(int(percentile * 12) for percentile in percentiles[12:]) == list(range(12))
    assert not set(percentiles[:12]) & set(percentiles[12:])


def test_names_of_a_cohort_that_grows_beyond_their_digits_stay() -> None:
    cases = plan("liver", num_cases=10_001, grown_from=(2,)).cases
    assert (cases[0].case_id, cases[-1].case_id) == ("case_0001", "case_10001")
    long = plan("liver", num_cases=10_002, grown_from=(10_001,)).cases
    assert long[0].case_id == "case_00001"


def test_cases_are_told_apart_by_what_they_ask_for_and_not_by_its_words() -> None:
    def asked(text: str, num_cases: int = 2) -> list[str]:
        plan = plan_from_texts([text], vocabulary=MAISI, num_cases=num_cases, seed=0)
        return [case.asked for case in plan.cases]

    assert asked("liver tumor:0.3") == asked("hepatic tumor:0.3")
    assert len(set(asked("liver tumor:0.3") + asked("liver tumor:0.4") + asked("lung tumor:0.3"))) == 3
    assert asked("spleen") != asked("liver")
    assert [case.asked for case in plan_given_maps(["a.nii.gz", "b.nii.gz"], num_cases=2).cases] == [
        "a.nii.gz",
        "b.nii.gz",
    ]
    assert plan_bare_images(1).cases[0].asked == "image only"


def test_cohorts_of_different_requests_or_seeds_show_different_patients() -> None:
    seeds = [
        case_seed(seed, case.asked, case.index, 0)
        for seed in (0, 1)
        for text in ("liver tumor:0.3", "liver tumor:0.5", "lung tumor:0.3", "spleen")
        for case in plan_from_texts([text], vocabulary=MAISI, num_cases=4, seed=seed).cases
    ]
    assert len(set(seeds)) == len(seeds) == 32
