from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import ExportError, MissingExtraError, VocabularyError
from maisi_aug.integrations.dicom.export import INDEX_NAME, export_dicom
from maisi_aug.integrations.dicom.image import build_uid
from maisi_aug.integrations.dicom.segmentation import SNOMED, code_of
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map
from tests.builders.tiny_cohort import (
    GRID,
    HEPATIC_TUMOR,
    KIDNEY_TUMOR,
    LIVER,
    SPLEEN,
    oblique_grid,
    save_case,
    shear_cohort,
    write_cohort,
)

pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
highdicom = pytest.importorskip("highdicom", reason="needs the extra 'dicom'")

GRIDS = {"anisotropic": GRID, "oblique": oblique_grid()}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_series_is_read_back_to_the_same_voxels(tmp_path: Path, grid: Grid) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], grid=grid)
    export_dicom(cohort, tmp_path / "dicom")
    back = load_image(tmp_path / "dicom" / "case_0001" / "CT")  # SimpleITK
    written = load_image(cohort / "images" / "case_0001.nii.gz")
    assert np.array_equal(back.array, written.array)
    assert back.grid.is_close(written.grid, tolerance_mm=1e-4)
    # pydicom: one slice by hand, from its header alone
    slice_ = pydicom.dcmread(tmp_path / "dicom" / "case_0001" / "CT" / "0003.dcm")
    hu = slice_.pixel_array * float(slice_.RescaleSlope) + float(slice_.RescaleIntercept)
    across, down = np.asarray(slice_.ImageOrientationPatient, dtype=float).reshape(2, 3)
    for row, column in ((0, 0), (7, 2)):
        place = np.asarray(slice_.ImagePositionPatient, dtype=float)
        place = place + across * column * slice_.PixelSpacing[1] + down * row * slice_.PixelSpacing[0]
        voxel = np.linalg.solve(written.grid.affine, [-place[0], -place[1], place[2], 1.0])[:3]
        assert np.allclose(voxel, np.rint(voxel), atol=1e-4)
        assert hu[row, column] == written.array[tuple(np.rint(voxel).astype(int))]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_segmentation_is_read_back_to_the_same_label_map(tmp_path: Path, grid: Grid) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR, KIDNEY_TUMOR], grid=grid)
    report = export_dicom(cohort, tmp_path / "dicom", labels=["liver", "kidney tumor", "hepatic tumor"])
    assert report.segments == ("liver", "hepatic tumor", "kidney tumor")
    segmentation = highdicom.seg.segread(tmp_path / "dicom" / "case_0001" / "SEG.dcm")
    volume = segmentation.get_volume(combine_segments=True)
    written = load_label_map(cohort / "anatomy" / "case_0001.nii.gz")
    # highdicom's axes are slices, rows, columns in LPS; each voxel is looked up in the written map by its place.
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    index = np.indices(volume.array.shape).reshape(3, -1)
    places = to_ras @ np.vstack([index, np.ones(index.shape[1])])
    voxels = np.rint(np.linalg.solve(written.grid.affine, places)[:3]).astype(int)
    inside = ((voxels >= 0) & (written.grid.shape > voxels.T).T).all(axis=0)
    found = np.zeros(written.grid.shape, dtype=int)
    found[tuple(voxels[:, inside])] = volume.array[tuple(index[:, inside])]
    expected = np.zeros(256, dtype=int)
    expected[[LIVER, HEPATIC_TUMOR, KIDNEY_TUMOR]] = (1, 2, 3)
    assert np.array_equal(found, expected[written.array])
    assert volume.array[tuple(index[:, ~inside])].sum() == 0


def test_cases_of_different_cohorts_are_different_patients(tmp_path: Path) -> None:
    patients: list[str] = []
    for name, index in (("first", 0), ("second", 7), ("again", 0)):
        cohort = tmp_path / name
        cohort.mkdir()
        with ManifestWriter(cohort / MANIFEST_NAME) as writer:
            record = save_case(cohort, index, [HEPATIC_TUMOR], case_id="case_0001")
            writer.append(record)
        out = tmp_path / f"dicom_{len(patients)}"
        export_dicom(cohort, out)
        slices = [pydicom.dcmread(path) for path in (out / "case_0001").rglob("*.dcm")]
        (patient,) = {str(dataset.PatientID) for dataset in slices}
        patients.append(patient)
    assert patients[0] == patients[2]
    assert patients[0] != patients[1]


