"""Small labelled CTs on disk, as a folder or as a cohort, for tests of what is measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, FileRecord, ManifestWriter
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map

LIVER: Final = 1
SPLEEN: Final = 3
HEPATIC_TUMOR: Final = 26
GRID: Final = Grid.from_spacing((40, 36, 34), (3.0, 3.0, 4.0))
"""No cube, and large enough for the networks of FID."""
ORGAN_HU: Final = {0: -1000, BODY_ID: -80, LIVER: 90, SPLEEN: 110, HEPATIC_TUMOR: 40}


def build_case(seed: int, *, grid: Grid = GRID, tumor: bool = True) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A body with liver, spleen and tumour whose places and sizes the seed draws; image ``(I, J, K)`` and label map."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in grid.shape), indexing="ij"))
    label_map = np.zeros(grid.shape, dtype=np.uint8)

    def fill(label_id: int, centre: ArrayLike, radii: ArrayLike) -> None:
        offset = (place - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
        label_map[(offset**2).sum(axis=0) < 1] = label_id

    fill(BODY_ID, (0, 0, 0), (0.9, rng.uniform(0.6, 0.8), 1.6))
    liver = np.array([0.35, 0.1, 0.1]) + rng.uniform(-0.12, 0.12, 3)
    fill(LIVER, liver, rng.uniform(0.3, 0.42, 3))
    fill(SPLEEN, np.array([-0.5, -0.1, 0.1]) + rng.uniform(-0.1, 0.1, 3), rng.uniform(0.15, 0.25, 3))
    if tumor:
        fill(HEPATIC_TUMOR, liver, rng.uniform(0.14, 0.2, 3))
    values = np.zeros(256)
    for label_id, hu in ORGAN_HU.items():
        values[label_id] = hu + (rng.uniform(-8, 8) if label_id else 0)
    image = values[label_map] + rng.normal(0, 6, grid.shape) * (label_map > 0)
    return np.rint(image).astype(np.int16), label_map


def write_folder(folder: Path, seeds: Sequence[int], *, grid: Grid = GRID, labelled: bool = True) -> Path:
    """``images/`` beside ``labels/`` with vocabulary ids."""
    for seed in seeds:
        image, label_map = build_case(seed, grid=grid)
        save_image(folder / "images" / f"real_{seed:02d}.nii.gz", image, grid)
        if labelled:
            save_label_map(folder / "labels" / f"real_{seed:02d}.nii.gz", label_map, grid)
    return folder


def write_cohort(
    folder: Path, seeds: Sequence[int], *, grid: Grid = GRID, requested: Mapping[int, float] | None = None
) -> Path:
    """A cohort of accepted cases, one hepatic tumour each.

    Args:
        folder: New.
        seeds: One per case.
        grid: Of all cases.
        requested: Requested over realised volume by seed; 1 for those left out.
    """
    folder.mkdir(parents=True)
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for index, seed in enumerate(seeds):
            image, label_map = build_case(seed, grid=grid)
            case_id = f"case_{index + 1:04d}"
            paths = {"image": f"images/{case_id}.nii.gz", "anatomy": f"anatomy/{case_id}.nii.gz"}
            save_image(folder / paths["image"], image, grid)
            save_label_map(folder / paths["anatomy"], label_map, grid)
            realised_ml = float((label_map == HEPATIC_TUMOR).sum() * grid.voxel_ml)
            factor = (requested or {}).get(seed, 1.0)
            lesion = Lesion(HEPATIC_TUMOR, "hepatic tumor", realised_ml * factor, None, realised_ml)
            files = {role: FileRecord(path, sha256_of(folder / path)) for role, path in paths.items()}
            writer.append(_record(case_id, index, lesion, files))
    return folder


def _record(case_id: str, index: int, lesion: Lesion, files: dict[str, FileRecord]) -> AttemptRecord:
    fields: dict[str, Any] = {
        "attempt": 0,
        "seed": index,
        "status": "accepted",
        "request": "hepatic tumor",
        "lesions": (lesion,),
        "required_ids": (),
        "verdicts": (),
        "reason": "",
        "mask_origin": {},
        "bundle": "phantom-ct",
        "bundle_fingerprint": "",
        "licence": "Apache-2.0",
        "settings": {},
        "seconds": {},
    }
    return AttemptRecord(case_id=case_id, case_index=index, files=files, **fields)
