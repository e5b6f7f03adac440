from __future__ import annotations

import pytest

from maisi_aug.lesions.lesion import growth_rule_of
from maisi_aug.vocabulary.labels import FULL_VOCABULARY


@pytest.mark.parametrize("name", [FULL_VOCABULARY.name_of(label_id) for label_id in FULL_VOCABULARY.tumor_ids])
def test_every_tumour_of_the_vocabulary_has_a_rule_with_a_source(name: str) -> None:
    rule = growth_rule_of(name)
    assert rule != growth_rule_of("my own label")
    assert 0 <= rule.max_share_outside < 1
    assert 0 <= rule.room_share < 1
    assert rule.max_host_share > 0
    assert rule.max_spread > 1
    assert rule.source


def test_rule_is_found_under_any_name_of_the_label() -> None:
    assert growth_rule_of("renal mass") == growth_rule_of("kidney tumor")
    assert growth_rule_of("HCC") == growth_rule_of("hepatic tumor")


def test_label_of_a_users_own_keeps_most_of_itself_inside() -> None:
    assert growth_rule_of("left parotid tumor").max_share_outside == pytest.approx(0.3)
    assert growth_rule_of("left parotid tumor").room_share == 0
