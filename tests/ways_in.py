"""Every way in times every command that reads: right, refused or not applicable.

Run ``python -m tests.ways_in`` for the table. Each cell writes one small patient in its format, reads it the way the
command does, and compares where the liver, its tumour and a bright block of the CT end up, and how large they are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_ids import build_translation
from maisi_aug.cohort.balance import SizeBins, read_targets
from maisi_aug.cohort.census import take_census
from maisi_aug.cohort.resolve import _measure_label_maps
from maisi_aug.errors import MaisiAugError
from maisi_aug.evaluation.benchmark.cases import find_real_cases
from maisi_aug.evaluation.benchmark.data import load_case
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.preparation.case import load_ct, load_organs, merge_labels
from maisi_aug.preparation.sources import LabelFile, find_images, find_labels, find_organs
from maisi_aug.sources.given import GridChoice, fit_map
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid
from tests.builders.made_dicom import write_enhanced, write_segmentation, write_series, write_structures

RIGHT: Final = "right"
REFUSED: Final = "refused"
NOT_APPLICABLE: Final = "n/a"

SHAPE = (44, 36, 40)
SPACING_MM = (7.0, 7.5, 6.5)
LIVER, TUMOR, BODY = 1, 26, 200
NAMES = {"liver": LIVER, "hepatic tumor": TUMOR}
ORIGIN_LPS = (-110.0, -95.0, 300.0)

IMAGE_WAYS = ("DICOM series", "enhanced DICOM", "NIfTI-1", "NIfTI-2", "NRRD", "MHA")
LABEL_WAYS = ("masks folder", "DICOM SEG", "RTSTRUCT")
WAYS = (*IMAGE_WAYS, *LABEL_WAYS)


@cache
def patient() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """CT and label map, ``(K, J, I)`` as DICOM stores slices: a trunk with a liver, its tumour and a bright block."""
    k, j, i = np.indices(SHAPE[::-1])

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
        terms = [((a - c) / r) ** 2 for a, c, r in zip((i, j, k), centre, radii, strict=True)]
        return np.asarray(sum(terms) <= 1)

    labels = np.zeros(SHAPE[::-1], dtype=np.uint8)
    body = ellipsoid((22, 18, 20), (18, 13, 1e6))
    labels[ellipsoid((14, 17, 22), (8, 7, 9))] = LIVER
    labels[ellipsoid((12, 17, 21), (2.5, 2.5, 2.5))] = TUMOR
    image = np.where(body, 20, -1000).astype(np.int16)
    image[labels == LIVER] = 60
    image[30:33, 16:19, 27:30] = 900
    return image, labels


def landmarks(array: NDArray[Any], grid: Grid, ids: Mapping[int, int]) -> dict[int, NDArray[np.float64]]:
    """Of every id its centre, RAS+ mm, and volume in mL."""
    found = {}
    for name, label_id in ids.items():
        points = np.argwhere(array == label_id)
        if len(points):
            centre = points.mean(axis=0) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
            found[name] = np.array([*centre, len(points) * grid.voxel_ml])
    return found


@cache
def truth() -> tuple[Grid, dict[int, NDArray[np.float64]], NDArray[np.float64]]:
    """The grid in RAS+, the landmarks of the label map, and that of the CT's bright block."""
    image, labels = patient()
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = np.asarray(ORIGIN_LPS) * (-1, -1, 1)
    grid = Grid(SHAPE, affine)
    block = landmarks((image.T > 500).astype(np.uint8), grid, {1: 1})[1]
    return grid, landmarks(labels.T, grid, {LIVER: LIVER, TUMOR: TUMOR}), block


# Files.


