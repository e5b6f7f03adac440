"""One grammar of file names: every layout of public datasets and tools is paired, and no file is lost silently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maisi_aug.banks.case_files import case_of, pair_by_name, read_file_name, sort_files, split_channels, stem_of
from maisi_aug.banks.files import BankFiles, list_bank
from maisi_aug.errors import PreparationError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.preparation.collecting import collect_cases
from maisi_aug.preparation.request import Sources
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.made_dicom import build_header, item

CT_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
MSD_JSON = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "FRAMES": "1.2.840.10008.5.1.4.1.1.2.1",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "RT": "1.2.840.10008.5.1.4.1.1.481.3",
    "DOSE": "1.2.840.10008.5.1.4.1.1.481.2",
}
ORGANS = ("liver", "spleen", "stomach", "colon")

# Name of the layout: its files, its dataset.json, (case, image, label map or folder of masks), --images and --labels.
LAYOUTS: dict[str, tuple[Sequence[str], object, Sequence[tuple[str, str, str]], tuple[str, str]]] = {
    "nnU-Net": (
        ["imagesTr/la_003_0000.nii.gz", "labelsTr/la_003.nii.gz", "imagesTs/la_004_0000.nii.gz"],
        CT_JSON,
        [("la_003", "imagesTr/la_003_0000.nii.gz", "labelsTr/la_003.nii.gz")],
        ("imagesTr", "labelsTr"),
    ),
    "nnU-Net, PET and CT": (
        [f"imagesTr/{case}_000{n}.nii.gz" for case in "ab" for n in (0, 1)]
        + ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"],
        {**CT_JSON, "channel_names": {"0": "PET", "1": "CT"}},
        [(case, f"imagesTr/{case}_0001.nii.gz", f"labelsTr/{case}.nii.gz") for case in "ab"],
        ("imagesTr", "labelsTr"),
    ),
    "Medical Decathlon": (
        [
            "imagesTr/liver_1.nii.gz",
            "imagesTr/._liver_1.nii.gz",
            "labelsTr/liver_1.nii.gz",
            "labelsTr/._liver_1.nii.gz",
        ],
        MSD_JSON,
        [("liver_1", "imagesTr/liver_1.nii.gz", "labelsTr/liver_1.nii.gz")],
        ("imagesTr", "labelsTr"),
    ),
    "LiTS": (
        [f"{word}-{n}.nii" for word in ("volume", "segmentation") for n in (0, 1, 10)],
        None,
        [(f"volume-{n}", f"volume-{n}.nii", f"segmentation-{n}.nii") for n in (0, 1, 10)],
        (".", "."),
    ),
    "LiTS in folders": (
        ["volumes/volume-0.nii", "volumes/volume-1.nii", "segmentations/segmentation-0.nii"],
        None,
        [("volume-0", "volumes/volume-0.nii", "segmentations/segmentation-0.nii")],
        ("volumes", "segmentations"),
    ),
    "KiTS": (
        [f"case_0000{n}/{word}.nii.gz" for word in ("imaging", "segmentation") for n in (0, 1)],
        None,
        [(f"case_0000{n}", f"case_0000{n}/imaging.nii.gz", f"case_0000{n}/segmentation.nii.gz") for n in (0, 1)],
        (".", "."),
    ),
    "BTCV": (
        [f"{word}/{word}000{n}.nii.gz" for word in ("img", "label") for n in (1, 2)],
        None,
        [(f"img000{n}", f"img/img000{n}.nii.gz", f"label/label000{n}.nii.gz") for n in (1, 2)],
        ("img", "label"),
    ),
    "Pancreas-CT": (
        ["images/PANCREAS_0001.nii.gz", "images/PANCREAS_0011.nii.gz", "labels/label0001.nii.gz"],
        None,
        [("PANCREAS_0001", "images/PANCREAS_0001.nii.gz", "labels/label0001.nii.gz")],
        ("images", "labels"),
    ),
    "AMOS": (
        [f"{folder}/amos_{n:04d}.nii.gz" for folder in ("imagesTr", "labelsTr") for n in (0, 1, 10)],
        None,
        [(f"amos_{n:04d}", f"imagesTr/amos_{n:04d}.nii.gz", f"labelsTr/amos_{n:04d}.nii.gz") for n in (0, 1, 10)],
        ("imagesTr", "labelsTr"),
    ),
    "FLARE, counted from 0000": (
        [f"images/FLARE_000{n}_0000.nii.gz" for n in (0, 1)] + [f"labels/FLARE_000{n}.nii.gz" for n in (0, 1)],
        None,
        [(f"FLARE_000{n}", f"images/FLARE_000{n}_0000.nii.gz", f"labels/FLARE_000{n}.nii.gz") for n in (0, 1)],
        ("images", "labels"),
    ),
    "numbers and a word": (
        [f"images/scan_000{n}.nii.gz" for n in (0, 1)] + [f"labels/scan_000{n}_seg.nii.gz" for n in (0, 1)],
        None,
        [(f"scan_000{n}", f"images/scan_000{n}.nii.gz", f"labels/scan_000{n}_seg.nii.gz") for n in (0, 1)],
        ("images", "labels"),
    ),
    "3D Slicer": (
        ["P1.nrrd", "P1.seg.nrrd", "P2.nrrd", "P2.seg.nrrd"],
        None,
        [("P1", "P1.nrrd", "P1.seg.nrrd"), ("P2", "P2.nrrd", "P2.seg.nrrd")],
        (".", "."),
    ),
    "a pair of names in one folder": (
        ["P1.nii.gz", "P1_seg.nii.gz", "P2.nii.gz", "P2_seg.nii.gz"],
        None,
        [("P1", "P1.nii.gz", "P1_seg.nii.gz"), ("P2", "P2.nii.gz", "P2_seg.nii.gz")],
        (".", "."),
    ),
    "nnU-Net's names in one folder": (
        ["P1_0000.nii.gz", "P1.nii.gz", "P2_0000.nii.gz", "P2.nii.gz"],
        None,
        [("P1", "P1_0000.nii.gz", "P1.nii.gz"), ("P2", "P2_0000.nii.gz", "P2.nii.gz")],
        (".", "."),
    ),
    "MM-WHS": (
        ["ct_train_1001_image.nii.gz", "ct_train_1001_label.nii.gz"],
        None,
        [("ct_train_1001", "ct_train_1001_image.nii.gz", "ct_train_1001_label.nii.gz")],
        (".", "."),
    ),
    "SegTHOR": (
        [
            "Patient_01/Patient_01.nii.gz",
            "Patient_01/GT.nii.gz",
            "Patient_02/Patient_02.nii.gz",
            "Patient_02/GT.nii.gz",
        ],
        None,
        [(f"Patient_0{n}", f"Patient_0{n}/Patient_0{n}.nii.gz", f"Patient_0{n}/GT.nii.gz") for n in (1, 2)],
        (".", "."),
    ),
    "CT-ORG": (
        ["volume-0.nii.gz", "labels-0.nii.gz", "volume-1.nii.gz", "labels-1.nii.gz"],
        None,
        [("volume-0", "volume-0.nii.gz", "labels-0.nii.gz"), ("volume-1", "volume-1.nii.gz", "labels-1.nii.gz")],
        (".", "."),
    ),
    "CHAOS, converted": (
        ["1/DICOM_anon/i0001.dcm", "1/DICOM_anon/i0002.dcm", "1/Ground_truth.nii.gz"],
        None,
        [("1", "1/DICOM_anon", "1/Ground_truth.nii.gz")],
        ("", ""),
    ),
    "cases called like vertebrae": (
        [f"imagesTr/L{n}_0000.nii.gz" for n in (1, 2, 3)] + [f"labelsTr/L{n}.nii.gz" for n in (1, 2, 3)],
        None,
        [(f"L{n}", f"imagesTr/L{n}_0000.nii.gz", f"labelsTr/L{n}.nii.gz") for n in (1, 2, 3)],
        ("imagesTr", "labelsTr"),
    ),
    "dots, spaces and capitals": (
        ["Pat 1.2_CT.nii.gz", "Pat 1.2_SEG.nii.gz"],
        None,
        [("Pat 1.2", "Pat 1.2_CT.nii.gz", "Pat 1.2_SEG.nii.gz")],
        (".", "."),
    ),
    "cases called like label maps": (
        ["images/mask_01.nii.gz", "images/P_seg.nii.gz", "labels/mask_01.nii.gz", "labels/P_seg.nii.gz"],
        None,
        [(case, f"images/{case}.nii.gz", f"labels/{case}.nii.gz") for case in ("P_seg", "mask_01")],
        ("images", "labels"),
    ),
    "a folder per case on both sides": (
        [f"{place}/p{n}/{name}.nii.gz" for n in (1, 2) for place, name in (("images", "ct"), ("labels", "seg"))],
        None,
        [(f"p{n}", f"images/p{n}/ct.nii.gz", f"labels/p{n}/seg.nii.gz") for n in (1, 2)],
        ("images", "labels"),
    ),
    "masks per case beside images": (
        ["images/p1.nii.gz", *(f"labels/p1/{organ}.nii.gz" for organ in ORGANS)],
        None,
        [("p1", "images/p1.nii.gz", "labels/p1")],
        ("images", "labels"),
    ),
    "VerSe": (
        ["rawdata/sub-1/sub-1_ct.nii.gz", "derivatives/sub-1/sub-1_seg-vert_msk.nii.gz"],
        None,
        [("sub-1", "rawdata/sub-1/sub-1_ct.nii.gz", "derivatives/sub-1/sub-1_seg-vert_msk.nii.gz")],
        ("rawdata", "derivatives"),
    ),
    "one case": (
        ["case/ct.nii.gz", "case/seg.nii.gz"],
        None,
        [("case", "case/ct.nii.gz", "case/seg.nii.gz")],
        ("case", "case"),
    ),
    "TotalSegmentator": (
        ["s01/ct.nii.gz", *(f"s01/segmentations/{organ}.nii.gz" for organ in ORGANS)],
        None,
        [("s01", "s01/ct.nii.gz", "s01/segmentations")],
        (".", "."),
    ),
    "DICOM slices called like channels": (
        [f"CT:images/{case}/000{n}.dcm" for case in ("P1", "P2") for n in (0, 1)] + ["labels/P1.nii.gz"],
        None,
        [("P1", "images/P1", "labels/P1.nii.gz")],
        ("images", "labels"),
    ),
    "DICOM without suffixes": (
        [*(f"CT:P{n}/study/ct/IM0000{k}" for n in (1, 2) for k in (0, 1)), *(f"SEG:P{n}/study/1-1" for n in (1, 2))],
        None,
        [(f"P{n}", f"P{n}/study", f"P{n}/study/1-1") for n in (1, 2)],
        (".", "."),
    ),
    "DICOM series and SEG in folders called so": (
        [f"{kind}:P{n}/{kind}/1.dcm" for n in (1, 2) for kind in ("CT", "SEG", "DOSE")],
        None,
        [(f"P{n}", f"P{n}/CT", f"P{n}/SEG/1.dcm") for n in (1, 2)],
        (".", "."),
    ),
    "DICOM series beside structures and a segmentation of them": (
        [f"CT:images/P{n}/{k}.dcm" for n in (1, 2) for k in (1, 2)] + ["SEG:labels/P1_seg.dcm", "RT:labels/P2.dcm"],
        None,
        [("P1", "images/P1", "labels/P1_seg.dcm"), ("P2", "images/P2", "labels/P2.dcm")],
        ("images", "labels"),
    ),
    "DICOM on both sides, a folder per case": (
        [f"CT:images/P{n}/series/{k}.IMA" for n in (1, 2) for k in (1, 2)]
        + [f"RT:labels/P{n}/1-1.dcm" for n in (1, 2)],
        None,
        [(f"P{n}", f"images/P{n}", f"labels/P{n}/1-1.dcm") for n in (1, 2)],
        ("", ""),
    ),
    "DICOM slices beside a label map": (
        [f"CT:P{n}/{k}" for n in (1, 2) for k in (1, 2)] + [f"P{n}/seg.nrrd" for n in (1, 2)],
        None,
        [(f"P{n}", f"P{n}", f"P{n}/seg.nrrd") for n in (1, 2)],
        (".", "."),
    ),
    "DICOM slices and TotalSegmentator's masks": (
        ["CT:s01/scan/1.dcm", *(f"s01/segmentations/{organ}.nii.gz" for organ in ORGANS)],
        None,
        [("s01", "s01/scan", "s01/segmentations")],
        (".", "."),
    ),
    "DICOM slices and masks in one folder": (
        ["CT:s01/1.dcm", *(f"s01/{organ}.nii.gz" for organ in ORGANS)],
        None,
        [("s01", "s01", "s01")],
        (".", "."),
    ),
    "files of frames": (
        [f"FRAMES:P{n}.dcm" for n in (1, 2)] + ["P1_seg.nii.gz", "SEG:P2_seg.dcm"],
        None,
        [("P1", "P1.dcm", "P1_seg.nii.gz"), ("P2", "P2.dcm", "P2_seg.dcm")],
        (".", "."),
    ),
    "a data set of one DICOM case": (
        ["CT:P1/1.dcm", "CT:P1/2.dcm", "SEG:P1/SEG.dcm"],
        None,
        [("P1", "P1", "P1/SEG.dcm")],
        ("P1", "P1"),
    ),
}


def _touch(root: Path, names: Sequence[str], description: object = None) -> Path:
    for name in names:
        kind, _, place = name.rpartition(":")
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind:
            _write_dicom(path, kind)
        else:
            path.write_bytes(b"x")
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


def _write_dicom(path: Path, kind: str) -> None:
    """Headers alone, without a voxel."""
    header = build_header(SOP_CLASSES[kind])
    if kind in ("CT", "FRAMES"):
        header.Rows = header.Columns = 4
    if kind == "FRAMES":
        header.NumberOfFrames = 2
    if kind == "SEG":
        header.SegmentationType = "BINARY"
        header.SegmentSequence = item(SegmentNumber=1, SegmentLabel="liver")
    if kind == "RT":
        header.StructureSetROISequence = item(ROINumber=1, ROIName="liver")
    header.save_as(path, enforce_file_format=True)


def _list(path: Path) -> BankFiles:
    return list_bank(path, lambda name: find_label_id(name, MAISI) is not None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_bank_pairs_every_layout(tmp_path: Path, name: str) -> None:
    files, description, expected, _ = LAYOUTS[name]
    found = _list(_touch(tmp_path, files, description))
    seen = []
    for entry in found.entries:
        label = entry.label_paths[0].parent if entry.organ_names else entry.label_paths[0]
        image = "" if entry.image_path is None else entry.image_path.relative_to(tmp_path).as_posix()
        seen.append((image, label.relative_to(tmp_path).as_posix()))
    assert sorted(seen) == sorted((image, label) for _, image, label in expected)
    assert found.faults == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_evaluation_names_the_cases_of_every_layout(tmp_path: Path, name: str) -> None:
    files, description, expected, _ = LAYOUTS[name]
    found = find_case_set(_touch(tmp_path, files, description))
    assert [(case.case_id, case.image_path.relative_to(tmp_path).as_posix()) for case in found.labelled] == sorted(
        (case_id, image) for case_id, image, _ in expected
    )


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout[3][0]])
def test_prepare_pairs_every_layout(tmp_path: Path, name: str) -> None:
    files, description, expected, (images, labels) = LAYOUTS[name]
    _touch(tmp_path, files, description)
    cases, _ = collect_cases(Sources(images=tmp_path / images, labels=tmp_path / labels))
    seen = {
        case.image.relative_to(tmp_path).as_posix(): {
            file.path.relative_to(tmp_path).as_posix() for file in case.labels
        }
        for case in cases
    }
    for _, image, label in expected:
        assert all(file == label or Path(file).parent.as_posix() == label for file in seen[image]), seen
    assert len(seen) == len(expected)


def test_numbered_cases_of_a_bare_folder_are_all_measured(tmp_path: Path) -> None:
    names = [f"scan_{number:04d}" for number in range(4)]
    _touch(tmp_path, [f"{name}.nii.gz" for name in names])
    assert [case.case_id for case in find_case_set(tmp_path).cases] == names


def test_channels_of_a_bare_folder_are_told(tmp_path: Path) -> None:
    _touch(tmp_path, [f"{case}_000{number}.nii.gz" for case in "ab" for number in range(2)])
    found = find_case_set(tmp_path)
    assert [case.case_id for case in found.cases] == ["a", "b"]
    assert [(case.case_id, case.reason) for case in found.skipped] == [
        ("a_0001.nii.gz", "Left out, because it is channel 1 of a."),
        ("b_0001.nii.gz", "Left out, because it is channel 1 of b."),
    ]


def test_numbered_label_maps_of_a_bare_bank_are_all_listed(tmp_path: Path) -> None:
    names = [f"scan_{number:04d}.nii.gz" for number in (1, 2, 3)]
    assert [entry.name for entry in _list(_touch(tmp_path, names)).entries] == names


def test_file_of_no_case_is_told_by_all(tmp_path: Path) -> None:
    _touch(tmp_path, ["a_ct.nii.gz", "a_seg.nii.gz", "dose.nii.gz", "b_seg.nii.gz"])
    assert _list(tmp_path).left_out == [
        ("dose.nii.gz", "its name marks neither an image nor a label map, unlike the names of the files next to it")
    ]
    assert [case.case_id for case in find_case_set(tmp_path).skipped] == ["dose.nii.gz"]
    _, notes = collect_cases(Sources(images=tmp_path, labels=tmp_path))
    assert [note.rpartition(": ")[2] for note in notes[-2:]] == ["dose.nii.gz.", "b_seg.nii.gz."]


def test_label_map_that_fits_two_images_takes_none(tmp_path: Path) -> None:
    _touch(tmp_path, ["images/x_1.nii.gz", "images/y_1.nii.gz", "labels/label1.nii.gz"])
    found = _list(tmp_path)
    assert found.entries == []
    assert found.faults == [
        (
            "labels/label1.nii.gz",
            "its image may be x_1.nii.gz and y_1.nii.gz; give the pair equal names, or write a data list",
        )
    ]


def test_channels_without_a_ct_are_refused(tmp_path: Path) -> None:
    files = ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"]
    _touch(tmp_path, files, {**CT_JSON, "channel_names": {"0": "T1", "1": "T2"}})
    message = "needs one channel, or one named CT, found T1, T2."
    with pytest.raises(Exception, match=message):
        _list(tmp_path)
    with pytest.raises(Exception, match=message):
        find_case_set(tmp_path)
    with pytest.raises(PreparationError, match=message):
        collect_cases(Sources(images=tmp_path / "imagesTr", labels=tmp_path / "labelsTr"))


def test_masks_called_like_vertebrae_need_a_ct_beside_them(tmp_path: Path) -> None:
    names = [f"L{number}.nii.gz" for number in (1, 2, 3)]
    assert len(_list(_touch(tmp_path / "cases", names)).entries) == 3
    (entry,) = _list(_touch(tmp_path / "masks", ["ct.nii.gz", *names])).entries
    assert entry.organ_names == ("L1", "L2", "L3")


@pytest.mark.parametrize(
    ("stem", "role", "case"),
    [
        ("P1_ct", "image", "P1"),
        ("CHUM-001__CT", "image", "CHUM-001"),
        ("imaging", "image", ""),
        ("volume-0", "image", "0"),
        ("img0001", "image", "0001"),
        ("P1.seg", "label", "P1"),
        ("P1_seg_v2", "label", "P1"),
        ("P1_ct_seg", "label", "P1_ct"),
        ("label_map", "label", ""),
        ("label0001", "label", "0001"),
        ("segmental_12", None, "segmental_12"),
        ("L1", None, "L1"),
        ("ctp_001", None, "ctp_001"),
    ],
)
def test_name_is_read(stem: str, role: str | None, case: str) -> None:
    name = read_file_name(stem)
    assert (name.role, name.case) == (role, case)


def test_case_of_a_folder_of_one_case_is_called_as_it() -> None:
    assert case_of(Path("s0001/ct.nii.gz")) == "s0001"
    assert case_of(Path("images/ct.nii.gz")) == "ct"
    assert case_of(Path("images/scan_0000.nii.gz"), "scan_0000") == "scan_0000"


_WORDS = st.sampled_from(["P", "ct", "seg", "L", "scan", "case", "mask", "volume", "a.b", "pat 1", "0001"])
_IDS = st.builds(
    lambda words, mark, number: mark.join(words) + number,
    st.lists(_WORDS, min_size=1, max_size=3),
    st.sampled_from(["_", "-"]),
    st.sampled_from(["", "1", "12", "_7", "_0000", "_0001", "_0010"]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(_IDS, min_size=1, max_size=8, unique=True), st.booleans())
def test_two_folders_of_any_names_pair_each_with_its_own(ids: list[str], has_channels: bool) -> None:
    """Equal names, or nnU-Net's: whatever the cases are called, each label map gets its own image and none is lost."""
    ending = "_0000" if has_channels else ""
    images = [Path("images", f"{case_id}{ending}.nii.gz") for case_id in ids]
    labels = [Path("labels", f"{case_id}.nii.gz") for case_id in ids]
    bases, others = split_channels(images, labels)
    pairs = pair_by_name(labels, bases)
    assert [pair.image for pair in pairs] == images
    assert others == ()


