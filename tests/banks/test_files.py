"""Every layout that people keep label maps in is listed, with the CT that belongs to each map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from maisi_aug.banks.case_files import case_of, stem_of
from maisi_aug.banks.files import digest_of, find_entries, load_label_names
from maisi_aug.errors import BankError
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import MAISI


def _is_organ(name: str) -> bool:
    return find_label_id(name, MAISI) is not None


def _touch(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def _pairs(path: Path) -> dict[str, str | None]:
    entries, _ = find_entries(path, _is_organ)
    return {entry.name: entry.image_path.name if entry.image_path else None for entry in entries}


def test_pairs_by_suffix(tmp_path: Path) -> None:
    _touch(tmp_path, ["a_ct.nii.gz", "a_seg_v1.nii.gz", "b-image.mha", "b-label.mha", "c_seg.nrrd", ".d_seg.nii.gz"])
    assert _pairs(tmp_path) == {
        "a_seg_v1.nii.gz": "a_ct.nii.gz",
        "b-label.mha": "b-image.mha",
        "c_seg.nrrd": None,
    }


def test_single_label_map_finds_its_ct(tmp_path: Path) -> None:
    _touch(tmp_path, ["a_ct.nii.gz", "a_seg.nii.gz", "b_seg.nii.gz"])
    assert _pairs(tmp_path / "a_seg.nii.gz") == {"a_seg.nii.gz": "a_ct.nii.gz"}


def test_files_without_any_role_are_label_maps(tmp_path: Path) -> None:
    _touch(tmp_path, ["p1.nii.gz", "p2.nrrd", "notes.txt"])
    assert set(_pairs(tmp_path)) == {"p1.nii.gz", "p2.nrrd"}


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr"), ("images", "masks")])
def test_two_folders_pair_by_case_name(tmp_path: Path, images: str, labels: str) -> None:
    _touch(
        tmp_path,
        [f"{images}/k_0000.nii.gz", f"{images}/k_0001.nii.gz", f"{labels}/k.nii.gz", f"{labels}/l.nii.gz"],
    )
    assert _pairs(tmp_path) == {f"{labels}/k.nii.gz": "k_0000.nii.gz", f"{labels}/l.nii.gz": None}


def test_cohort_is_read_from_its_anatomy_and_not_from_its_labels(tmp_path: Path) -> None:
    _touch(tmp_path, ["anatomy/case_0000.nii.gz", "labels/case_0000.nii.gz", "images/case_0000.nii.gz"])
    entries, _ = find_entries(tmp_path, _is_organ)
    assert [(entry.name, entry.has_vocabulary_ids) for entry in entries] == [("anatomy/case_0000.nii.gz", True)]
    assert entries[0].image_path == tmp_path / "images" / "case_0000.nii.gz"


def test_masks_of_single_organs_are_one_label_map(tmp_path: Path) -> None:
    organs = ["liver", "kidney_left", "heart_atrium_left", "spleen"]
    _touch(tmp_path / "s1", ["ct.nii.gz", *(f"segmentations/{organ}.nii.gz" for organ in organs)])
    _touch(tmp_path / "s2", ["ct.nii.gz", *(f"segmentations/{organ}.nii.gz" for organ in organs)])
    entries, _ = find_entries(tmp_path, _is_organ)
    assert [entry.name for entry in entries] == ["s1/segmentations", "s2/segmentations"]
    assert entries[0].organ_names == tuple(sorted(organs))
    assert entries[0].image_path == tmp_path / "s1" / "ct.nii.gz"
    flat, _ = find_entries(tmp_path / "s1" / "segmentations", _is_organ)
    assert flat[0].name == "segmentations"
    assert flat[0].image_path == tmp_path / "s1" / "ct.nii.gz"


def test_data_list_is_relative_to_its_folder_and_keeps_listed_ids(tmp_path: Path) -> None:
    _touch(tmp_path, ["d/x.nii.gz", "d/x_image.nii.gz", "d/m.nii.gz"])
    rows = [
        {"image": "d/x_image.nii.gz", "label": "d/x.nii.gz"},
        {"pseudo_label_filename": "d/m.nii.gz", "label_list": [1, 26]},
        {"label": "d/gone.nii.gz"},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"training": rows}))
    entries, skipped = find_entries(tmp_path / "list.json", _is_organ)
    assert [(entry.name, entry.listed_ids) for entry in entries] == [("d/m.nii.gz", (1, 26)), ("d/x.nii.gz", None)]
    assert skipped == [("d/gone.nii.gz", "gone.nii.gz is missing")]


def test_empty_files_are_named(tmp_path: Path) -> None:
    _touch(tmp_path, ["a_seg.nii.gz", "b_seg.nii.gz", "b_ct.nii.gz"])
    (tmp_path / "a_seg.nii.gz").write_bytes(b"")
    (tmp_path / "b_ct.nii.gz").write_bytes(b"")
    entries, skipped = find_entries(tmp_path, _is_organ)
    assert entries == []
    assert skipped == [("a_seg.nii.gz", "a_seg.nii.gz is empty"), ("b_seg.nii.gz", "b_ct.nii.gz is empty")]


@pytest.mark.parametrize(
    "document",
    [
        {"0": "background", "1": "liver"},
        {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}},
        {"labels": {"0": "background", "1": "liver"}, "numTraining": 3},
    ],
)
def test_label_names_in_any_direction(tmp_path: Path, document: object) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(document))
    assert load_label_names(tmp_path / "labels.json") == {"": {0: "background", 1: "liver"}}


def test_label_names_per_kind_of_map(tmp_path: Path) -> None:
    _touch(tmp_path, ["p_ct.nii.gz", "p_oar.nii.gz", "p_ptv.nii.gz"])
    (tmp_path / "labels.json").write_text(json.dumps({"oar": {"1": "Esophagus"}, "ptv": {"1": "PTV56"}}))
    entries, _ = find_entries(tmp_path, _is_organ)
    assert {entry.name: entry.label_names for entry in entries} == {
        "p_oar.nii.gz": {1: "Esophagus"},
        "p_ptv.nii.gz": {1: "PTV56"},
    }


def test_label_names_above_the_bank_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"1": "liver"}')
    _touch(tmp_path / "bank", ["a_seg.nii.gz"])
    entries, _ = find_entries(tmp_path / "bank", _is_organ)
    assert entries[0].label_names is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "has no label ids with names"),
        ('{"labels": {"a": ["b", 2]}}', "'a': 'b'"),
    ],
)
def test_bad_label_names_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(BankError, match=message):
        load_label_names(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone", None, "not found"),
        ("a.txt", "x", "not a folder, a JSON data list or a label map"),
        ("a.json", "{", "not a valid JSON data list"),
        ("b.json", '{"training": 3}', "found another structure"),
        ("c.json", '[{"image": "x"}]', "row 0 has no 'label', found"),
        ("d.json", '[{"label": "x"}, {"label": "x"}]', "x' in row 1 is already listed"),
        ("e.json", '[{"label": "x\\u0000"}]', "row 0"),
        ("f.json", '[{"label": "x", "label_list": [1, "two"]}]', "must hold label ids from 0 to 65535, found"),
        ("g.json", '[{"label": "x", "label_list": [70000]}]', r"in row 0 must hold .*, found \[70000\]"),
    ],
)
def test_bad_banks_are_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BankError, match=message):
        find_entries(tmp_path / name, _is_organ)


def test_stem_drops_double_suffixes() -> None:
    assert [stem_of(Path(name)) for name in ("a.b.nii.gz", "c.mha", "d.nii")] == ["a.b", "c", "d"]


def test_digest_is_that_of_the_files_and_not_of_their_place(tmp_path: Path) -> None:
    names = ["a_seg.nii.gz", "a_ct.nii.gz", "b_seg.nii.gz"]
    one, other = (_touch(tmp_path / place, names) for place in ("one", "other"))
    assert digest_of(find_entries(one, _is_organ)[0]) == digest_of(find_entries(other, _is_organ)[0])


@pytest.mark.parametrize("name", ["a_seg.nii.gz", "a_ct.nii.gz", "c_seg.nii.gz", "labels.json", "s1/slice_2.dcm"])
def test_digest_changes_with_any_file(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, ["a_seg.nii.gz", "a_ct.nii.gz", "b_seg.nii.gz", "s1/slice_1.dcm"])
    (tmp_path / "list.json").write_text(json.dumps([{"label": "b_seg.nii.gz", "image": "s1"}]))
    bank = tmp_path / "list.json" if name.startswith("s1") else tmp_path
    before = digest_of(find_entries(bank, _is_organ)[0])
    (tmp_path / name).write_text(json.dumps({"1": "liver"}))
    assert digest_of(find_entries(bank, _is_organ)[0]) != before


def test_id_of_regions_is_called_as_the_smallest_that_holds_it(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert load_label_names(tmp_path / "dataset.json") == {
        "": {0: "background", 1: "kidney", 2: "tumor", 3: "masses except tumor"}
    }


@pytest.mark.parametrize(
    ("path", "case"),
    [
        ("images/liver_7_0000.nii.gz", "liver_7"),
        ("p1_ct.nii.gz", "p1"),
        ("s0001/ct.nii.gz", "s0001"),
        ("s0001/seg.nii.gz", "s0001"),
        ("scan.nii.gz", "scan"),
    ],
)
def test_case_is_told_by_the_file_or_its_folder(path: str, case: str) -> None:
    assert case_of(Path(path)) == case
