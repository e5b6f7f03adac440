"""Nodules in whole CTs for ``nodule_protocol``: drawn ones, and real ones that are pasted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import EvaluationError, LesionError
from maisi_aug.evaluation.studies.nodule_slices import PIXEL_MM, NoduleStack, to_stack
from maisi_aug.insertion.config import TEXTURE_SHARES
from maisi_aug.insertion.crops import blend, cut_crop, weigh_zone
from maisi_aug.insertion.insert import Insertion, LesionRequest, LungHost, insert_lesion
from maisi_aug.insertion.lungs import to_coarse
from maisi_aug.insertion.nodule_crops import draw_turn
from maisi_aug.insertion.painting import TEXTURES, Painter, ProceduralPainter
from maisi_aug.insertion.places import draw_place
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.system.whole_files import open_whole
from maisi_aug.vocabulary.sizes import volume_ml
from maisi_aug.volumes.components import bounding_box
from maisi_aug.volumes.grid import Spacing
from maisi_aug.volumes.image_files import load_image, load_label_map

SIZES_MM: Final = (4.0, 25.0)
"""Range of the diameters of drawn nodules."""
WINDOW_MM: Final = 48.0
"""Side of the slices of a stack."""
MOST_SLICES: Final = 16
TRIES: Final = 8
"""Places at which a nodule is tried before it is left out."""
LEAST_ON_LUNG: Final = 0.6
"""Share of a pasted nodule that must come to lie in the lung; the rest may touch the pleura."""
NODULE_ID: Final = 23


@dataclass(frozen=True, eq=False)
class ChestCt:
    """A whole chest CT into which nodules are inserted.

    Attributes:
        name: Name of the file.
        image_hu: ``(I, J, K)`` image in HU.
        spacing_mm: Voxel sides along I, J, K in mm.
        occupied: ``(I, J, K)`` mask of labelled voxels, from which nodules stay apart.
        host: Lungs of the CT.
    """

    name: str
    image_hu: NDArray[np.int16]
    spacing_mm: Spacing
    occupied: NDArray[np.bool_]
    host: LungHost

    @cached_property
    def occupied_blocks(self) -> NDArray[np.bool_]:
        """``(I', J', K')`` mask of the blocks of ``host.coarse`` with labelled voxels."""
        return to_coarse(self.occupied, self.host.coarse.factors, fill=0.0) > 0

    def insert(self, request: LesionRequest, painter: Painter, *, seed: int) -> Insertion:
        """Insert a nodule into the CT, apart from labelled voxels; the CT itself is not modified.

        Raises:
            LesionError: The CT has no suitable position.
        """
        return insert_lesion(
            self.image_hu, self.spacing_mm, self.host, request, painter, occupied=self.occupied, seed=seed
        )


def load_chests(folder: Path) -> list[ChestCt]:
    """Load a folder's chest CTs ``NAME_ct.nii.gz`` that show lungs, with labels from ``NAME_seg.nii.gz`` if present.

    Raises:
        EvaluationError: The folder does not exist.
    """
    chests = []
    for path in sorted(folder.glob("*_ct.nii.gz")):
        image, labels = load_image(path), path.with_name(path.name.replace("_ct.", "_seg."))
        image_hu = image.array.astype(np.int16)
        occupied = load_label_map(labels).array > 0 if labels.is_file() else np.zeros(image_hu.shape, dtype=bool)
        try:
            host = LungHost.of(image_hu, image.grid.spacing_mm)
        except LesionError:
            continue
        chests.append(ChestCt(path.name.removesuffix("_ct.nii.gz"), image_hu, image.grid.spacing_mm, occupied, host))
    if not chests:
        raise EvaluationError(f"{folder}: has no chests named NAME_ct.nii.gz. Check the path.")
    return chests


def open_painter(name: str) -> Painter:
    """Return the procedural painter, or that of a bundle on the CPU, by name."""
    if name == "procedural":
        return ProceduralPainter()
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.insertion.drawing import open_bundle_painter

    return open_bundle_painter(load_bundle(name), "cpu")


def draw_request(rng: np.random.Generator, place: float) -> LesionRequest:
    """Draw the request of a nodule, with its texture by the frequencies in patients.

    Args:
        rng: Generator of all random draws.
        place: Position in [0, 1] of the logarithm of the size.
    """
    diameter = float(SIZES_MM[0] * (SIZES_MM[1] / SIZES_MM[0]) ** place)
    texture = TEXTURES[int(rng.choice(len(TEXTURES), p=[TEXTURE_SHARES[one] for one in TEXTURES]))]
    return LesionRequest(NODULE_ID, volume_ml(diameter), texture)


def draw_pool(chests: Sequence[ChestCt], painter: Painter, *, num_nodules: int, seed: int) -> list[NoduleStack]:
    """Draw nodules that pass the gates, evenly spread over log size, with textures by their shares in patients."""

    def draw(chest: ChestCt, number: int, attempt: int) -> NoduleStack | None:
        rng = numpy_generator(derive_seed(seed, painter.name, number, attempt), "request")
        request = draw_request(rng, (number + rng.random()) / num_nodules)
        made = chest.insert(request, painter, seed=derive_seed(seed, painter.name, number, attempt))
        if made.reason:
            return None
        image, mask = chest.image_hu.copy(), np.zeros(chest.image_hu.shape, dtype=bool)
        image[made.box], mask[made.box] = made.image, made.lesion
        return _cut_stack(f"{painter.name}-{number}", chest, image, mask)

    return _fill(chests, draw, num_nodules=num_nodules, seed=seed)


def paste_pool(
    chests: Sequence[ChestCt], nodules: Sequence[NoduleStack], *, num_nodules: int, seed: int
) -> list[NoduleStack]:
    """Return real nodules pasted into other CTs, at their size in mm, rotated and mirrored, blended at the border."""

    def draw(chest: ChestCt, number: int, attempt: int) -> NoduleStack | None:
        rng = numpy_generator(derive_seed(seed, "paste", number, attempt), "place")
        return paste_nodule(chest, nodules[number % len(nodules)], rng, name=f"paste-{number}")

    return _fill(chests, draw, num_nodules=num_nodules, seed=seed)


def _fill(
    chests: Sequence[ChestCt],
    draw: Callable[[ChestCt, int, int], NoduleStack | None],
    *,
    num_nodules: int,
    seed: int,
) -> list[NoduleStack]:
    """As many nodules as wanted, in CTs that take turns; one that does not succeed in several tries is left out."""
    pool = []
    for number in range(num_nodules):
        for attempt in range(TRIES):
            rng = numpy_generator(derive_seed(seed, "chest", number, attempt), "choice")
            try:
                stack = draw(chests[int(rng.integers(len(chests)))], number, attempt)
            except LesionError:
                continue
            if stack is not None:
                pool.append(stack)
                break
    if not pool:
        raise EvaluationError(f"Nodules: none of the {num_nodules} fits into the CTs.")
    return pool


def paste_nodule(chest: ChestCt, nodule: NoduleStack, rng: np.random.Generator, *, name: str) -> NoduleStack | None:
    """Paste a real nodule into another CT; None if it would not lie in the lung.

    Its HU are blended into those of the CT over the same zone as those of a drawn lesion.
    """
    own_mm = (PIXEL_MM, PIXEL_MM, nodule.spacing_mm[2])
    image, mask = draw_turn(np.moveaxis(nodule.image_hu, 0, -1), np.moveaxis(nodule.mask, 0, -1), rng)
    factors = [own / other for own, other in zip(own_mm, chest.spacing_mm, strict=True)]
    image = ndimage.zoom(image, factors, order=1, mode="nearest", grid_mode=True)
    mask = ndimage.zoom(mask.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True) > 0.5
    if not mask.any():
        return None
    place = draw_place(
        chest.host.coarse,
        chest.image_hu.shape,
        nodule.diameter_mm / 2,
        occupied=chest.occupied_blocks,
        rng=rng,
    )
    middle = np.rint(np.argwhere(mask).mean(axis=0)).astype(int)
    start = [int(c - m) for c, m in zip(place.centre, middle, strict=True)]
    crop = cut_crop(chest.image_hu, start, mask.shape, chest.spacing_mm)
    _, lung = chest.host.label(crop)
    mask &= crop.is_inside
    if not mask.any() or (mask & lung).sum() < LEAST_ON_LUNG * mask.sum():
        return None
    in_image, in_crop = crop.box_in(chest.image_hu.shape)
    weight = weigh_zone(mask, chest.spacing_mm)
    # Beside the nodule the darker of the two: a vessel or the wall around it stays where it was.
    drawn = np.where(mask, image, np.minimum(image, crop.image_hu))
    whole, label = chest.image_hu.copy(), np.zeros(chest.image_hu.shape, dtype=bool)
    whole[in_image] = blend(whole[in_image], drawn[in_crop].astype(np.float32), weight[in_crop])
    label[in_image] = mask[in_crop]
    return _cut_stack(name, chest, whole, label)


def _cut_stack(name: str, chest: ChestCt, image: NDArray[np.int16], mask: NDArray[np.bool_]) -> NoduleStack:
    """The surroundings of a nodule in a CT as a stack."""
    box = bounding_box(mask)
    first = np.array([part.start for part in box])
    middle = np.rint(first + np.argwhere(mask[box]).mean(axis=0)).astype(int)
    sides = [max(1, round(WINDOW_MM / step)) for step in chest.spacing_mm[:2]]
    sides.append(min(MOST_SLICES, box[2].stop - box[2].start + 4))
    start = [int(c - side // 2) for c, side in zip(middle, sides, strict=True)]
    crop, label = (cut_crop(array, start, sides, chest.spacing_mm) for array in (image, mask))
    return to_stack(name, chest.name, crop.image_hu, (label.image_hu > 0.5) & crop.is_inside, chest.spacing_mm)


def save_pool(path: Path, pool: Sequence[NoduleStack]) -> None:
    """Write a pool of nodules to a file, whole or not at all."""
    arrays = {f"{kind}-{n}": getattr(stack, kind) for n, stack in enumerate(pool) for kind in ("image_hu", "mask")}
    facts = np.array([[stack.diameter_mm, *stack.spacing_mm] for stack in pool])
    names, patients = (np.array([getattr(stack, key) for stack in pool]) for key in ("name", "patient"))
    with open_whole(path) as file:
        np.savez_compressed(file, names=names, patients=patients, facts=facts, **arrays)


def load_pool(path: Path) -> list[NoduleStack]:
    """Read a pool of nodules that :func:`save_pool` wrote."""
    with np.load(path, allow_pickle=False) as held:
        rows = zip(held["names"], held["patients"], held["facts"], strict=True)
        return [
            NoduleStack(
                str(name),
                str(patient),
                float(facts[0]),
                held[f"image_hu-{n}"],
                held[f"mask-{n}"],
                (float(facts[1]), float(facts[2]), float(facts[3])),
            )
            for n, (name, patient, facts) in enumerate(rows)
        ]
