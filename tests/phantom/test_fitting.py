"""The fit of the canonical body to a user's map."""

from __future__ import annotations

import numpy as np

from maisi_aug.phantom.fitting import Fit, FittedFrame, Warp
from maisi_aug.volumes.grid import Grid

FIT = Fit(
    np.array([[1.1, 0.02, 0.0], [-0.03, 0.9, 0.05], [0.0, 0.04, 1.05]]),
    np.array([4.0, -9.0, 280.0]),
    Warp(np.array([-150.0, -140.0, -130.0]), 60.0, np.random.default_rng(3).normal(0, 5, (3, 6, 6, 6))),
)
PLACES = np.random.default_rng(4).uniform(-70, 70, (40, 3))


def test_to_patient_inverts_to_canonical() -> None:
    np.testing.assert_allclose(FIT.to_patient(FIT.to_canonical(PLACES)), PLACES, atol=0.2)


def test_moved_fit_gives_the_same_place_of_another_grid_the_same_canonical_place() -> None:
    shift = np.array([3.0, -7.0, 11.0])
    np.testing.assert_allclose(FIT.moved(shift).to_canonical(PLACES + shift), FIT.to_canonical(PLACES), atol=1e-9)
    straight = Fit(FIT.matrix, FIT.offset)
    np.testing.assert_allclose(straight.moved(shift).to_canonical(PLACES + shift), straight.to_canonical(PLACES))


def test_frame_has_the_canonical_place_of_every_voxel() -> None:
    grid = Grid.from_spacing((9, 7, 11), (5.0, 6.0, 4.0))
    frame = FittedFrame(grid, FIT)
    voxels = np.argwhere(np.ones(grid.shape, dtype=bool))
    mm = np.stack([frame.axes[a][voxels[:, a]] for a in range(3)], axis=1).astype(np.float64)
    found = np.stack([axis.ravel() for axis in (frame.x, frame.y, frame.z)], axis=1)
    np.testing.assert_allclose(found, FIT.to_canonical(mm), atol=0.01)
