from __future__ import annotations

import numpy as np

from maisi_aug.volumes.grid import Grid


def test_box_of_a_grid_and_other_voxels_over_it_stay_where_they_are() -> None:
    grid = Grid.from_spacing((40, 30, 20), (0.8, 1.0, 2.5))
    part = grid.cut_to((slice(5, 25), slice(0, 30), slice(10, 20)))
    assert part.shape == (20, 30, 10)
    assert np.allclose(part.affine @ [0, 0, 0, 1], grid.affine @ [5, 0, 10, 1])
    even = part.with_voxels_of(2.0)
    assert even.shape == (8, 15, 12)
    assert np.allclose(even.extent_mm, part.extent_mm)
    corner = np.array([-0.5, -0.5, -0.5, 1.0])
    assert np.allclose(even.affine @ corner, part.affine @ corner)