def test_partial_cohort_is_noted(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    (cohort / "cohort.yaml").write_text("configuration: {labels: [hepatic tumor], num_cases: 12}\n")
    outcome = run_cli("export", "dicom", cohort, "--out", tmp_path / "dicom")
    assert outcome.code == 0
    assert "Note: 1 of 12 planned cases of the cohort are accepted." in outcome.stderr


def test_header_says_that_nobody_was_scanned(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    export_dicom(cohort, tmp_path / "dicom")
    folder = tmp_path / "dicom" / "case_0001"
    for path in (folder / "CT" / "0001.dcm", folder / "SEG.dcm"):
        dataset = pydicom.dcmread(path)
        assert str(dataset.PatientName) == "Synthetic^case_0001"
        assert dataset.PatientID.startswith("SYNTHETIC-")
        assert dataset.SyntheticData == "YES"
        assert "synthetic" in dataset.SeriesDescription
        assert list(dataset.ImageType[:2]) == ["DERIVED", "SECONDARY" if dataset.Modality == "CT" else "PRIMARY"]
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    ct, segmentation = pydicom.dcmread(folder / "CT" / "0001.dcm"), pydicom.dcmread(folder / "SEG.dcm")
    assert ct.FrameOfReferenceUID == segmentation.FrameOfReferenceUID
    assert ct.StudyInstanceUID == segmentation.StudyInstanceUID
    assert ct.SeriesInstanceUID != segmentation.SeriesInstanceUID
    referenced = segmentation.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == ct.SeriesInstanceUID


def test_same_cohort_has_the_same_bytes_and_another_image_other_uids(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    for name in ("one", "two"):
        export_dicom(cohort, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 2 * (GRID.shape[2] + 1) + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    rows = json.loads((tmp_path / "one" / INDEX_NAME).read_text())["cases"]
    assert rows["case_0001"]["study_instance_uid"] != rows["case_0002"]["study_instance_uid"]
    (segment,) = rows["case_0001"]["segments"]
    assert segment == {
        "segment": 1,
        "name": "hepatic tumor",
        "vocabulary_id": HEPATIC_TUMOR,
        "totalsegmentator": "liver_lesions/liver_lesions",
    }


def test_uid_is_valid_and_follows_from_its_parts() -> None:
    uid = pydicom.uid.UID(build_uid("study", "case_0001", 3))
    assert uid.is_valid
    assert uid == build_uid("study", "case_0001", 3) != build_uid("study", "case_0001", 4)


def test_values_below_the_usual_intercept_are_kept(tmp_path: Path) -> None:
    from maisi_aug.cohort.manifest import load_manifest
    from maisi_aug.integrations.dicom.image import build_series

    case = load_manifest(write_cohort(tmp_path, [HEPATIC_TUMOR])).records[0]
    image_hu = np.full(GRID.shape, -2000, dtype=np.int16)
    image_hu[0, 0, 0] = 32767
    lowest = next(iter(build_series(case, image_hu, GRID)))
    hu = lowest.pixel_array.astype(int) + int(lowest.RescaleIntercept)
    assert (hu.min(), hu[-1, -1]) == (-2000, 32767)


@pytest.mark.parametrize("label_id", SNOMED)
def test_codes_of_snomed_mean_the_label(label_id: int) -> None:
    code, name = code_of(label_id, MAISI.name_of(label_id)), MAISI.name_of(label_id)
    assert code.scheme_designator == "SCT"
    assert code.meaning.lower().replace("intestine", "bowel") == name


def test_other_labels_have_a_code_of_this_package() -> None:
    code = code_of(5, "right kidney")
    assert (code.value, code.scheme_designator, code.meaning) == ("5", "99MAISIAUG", "right kidney")


def test_every_organ_is_exported_where_asked_for(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR, KIDNEY_TUMOR])
    report = export_dicom(cohort, tmp_path / "dicom", include_anatomy=True)
    assert report.segments == (*map(MAISI.name_of, (LIVER, SPLEEN, HEPATIC_TUMOR)), "kidney tumor")
    rows = json.loads((tmp_path / "dicom" / INDEX_NAME).read_text())["cases"]
    assert [len(row["segments"]) for row in rows.values()] == [3, 4]


def test_command_writes_and_reports(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    cohort, out = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]), tmp_path / "dicom"
    outcome = run_cli("export", "dicom", cohort, "--out", out)
    assert (outcome.code, outcome.stdout) == (0, f"{out}: 1 CT series (11 slices), 1 segmentations of hepatic tumor.\n")
    refused = run_cli("export", "dicom", cohort, "--out", out, "--json")
    assert refused.code == 1
    assert "the folder must be new or empty, found 'case_0001' in it" in refused.stderr


def test_nothing_half_exported_is_left(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    (cohort / "anatomy" / "case_0002.nii.gz").write_bytes(b"other")
    with pytest.raises(ExportError, match="case_0002: .* has changed since it was written"):
        export_dicom(cohort, tmp_path / "dicom")
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_sheared_grid_is_refused(tmp_path: Path) -> None:
    cohort = shear_cohort(write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]))
    with pytest.raises(ExportError, match="case_0001: .* has sheared voxel axes"):
        export_dicom(cohort, tmp_path / "dicom")


def test_labels_that_do_not_occur_are_named(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    with pytest.raises(ExportError, match="has brain"):
        export_dicom(cohort, tmp_path / "dicom", labels=["brain"])
    with pytest.raises(VocabularyError, match="Label 'livr': not a name or id"):
        export_dicom(cohort, tmp_path / "dicom", labels=["livr"])
    assert not (tmp_path / "dicom").exists()


def test_missing_packages_name_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match="DICOM export: needs the packages of the extra 'dicom'"):
        export_dicom(tmp_path, tmp_path / "dicom")


def test_images_without_label_maps_are_exported_alone(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [])
    manifest = cohort / "manifest.jsonl"
    record = json.loads(manifest.read_text())
    record["files"] = {"image": record["files"]["image"]}
    manifest.write_text(json.dumps(record) + "\n")
    report = export_dicom(cohort, tmp_path / "dicom")
    assert (report.num_cases, report.num_segmentations) == (1, 0)
    with pytest.raises(ExportError, match="the images were drawn without label maps"):
        export_dicom(cohort, tmp_path / "again", include_anatomy=True)
