"""Fits the canonical body to a user's label map: a stretch from the ends of labels, then a smooth warp of surfaces.

Coordinates of a user's map are mm from the middle of its grid along R, A, S; the fit maps them to the canonical body:
``canonical = matrix @ mm + offset + warp(mm)``. Surfaces are matched by iterated closest points (Besl and McKay,
"A method for registration of 3-D shapes", 1992), from the map to the reference only, so that organs may be cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, ndimage, sparse

from maisi_aug.phantom import ids
from maisi_aug.phantom.frame import BODY_MIDDLE_Y_MM, Frame, Pose
from maisi_aug.phantom.ids import vertebra_name_to_id
from maisi_aug.phantom.landmarks import F64, FASCIA, LENGTHWISE, Outline, Reference, Surface, weight_of
from maisi_aug.phantom.noise import F32, spline_basis, spread
from maisi_aug.volumes.grid import Grid

MATCH_MM: Final = 8.0  # by how much labels of two patients differ
# The first fit: spread of the stretch between patients; weight of an end of the outline, slices that are read of it,
# and the canonical height from which on it shows arms.
_STRETCH_SPREAD: Final = 0.10
_OUTLINE_WEIGHT: Final = 0.3
_NUM_SLICES: Final = 12
_SHOULDERS_Z_MM: Final = 560.0
# Its refinement by surfaces: weights of all points of the outline, and of a label that stands for many bones, against 1
# for a bone, and the distance at which a pair counts half, per iteration without a warp.
_SKIN_WEIGHT: Final = 4.0
_COARSE_WEIGHT: Final = 6.0
_AFFINE_FAR_MM: Final = (60.0, 40.0, 25.0)
AFFINE_SPREAD: Final = 0.05  # spread of stretch and shear between patients, relative to the first estimate
SCALE_LIMITS: Final = (0.72, 1.45)
_BEYOND_MM: Final = 15.0  # by how much a cut label may exceed the canonical one's height in the first fit
# Per iteration with a warp: the same distance, the warp's stiffness, and the distance of its knots.
_WARP_FAR_MM: Final = (40.0, 25.0, 16.0)
_STIFFNESS: Final = (10.0, 4.0, 1.0)
_KNOTS_MM: Final = (85.0, 85.0, 60.0)
# Middle heights of labels above the canonical body, and height, width and depth of the head in mm.
ABOVE_Z_MM: Final = {
    vertebra_name_to_id("C5"): 649.0,
    vertebra_name_to_id("C4"): 665.0,
    vertebra_name_to_id("C3"): 682.0,
    vertebra_name_to_id("C2"): 700.0,
    vertebra_name_to_id("C1"): 716.0,
    ids.SKULL: 790.0,
    ids.BRAIN: 790.0,
}
_HEAD_MM: Final = (
    (645.0, 120.0, 120.0), (675.0, 122.0, 145.0), (720.0, 150.0, 195.0), (790.0, 155.0, 200.0), (840.0, 115.0, 140.0),
)  # fmt: skip
_ARMS_MM: Final = 110.0  # by which the arms widen slices of the shoulders
_ARMS_Z_MM: Final = (430.0, 615.0)
_LEAST_SIDE_MM: Final = 50.0  # of a slice that tells anything; less are labels in air and tubes
_WARP_WEIGHT: Final = 1.2e-4  # price of one mm^2 of bending between neighbouring knots, at a stiffness of 1


@dataclass(frozen=True, eq=False)
class Warp:
    """Smooth displacement on cubic B-spline knots.

    Attributes:
        origin_mm: ``(3,)`` position of the first knot.
        spacing_mm: Distance of the knots.
        coefficients: ``(3, A, B, C)`` displacement in mm.
    """

    origin_mm: F64
    spacing_mm: float
    coefficients: F64

    def at(self, points: F64) -> F64:
        """Return the displacement in mm at ``(N, 3)`` points."""
        counts = np.array(self.coefficients.shape[1:])
        knots = np.clip((points - self.origin_mm) / self.spacing_mm, 1.0, counts - 2.001).T
        return np.stack(
            [
                ndimage.map_coordinates(part, knots, order=3, prefilter=False, mode="nearest")
                for part in self.coefficients
            ],
            axis=1,
        )


@dataclass(frozen=True, eq=False)
class Fit:
    """The map from a user's millimetres to the canonical body.

    Attributes:
        matrix: ``(3, 3)`` stretch and turn.
        offset: ``(3,)`` canonical mm of the middle of the grid.
        warp: Displacement in canonical mm; None for none.
    """

    matrix: F64
    offset: F64
    warp: Warp | None = None

    def moved(self, shift_mm: F64) -> Fit:
        """Return the fit of a grid whose middle lies at ``-shift_mm`` of this one's, ``(3,)`` in mm."""
        warp = self.warp and replace(self.warp, origin_mm=self.warp.origin_mm + shift_mm)
        return replace(self, offset=self.offset - self.matrix @ shift_mm, warp=warp)

    def to_canonical(self, points: F64) -> F64:
        """Return the canonical mm of ``(N, 3)`` points."""
        straight: F64 = points @ self.matrix.T + self.offset
        return straight if self.warp is None else straight + self.warp.at(points)

    def to_patient(self, points: F64) -> F64:
        """Return the mm of ``(N, 3)`` canonical points, by fixed-point iteration."""
        inverse = np.linalg.inv(self.matrix)
        patient: F64 = (points - self.offset) @ inverse.T
        for _ in range(0 if self.warp is None else 6):
            assert self.warp is not None
            patient = (points - self.offset - self.warp.at(patient)) @ inverse.T
        return patient


