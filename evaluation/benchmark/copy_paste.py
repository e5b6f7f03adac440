"""Copy-paste of real lesions into other real cases: what a synthetic lesion has to be better than.

A lesion is cut out of one training case and put into another where that shows the same organ: at the same size in
millimetres, shifted in HU by the difference of the two surroundings, its border blended over about a voxel (after
Ghiasi et al., "Simple Copy-Paste Is a Strong Data Augmentation Method", CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.data import LoadedCase
from maisi_aug.lesions.editing import widen
from maisi_aug.volumes.components import TOUCHING, connected_parts

SHELL_MM: Final = 6.0
MIN_ON_HOST: Final = 0.9
NUM_PLACES: Final = 60
NUM_LESIONS: Final = 12
HOST_TOLERANCE_HU: Final = 60.0
BLEND_VOXELS: Final = 0.7

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CutLesion:
    """A lesion cut out of a case, resampled to the spacing of the case that it is pasted into.

    Attributes:
        mask: ``(I, J, K)`` mask of the lesion.
        image_hu: ``(I, J, K)`` HU, including surroundings.
        number: Class of the lesion.
        host: Most frequent class around the lesion; 0 if nothing is labelled there.
        around_hu: Mean HU of the surroundings.
    """

    mask: Mask
    image_hu: NDArray[np.float32]
    number: int
    host: int
    around_hu: float


def paste_lesion(
    target: LoadedCase, donors: Sequence[LoadedCase], lesion_classes: Sequence[int], *, rng: np.random.Generator
) -> LoadedCase:
    """Paste a lesion of another case into a case.

    Args:
        target: Case that receives the lesion; not modified.
        donors: Cases from which the lesion is taken.
        lesion_classes: Classes that are lesions.
        rng: Source of all randomness.

    Returns:
        A new case on the target's grid.

    Raises:
        BenchmarkError: No donor has a lesion, or no lesion fits.
    """
    holders = [donor for donor in donors if np.isin(donor.classes, lesion_classes).any()]
    if not holders:
        raise BenchmarkError("Copy-paste: no other training case has a lesion. Leave the arm copy-paste out.")
    for _ in range(NUM_LESIONS):
        lesion = cut_lesion(holders[int(rng.integers(len(holders)))], lesion_classes, target, rng=rng)
        place = None if lesion is None else _find_place(target, lesion, lesion_classes, rng)
        if lesion is not None and place is not None:
            return _blend(target, lesion, place)
    raise BenchmarkError(
        f"Copy-paste: none of {NUM_LESIONS} chosen lesions fits into its organ. Leave the arm copy-paste out."
    )


def cut_lesion(
    donor: LoadedCase, lesion_classes: Sequence[int], target: LoadedCase, *, rng: np.random.Generator
) -> CutLesion | None:
    """Return one lesion of a case, resampled to the spacing of another; None if it is lost at that spacing.

    Args:
        donor: Case with a lesion.
        lesion_classes: Classes that are lesions, of which the donor has one at least.
        target: Case whose spacing the lesion gets.
        rng: Source of all randomness.
    """
    number = int(rng.choice([n for n in lesion_classes if (donor.classes == n).any()]))
    parts = list(connected_parts(donor.classes == number))
    box, inside = parts[int(rng.integers(len(parts)))]
    wide = widen(box, SHELL_MM, donor.grid.spacing_mm, donor.classes.shape)
    mask = np.zeros([part.stop - part.start for part in wide], dtype=bool)
    mask[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wide, strict=True))] = inside
    num_steps = max(1, round(SHELL_MM / 2 / min(donor.grid.spacing_mm)))
    shell = ndimage.binary_dilation(mask, TOUCHING, iterations=num_steps) & ~np.isin(
        donor.classes[wide], lesion_classes
    )
    if not shell.any():
        return None
    host = int(np.bincount(donor.classes[wide][shell]).argmax())
    around_hu = float(donor.image_hu[wide][shell & (donor.classes[wide] == host)].mean())
    factors = np.divide(donor.grid.spacing_mm, target.grid.spacing_mm)
    small = ndimage.zoom(mask.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest") > 0.5
    image_hu = ndimage.zoom(donor.image_hu[wide].astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    return CutLesion(small, image_hu, number, host, around_hu) if small.any() else None


def _find_place(
    target: LoadedCase, lesion: CutLesion, lesion_classes: Sequence[int], rng: np.random.Generator
) -> tuple[slice, ...] | None:
    """A box of the target in which the lesion lies on its host and touches no other lesion; None if none is found."""
    host = target.classes == lesion.host
    if lesion.host == 0:  # nothing says where the organ is but its HU
        host &= np.abs(target.image_hu - lesion.around_hu) < HOST_TOLERANCE_HU
    others = ndimage.binary_dilation(np.isin(target.classes, lesion_classes), TOUCHING)
    candidates = np.argwhere(host & ~others)
    if not len(candidates):
        return None
    shape = np.asarray(lesion.mask.shape)
    for _ in range(NUM_PLACES):
        corner = candidates[rng.integers(len(candidates))] - shape // 2
        if (corner < 0).any() or (corner + shape > target.classes.shape).any():
            continue
        place = tuple(slice(int(a), int(a + b)) for a, b in zip(corner, shape, strict=True))
        if host[place][lesion.mask].mean() >= MIN_ON_HOST and not (others[place] & lesion.mask).any():
            return place
    return None


def _blend(target: LoadedCase, lesion: CutLesion, place: tuple[slice, ...]) -> LoadedCase:
    image_hu, classes = target.image_hu.copy(), target.classes.copy()
    around = (target.classes[place] == lesion.host) & ~lesion.mask
    local_hu = target.image_hu[place][around if around.any() else ~lesion.mask]
    shift_hu = float(local_hu.mean()) - lesion.around_hu if local_hu.size else 0.0
    share = ndimage.gaussian_filter(lesion.mask.astype(np.float32), BLEND_VOXELS, mode="constant")
    blended: NDArray[Any] = image_hu[place] * (1 - share) + (lesion.image_hu + shift_hu) * share
    image_hu[place] = np.clip(np.rint(blended), -32768, 32767).astype(np.int16)
    classes[place][lesion.mask] = lesion.number
    return LoadedCase(image_hu, classes, target.grid)
