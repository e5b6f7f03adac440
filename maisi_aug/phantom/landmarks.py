"""The canonical body as a reference: where its labels and its muscle surface lie, to which users' maps are fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from maisi_aug.phantom import ids
from maisi_aug.phantom.anatomy import paint_patient
from maisi_aug.phantom.frame import BODY_MIDDLE_Y_MM, KNOT_COUNTS, Frame, Pose
from maisi_aug.phantom.habitus import Habitus, draw_habitus
from maisi_aug.phantom.shapes import lookup
from maisi_aug.volumes.grid import Grid

F64 = NDArray[np.float64]
FASCIA: Final = 256
"""Key of the muscle surface below the skin, which stands next to the labels' ids."""
SPINE: Final = 257
LEFT_RIBS: Final = 258
RIGHT_RIBS: Final = 259
REFERENCE_SEED: Final = 5
# Grid of the reference: voxels of 5 mm over the trunk, from the thighs to the neck, and its middle in canonical mm.
_STEP_MM: Final = 5.0
_CENTRE_MM: Final = (0.0, BODY_MIDDLE_Y_MM, 285.0)
_SHAPE: Final = (72, 54, 142)
_MOST_POINTS: Final = 90  # of the surface of a label of a user's map, which are enough for a fit
# One label for many bones, as in coarsely labelled maps: the group, its key, and the height in mm of a single one.
COARSE_GROUPS: Final = (
    (ids.VERTEBRAE, SPINE, 95.0),
    (ids.LEFT_RIBS, LEFT_RIBS, 190.0),
    (ids.RIGHT_RIBS, RIGHT_RIBS, 190.0),
)
# How far a label is to be trusted as a landmark; what is not listed counts as 1, and soft or mobile organs less.
_WEIGHTS: Final[dict[int, float]] = {
    **dict.fromkeys((ids.COSTAL_CARTILAGE, ids.HEPATIC_VESSEL, ids.AIRWAY, ids.LEFT_HUMERUS, ids.RIGHT_HUMERUS,
                     ids.BODY, ids.BACKGROUND, ids.BONE_LESION), 0.0),
    **dict.fromkeys((ids.COLON, ids.SMALL_BOWEL), 0.1),
    **dict.fromkeys((ids.STOMACH, ids.DUODENUM, ids.GALLBLADDER, ids.BLADDER, ids.PORTAL_AND_SPLENIC_VEIN,
                     ids.RIGHT_ADRENAL, ids.LEFT_ADRENAL, ids.PROSTATE, ids.THYROID), 0.3),
    **dict.fromkeys((ids.PANCREAS, ids.ESOPHAGUS, *ids.MUSCLES, ids.AORTA, ids.INFERIOR_VENA_CAVA), 0.5),
    **dict.fromkeys(ids.RIBS, 0.7),
    ids.SPINAL_CORD: 4.0,  # as long as the spine
}  # fmt: skip
LENGTHWISE: Final = frozenset({ids.SPINAL_CORD})
"""Labels that run through the body and are mostly cut: they show where it lies across, and not how high."""
# Lesions are part of their organ where they can only grow in one.
_AS_HOST: Final = {tumor: hosts[0] for tumor, hosts in ids.TUMOR_HOSTS.items() if len(hosts) == 1}


def weight_of(key: int) -> float:
    """Return how far a label, or the key of a group, is trusted as a landmark: 0 not at all, 1 as a bone."""
    return _WEIGHTS.get(key, 1.0)


@dataclass(frozen=True, eq=False)
class Surface:
    """Surface of one label in mm.

    Attributes:
        points: ``(N, 3)`` voxel centres on the surface, without those at the border of the grid.
        low_mm: ``(3,)`` lower end along R, A, S; NaN where the label is cut by the border of the grid.
        high_mm: ``(3,)`` upper end.
    """

    points: F64
    low_mm: F64
    high_mm: F64


@dataclass(frozen=True, eq=False)
class Outline:
    """Extent of a body in the slices that show it, in mm; NaN for an end at the border of the grid.

    Attributes:
        z_mm: ``(N,)`` heights of the slices.
        x_mm: ``(N, 2)`` left and right end.
        y_mm: ``(N, 2)`` back and front end.
    """

    z_mm: F64
    x_mm: F64
    y_mm: F64

    @property
    def width_mm(self) -> F64:
        """``(N,)`` distance of the left and the right end; NaN where one is cut off."""
        return self.x_mm[:, 1] - self.x_mm[:, 0]

    @property
    def depth_mm(self) -> F64:
        """``(N,)`` distance of the back and the front; NaN where one is cut off."""
        return self.y_mm[:, 1] - self.y_mm[:, 0]


@dataclass(frozen=True, eq=False)
class Reference:
    """The canonical body.

    Attributes:
        surfaces: Label id or key of a group -> surface in canonical mm.
        trees: The same keys -> search tree of the points of the surface.
        fascia: Extent of the muscle surface.
    """

    surfaces: dict[int, Surface]
    trees: dict[int, cKDTree]
    fascia: Outline


