"""Features of a region of a CT: HU, texture and shape, under the names that IBSI gives them.

Zwanenburg et al., "The Image Biomarker Standardization Initiative", Radiology 2020, sections 3.1 (shape), 3.3
(intensities), 3.4 (histogram) and 3.6 (grey level co-occurrence). On isotropic voxels, so that sets of other spacings
can be compared; grey levels are steps of 25 HU from -1000 to 1000; co-occurrence of neighbours in all 13 directions,
counted together. No filters: wavelets would multiply the features, and few cases bear few features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase
from maisi_aug.evaluation.cohort.memorization import find_body_box
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, Vocabulary
from maisi_aug.volumes.components import Box, Mask, bounding_box, connected_parts
from maisi_aug.volumes.grid import Grid, Spacing
from maisi_aug.volumes.resampling import resample_image, resample_label_map

BODY: Final = "body"
BIN_HU: Final = 25.0
LOW_HU: Final = -1000.0
HIGH_HU: Final = 1000.0
NUM_LEVELS: Final = int((HIGH_HU - LOW_HU) / BIN_HU)
MIN_VOXELS: Final = 20
"""Smallest number of voxels on the isotropic grid for texture and shape."""
TISSUE_HU: Final = -300.0
DIRECTIONS: Final = tuple(offset for offset in product((-1, 0, 1), repeat=3) if offset > (0, 0, 0))

Vector = NDArray[np.float64]
INTENSITY_NAMES: Final = ("mean", "deviation", "skewness", "kurtosis", "p10", "median", "p90", "entropy", "uniformity")
TEXTURE_NAMES: Final = (
    *("contrast", "dissimilarity", "correlation", "joint_energy", "joint_entropy", "inverse_difference_moment"),
    "cluster_shade",
)
SHAPE_NAMES: Final = ("log_volume", "sphericity", "elongation", "flatness")
FEATURE_NAMES: Final = (*INTENSITY_NAMES, *TEXTURE_NAMES, *SHAPE_NAMES)


@dataclass(frozen=True, eq=False)
class Region:
    """Features and position of a label in a case, or of one of its lesions.

    Attributes:
        name: Name of the label; ``body`` for the whole patient.
        is_lesion: Whether it is one connected component of a lesion label.
        features: Features in the order of ``FEATURE_NAMES``; volumes are logarithms of mL.
        place: Position of its centre in the box of its host, or of the body, along R, A, S; 0 and 1 are the ends.
    """

    name: str
    is_lesion: bool
    features: Vector
    place: tuple[float, float, float]

    def of(self, name: str) -> float:
        """Return one feature of the region by name."""
        return float(self.features[FEATURE_NAMES.index(name)])


@dataclass(frozen=True, eq=False)
class CaseRegions:
    """Features of all regions of a case.

    Attributes:
        case_id: Name of the case.
        spacing_mm: Voxel sides along I, J, K in mm.
        regions: Regions, the body first; each connected lesion is a region.
    """

    case_id: str
    spacing_mm: Spacing
    regions: tuple[Region, ...]


def measure_regions(case_set: CaseSet, spacing_mm: float, case: EvaluatedCase) -> CaseRegions:
    """Measure the features of the body and of every label of a case.

    Args:
        case_set: Set that the case belongs to.
        spacing_mm: Isotropic voxel side in mm on which texture and shape are measured.
        case: Case with or without a label map; without one, only the body is measured.

    Raises:
        VolumeError: A file cannot be read, or the grids differ.
        BankError: The labels of the label map are unknown.
    """
    if case.has_label_map:
        image, label_map = case_set.load_pair(case)
    else:
        image, label_map = case.load_image(), np.zeros(0, dtype=np.uint8)
    body_box = find_body_box(image.array)
    tissue = image.array[body_box] > TISSUE_HU
    found = [
        _describe(BODY, image.array[body_box], tissue, image.grid.cut_to(body_box), spacing_mm, body_box, body_box)
    ]
    if label_map.size:
        found += _describe_labels(image.array, label_map, image.grid, case_set.vocabulary, spacing_mm, body_box)
    return CaseRegions(case.case_id, image.grid.spacing_mm, tuple(region for region in found if region is not None))


def _describe_labels(
    image_hu: NDArray[Any],
    label_map: NDArray[np.uint8],
    grid: Grid,
    vocabulary: Vocabulary,
    spacing_mm: float,
    body_box: Box,
) -> list[Region | None]:
    found = []
    for label_id in np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)):  # ids present
        number = int(label_id)
        if number in (BACKGROUND_ID, BODY_ID):
            continue
        name = vocabulary.name_of(number) if vocabulary.contains(number) else f"label {number}"
        mask = label_map == number
        is_lesion = number in vocabulary.lesion_ids
        host_box = body_box
        hosts = np.isin(label_map, vocabulary.hosts_of(number)) if is_lesion else None
        if hosts is not None and hosts.any():  # without, a single lesion would lie in the middle of itself
            host_box = bounding_box(mask | hosts)
        for box, part in connected_parts(mask) if is_lesion else iter([_whole(mask)]):
            wide = _widen(box, label_map.shape)
            # part placed in the widened box
            inside = np.zeros(tuple(part.stop - part.start for part in wide), dtype=bool)
            inside[tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))] = part
            found.append(
                _describe(
                    name, image_hu[wide], inside, grid.cut_to(wide), spacing_mm, box, host_box, is_lesion=is_lesion
                )
            )
    return found


def _whole(mask: Mask) -> tuple[Box, Mask]:
    box = bounding_box(mask)
    return box, mask[box]


def _widen(box: Box, shape: tuple[int, ...]) -> Box:
    """With room for the interpolation of the first and last voxel."""
    return tuple(slice(max(0, s.start - 2), min(side, s.stop + 2)) for s, side in zip(box, shape, strict=True))


def _describe(
    name: str,
    image_hu: NDArray[Any],
    mask: Mask,
    grid: Grid,
    spacing_mm: float,
    box: Box,
    host_box: Box,
    *,
    is_lesion: bool = False,
) -> Region | None:
    """A region, of its crop; None for one that is too small."""
    even = grid.with_voxels_of(spacing_mm)  # isotropic grid with the same field of view
    inside = resample_label_map(mask.astype(np.uint8), grid, even) > 0
    if np.count_nonzero(inside) < MIN_VOXELS:
        return None
    hu = resample_image(image_hu.astype(np.float32), grid, even)
    volume_ml = np.count_nonzero(mask) * grid.voxel_ml
    # (D,)
    features = np.array(
        [*measure_intensities(hu[inside]), *measure_texture(hu, inside), *measure_shape(inside, volume_ml)]
    )
    centre = [(part.start + part.stop) / 2 for part in box]
    # in [0, 1] along I, J, K of the host's box
    place = [(c - h.start) / max(h.stop - h.start, 1) for c, h in zip(centre, host_box, strict=True)]
    return Region(name, is_lesion, features, (place[0], place[1], place[2]))


def to_levels(hu: NDArray[Any]) -> NDArray[np.int64]:
    """Quantise HU to grey levels from 0 in steps of 25 HU, clipped to -1000 to 1000 HU."""
    return np.clip((hu - LOW_HU) // BIN_HU, 0, NUM_LEVELS - 1).astype(np.int64)


def measure_intensities(hu: NDArray[Any]) -> tuple[float, ...]:
    """Return the features ``INTENSITY_NAMES`` of a region's ``(N,)`` HU; of a constant, skewness and kurtosis are 0."""
    values = hu.astype(np.float64)
    mean, deviation = float(values.mean()), float(values.std())
    scaled = (values - mean) / deviation if deviation > 0 else np.zeros_like(values)
    shares = np.bincount(to_levels(values), minlength=NUM_LEVELS) / len(values)  # (NUM_LEVELS,)
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return (
        *(mean, deviation, float((scaled**3).mean()), float((scaled**4).mean() - 3 if deviation > 0 else 0.0)),
        *(float(p10), float(median), float(p90), _entropy(shares), float((shares**2).sum())),
    )


