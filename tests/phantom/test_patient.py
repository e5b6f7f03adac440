"""What a map says of its patient."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.phantom import ids
from maisi_aug.phantom.distances import signed_distance
from maisi_aug.phantom.patient import has_outline, measure_fat
from maisi_aug.volumes.grid import Grid

GRID = Grid.from_spacing((50, 46, 9), (4.0, 4.5, 6.0))


@pytest.mark.parametrize("rib_depth_mm", [20.0, 32.0])
def test_fat_is_as_thick_as_ribs_lie_deep_less_the_muscle_over_them(rib_depth_mm: float) -> None:
    i, j, _ = np.indices(GRID.shape)
    depth_mm = 85.0 - np.hypot((i - 24.5) * 4.0, (j - 22.5) * 4.5)
    labels = np.where(depth_mm > 0, ids.BODY, 0).astype(np.uint8)
    labels[(depth_mm > rib_depth_mm) & (depth_mm < rib_depth_mm + 9)] = ids.LEFT_RIB_1
    fat_mm, certainty = measure_fat(labels, signed_distance(labels > 0, GRID.spacing_mm), GRID)
    near_ribs = labels == ids.LEFT_RIB_1
    assert np.median(fat_mm[near_ribs]) == pytest.approx(rib_depth_mm - 7.0, abs=4.5)  # a voxel
    assert certainty[near_ribs].min() > 0.8


def test_no_label_below_the_fascia_makes_no_thickness_certain() -> None:
    labels = np.full(GRID.shape, ids.BODY, dtype=np.uint8)
    labels[20:30, 20:26] = ids.LIVER
    labels[:3] = 0
    assert measure_fat(labels, signed_distance(labels > 0, GRID.spacing_mm), GRID)[1].max() == 0


def test_organs_in_air_are_no_outline_and_an_empty_body_is_one() -> None:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[20:30, 20:26] = ids.LIVER
    assert not has_outline(labels)
    assert has_outline(np.where(labels > 0, labels, ids.BODY).astype(np.uint8))
    assert has_outline(np.full(GRID.shape, ids.BODY, dtype=np.uint8))
