"""Position of a grid's voxels in the body: the window, the pose and a smooth warp.

Two spaces, both in millimetres with axes R, A, S:

* patient space: the voxel centres of the grid, axis-aligned, z = 0 at the pelvic floor and z of about 610 at the neck;
* canonical space: the textbook body in which every organ is described. ``patient = rotate(scale * canonical + warp)``.

Blobs (organs) are evaluated at the canonical coordinates of the voxels; tubes are carried to patient space by their
centre lines, which keeps their cross-sections round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from maisi_aug.phantom.noise import F32, smooth_noise, spline_basis, spread
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.volumes.grid import Grid

Slices = tuple[slice, slice, slice]

BODY_MIDDLE_Y_MM: Final = -8.0  # canonical y of the middle of the trunk
KNOT_SPACING_MM: Final = 85.0
KNOT_ORIGIN_MM: Final = np.array([-510.0, -425.0, -510.0])
KNOT_COUNTS: Final = (13, 11, 19)  # covers x, y to about 425 and z to 930 mm, far beyond any torso window


@dataclass(frozen=True)
class Pose:
    """Pose of one patient relative to the canonical body.

    Attributes:
        scale: Stretch along R, A, S.
        turn_rad: Rotation about the body axis.
        tilt_rad: Shear of x along z, a patient who lies slightly askew.
        warp_mm: ``(3, *KNOT_COUNTS)`` cubic B-spline coefficients of the warp.
    """

    scale: tuple[float, float, float]
    turn_rad: float
    tilt_rad: float
    warp_mm: NDArray[np.float64]


def draw_pose(seed: int, *, scale: tuple[float, float, float]) -> Pose:
    """Draw a slightly turned, tilted and bent pose: scoliosis, kyphosis and a local warp of a few millimetres.

    Args:
        seed: Seed of the patient.
        scale: Size of the patient along x, y, z, relative to the canonical one.
    """
    rng = numpy_generator(seed, "pose")
    knots_z = KNOT_ORIGIN_MM[2] + KNOT_SPACING_MM * np.arange(KNOT_COUNTS[2])
    local = rng.normal(0.0, 1.0, (3, *KNOT_COUNTS)) * np.array([6.0, 5.0, 7.0])[:, None, None, None]
    scoliosis = rng.normal(0, 4.0) * np.sin(2 * np.pi * knots_z / rng.uniform(350, 600) + rng.uniform(0, 2 * np.pi))
    kyphosis = rng.normal(0, 4.0) * np.sin(2 * np.pi * knots_z / rng.uniform(500, 800) + rng.uniform(0, 2 * np.pi))
    local[0] += scoliosis
    local[1] += kyphosis
    return Pose(scale, float(rng.normal(0, np.deg2rad(2.5))), float(rng.normal(0, 0.015)), local)


class Frame:
    """Grid of a case, placed in its patient, with canonical coordinates of every voxel.

    Attributes:
        shape: Voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        axes: Patient millimetres of the voxel centres, one 1D float32 array per axis.
        x: ``(I, J, K)`` canonical R coordinate of every voxel in mm; ``y`` (A) and ``z`` (S) likewise.
    """

    def __init__(self, grid: Grid, pose: Pose, *, centre_mm: tuple[float, float, float]) -> None:
        """Place ``grid`` so that its centre lies at ``centre_mm`` of patient space."""
        self.shape = grid.shape
        self.spacing_mm = grid.spacing_mm
        self.pose = pose
        self._axes64 = tuple(
            centre + (np.arange(side, dtype=np.float64) - 0.5 * (side - 1)) * step
            for centre, side, step in zip(centre_mm, grid.shape, grid.spacing_mm, strict=True)
        )
        self.axes = tuple(axis.astype(np.float32) for axis in self._axes64)
        self.radius_scale = float(np.cbrt(np.prod(pose.scale)))
        self.x, self.y, self.z = self._canonical_coordinates()

    def _canonical_coordinates(self) -> tuple[F32, F32, F32]:
        bases = self.bases(KNOT_ORIGIN_MM, KNOT_SPACING_MM, KNOT_COUNTS)
        x, y, z = (
            axis.reshape(shape) for axis, shape in zip(self.axes, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
        )
        cos, sin = np.float32(np.cos(self.pose.turn_rad)), np.float32(np.sin(self.pose.turn_rad))
        x = x - np.float32(self.pose.tilt_rad) * (z - np.float32(300))
        scale = [np.float32(s) for s in self.pose.scale]
        turned = (cos * x + sin * y, cos * y - sin * x, z)
        warp = self.pose.warp_mm
        canonical = [(turned[a] - spread(warp[a], bases)) / scale[a] for a in range(3)]
        return canonical[0], canonical[1], canonical[2]

    def bases(self, origin_mm: ArrayLike, spacing_mm: float, counts: tuple[int, int, int]) -> tuple[F32, F32, F32]:
        """Return the B-spline bases of the grid's three axes for knots that are fixed in patient space."""
        origin = np.asarray(origin_mm, dtype=np.float64)
        i, j, k = (
            spline_basis(self._axes64[a], origin_mm=float(origin[a]), spacing_mm=spacing_mm, count=counts[a])
            for a in range(3)
        )
        return i, j, k

    def to_patient(self, points: ArrayLike) -> NDArray[np.float64]:
        """Transform ``(N, 3)`` canonical points to patient mm; the warp is inverted by fixed-point iteration."""
        bent = np.atleast_2d(np.asarray(points, dtype=np.float64)) * np.array(self.pose.scale)
        cos, sin = np.cos(self.pose.turn_rad), np.sin(self.pose.turn_rad)
        patient: NDArray[np.float64] = bent.copy()
        for _ in range(4):
            knots = ((patient - KNOT_ORIGIN_MM) / KNOT_SPACING_MM).T
            warp = [
                ndimage.map_coordinates(self.pose.warp_mm[a], knots, order=3, prefilter=False, mode="nearest")
                for a in range(3)
            ]
            x, y, z = (bent[:, a] + warp[a] for a in range(3))
            turned_x, turned_y = cos * x - sin * y, sin * x + cos * y
            patient = np.stack([turned_x + self.pose.tilt_rad * (z - 300.0), turned_y, z], axis=1)
        return patient

    def slices_of(self, low_mm: ArrayLike, high_mm: ArrayLike) -> Slices:
        """Return the slices of voxels along I, J, K inside a box in patient space, limited to the grid.

        Args:
            low_mm: ``(3,)`` lower corner of the box in patient mm.
            high_mm: ``(3,)`` upper corner.
        """
        start, stop = self.bounds_of(np.atleast_2d(low_mm), np.atleast_2d(high_mm))
        i, j, k = (slice(*pair) for pair in zip(start[0].tolist(), stop[0].tolist(), strict=True))
        return i, j, k

    def bounds_of(self, low_mm: ArrayLike, high_mm: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first voxels inside of boxes in patient space, and the voxels behind the last ones.

        Args:
            low_mm: ``(N, 3)`` lower corners of the boxes in patient mm.
            high_mm: ``(N, 3)`` upper corners.

        Returns:
            Two ``(N, 3)`` indices along I, J, K, limited to the grid; equal where a box lies outside of it.
        """
        first, step = np.array([axis[0] for axis in self._axes64]), np.asarray(self.spacing_mm)
        start = np.clip(np.floor((np.asarray(low_mm, dtype=np.float64) - first) / step), 0, self.shape)
        stop = np.ceil((np.asarray(high_mm, dtype=np.float64) - first) / step) + 1
        return start.astype(np.int64), np.clip(stop, start, self.shape).astype(np.int64)

    def box(self, low: ArrayLike, high: ArrayLike, *, pad_mm: float = 6.0) -> Slices:
        """Return the slices of voxels along I, J, K that contain a canonical box, with a margin for the warp.

        Args:
            low: ``(3,)`` lower corner of the box in canonical mm.
            high: ``(3,)`` upper corner.
            pad_mm: Margin in mm.
        """
        low_mm, high_mm = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        steps = np.stack(np.meshgrid(*[(0.0, 0.5, 1.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        corners = self.to_patient(low_mm + steps * (high_mm - low_mm))
        return self.slices_of(corners.min(axis=0) - pad_mm, corners.max(axis=0) + pad_mm)

    def smooth_noise(self, rng: np.random.Generator, wavelength_mm: float, within: Slices | None = None) -> F32:
        """Return low-frequency noise of about unit standard deviation over the grid or over a box of it.

        Args:
            rng: Source of all randomness.
            wavelength_mm: Wavelength of the noise in mm.
            within: Box of voxels; None for the whole grid.

        Returns:
            ``(I, J, K)`` float32 noise of the grid or the box.
        """
        sides = self.shape if within is None else tuple(side.stop - side.start for side in within)
        return smooth_noise(sides, self.spacing_mm, rng, wavelength_mm)