def write_volume(path: Path, array_kji: NDArray[Any], way: str) -> Path:
    """One volume in a format; DICOM as a folder or a file of that name."""
    grid, _, _ = truth()
    if way == "DICOM series":
        return write_series(path, array_kji, spacing_mm=SPACING_MM, place=_place)
    if way == "enhanced DICOM":
        order = np.random.default_rng(4).permutation(len(array_kji)).tolist()
        return write_enhanced(
            path.with_name(f"{path.name}.dcm"), array_kji, spacing_mm=SPACING_MM, place=_place, order=order
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if way in ("NRRD", "MHA"):
        image = SimpleITK.GetImageFromArray(array_kji)
        image.SetSpacing(SPACING_MM)
        image.SetOrigin(ORIGIN_LPS)
        path = path.with_name(f"{path.name}.{way.lower()}")
        SimpleITK.WriteImage(image, str(path))
        return path
    image_class = nib.Nifti2Image if way == "NIfTI-2" else nib.Nifti1Image
    path = path.with_name(f"{path.name}.nii.gz")
    nib.save(image_class(np.ascontiguousarray(array_kji.T), grid.affine), path)
    return path


def _place(k: int) -> tuple[float, float, float]:
    return (ORIGIN_LPS[0], ORIGIN_LPS[1], ORIGIN_LPS[2] + k * SPACING_MM[2])


def outline(labels: NDArray[np.uint8], label_id: int) -> list[NDArray[np.float64]]:
    """Contours around the voxels of an id, LPS mm: a rectangle per run of voxels in a row."""
    contours = []
    for k, j in np.argwhere((labels == label_id).any(axis=2)):
        columns = np.flatnonzero(labels[k, j] == label_id)
        i0, i1 = columns[0] - 0.5, columns[-1] + 0.5
        corners = np.array([(i0, j - 0.5), (i1, j - 0.5), (i1, j + 0.5), (i0, j + 0.5)])
        flat = corners * SPACING_MM[:2] + ORIGIN_LPS[:2]
        contours.append(np.column_stack([flat, np.full(4, ORIGIN_LPS[2] + k * SPACING_MM[2])]))
    return contours


def write_dataset(root: Path, way: str) -> Path:
    """One patient: ``images/`` beside ``labels/``, or for masks a folder per case as TotalSegmentator writes it."""
    image, labels = patient()
    if way == "masks folder":
        write_volume(root / "P1" / "ct", image, "NIfTI-1")
        for name, label_id in {**NAMES, "spleen": 3}.items():
            write_volume(
                root / "P1" / "segmentations" / name.replace(" ", "_"), (labels == label_id).astype(np.uint8), "NIfTI-1"
            )
        return root
    (root / "labels").mkdir(parents=True)
    if way in IMAGE_WAYS:
        write_volume(root / "images" / "P1", image, way)
        write_volume(
            root / "labels" / "P1", labels, way if way not in ("DICOM series", "enhanced DICOM") else "NIfTI-1"
        )
        (root / "labels.json").write_text(json.dumps(NAMES))
        return root
    series = write_volume(root / "images" / "P1", image, "DICOM series")
    if way == "DICOM SEG":
        masks = {name: labels == label_id for name, label_id in NAMES.items()}
        write_segmentation(root / "labels" / "P1.dcm", series, masks)
    else:
        write_structures(root / "labels" / "P1.dcm", {name: outline(labels, i) for name, i in NAMES.items()})
    return root


# Commands: each reads a dataset as the command does, and raises or hands out what it saw.

Seen = tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]
"""Landmarks of labels, and of the CT's bright block as id 1; empty where a command reads no such thing."""


def _folders(root: Path) -> tuple[Path, Path]:
    return (root / "images", root / "labels") if (root / "images").is_dir() else (root, root)


def _see_image(array: NDArray[Any], grid: Grid) -> dict[int, NDArray[np.float64]]:
    return landmarks((array > 500).astype(np.uint8), grid, {1: 1})


def _tables(files: tuple[LabelFile, ...]) -> tuple[dict[int, int], ...]:
    return tuple(
        {1: NAMES.get((file.mask_name or "").replace("_", " "), 0)}
        if file.mask_name is not None
        else {number: NAMES[name] for number, name in file.names.items()}
        for file in files
    )


def prepare_images(root: Path) -> Seen:
    """``prepare --images``."""
    (path,) = find_images(_folders(root)[0]).values()
    image, grid = load_ct(path)
    return {}, _see_image(image, grid)


def prepare_labels(root: Path) -> Seen:
    """``prepare --labels``; every file on the image's grid."""
    images, folder = _folders(root)
    (case_id, path), *_ = find_images(images).items()
    files = tuple(find_labels(folder, [case_id], images=[path])[case_id])
    _, grid = load_ct(path)
    merged = merge_labels(files, _tables(files), [TUMOR], grid, path)
    return landmarks(merged, grid, {LIVER: LIVER, TUMOR: TUMOR}), {}


def prepare_organs(root: Path) -> Seen:
    """``prepare --organs``."""
    images, folder = _folders(root)
    (case_id, path), *_ = find_images(images).items()
    files = find_organs(folder, [case_id])[case_id]
    _, grid = load_ct(path)
    names = (
        {place: (file.mask_name or "").replace("_", " ") for place, file in enumerate(files, start=1)}
        if files[0].mask_name
        else files[0].names
    )
    translation = build_translation("auto", names, FULL_VOCABULARY, has_vocabulary_ids=False, subject="organs")
    assert translation is not None
    return landmarks(load_organs(files, translation, grid, path), grid, {LIVER: LIVER, TUMOR: TUMOR}), {}


def _open_bank(root: Path) -> Any:
    bank = FolderBank(
        root, vocabulary=FULL_VOCABULARY, grid=Grid.from_spacing((48, 40, 24), (6.5, 6.5, 8)), min_cover=0
    )
    bank_map = bank.load(0)
    assert bank_map is not None
    assert (bank_map.label_map == BODY).mean() > 0.2
    return bank_map


