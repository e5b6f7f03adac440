from __future__ import annotations

import math
from dataclasses import replace

import pytest

from maisi_aug.cohort.balance import (
    MAX_FULLNESS,
    LabelBalance,
    LesionCensus,
    SizeBins,
    count_lesions,
    fill_deficits,
    read_targets,
    to_requests,
)
from maisi_aug.cohort.plan import plan_from_texts
from maisi_aug.errors import RequestError
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.sizes import volume_ml

BINS = SizeBins((5, 10, 20, 40))


def count(*diameters: tuple[float, ...], request: str = "hepatic tumor", max_lesions: int = 2) -> LabelBalance:
    """The cells of cases with lesions of these diameters in mm."""
    (target,) = read_targets([request], vocabulary=MAISI, bins=BINS)
    cases = tuple(tuple(volume_ml(wide) for wide in case) for case in diameters)
    return count_lesions(LesionCensus("hepatic tumor", "label 2", cases), target, bins=BINS, max_lesions=max_lesions)


def test_cases_and_lesions_are_counted_in_their_cells() -> None:
    balance = count((), (4.0,), (7.0,), (12.0, 15.0, 3.0), (10.0, 25.0, 39.0, 60.0))
    assert balance.real_cases == (2, 1, 2)  # specks alone are no lesion, and four count as "two and more"
    assert balance.real_lesions == ((1, 1, 0, 0, 0), (1, 0, 3, 2, 1))
    assert BINS.names == ("under 5 mm", "5-10 mm", "10-20 mm", "20-40 mm", "40 mm and more")


def test_largest_deficits_are_filled_first() -> None:
    balance = count(*[(7.0,)] * 6, *[(15.0,)] * 2, (25.0,), *[(7.0, 15.0)] * 8, max_lesions=2)
    (filled,) = fill_deficits([balance], num_cases=5)
    assert filled.planned_cases == (0, 2, 3)  # 9 and 8 before, 11 and 11 after
    assert filled.planned_lesions[0] == (0, 0, 1, 1, 0)  # the emptiest first, then a tie for the smaller
    assert filled.planned_lesions[1] == (0, 0, 0, 6, 0)
    assert filled.lacking(planned=False)[0] == [0, 0, 4, 5, 0]
    assert filled.evenness(planned=True) > filled.evenness(planned=False)


def test_enough_cases_level_every_cell_that_may_be_filled() -> None:
    balance = count((7.0,), (15.0,), (15.0, 12.0), (25.0,), max_lesions=1)
    (filled,) = fill_deficits([balance], num_cases=16)
    after = [row + more for row, more in zip(filled.real_lesions[0], filled.planned_lesions[0], strict=True)]
    assert after == [0, 7, 7, 7, 0]
    assert filled.evenness(planned=True) == pytest.approx(1.0)
    assert sum(filled.combinations.values()) == filled.num_planned == 16


def test_lesions_of_one_case_leave_each_other_room() -> None:
    balance = count(*[(7.0, 7.0, 7.0)] * 20, *[(30.0,)] * 50, max_lesions=3)
    (filled,) = fill_deficits([balance], num_cases=30)
    for places in filled.combinations:
        middles = [volume_ml(math.sqrt(math.prod(filled.range_mm(place)))) for place in places]
        assert sum(middles) <= MAX_FULLNESS * volume_ml(filled.range_mm(3)[1])
    assert max(map(len, filled.combinations)) == 3


def test_sizes_of_a_request_limit_what_is_planned() -> None:
    balance = count((7.0,), (15.0,), (25.0,), request="liver tumor:8-18mm")
    (filled,) = fill_deficits([balance], num_cases=4)
    assert filled.open_bins == (1, 2)
    assert [filled.range_mm(place) for place in filled.open_bins] == [pytest.approx((8, 10)), pytest.approx((10, 18))]


def test_nothing_beyond_the_largest_real_lesion_is_planned_unasked() -> None:
    assert count((7.0,), (15.0,)).open_bins == (1, 2)
    assert count((), ()).open_bins == (1, 2, 3)  # a dataset without lesions limits nothing
    assert count((7.0,), request="hepatic tumor:5-40mm").open_bins == (1, 2, 3)


def test_lesions_that_are_all_below_what_can_be_planned_are_told() -> None:
    with pytest.raises(
        RequestError, match="dataset is above 5 mm, the smallest size that is planted; the largest has 4 mm"
    ):
        count((4.0,), (3.0, 2.0))
    assert count((4.0,), request="hepatic tumor:5-40mm").open_bins == (1, 2, 3)


def test_requests_make_the_planned_cases_and_nothing_else() -> None:
    (filled,) = fill_deficits([count((7.0,), (15.0, 25.0), request="hepatic tumor+spleen")], num_cases=23)
    plan = plan_from_texts(to_requests([filled]), vocabulary=MAISI, num_cases=23, seed=3)
    lesions = [[0] * len(BINS.names) for _ in range(2)]
    for case in plan.cases:
        assert case.required_ids == (3,)
        for lesion in case.lesions:
            lesions[len(case.lesions) - 1][BINS.place_of(lesion.requested_ml)] += 1
    assert tuple(map(tuple, lesions)) == filled.planned_lesions


def test_cases_go_to_the_label_that_the_fewest_show_unless_it_has_a_share() -> None:
    common, rare = count(*[(7.0,)] * 10), count((7.0,), ())
    assert [balance.num_planned for balance in fill_deficits([common, rare], num_cases=11)] == [1, 10]
    target = read_targets(["hepatic tumor@1/4", "lung tumor"], vocabulary=MAISI, bins=BINS)[0]
    shared = replace(rare, target=target)
    assert [balance.num_planned for balance in fill_deficits([common, shared], num_cases=20)] == [15, 5]


def test_plan_is_the_same_every_time() -> None:
    balances = [count((7.0, 12.0), (15.0,), (30.0, 6.0))]
    assert to_requests(fill_deficits(balances, num_cases=31)) == to_requests(fill_deficits(balances, num_cases=31))


@pytest.mark.parametrize(
    ("request_texts", "message"),
    [
        (["liver"], "balancing needs one lesion without a count, found none"),
        (["hepatic tumor:8mmx3"], "found 'hepatic tumor' x3"),
        (["hepatic tumor+lung tumor"], "found 'hepatic tumor' x1 and 'lung tumor' x1"),
        (["hepatic tumor", "liver tumor:8-9mm"], "Label requests: 'hepatic tumor' is requested more than once"),
        (["hepatic tumor:50-60mm"], "no size lies both within the bins"),
    ],
)
def test_requests_that_cannot_be_balanced_are_refused(request_texts: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("(", r"\(").replace(")", r"\)")):
        read_targets(request_texts, vocabulary=MAISI, bins=BINS)


@pytest.mark.parametrize("edges", [(5.0,), (10.0, 5.0), (0.0, 5.0), (5.0, 500.0)])
def test_bins_must_rise(edges: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="expected at least two rising diameters"):
        SizeBins(edges)


def test_number_of_lesions_must_be_one_that_can_be_asked_for() -> None:
    with pytest.raises(RequestError, match="expected 1 to 50, found 51"):
        count((7.0,), max_lesions=51)
