"""Fields of distances over boxes of a grid."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.phantom.frame import Slices
from maisi_aug.phantom.shapes import FAR_MM, Field

SHAPE = (7, 9, 11)
FIELD = Field((slice(2, 6), slice(0, 5), slice(4, 11)), np.random.default_rng(2).random((4, 5, 7), dtype=np.float32))


@pytest.mark.parametrize(
    "box",
    [
        (slice(0, 7), slice(0, 9), slice(0, 11)),
        (slice(3, 5), slice(1, 4), slice(5, 9)),
        (slice(0, 3), slice(4, 9), slice(9, 11)),
        (slice(6, 7), slice(0, 9), slice(0, 11)),
        (slice(0, 2), slice(6, 9), slice(0, 3)),
        (slice(3, 3), slice(0, 9), slice(0, 11)),
    ],
)
def test_field_over_another_box_is_far_away_where_it_is_unknown(box: Slices) -> None:
    whole = np.full(SHAPE, FAR_MM, dtype=np.float32)
    whole[FIELD.slices] = FIELD.mm
    np.testing.assert_array_equal(FIELD.over(box), whole[box])
    there, here = FIELD.overlap(box)
    np.testing.assert_array_equal(whole[box][there], FIELD.mm[here])
