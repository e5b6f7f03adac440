from __future__ import annotations

import pytest

from maisi_aug.errors import EarlierSpelling
from maisi_aug.evaluation.benchmark.config import parse_labels


def test_rules_name_ids_of_real_cases_and_labels_of_synthetic_ones() -> None:
    labels, mapping = parse_labels(["spleen"], ["1=liver", "3=liver", "cancer=hepatic tumor", "4+5=a+b", "organ=c+d"])
    assert labels == {"spleen": (), "liver": (1, 3), "a+b": (4, 5)}
    assert mapping == {"cancer": ("hepatic tumor",), "a+b": ("a", "b"), "organ": ("c", "d")}


def test_earlier_spelling_of_ids_is_read_and_told() -> None:
    with pytest.warns(EarlierSpelling, match="Write --map '1\\+2=liver'."):
        assert parse_labels(["liver=1+2"], []) == ({"liver": (1, 2)}, {})
