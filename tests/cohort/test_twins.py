from __future__ import annotations

import pytest

from maisi_aug.cohort.twins import Twins, parse_twins, plan_twins
from maisi_aug.errors import RequestError
from maisi_aug.vocabulary.labels import MAISI


def test_values_are_read_in_their_order() -> None:
    assert parse_twins("size=6mm, 10mm,20mm") == Twins("size", ("6mm", "10mm", "20mm"))
    assert parse_twins("contrast=-40,60").values == ("-40", "60")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes=6mm,8mm", "unknown factor 'sizes'. Did you mean 'size'?"),
        ("6mm,8mm", "unknown factor"),
        ("size=6mm", "needs two or more different values, found '6mm'"),
        ("size=6mm,,8mm", "needs two or more different values, found '"),
        ("size=6mm,6mm", "needs two or more different values, found '"),
        ("contrast=100,bright", "expected contrasts in HU to the host, up to 2000, found 'bright'"),
        ("contrast=100,0", "found '0'"),
    ],
)
def test_what_is_no_twins_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("?", r"\?")):
        parse_twins(text)


def test_cases_of_a_group_differ_in_size_alone() -> None:
    twins = parse_twins("size=6mm,10mm")
    plan = plan_twins(["lung nodule@0.5", "hepatic tumor"], twins, vocabulary=MAISI, num_groups=4, seed=3)
    assert [case.index for case in plan.cases] == list(range(8))
    assert [case.case_id for case in plan.cases[:3]] == ["case_0001_6mm", "case_0001_10mm", "case_0002_6mm"]
    for number, (small, large) in enumerate(twins.groups(plan)):
        assert small.lesions[0].label_id == large.lesions[0].label_id
        assert (round(small.lesions[0].requested_mm), round(large.lesions[0].requested_mm)) == (6, 10)
        assert twins.to_origin(large.index) == {"group": number, "factor": "size", "value": "10mm"}


def test_cases_of_a_group_are_alike_where_the_size_does_not_differ() -> None:
    twins = parse_twins("texture=solid,ground-glass")
    plan = plan_twins(["lung nodule:6-20mm"], twins, vocabulary=MAISI, num_groups=3, seed=3)
    assert all(solid.lesions == glass.lesions for solid, glass in twins.groups(plan))
    assert len({group[0].lesions[0].requested_ml for group in twins.groups(plan)}) == 3


@pytest.mark.parametrize("text", ["lung nodule:8mm", "lung nodule+hepatic tumor"])
def test_sizes_are_given_once(text: str) -> None:
    with pytest.raises(RequestError, match="needs one lesion without a size, because --twins sets it, found '"):
        plan_twins([text], parse_twins("size=6mm,8mm"), vocabulary=MAISI, num_groups=1, seed=0)
