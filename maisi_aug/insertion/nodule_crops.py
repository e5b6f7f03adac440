"""Training crops of lung nodules and of lung without any, as a prepared folder that ``maisi-aug train`` takes.

    python -m maisi_aug.insertion.nodule_crops NODULES LUNGS --out crops

``NODULES`` holds crops around nodules: ``images/``, ``labels/`` (1 = nodule) and ``index.csv`` with the columns file,
patient, texture (readers' score, 1 = ground-glass to 5 = solid) and split, of which only rows that say "train" are
read. ``LUNGS`` holds whole chests as NAME_ct.nii.gz, with NAME_seg.nii.gz where something in them is to be avoided.

Every crop keeps the spacing of its CT: the networks are conditioned on the spacing, and noise that was interpolated
would teach them a texture that no CT has. Where a crop is smaller than the window, its edge is repeated and labelled
0, and the losses leave these voxels out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import PreparationError
from maisi_aug.insertion.surroundings import LUNG_ID, label_surroundings
from maisi_aug.preparation.prepared import NewLabel, PreparedCase, PreparedSpec, write_lists
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.system.whole_folder import open_whole_folder
from maisi_aug.vocabulary.labels import LUNG_LOBE_IDS
from maisi_aug.volumes.body import find_body
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map

SOLID_ID, PART_SOLID_ID, GROUND_GLASS_ID = 23, 129, 130
LABELS = {"body": 200, "lung tumor": SOLID_ID, "left lung upper lobe": LUNG_ID}
NEW_LABELS = {
    "part-solid nodule": NewLabel(id=PART_SOLID_ID, hosts=tuple(sorted(LUNG_LOBE_IDS))),
    "ground-glass nodule": NewLabel(id=GROUND_GLASS_ID, hosts=tuple(sorted(LUNG_LOBE_IDS))),
}
WINDOW: Shape = (40, 40, 8)
"""Room for most nodules with some lung around: half of the crops have no more than six slices."""
LEAST_LUNG_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Crop:
    """A window of a CT with its label map: ``(I, J, K)`` HU and ids, 0 beyond the CT."""

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    spacing_mm: Spacing
    name: str
    patient: str


def texture_id(score: int) -> int:
    """Return the label id of a nodule for the texture score (1 to 5) of LIDC-IDRI's readers."""
    if score <= 2:
        return GROUND_GLASS_ID
    return PART_SOLID_ID if score == 3 else SOLID_ID


def cut_window(
    image_hu: NDArray[np.int16], label_map: NDArray[np.uint8], corner: Sequence[int], shape: Shape
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Cut a window that may reach beyond the arrays, where the image's edge is repeated and the label is 0.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` label ids.
        corner: First voxel of the window along I, J, K; may be negative.
        shape: Voxels of the window along I, J, K.
    """
    places = [np.arange(start, start + side) for start, side in zip(corner, shape, strict=True)]
    held = [np.clip(place, 0, side - 1) for place, side in zip(places, image_hu.shape, strict=True)]
    window, labels = image_hu[np.ix_(*held)], label_map[np.ix_(*held)]
    for axis, (place, kept) in enumerate(zip(places, held, strict=True)):
        outside = [slice(None)] * 3
        outside[axis] = place != kept
        labels[tuple(outside)] = 0
    return window, labels


def draw_turn(
    image_hu: NDArray[Any], label_map: NDArray[Any], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rotate and mirror image and label map together: one of eight symmetries of a slice, flipped along K or not.

    Args:
        image_hu: ``(I, J, K)`` image in HU; not modified.
        label_map: ``(I, J, K)`` label map of the image; not modified.
        rng: Source of all randomness.

    Returns:
        Image and label map as contiguous arrays; sides I and J are exchanged by a quarter turn.
    """
    turns, flips = int(rng.integers(4)), rng.random(2) < 0.5
    turned = []
    for array in (image_hu, label_map):
        moved = np.rot90(array, turns, (0, 1))
        for axis, is_flipped in zip((0, 2), flips, strict=True):
            moved = np.flip(moved, axis) if is_flipped else moved
        turned.append(np.ascontiguousarray(moved))
    return turned[0], turned[1]


def crop_nodules(folder: Path, *, copies: int, seed: int) -> Iterator[Crop]:
    """Yield windows around the nodules of training patients, each several times with other rotations.

    Args:
        folder: Data set of the training patients: CTs, and masks of their nodules.
        copies: Windows per nodule.
        seed: Seed of positions and rotations.
    """
    index = folder / "index.csv"
    if not index.is_file():
        raise PreparationError(f"{folder}: has no index.csv of nodules. Check the path.")
    with index.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "train"]
    for row in rows:
        image = load_image(folder / "images" / row["file"])
        nodule = load_label_map(folder / "labels" / row["file"]).array > 0
        image_hu, spacing_mm = image.array.astype(np.int16), image.grid.spacing_mm
        label_map = label_surroundings(image_hu, spacing_mm, lesion=nodule)
        label_map[nodule] = texture_id(int(row["texture"]))
        name = row["file"].removesuffix(".nii.gz")
        for copy in range(copies):
            rng = numpy_generator(derive_seed("nodule crop", seed, name, copy), "window")
            corner = _draw_corner(nodule, rng)
            window = draw_turn(*cut_window(image_hu, label_map, corner, WINDOW), rng)
            yield Crop(*window, spacing_mm, f"{name}-{copy}", row["patient"])