def measure_texture(hu: NDArray[Any], mask: Mask) -> tuple[float, ...]:
    """Return the features ``TEXTURE_NAMES``, from the grey-level co-occurrence of neighbouring voxels in a mask.

    Args:
        hu: ``(I, J, K)`` HU on isotropic voxels.
        mask: ``(I, J, K)`` mask of the region.

    Returns:
        The features in the order of ``TEXTURE_NAMES``, in powers of grey levels; with a single level, the correlation
        is 1.
    """
    pairs = count_pairs(to_levels(hu), mask)
    total = pairs.sum()
    if not total:
        return (0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    chances = pairs / total  # (levels, levels) joint probability
    first, second = np.indices(chances.shape)  # grey levels of the pair
    apart = first - second
    mean = float((first * chances).sum())
    variance = float(((first - mean) ** 2 * chances).sum())
    covariance = float(((first - mean) * (second - mean) * chances).sum())
    return (
        float((apart**2 * chances).sum()),
        float((np.abs(apart) * chances).sum()),
        covariance / variance if variance > 0 else 1.0,
        float((chances**2).sum()),
        _entropy(chances.ravel()),
        float((chances / (1 + apart**2)).sum()),
        float(((first + second - 2 * mean) ** 3 * chances).sum()),
    )


def count_pairs(levels: NDArray[np.int64], mask: Mask) -> NDArray[np.float64]:
    """Return the ``(levels, levels)`` counts of neighbouring grey levels inside a mask, each pair in both orders.

    Args:
        levels: ``(I, J, K)`` grey levels, from 0 to ``NUM_LEVELS`` - 1.
        mask: ``(I, J, K)`` mask of the voxels that count.
    """
    counts = np.zeros(NUM_LEVELS * NUM_LEVELS)
    for offset in DIRECTIONS:
        here = tuple(slice(max(0, -o), min(side, side - o)) for o, side in zip(offset, mask.shape, strict=True))
        there = tuple(slice(max(0, o), min(side, side + o)) for o, side in zip(offset, mask.shape, strict=True))
        both = mask[here] & mask[there]  # (I', J', K') pairs whose voxels are both in the mask
        places = levels[here][both] * NUM_LEVELS + levels[there][both]  # flat index into (levels, levels)
        counts += np.bincount(places, minlength=counts.size)
    square = counts.reshape(NUM_LEVELS, NUM_LEVELS)
    return square + square.T  # each pair in both orders


def measure_shape(mask: Mask, volume_ml: float) -> tuple[float, ...]:
    """Return the features ``SHAPE_NAMES`` of a mask on isotropic voxels; all but the first are 1 for a ball.

    Elongation and flatness are the square roots of the second and third eigenvalue of the voxels' covariance, divided
    by that of the first. Sphericity is the surface of a ball with the mesh's volume, divided by the surface of the
    mesh.

    Args:
        mask: ``(I, J, K)`` mask of the region.
        volume_ml: Volume in mL on the original grid.
    """
    from skimage.measure import marching_cubes

    places = np.argwhere(mask).astype(np.float64)  # (N, 3)
    # (3,) standard deviations along the principal axes, longest first
    lengths = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(places.T))[::-1], 0, None))
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    corners = vertices[faces].astype(np.float64)  # (faces, 3 corners, 3)
    # (faces, 3): twice the area, along the normal
    crossed = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = float(np.linalg.norm(crossed, axis=1).sum() / 2)
    # sum of signed tetrahedra from the origin
    volume = abs(float(np.einsum("fd,fd->f", corners[:, 0], crossed).sum() / 6))
    sphericity = float((36 * np.pi * volume**2) ** (1 / 3) / area)
    most = max(float(lengths[0]), 1e-9)
    return float(np.log(volume_ml)), sphericity, float(lengths[1]) / most, float(lengths[2]) / most


def _entropy(shares: NDArray[np.float64]) -> float:
    """In bits."""
    known = shares[shares > 0]
    return float(-(known * np.log2(known)).sum())