class FittedFrame(Frame):
    """Frame of a grid whose place in the body is known by a fit."""

    def __init__(self, grid: Grid, fit: Fit) -> None:
        self._fit = fit
        scale = 1.0 / np.clip(np.abs(np.diag(fit.matrix)), 0.5, 2.0)
        pose = Pose((float(scale[0]), float(scale[1]), float(scale[2])), 0.0, 0.0, np.zeros((3, 4, 4, 4)))
        super().__init__(grid, pose, centre_mm=(0.0, 0.0, 0.0))

    def _canonical_coordinates(self) -> tuple[F32, F32, F32]:
        matrix, warp = self._fit.matrix.astype(np.float32), self._fit.warp
        shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        x, y, z = (axis.reshape(shape) for axis, shape in zip(self.axes, shapes, strict=True))
        canonical = []
        bases = None
        if warp is not None:
            sides = warp.coefficients.shape[1:]
            bases = self.bases(warp.origin_mm, warp.spacing_mm, (sides[0], sides[1], sides[2]))
        for a in range(3):
            straight = matrix[a, 0] * x + matrix[a, 1] * y + matrix[a, 2] * z + np.float32(self._fit.offset[a])
            canonical.append(
                straight if bases is None or warp is None else straight + spread(warp.coefficients[a], bases)
            )
        return canonical[0], canonical[1], canonical[2]

    def to_patient(self, points: ArrayLike) -> NDArray[np.float64]:
        """Transform ``(N, 3)`` canonical points to mm from the middle of the grid."""
        return self._fit.to_patient(np.atleast_2d(np.asarray(points, dtype=np.float64)))


class Pair(NamedTuple):
    """An end that user's map and canonical body have in common, along one axis.

    Attributes:
        own_mm: Where it lies in the user's map.
        canonical_mm: Where it lies in the canonical body.
        weight: How far it is trusted, 1 as an end of a bone.
    """

    own_mm: float
    canonical_mm: float
    weight: float


def fit_ends(
    surfaces: dict[int, Surface], outline: Outline, reference: Reference, *, fat_mm: float, default_z_mm: float
) -> Fit:
    """Return a first fit without turns: one stretch and shift per axis, from the ends of labels and of the outline.

    Args:
        surfaces: Surfaces of the map's labels.
        outline: Extent of the body; may be empty.
        reference: Canonical body.
        fat_mm: Thickness of the fat below the skin.
        default_z_mm: Canonical height of the middle of the grid, for maps without a label that shows it.
    """
    x, y, z = _pair_labels(surfaces, reference)
    if not z:
        default_z_mm = _guess_height(outline, reference, fat_mm, default_z_mm)
    scale_z, offset_z = _fit_line(z, scale=1.0, spread=_STRETCH_SPREAD, default=default_z_mm)
    outline_x, outline_y = _pair_outline(outline, scale_z * outline.z_mm + offset_z, reference, fat_mm)
    scale_x, offset_x = _fit_line(x + outline_x, scale=scale_z, spread=_STRETCH_SPREAD, default=0.0)
    scale_y, offset_y = _fit_line(
        y + outline_y, scale=0.5 * (scale_x + scale_z), spread=_STRETCH_SPREAD, default=BODY_MIDDLE_Y_MM
    )
    return Fit(np.diag([scale_x, scale_y, scale_z]), np.array([offset_x, offset_y, offset_z]))


