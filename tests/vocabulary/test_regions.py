"""Labels tell the body regions that a map shows."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.vocabulary.regions import USUAL_REGIONS, Regions, covers, find_body_regions, regions_of


@pytest.mark.parametrize(
    ("label_ids", "expected"),
    [
        ((22, 200), ("head", "head")),
        ((1, 28, 200), ("thorax", "abdomen")),
        ((120, 93), ("head", "pelvis")),
        ((2, 62, 200), None),
    ],
)
def test_labels_stand_for_regions(label_ids: tuple[int, ...], expected: Regions | None) -> None:
    assert regions_of(label_ids) == expected
    label_map = np.zeros((3, 4, 5), dtype=np.uint8)
    label_map[0, : len(label_ids), 0] = label_ids
    assert find_body_regions(label_map) == (expected or USUAL_REGIONS)


def test_regions_cover_what_lies_between_them() -> None:
    assert covers(("head", "pelvis"), ("thorax", "abdomen"))
    assert covers(("abdomen", "abdomen"), ("abdomen", "abdomen"))
    assert not covers(("thorax", "abdomen"), ("abdomen", "pelvis"))
    assert not covers(("abdomen", "pelvis"), ("thorax", "abdomen"))
