"""A small trunk with a few organs, written as a bank in whichever way a test needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Grid, Spacing
from maisi_aug.volumes.image_files import save_image, save_label_map

SHAPE = (44, 36, 40)
SPACING_MM: Spacing = (7.0, 7.5, 6.5)
LIVER, SPLEEN, LEFT_KIDNEY, BODY, HEPATIC_TUMOR = 1, 3, 14, 200, 26

_ORGANS_MM = {  # centre along I, J, K and radii
    LIVER: ((215, 145, 130), (60, 55, 50)),
    SPLEEN: ((95, 110, 125), (30, 30, 35)),
    LEFT_KIDNEY: ((105, 95, 65), (22, 22, 30)),
}


def trunk_grid(*, origin_mm: tuple[float, float, float] = (-30.0, 12.0, 900.0)) -> Grid:
    """The grid of the trunk, somewhere in a scanner."""
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = origin_mm
    return Grid(SHAPE, affine)


def network_grid() -> Grid:
    """A grid for the networks: other spacing, less of the length."""
    return Grid.from_spacing((48, 40, 24), (6.5, 6.5, 8.0))


def build_trunk(*, tumours_mm: tuple[float, ...] = (), with_body: bool = True, seed: int = 0) -> NDArray[np.uint8]:
    """A label map ``(I, J, K)`` in vocabulary ids, with round hepatic tumours of the given radii apart in the liver."""
    shift = np.random.default_rng(seed).uniform(-6, 6, 3)
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    if with_body:
        label_map[_ellipsoid((154, 131, 130), (130, 95, 1e6))] = BODY
    for label_id, (centre, radii) in _ORGANS_MM.items():
        label_map[_ellipsoid(tuple(np.asarray(centre) + shift), radii)] = label_id
    places = [(235, 145, 130), (195, 145, 130), (215, 145, 155)]
    for radius, place in zip(tumours_mm, places, strict=False):
        label_map[_ellipsoid(tuple(np.asarray(place) + shift), (radius, radius, radius))] = HEPATIC_TUMOR
    return label_map


def build_ct(label_map: NDArray[np.uint8]) -> NDArray[np.int16]:
    """A CT of the trunk with a table behind it."""
    image = np.full(SHAPE, -1000, dtype=np.int16)
    image[_ellipsoid((154, 131, 130), (130, 95, 1e6))] = 20
    image[label_map > 0] = 60
    image[:, 2] = 100
    return image


def write_case(folder: Path, name: str, label_map: NDArray[np.uint8], *, with_ct: bool = False) -> None:
    """Write ``NAME_seg.nii.gz`` and, if wanted, ``NAME_ct.nii.gz``."""
    save_label_map(folder / f"{name}_seg.nii.gz", label_map, trunk_grid())
    if with_ct:
        save_image(folder / f"{name}_ct.nii.gz", build_ct(label_map), trunk_grid())


def _ellipsoid(centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> NDArray[np.bool_]:
    axes = np.indices(SHAPE, sparse=True)
    terms = (
        ((axis * side - centre) / radius) ** 2
        for axis, side, centre, radius in zip(axes, SPACING_MM, centre_mm, radii_mm, strict=True)
    )
    return np.asarray(sum(terms) <= 1.0)
