"""Names in a label map's own header are read, the last table where there are several, and damage is left to others."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.own_names import load_own_names
from tests.builders.tiny_bank import HEPATIC_TUMOR, LIVER, build_ct, build_trunk, network_grid, trunk_grid, write_case


def table(names: dict[int, str]) -> nib.nifti1.Nifti1Extension:
    """An extension as Connectome's workbench and TotalSegmentator write it."""
    rows = "".join(f'<Label Key="{i}" Red="1" Alpha="1"><![CDATA[{name}]]></Label>\n' for i, name in names.items())
    xml = f'<?xml version="1.0" encoding="UTF-8"?> <CaretExtension><VolumeInformation Index="0"><LabelTable>{rows}'
    return nib.nifti1.Nifti1Extension(0, f"{xml}</LabelTable></VolumeInformation></CaretExtension>\n   ".encode())


def write_nifti(path: Path, *tables: dict[int, str], array: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(np.ones((5, 4, 3), np.uint8) if array is None else array, trunk_grid().affine)
    image.header.extensions.extend(map(table, tables))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def test_table_of_a_nifti_header_is_read(tmp_path: Path) -> None:
    names = {1: "liver", 2: "liver_tumor"}
    for name in ("a.nii", "b.nii.gz"):
        assert load_own_names(write_nifti(tmp_path / name, names)) == names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_own_names(write_nifti(tmp_path / "c.nii.gz", names, names)) == names
    assert load_own_names(write_nifti(tmp_path / "d.nii.gz")) == {}


def test_stale_table_gives_way_to_the_last_and_is_told(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", {1: "spleen", 2: "tumor"}, {1: "liver", 2: "tumor"})
    with pytest.warns(
        UserWarning, match="a.nii.gz: its header has 2 different tables of label names; the last one, which"
    ):
        assert load_own_names(path) == {1: "liver", 2: "tumor"}


def test_segments_of_slicer_are_read(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.uint8))
    for number, (value, name) in enumerate({1: "Liver", 5: "Tumor"}.items()):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
        image.SetMetaData(f"Segment{number}_Layer", "0")
    SimpleITK.WriteImage(image, tmp_path / "a.seg.nrrd", True)
    assert load_own_names(tmp_path / "a.seg.nrrd") == {1: "Liver", 5: "Tumor"}
    image.SetMetaData("Segment1_Layer", "1")
    SimpleITK.WriteImage(image, tmp_path / "b.seg.nrrd", True)
    assert load_own_names(tmp_path / "b.seg.nrrd") == {}


@pytest.mark.parametrize(
    "xml",
    [
        *(b"<LabelTable", b"<LabelTable><Label/></LabelTable>", b'<LabelTable><Label Key="x">a</Label></LabelTable>'),
        b'<!DOCTYPE a [<!ENTITY b "c">]><LabelTable><Label Key="1">&b;</Label></LabelTable>',
        b"\x00\xff",
    ],
)
def test_other_extensions_are_none(tmp_path: Path, xml: bytes) -> None:
    image = nib.Nifti1Image(np.ones((5, 4, 3), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml))
    nib.save(image, tmp_path / "a.nii.gz")
    assert load_own_names(tmp_path / "a.nii.gz") == {}


def test_damaged_and_missing_files_have_no_names(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    assert load_own_names(tmp_path / "a.nii.gz") == {}
    assert load_own_names(tmp_path / "gone.nii.gz") == {}


def test_bank_of_maps_with_their_own_names_needs_no_mapping(tmp_path: Path) -> None:
    trunk = build_trunk(tumours_mm=(20.0,))
    write_case(tmp_path, "a", trunk, with_ct=True)
    own = np.select([trunk == LIVER, trunk == HEPATIC_TUMOR], [7, 9], 0).astype(np.uint8)
    write_nifti(tmp_path / "a_seg.nii.gz", {7: "liver", 9: "tumor"}, array=own)
    bank = FolderBank(tmp_path, vocabulary=MAISI, grid=network_grid())
    found = bank.load(0)
    assert found is not None
    np.testing.assert_array_equal(found.label_map == HEPATIC_TUMOR, trunk == HEPATIC_TUMOR)
    assert build_ct(trunk).shape == found.label_map.shape