@settings(deadline=None, max_examples=200)
@given(st.lists(_IDS, min_size=1, max_size=8, unique=True), st.booleans(), st.booleans())
def test_every_file_is_something(ids: list[str], are_images: bool, is_paired: bool) -> None:
    """An image, a label map or left out with a reason, and exactly one of them, whatever the names."""
    files = [Path("x", f"{case_id}.nii.gz") for case_id in ids]
    files += [Path("x", f"{case_id}_seg.nii.gz") for case_id in ids if is_paired and f"{case_id}_seg" not in ids]
    found = sort_files(files, are_images=are_images)
    seen = [*found.images, *found.labels, *(out.path for out in found.others)]
    assert sorted(seen) == sorted(files)
    assert all(out.reason for out in found.others)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.from_regex(r"[A-Z][a-z]{0,3}[0-9]{1,3}", fullmatch=True), min_size=1, max_size=6, unique=True))
def test_pairs_in_one_folder_find_each_other(ids: list[str]) -> None:
    """For plain names of cases and every pair of words that tells images and label maps apart."""
    for image_form, label_form in [
        ("{}_ct", "{}_seg"),
        ("{}", "{}.seg"),
        ("{}", "{}_label"),
        ("{}-image", "{}-mask"),
        ("{}_0000", "{}"),
        ("img-{}", "label-{}"),
        ("{}_0000", "{}_seg"),
    ]:
        images = [Path("x", image_form.format(case_id) + ".nrrd") for case_id in ids]
        labels = [Path("x", label_form.format(case_id) + ".nrrd") for case_id in ids]
        found = sort_files([*labels, *images])
        assert (set(found.images), set(found.labels), found.others) == (set(images), set(labels), ())
        assert [pair.image for pair in pair_by_name(labels, found.images, is_one_folder=True)] == images


def test_stem_keeps_inner_dots() -> None:
    assert [stem_of(Path(name)) for name in ("a.b.nii.gz", "P1.seg.nrrd", "c.NII.GZ")] == ["a.b", "P1.seg", "c"]
