from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.insertion.shapes import draw_shape
from maisi_aug.volumes.components import TOUCHING

SHAPE, SPACING_MM, CENTRE = (40, 36, 20), (0.7, 0.8, 2.0), (20, 18, 10)


@pytest.mark.parametrize("num_voxels", [4, 57, 300, 1500])
@pytest.mark.parametrize("seed", range(6))
def test_shape_is_one_part_of_just_so_many_voxels_inside_its_room(num_voxels: int, seed: int) -> None:
    room = np.ones(SHAPE, dtype=bool)
    room[:14] = False
    lesion = draw_shape(room, CENTRE, num_voxels, SPACING_MM, np.random.default_rng(seed))
    assert lesion.sum() == num_voxels
    assert ndimage.label(lesion, TOUCHING)[1] == 1
    assert not (lesion & ~room).any()


def test_shape_is_round_in_mm_not_in_voxels() -> None:
    room = np.ones(SHAPE, dtype=bool)
    sides = []
    for seed in range(12):
        lesion = draw_shape(room, CENTRE, 500, SPACING_MM, np.random.default_rng(seed))
        sides.append(np.ptp(np.argwhere(lesion), axis=0) * SPACING_MM)
    mean = np.mean(sides, axis=0)
    assert mean.max() / mean.min() < 1.35


def test_room_that_is_too_small_is_named() -> None:
    room = np.zeros(SHAPE, dtype=bool)
    room[18:22, 16:20, 8:12] = True
    with pytest.raises(LesionError, match="Shape of 100 voxels: only 64"):
        draw_shape(room, CENTRE, 100, SPACING_MM, np.random.default_rng(0))
    room[0, 0, :] = True
    room[1, 0, :] = True
    with pytest.raises(LesionError, match="Shape of 80 voxels: only 64"):
        draw_shape(room, CENTRE, 80, SPACING_MM, np.random.default_rng(0))
