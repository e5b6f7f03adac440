"""Cohorts of a few voxels without any network: boxes as organs, numbers as images; and real nnU-Net datasets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, FileRecord, ManifestWriter
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from maisi_aug.volumes.orientation import turn_volume

GRID = Grid.from_spacing((7, 9, 11), (0.7, 0.8, 2.5))
LIVER, SPLEEN, LUNG_TUMOR, HEPATIC_VESSEL, HEPATIC_TUMOR, KIDNEY_TUMOR, BODY = 1, 3, 23, 25, 26, 129, 200


def oblique_grid() -> Grid:
    """The same spacing, turned about all three axes and moved away from the origin."""
    turn = np.eye(3)
    for axis, degrees in ((2, 17.0), (0, -11.0), (1, 6.0)):
        angle = np.deg2rad(degrees)
        plane = np.eye(3)
        first, second = [place for place in range(3) if place != axis]
        plane[first, first] = plane[second, second] = np.cos(angle)
        plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(GRID.spacing_mm)
    affine[:3, 3] = (-31.5, 12.25, 404.0)
    return Grid(GRID.shape, affine)


def build_anatomy(*tumors: int) -> NDArray[np.uint8]:
    """A liver, a spleen and one or two voxels of each tumour in a body; no axis is like another."""
    label_map = np.zeros(GRID.shape, dtype=np.uint8)
    label_map[1:-1, 1:-1] = BODY
    label_map[2:5, 2:6, 1:8] = LIVER
    label_map[5, 2:6, 1:8] = SPLEEN
    for index, tumor in enumerate(tumors):
        label_map[3, 3 : 5 - index, 2 + 2 * index] = tumor
    return label_map


def save_case(
    folder: Path,
    index: int,
    tumors: Sequence[int],
    *,
    requested: Sequence[int] | None = None,
    grid: Grid = GRID,
    **changes: Any,
) -> AttemptRecord:
    """Write the files of a case that holds these tumours, and describe it; it was asked for them or for others."""
    case_id = f"case_{index + 1:04d}"
    anatomy = build_anatomy(*tumors)
    rng = np.random.default_rng(index)
    image_hu = (anatomy.astype(np.int16) + rng.integers(-1000, 1500, GRID.shape)).astype(np.int16)
    folders = {"image": "images", "label": "labels", "anatomy": "anatomy"}
    paths = {role: f"{name}/{case_id}.nii.gz" for role, name in folders.items()}
    save_image(folder / paths["image"], image_hu, grid)
    save_label_map(folder / paths["label"], np.where(np.isin(anatomy, tumors), anatomy, 0).astype(np.uint8), grid)
    save_label_map(folder / paths["anatomy"], anatomy, grid)
    return build_record(folder, index, paths, requested=tumors if requested is None else requested, **changes)


def build_record(
    folder: Path, index: int, paths: Mapping[str, str], *, requested: Sequence[int], **changes: Any
) -> AttemptRecord:
    """An accepted attempt whose files are there."""
    names = {LUNG_TUMOR: "lung tumor", HEPATIC_TUMOR: "hepatic tumor", KIDNEY_TUMOR: "kidney tumor"}
    fields: dict[str, Any] = {
        "case_id": f"case_{index + 1:04d}",
        "case_index": index,
        "attempt": 0,
        "seed": 11 + index,
        "status": "accepted",
        "request": "hepatic tumor:0.3",
        "lesions": tuple(Lesion(label_id, names[label_id], 0.1) for label_id in requested),
        "required_ids": (),
        "verdicts": (),
        "reason": "",
        "mask_origin": {"source": "plant"},
        "bundle": "gone",
        "bundle_fingerprint": "ab12cd34ef",
        "licence": "Apache-2.0",
        "settings": {"modality": "ct"},
        "files": {role: FileRecord(path, sha256_of(folder / path)) for role, path in paths.items()},
        "seconds": {},
    }
    return AttemptRecord(**(fields | changes))


def write_cohort(
    folder: Path,
    *tumors_per_case: Sequence[int],
    requested: Sequence[int] | None = None,
    grid: Grid = GRID,
    **changes: Any,
) -> Path:
    """A cohort with one case per entry, which holds these tumours and was asked for them or for others."""
    folder.mkdir(parents=True, exist_ok=True)
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for index, tumors in enumerate(tumors_per_case):
            writer.append(save_case(folder, index, tumors, requested=requested, grid=grid, **changes))
    return folder


def shear_cohort(folder: Path) -> Path:
    """Give a cohort's volumes axes that are not at right angles, as cohorts of sheared label maps once had."""
    import nibabel as nib

    manifest = folder / MANIFEST_NAME
    for path in sorted(folder.glob("*/*.nii.gz")):
        before, stored = sha256_of(path), nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
        affine = np.array(stored.affine)
        affine[0, 2] += 0.6
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), affine), path)
        manifest.write_text(manifest.read_text().replace(before, sha256_of(path)))
    return folder


def write_real_dataset(
    raw: Path,
    num_cases: int = 5,
    *,
    name: str = "Dataset003_Liver",
    codes: str = "RAS",
    grid: Grid = GRID,
    **description: Any,
) -> Path:
    """A raw dataset of nnU-Net with liver 1 and tumor 2, its files stored with the given axes."""
    folder = raw / name
    for number in range(num_cases):
        anatomy = build_anatomy(HEPATIC_TUMOR)
        label_map = np.select([anatomy == LIVER, anatomy == HEPATIC_TUMOR], [1, 2], 0).astype(np.uint8)
        rng = np.random.default_rng(100 + number)
        image_hu = (label_map * 50 + rng.integers(-20, 20, grid.shape)).astype(np.int16)
        case_id = f"liver_{number}"
        save_image(folder / "imagesTr" / f"{case_id}_0000.nii.gz", *turn_volume(image_hu, grid, codes))
        save_label_map(folder / "labelsTr" / f"{case_id}.nii.gz", *turn_volume(label_map, grid, codes))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
