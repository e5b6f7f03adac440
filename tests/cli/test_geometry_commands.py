"""Landmarks of odd geometries through the commands themselves: prepare, synthesize given, and every export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from maisi_aug.preparation.prepared import load_prepared
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map
from tests.builders.made_dicom import write_segmentation, write_series
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.ways_in import LIVER, NAMES, ORIGIN_LPS, SPACING_MM, TUMOR, landmarks, patient

Run = Callable[..., Any]
Landmarks = dict[int, NDArray[np.float64]]

TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])


def odd_affine(steps_mm: tuple[float, float, float], shear: float) -> NDArray[np.float64]:
    """LPS axes, turned by 17 degrees about the long axis, sheared."""
    affine = np.eye(4)
    slant = np.eye(3)
    slant[1, 2] = shear
    affine[:3, :3] = TURN @ np.diag([-1.0, -1.0, 1.0]) @ slant * steps_mm
    affine[:3, 3] = (120, 80, -500)
    return affine


def write_nifti(path: Path, array: NDArray[Any], affine: NDArray[np.float64], *, in_micrometres: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = affine.copy()
    stored[:3] *= 1000 if in_micrometres else 1
    image = nib.Nifti1Image(array, stored)
    image.header["xyzt_units"] = 3 if in_micrometres else 2
    nib.save(image, path)


def require_same(found: Landmarks, wanted: Landmarks, limit_mm: float) -> None:
    """The same ids at the same centres, with volumes to a twentieth."""
    assert set(found) == set(wanted)
    for label_id, place in wanted.items():
        assert np.abs(found[label_id][:3] - place[:3]).max() <= limit_mm, (label_id, found, wanted)
        assert found[label_id][3] == pytest.approx(place[3], rel=0.05)


@pytest.mark.parametrize("shear", [0.0, 0.2])
def test_prepared_cts_keep_their_places(run_cli: Run, tmp_path: Path, shear: float) -> None:
    image, labels = (array.T for array in patient())
    affine = odd_affine(SPACING_MM, shear)
    write_nifti(tmp_path / "images" / "P1.nii.gz", image, affine, in_micrometres=True)
    write_nifti(tmp_path / "labels" / "P1.nii.gz", labels, affine, in_micrometres=True)
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(NAMES))
    wanted = landmarks(labels, Grid((44, 36, 40), affine), {LIVER: LIVER, TUMOR: TUMOR})
    folders = ("--images", tmp_path / "images", "--labels", tmp_path / "labels")
    outcome = run_cli("prepare", *folders, "--folds", "1", "--workers", "1", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert ("voxel axes are not at right angles" in outcome.stderr) == (shear > 0)
    dataset = load_prepared(tmp_path / "out")
    volume = load_label_map(dataset.file_of("label", "P1"))
    require_same(landmarks(volume.array, volume.grid, {LIVER: LIVER, TUMOR: TUMOR}), wanted, 1.6 if shear else 0.5)


def test_prepared_dicom_with_a_tilt_keeps_its_place(run_cli: Run, tmp_path: Path) -> None:
    image, labels = patient()
    c, s = float(np.cos(0.2)), float(np.sin(0.2))
    series = write_series(
        tmp_path / "cases" / "P1" / "ct",
        image,
        spacing_mm=SPACING_MM,
        direction=(1.0, 0.0, 0.0, 0.0, c, -s),
        place=lambda k: (*ORIGIN_LPS[:2], ORIGIN_LPS[2] + k * SPACING_MM[2]),
    )
    masks = {name: labels == label_id for name, label_id in NAMES.items()}
    write_segmentation(tmp_path / "cases" / "P1" / "seg" / "1-1", series, masks)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (-SPACING_MM[0], 0, 0), (0, -c * SPACING_MM[1], -s * SPACING_MM[1])
    affine[:3, 2], affine[:3, 3] = (0, 0, SPACING_MM[2]), np.asarray(ORIGIN_LPS) * (-1, -1, 1)
    wanted = landmarks(labels.T, Grid((44, 36, 40), affine), {LIVER: LIVER, TUMOR: TUMOR})
    folders = ("--images", tmp_path / "cases", "--labels", tmp_path / "cases")
    outcome = run_cli("prepare", *folders, "--folds", "1", "--workers", "1", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    volume = load_label_map(load_prepared(tmp_path / "out").file_of("label", "P1"))
    require_same(landmarks(volume.array, volume.grid, {LIVER: LIVER, TUMOR: TUMOR}), wanted, 1.0)


@pytest.mark.parametrize("shear", [0.0, 0.2])
def test_given_maps_keep_their_places_up_to_every_export(run_cli: Run, tmp_path: Path, shear: float) -> None:
    label_map = np.zeros((24, 24, 16), dtype=np.uint8)
    label_map[2:22, 2:22], label_map[8:20, 4:18, 2:14], label_map[10:14, 8:11, 6:9] = 200, LIVER, TUMOR
    affine = odd_affine((9.0, 9.0, 12.0), shear)
    for name in ("m", "n"):
        write_nifti(tmp_path / "maps" / f"{name}.nii.gz", label_map, affine, in_micrometres=True)
    bundle = write_tiny_bundle(tmp_path / "bundle")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"bundle": str(bundle.path), "gates": {"organ_hu": False, "visibility": False}}))
    words = ("--recipe", recipe, "--mask-source", "given", "--mask-bank", tmp_path / "maps", "--mask-labels", "maisi")
    cohort = tmp_path / "cohort"
    outcome = run_cli("synthesize", *words, "--out", cohort, "--device", "cpu")
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    wanted = landmarks(label_map, Grid((24, 24, 16), affine), {LIVER: LIVER, TUMOR: TUMOR})
    limit_mm = 4.0 if shear else 0.09
    anatomy = load_label_map(cohort / "anatomy" / "case_0001.nii.gz")
    require_same(landmarks(anatomy.array, anatomy.grid, {LIVER: LIVER, TUMOR: TUMOR}), wanted, limit_mm)

    labels = ("--labels", "liver", "--labels", "hepatic tumor")
    numbered = ("--dataset-id", "501", "--name", "Odd")
    nnunet = run_cli("export", "nnunet", cohort, "--out", tmp_path / "raw", *labels, *numbered)
    monai = run_cli("export", "monai", cohort, "--out", tmp_path / "monai", *labels)
    dicom = run_cli("export", "dicom", cohort, "--out", tmp_path / "dicom", *labels)
    for exported in (nnunet, monai, dicom):
        assert exported.code == 0, exported.stderr
    raw = tmp_path / "raw" / "Dataset501_Odd"
    pairs = {
        raw / "imagesTr" / "case_0001_0000.nii.gz": raw / "labelsTr" / "case_0001.nii.gz",
        tmp_path / "monai" / "images" / "case_0001.nii.gz": tmp_path / "monai" / "labels" / "case_0001.nii.gz",
        tmp_path / "dicom" / "case_0001" / "CT": tmp_path / "dicom" / "case_0001" / "SEG.dcm",
    }
    for image_path, label_path in pairs.items():
        volume = load_label_map(label_path, image=image_path)
        assert load_image(image_path).grid.is_close(volume.grid, tolerance_mm=0.01)
        require_same(landmarks(volume.array, volume.grid, {LIVER: 1, TUMOR: 2}), wanted, limit_mm)
        if label_path.suffix == ".gz":
            itk = SimpleITK.ReadImage(str(label_path))
            far = itk.TransformIndexToPhysicalPoint([side - 1 for side in itk.GetSize()])
            header: Any = nib.load(label_path)
            own = header.affine @ [*(side - 1 for side in header.shape), 1]
            np.testing.assert_allclose(np.asarray(far) * (-1, -1, 1), own[:3], atol=0.05)