def neutral_habitus(seed: int) -> Habitus:
    """Return the build of the reference; only what does not move organs is drawn from the seed."""
    drawn = draw_habitus(seed)
    return replace(drawn, scale=(1.0, 1.0, 1.0), belly_mm=0.0, inspiration_mm=2.0, muscle=1.0)


@cache
def reference_body() -> Reference:
    """Return the canonical body, built once per process."""
    grid = Grid.from_spacing(_SHAPE, (_STEP_MM,) * 3)
    pose = Pose((1.0, 1.0, 1.0), 0.0, 0.0, np.zeros((3, *KNOT_COUNTS)))
    frame = Frame(grid, pose, centre_mm=_CENTRE_MM)
    canvas, envelope = paint_patient(frame, neutral_habitus(REFERENCE_SEED), REFERENCE_SEED)
    surfaces = find_surfaces(canvas.labels, frame.axes, most_points=None)
    for group, key, _ in COARSE_GROUPS:
        union = np.where(lookup(group)[canvas.labels], np.uint8(1), np.uint8(0))
        surfaces[key] = find_surfaces(union, frame.axes, most_points=None)[1]
    inside = envelope.fascia < 0
    shell = inside & ~ndimage.binary_erosion(inside, border_value=1)
    points = np.stack([frame.axes[a][index] for a, index in enumerate(np.nonzero(shell))], axis=1).astype(np.float64)
    surfaces[FASCIA] = Surface(points, points.min(axis=0), points.max(axis=0))
    trees = {key: cKDTree(surface.points) for key, surface in surfaces.items() if len(surface.points)}
    return Reference(surfaces, trees, find_outline(inside, frame.axes))


def find_outline(inside: NDArray[np.bool_], axes: tuple[NDArray[np.float32], ...]) -> Outline:
    """Return the extent of a body in every slice that shows it.

    Args:
        inside: ``(I, J, K)`` mask of the body.
        axes: mm of the voxel centres along I, J, K.
    """
    shown = np.flatnonzero(inside.any(axis=(0, 1)))
    ends = np.full((2, len(shown), 2), np.nan)
    for number, k in enumerate(shown):
        for axis in (0, 1):
            seen = np.flatnonzero(inside[:, :, k].any(axis=1 - axis))
            for side, (end, border) in enumerate(((seen[0], 0), (seen[-1], inside.shape[axis] - 1))):
                if end != border:
                    ends[axis, number, side] = axes[axis][end]
    return Outline(axes[2][shown].astype(np.float64), ends[0], ends[1])


def find_surfaces(
    labels: NDArray[np.uint8], axes: tuple[NDArray[np.float32], ...], *, most_points: int | None = _MOST_POINTS
) -> dict[int, Surface]:
    """Return the surfaces of all labels of a map except body and background.

    Args:
        labels: ``(I, J, K)`` vocabulary ids.
        axes: mm of the voxel centres along I, J, K.
        most_points: Largest number of points per label, spread evenly; None for all.

    Returns:
        Label id -> surface. A lesion with a single host counts as its host.
    """
    table = np.arange(256, dtype=np.uint8)
    table[ids.BODY] = ids.BACKGROUND
    for tumor, host in _AS_HOST.items():
        table[tumor] = host
    merged = table[labels]
    surfaces = {}
    for label, box in enumerate(ndimage.find_objects(merged), start=1):
        if box is None:
            continue
        mask = merged[box] == label
        shell = mask & ~ndimage.binary_erosion(mask, border_value=0)
        index = np.argwhere(shell) + [side.start for side in box]
        at_border = (index == 0) | (index == np.array(labels.shape) - 1)
        low, high = np.full(3, np.nan), np.full(3, np.nan)
        for a in range(3):
            if box[a].start > 0:
                low[a] = axes[a][box[a].start]
            if box[a].stop < labels.shape[a]:
                high[a] = axes[a][box[a].stop - 1]
        index = index[~at_border.any(axis=1)]
        if most_points is not None and len(index) > most_points:
            index = index[np.linspace(0, len(index) - 1, most_points).astype(int)]
        points = np.stack([axes[a][index[:, a]] for a in range(3)], axis=1).astype(np.float64)
        surfaces[label] = Surface(points, low, high)
    return surfaces


def merge_coarse_bones(surfaces: dict[int, Surface]) -> dict[int, Surface]:
    """Return the surfaces, in which a label that stands for many bones has the key of the group that it stands for."""
    merged = dict(surfaces)
    for group, key, most_mm in COARSE_GROUPS:
        own = [label for label in group if label in surfaces]
        if len(own) == 1 and len(surfaces[own[0]].points) and np.ptp(surfaces[own[0]].points[:, 2]) > most_mm:
            merged[key] = merged.pop(own[0])
    return merged
