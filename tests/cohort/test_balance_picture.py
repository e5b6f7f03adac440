from __future__ import annotations

import numpy as np

from maisi_aug.cohort.balance import fill_deficits
from maisi_aug.cohort.balance_picture import REAL, draw_balance
from maisi_aug.pictures.slices import MARK
from tests.cohort.test_balance import count


def test_picture_grows_with_its_labels_and_shows_real_and_planned_cases() -> None:
    balances = fill_deficits([count((7.0,), (15.0, 25.0), ()), count((7.0,))], num_cases=12)
    one, two = draw_balance(balances[:1], dataset="Dataset003"), draw_balance(balances, dataset="Dataset003")
    assert one.width == two.width
    assert two.height > 1.7 * one.height
    pixels = np.asarray(one).reshape(-1, 3)
    for colour in (REAL, MARK):
        assert (pixels == colour).all(axis=1).sum() > 1000