def _draw_corner(nodule: NDArray[np.bool_], rng: np.random.Generator) -> list[int]:
    """Draw the start of a window that contains the nodule, or is inside it, and covers as much of it as it can."""
    corner = []
    for axis, (side, wanted) in enumerate(zip(nodule.shape, WINDOW, strict=True)):
        places = np.flatnonzero(nodule.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = sorted((int(places[-1]) + 1 - wanted, int(places[0])))
        least, most = sorted((0, side - wanted))
        low, high = max(low, least), min(high, most)
        corner.append(int(rng.integers(low, high + 1)) if low <= high else int(np.clip(low, least, most)))
    return corner


def crop_lungs(folder: Path, *, num_crops: int, seed: int) -> Iterator[Crop]:
    """Yield windows of lung without labelled voxels from every chest CT of a folder.

    Args:
        folder: Folder of chest CTs.
        num_crops: Windows per CT.
        seed: Seed of the positions.
    """
    for path in sorted(folder.glob("*_ct.nii.gz")):
        image = load_image(path)
        image_hu, spacing_mm = image.array.astype(np.int16), image.grid.spacing_mm
        labelled = path.with_name(path.name.replace("_ct.", "_seg."))
        body = find_body(image_hu, spacing_mm)
        avoided = load_label_map(labelled).array > 0 if labelled.is_file() else np.zeros(image_hu.shape, bool)
        name = path.name.removesuffix("_ct.nii.gz")
        rng, made = numpy_generator(derive_seed("lung crop", seed, name), "window"), 0
        for _ in range(50 * num_crops):
            corner = rng.integers(0, np.subtract(image_hu.shape, WINDOW) + 1)
            box = tuple(slice(start, start + side) for start, side in zip(corner.tolist(), WINDOW, strict=True))
            label_map = label_surroundings(image_hu[box], spacing_mm)
            is_lung = (label_map == LUNG_ID).mean() >= LEAST_LUNG_SHARE and body[box].all()
            if avoided[box].any() or not is_lung:
                continue
            yield Crop(*draw_turn(image_hu[box], label_map, rng), spacing_mm, f"{name}-lung-{made}", name)
            made += 1
            if made == num_crops:
                break


def write_prepared(crops: Iterator[Crop], out: Path, *, num_folds: int, options: dict[str, Any]) -> int:
    """Write windows as a new prepared folder, whole or not at all, and return their number.

    Args:
        crops: Windows with label maps.
        out: New folder.
        num_folds: Number of folds.
        options: Settings to record.
    """

    def require_new() -> None:
        if out.exists():
            raise PreparationError(f"{out}: already exists. Choose another --out.")

    require_new()
    spec = PreparedSpec(
        name="lung nodule crops",
        grid=GridSpec(shape=WINDOW, spacing_mm=(0.7, 0.7, 1.25)),
        labels=LABELS | {name: label.id for name, label in NEW_LABELS.items()},
        new_labels=NEW_LABELS,
        num_folds=num_folds,
        options=options,
    )
    with open_whole_folder(out, require_replaceable=require_new) as building:
        cases = [_write_crop(crop, building, num_folds) for crop in crops]
        write_lists(building, spec, cases, command="python -m maisi_aug.insertion.nodule_crops")
    return len(cases)


def _write_crop(crop: Crop, folder: Path, num_folds: int) -> PreparedCase:
    grid = Grid.from_spacing(crop.image_hu.shape, crop.spacing_mm)
    image, label = (folder / f"{role}s" / f"{crop.name}.nii.gz" for role in ("image", "label"))
    save_image(image, crop.image_hu, grid)
    save_label_map(label, crop.label_map, grid)
    ids, counts = np.unique(crop.label_map, return_counts=True)
    i, j, k = (round(step, 4) for step in crop.spacing_mm)
    return PreparedCase(
        id=crop.name,
        patient=crop.patient,
        fold=derive_seed("fold", crop.patient) % num_folds,
        modality="ct",
        shape=grid.shape,
        spacing_mm=(i, j, k),
        voxels=dict(zip(ids.tolist(), counts.tolist(), strict=True)),
        image_sha256=sha256_of(image),
        label_sha256=sha256_of(label),
        image_source=crop.name,
        label_sources=(),
        key=hashlib.sha256(crop.image_hu.tobytes() + crop.label_map.tobytes()).hexdigest(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run this module's command line, which prepares windows of nodules and lungs for training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodules", type=Path)
    parser.add_argument("lungs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=4, help="turns of each nodule crop")
    parser.add_argument("--lung-crops", type=int, default=100, help="windows of each chest CT")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)

    def draw() -> Iterator[Crop]:
        yield from crop_nodules(args.nodules, copies=args.copies, seed=args.seed)
        yield from crop_lungs(args.lungs, num_crops=args.lung_crops, seed=args.seed)

    options = {"copies": args.copies, "lung_crops": args.lung_crops, "seed": args.seed}
    num_crops = write_prepared(draw(), args.out, num_folds=10, options=options)
    sys.stdout.write(f"{args.out}: {num_crops} crops\n")


if __name__ == "__main__":
    main()