def synthesize_bank(root: Path) -> Seen:
    """``synthesize --mask-source bank``."""
    bank_map = _open_bank(root)
    return landmarks(bank_map.label_map, bank_map.grid, {LIVER: LIVER, TUMOR: TUMOR}), {}


def synthesize_given(root: Path) -> Seen:
    """``synthesize --mask-source given``."""
    label_map, grid = fit_map(_open_bank(root), GridChoice(4, None, None), lesion_ids=())
    return landmarks(label_map, grid, {LIVER: LIVER, TUMOR: TUMOR}), {}


def size_reference(root: Path) -> Seen:
    """``synthesize --size-reference``: volumes alone, by the file's own ids."""
    folder = _folders(root)[1]
    liver = _measure_label_maps(folder, {1}, FULL_VOCABULARY, None)[1][0]
    expected = truth()[1][LIVER]
    return {LIVER: np.array([*expected[:3], max(liver)])}, {}


def balance_against(root: Path) -> Seen:
    """``plan --balance-against``: volumes of lesions."""
    targets = read_targets(["hepatic tumor"], vocabulary=FULL_VOCABULARY, bins=SizeBins())
    (census,) = take_census(root, targets, vocabulary=FULL_VOCABULARY)
    expected = truth()[1][TUMOR]
    return {TUMOR: np.array([*expected[:3], sum(census.volumes_ml[0])])}, {}


def evaluate_images(root: Path) -> Seen:
    """``evaluate fid`` and ``memorization``."""
    image = find_case_set(root).cases[0].load_image()
    return {}, _see_image(image.array, image.grid)


def evaluate_pairs(root: Path) -> Seen:
    """``evaluate hu`` and ``agreement``."""
    cases = find_case_set(root)
    image, label_map = cases.load_pair(cases.labelled[0])
    return landmarks(label_map, image.grid, {LIVER: LIVER, TUMOR: TUMOR}), _see_image(image.array, image.grid)


def benchmark(root: Path) -> Seen:
    """``benchmark --real``."""
    source = find_real_cases(root, None)
    case = load_case(source.cases[0], source.label_ids)
    numbers = {NAMES[name.replace("_", " ")]: place for place, name in enumerate(source.label_ids, start=1)}
    return landmarks(case.classes, case.grid, numbers), _see_image(case.image_hu, case.grid)


READS_IMAGES = ("prepare --images", "evaluate fid, memorization")
COMMANDS: dict[str, Callable[[Path], Seen]] = {
    "prepare --images": prepare_images,
    "prepare --labels": prepare_labels,
    "prepare --organs": prepare_organs,
    "synthesize bank": synthesize_bank,
    "synthesize given": synthesize_given,
    "--size-reference": size_reference,
    "--balance-against": balance_against,
    "evaluate fid, memorization": evaluate_images,
    "evaluate hu, agreement": evaluate_pairs,
    "benchmark": benchmark,
}
"""``finetune-controlnet --data`` prepares, so it reads as ``prepare`` does; ``train``, ``export`` and ``report`` read
what this package wrote, and ``export --like`` and nnU-Net datasets are NIfTI."""


def judge(way: str, command: str, root: Path) -> str:
    """What a command makes of a way in.

    Returns:
        ``right``, ``refused``, ``n/a``, or what is wrong.
    """
    if way in LABEL_WAYS and command in READS_IMAGES:
        return NOT_APPLICABLE
    _, labels, block = truth()
    try:
        seen_labels, seen_image = COMMANDS[command](root)
    except MaisiAugError:
        return REFUSED
    if not seen_labels and not seen_image:
        return "WRONG: nothing read"
    for label_id, found in seen_labels.items():
        off = np.abs(found - labels[label_id])
        if off[:3].max() > 0.1 or off[3] > 0.01 * labels[label_id][3]:
            return f"WRONG: label {label_id} {off.round(2).tolist()} off"
    if seen_image and np.abs(seen_image[1] - block).max() > 0.1:
        return f"WRONG: CT {np.abs(seen_image[1] - block).round(2).tolist()} off"
    return RIGHT


def build_table() -> dict[str, dict[str, str]]:
    """The verdict of every command on every way in."""
    table = {}
    folder = Path(tempfile.mkdtemp())
    try:
        for way in WAYS:
            root = write_dataset(folder / way.replace(" ", "_"), way)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table[way] = {command: judge(way, command, root) for command in COMMANDS}
    finally:
        shutil.rmtree(folder)
    return table


def spell_table(table: Mapping[str, Mapping[str, str]]) -> str:
    """The table in Markdown, a row per command."""
    rows = [["command", *WAYS], ["---"] * (len(WAYS) + 1)]
    rows += [[command, *(table[way][command] for way in WAYS)] for command in COMMANDS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(spell_table(build_table()))  # noqa: T201