def _pair_labels(surfaces: dict[int, Surface], reference: Reference) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """The ends of labels that neither map nor reference cuts off, along x, y and z."""
    pairs: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    for key, surface in surfaces.items():
        known = reference.surfaces.get(key)
        if known is None or weight_of(key) == 0 or key in LENGTHWISE:
            continue
        for a in range(3):
            if key >= FASCIA and a == 2:  # one label for many bones: how many of them, it does not say
                continue
            for own, theirs in ((surface.low_mm[a], known.low_mm[a]), (surface.high_mm[a], known.high_mm[a])):
                if np.isfinite(own) and np.isfinite(theirs):
                    pairs[a].append(Pair(float(own), float(theirs), weight_of(key)))
    for key, height_mm in ABOVE_Z_MM.items():
        if key in surfaces and len(surfaces[key].points):
            pairs[2].append(Pair(float(surfaces[key].points[:, 2].mean()), height_mm, 1.0))
    return pairs


def _pair_outline(
    outline: Outline, canonical_z: F64, reference: Reference, fat_mm: float
) -> tuple[list[Pair], list[Pair]]:
    """The ends of some slices of the outline, less the fat, with those of the muscle surface, along x and y."""
    fascia = reference.fascia
    pairs: tuple[list[Pair], list[Pair]] = ([], [])
    for number in range(0, len(canonical_z), max(1, len(canonical_z) // _NUM_SLICES)):
        z = canonical_z[number]
        if not fascia.z_mm[0] <= z <= _SHOULDERS_Z_MM:
            continue
        for a, (own, theirs) in enumerate(((outline.x_mm, fascia.x_mm), (outline.y_mm, fascia.y_mm))):
            for side, inwards in ((0, 1), (1, -1)):
                if np.isfinite(own[number, side]):
                    canonical = float(np.interp(z, fascia.z_mm, theirs[:, side]))
                    pairs[a].append(Pair(float(own[number, side]) + inwards * fat_mm, canonical, _OUTLINE_WEIGHT))
    return pairs


def _guess_height(outline: Outline, reference: Reference, fat_mm: float, default_z_mm: float) -> float:
    """Canonical height of the grid's middle by the outline alone: where its widths and depths fit the body's best."""
    is_whole = (outline.width_mm > _LEAST_SIDE_MM) & (outline.depth_mm > _LEAST_SIDE_MM)  # neither is NaN
    if is_whole.sum() < 2:
        return default_z_mm
    z_mm = outline.z_mm[is_whole]
    fascia = reference.fascia
    body = np.column_stack([fascia.z_mm, fascia.width_mm + 2 * fat_mm, fascia.depth_mm + 2 * fat_mm])
    body = np.concatenate([body[body[:, 0] < _HEAD_MM[0][0]], np.array(_HEAD_MM)])  # z, width, depth
    sides = np.log(np.column_stack([outline.width_mm, outline.depth_mm])[is_whole] + 1.0)

    def misfit(height: float) -> float:
        z = np.clip(z_mm + height, body[0, 0], body[-1, 0])
        width, depth = (np.interp(z, body[:, 0], body[:, column]) for column in (1, 2))
        away = sides - np.log(np.column_stack([width, depth]))
        with_arms = np.where((z > _ARMS_Z_MM[0]) & (z < _ARMS_Z_MM[1]), sides[:, 0] - np.log(width + _ARMS_MM), np.inf)
        away[:, 0] = np.where(np.abs(with_arms) < np.abs(away[:, 0]), with_arms, away[:, 0])
        beyond = float(np.mean((z_mm + height < body[0, 0] - 40) | (z_mm + height > body[-1, 0] + 20)))
        # Where shapes say little, the expected height decides.
        return float(np.mean(away**2)) + beyond + 0.01 * ((height - default_z_mm) / 300.0) ** 2

    return min((float(height) for height in np.arange(-40.0, 800.0, 10.0)), key=misfit)


def _fit_line(pairs: list[Pair], *, scale: float, spread: float, default: float) -> tuple[float, float]:
    """Stretch and shift by robust least squares, with the stretch drawn to an expected one."""
    if not pairs:
        return scale, default
    own, theirs, weight = np.array(pairs, dtype=np.float64).T
    offset = float(np.average(theirs - scale * own, weights=weight))
    reach = 60.0
    start = scale
    for _ in range(8):
        away = theirs - (scale * own + offset)
        robust = weight / (1 + (away / reach) ** 2)
        rows = np.array([[robust @ own**2 + (MATCH_MM / spread) ** 2, robust @ own], [robust @ own, robust.sum()]])
        right = np.array([robust @ (own * theirs) + (MATCH_MM / spread) ** 2 * start, robust @ theirs])
        scale, offset = (float(value) for value in np.linalg.solve(rows, right))
        reach = max(12.0, 0.6 * reach)
    clipped = float(np.clip(scale, *SCALE_LIMITS))
    if clipped != scale:
        offset += (scale - clipped) * float(np.average(own, weights=robust))
    return clipped, offset


def fit_surfaces(surfaces: dict[int, Surface], skin: Surface | None, reference: Reference, first: Fit) -> Fit:
    """Return the fit refined by surfaces: first stretch and turn, then a warp that becomes less stiff.

    Args:
        surfaces: Surfaces of the map's labels.
        skin: Points of the muscle surface, as guessed from the skin; None where the outline is unknown.
        reference: Canonical body.
        first: Fit to begin with.
    """
    points, keys, weights = _gather(surfaces, skin, reference, first)
    if not len(points):
        return first
    fit = first
    for reach in _AFFINE_FAR_MM:
        targets, away = _closest(fit.to_canonical(points), keys, reference)
        fit = _affine(points, targets, weights / (1 + (away / reach) ** 2), first)
    low, high = points.min(axis=0), points.max(axis=0)
    for reach, stiffness, knots_mm in zip(_WARP_FAR_MM, _STIFFNESS, _KNOTS_MM, strict=True):
        targets, away = _closest(fit.to_canonical(points), keys, reference)
        straight = points @ fit.matrix.T + fit.offset
        robust = weights / (1 + (away / reach) ** 2)
        warp = _solve_warp(points, targets - straight, robust, low, high, knots_mm, stiffness)
        fit = Fit(fit.matrix, fit.offset, warp)
    return fit


def _gather(
    surfaces: dict[int, Surface], skin: Surface | None, reference: Reference, first: Fit
) -> tuple[F64, NDArray[np.int64], F64]:
    points, keys, weights = [np.empty((0, 3))], [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for key, surface in ({**surfaces, FASCIA: skin} if skin is not None else surfaces).items():
        if key not in reference.trees or weight_of(key) == 0:
            continue
        own = surface.points
        if key in LENGTHWISE:  # a spinal cord goes on in the head, where the canonical one has ended
            height, known = first.to_canonical(own)[:, 2], reference.surfaces[key].points[:, 2]
            own = own[(height > known.min() - _BEYOND_MM) & (height < known.max() + _BEYOND_MM)]
        if not len(own):
            continue
        count = len(own)
        total = _SKIN_WEIGHT if key == FASCIA else _COARSE_WEIGHT if key > FASCIA else weight_of(key)
        points.append(own)
        keys.append(np.full(count, key, dtype=np.int64))
        weights.append(np.full(count, total / count))
    return np.concatenate(points), np.concatenate(keys), np.concatenate(weights)


def _closest(canonical: F64, keys: NDArray[np.int64], reference: Reference) -> tuple[F64, F64]:
    """Closest point of the same label's surface for every point, and its distance."""
    targets, away = np.empty_like(canonical), np.empty(len(canonical))
    for key in np.unique(keys):
        own = keys == key
        distance, index = reference.trees[int(key)].query(canonical[own])
        targets[own], away[own] = reference.surfaces[int(key)].points[index], distance
        if int(key) in LENGTHWISE:
            targets[own, 2] = canonical[own, 2]
    return targets, away


def _affine(points: F64, targets: F64, weights: F64, first: Fit) -> Fit:
    """Weighted least squares for stretch, shear and shift, drawn to the first fit."""
    middle = np.average(points, axis=0, weights=weights)
    centred = points - middle
    design = np.column_stack([centred, np.ones(len(points))])
    # Labels are worth MATCH_MM of certainty each; matrix entries differ between patients by AFFINE_SPREAD.
    prior = np.diag([(MATCH_MM / AFFINE_SPREAD) ** 2] * 3 + [1e-6])
    normal = design.T @ (weights[:, None] * design) + prior
    matrix, offset = np.empty((3, 3)), np.empty(3)
    for a in range(3):
        start = np.append(first.matrix[a], 0.0)
        solved = np.linalg.solve(normal, design.T @ (weights * targets[:, a]) + prior @ start)
        matrix[a], offset[a] = solved[:3], solved[3] - solved[:3] @ middle
    return Fit(matrix, offset)


def _solve_warp(
    points: F64, residual: F64, weights: F64, low: F64, high: F64, knots_mm: float, stiffness: float
) -> Warp:
    """Penalised least squares for the coefficients of a warp."""
    origin = low - knots_mm
    counts = np.maximum(np.ceil((high - low) / knots_mm).astype(int) + 3, 4)
    rows = [
        spline_basis(points[:, a], origin_mm=float(origin[a]), spacing_mm=knots_mm, count=int(counts[a]))
        for a in range(3)
    ]
    design = _row_products(rows, counts)
    weighted = design.multiply(weights[:, None]).tocsr()
    normal = (design.T @ weighted).toarray() + stiffness * _bending(counts, knots_mm)
    normal[np.diag_indices_from(normal)] += 1e-6
    right = design.T @ (weights[:, None] * residual)
    solved = linalg.cho_solve(
        linalg.cho_factor(normal, overwrite_a=True, check_finite=False), right, check_finite=False
    )
    return Warp(origin, knots_mm, np.ascontiguousarray(solved.T).reshape(3, *counts))


def _row_products(rows: list[F32], counts: NDArray[np.int64]) -> sparse.csr_matrix:
    """``(N, A * B * C)`` weights of all knots at the points, from the weights along each axis."""
    index, value = [], []
    for basis in rows:
        first = np.argmax(basis > 0, axis=1)
        first = np.minimum(first, basis.shape[1] - 4)
        columns = first[:, None] + np.arange(4)
        index.append(columns)
        value.append(np.take_along_axis(basis, columns, axis=1).astype(np.float64))
    flat = (
        (index[0][:, :, None, None] * counts[1] + index[1][:, None, :, None]) * counts[2] + index[2][:, None, None, :]
    ).reshape(len(rows[0]), 64)
    values = (value[0][:, :, None, None] * value[1][:, None, :, None] * value[2][:, None, None, :]).reshape(-1, 64)
    starts = np.arange(0, values.size + 1, 64)
    return sparse.csr_matrix((values.ravel(), flat.ravel(), starts), shape=(len(flat), int(np.prod(counts))))


def _bending(counts: NDArray[np.int64], knots_mm: float) -> F64:
    """Quadratic form of the second differences along every pair of axes, and a little of the first ones."""
    first = [np.diff(np.eye(int(n)), axis=0) for n in counts]
    second = [np.diff(np.eye(int(n)), n=2, axis=0) for n in counts]
    squares = [(np.eye(int(n)), one.T @ one, two.T @ two) for n, one, two in zip(counts, first, second, strict=True)]

    def product(i: int, j: int, k: int) -> F64:
        result: F64 = np.kron(np.kron(squares[0][i], squares[1][j]), squares[2][k])
        return result

    bending = product(2, 0, 0) + product(0, 2, 0) + product(0, 0, 2)
    bending += 2 * (product(1, 1, 0) + product(1, 0, 1) + product(0, 1, 1))
    membrane = product(1, 0, 0) + product(0, 1, 0) + product(0, 0, 1)
    return _WARP_WEIGHT * (80.0 / knots_mm) ** 3 * (100 * bending + 2 * membrane)
