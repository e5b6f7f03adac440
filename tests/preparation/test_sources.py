from __future__ import annotations

import json
from pathlib import Path

import pytest

from maisi_aug.errors import PreparationError
from maisi_aug.preparation.collecting import collect_cases, find_dataset, read_dataset
from maisi_aug.preparation.request import Sources
from maisi_aug.preparation.sources import find_images, find_labels, find_organs, to_case_id


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(files: object) -> dict[str, list[str]]:
    assert isinstance(files, dict)
    return {case_id: [file.path.name for file in found] for case_id, found in files.items()}


def test_one_folder_of_images_and_several_label_files(tmp_path: Path) -> None:
    folder = touch(tmp_path, *(f"pt_{n}_{kind}.nii.gz" for n in (1, 12) for kind in ("ct", "oar", "ptv")), "index.csv")
    (folder / "labels.json").write_text(json.dumps({"oar": {"1": "Brainstem"}, "ptv": {"1": "PTV56"}}))
    images = find_images(folder)
    assert {case_id: path.name for case_id, path in images.items()} == {
        "pt_1": "pt_1_ct.nii.gz",
        "pt_12": "pt_12_ct.nii.gz",
    }
    labels = find_labels(folder, images, images=images.values())
    assert names_of(labels) == {n: [f"{n}_oar.nii.gz", f"{n}_ptv.nii.gz"] for n in ("pt_1", "pt_12")}
    assert [(file.role, file.names) for file in labels["pt_1"]] == [
        ("oar", {1: "Brainstem"}),
        ("ptv", {1: "PTV56"}),
    ]
    only = find_labels(folder, images, ["{id}_oar"], images=images.values())
    assert names_of(only) == {"pt_1": ["pt_1_oar.nii.gz"], "pt_12": ["pt_12_oar.nii.gz"]}
    assert only["pt_1"][0].names == {1: "Brainstem"}


def test_two_folders_with_the_same_names(tmp_path: Path) -> None:
    images = find_images(touch(tmp_path / "i", "a.nii.gz", "b.mha"))
    assert {case_id: path.name for case_id, path in images.items()} == {"a": "a.nii.gz", "b": "b.mha"}
    labels = find_labels(touch(tmp_path / "l", "a.nrrd", "b.nii.gz", "c.nii.gz"), images)
    assert names_of(labels) == {"a": ["a.nrrd"], "b": ["b.nii.gz"]}


def test_nnunet_suffix_of_images_is_tolerated(tmp_path: Path) -> None:
    images = find_images(touch(tmp_path / "i", "case_001_0000.nii.gz", "case_002_0000.nii.gz"))
    assert list(images) == ["case_001", "case_002"]
    dated = find_images(touch(tmp_path / "d", "a_0000.nii.gz", "b_0000.nii.gz", "atlas_2019.nii.gz"))
    assert list(dated) == ["a", "b"]
    assert list(find_labels(touch(tmp_path / "l", "case_002.nii.gz"), images)) == ["case_002"]


def test_names_counted_from_0000_are_cases_of_their_own(tmp_path: Path) -> None:
    names = [f"case_{number:04d}" for number in range(4)]
    images = find_images(touch(tmp_path / "i", *(f"{name}.nii.gz" for name in names)))
    assert list(images) == names
    assert list(find_labels(touch(tmp_path / "l", *(f"{name}.nii.gz" for name in names)), images)) == names
    segs = find_labels(touch(tmp_path / "s", *(f"{name}_seg.nii.gz" for name in names)), images)
    assert names_of(segs) == {name: [f"{name}_seg.nii.gz"] for name in names}


def test_hidden_files_match_no_pattern(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a_ct.nii.gz", "._a_ct.nii.gz", "a_seg.nii.gz", "._a_seg.nii.gz", ".b/c_ct.nii.gz")
    images = find_images(folder, "{id}_ct")
    assert list(images) == ["a"]
    assert names_of(find_labels(folder, images, ["{id}_seg"])) == {"a": ["a_seg.nii.gz"]}
    with pytest.raises(PreparationError, match="no images found"):
        find_images(folder, "{id}/c_ct")


def test_masks_per_label_in_a_folder_per_case(tmp_path: Path) -> None:
    folder = touch(tmp_path, "s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s1/segmentations/spleen.nii.gz")
    images = find_images(folder)
    assert {case_id: path.name for case_id, path in images.items()} == {"s1": "ct.nii.gz"}
    labels = find_labels(folder, images)
    assert [file.mask_name for file in labels["s1"]] == ["liver", "spleen"]
    same = find_labels(folder, images, ["{id}/segmentations/{label}"])
    assert [file.mask_name for file in same["s1"]] == ["liver", "spleen"]
    assert list(find_images(folder, "{id}/ct")) == ["s1"]


def test_dicom_series_in_a_folder_per_case(tmp_path: Path) -> None:
    folder = touch(tmp_path, "s1/1.dcm", "s1/2.dcm", "s2/notes.txt")
    assert find_images(folder) == {"s1": folder / "s1"}


def test_slice_called_like_a_channel_is_no_image(tmp_path: Path) -> None:
    folder = touch(tmp_path, "s1/0000.dcm", "s1/0001.dcm", "s2/image_0000.dcm", "s2/image_0001.dcm")
    assert find_images(folder) == {"s1": folder / "s1", "s2": folder / "s2"}


def test_series_in_a_folder_beside_files_is_a_case_like_them(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.nii.gz", "s1/1.dcm", "s1/2.dcm", "notes/a.txt")
    assert find_images(folder) == {"a": folder / "a.nii.gz", "s1": folder / "s1"}


def test_folder_of_slices_is_one_case(tmp_path: Path) -> None:
    folder = touch(tmp_path / "P7", "1.dcm", "2.dcm")
    assert find_images(folder) == {"P7": folder}


def test_organs_are_one_map_or_masks(tmp_path: Path) -> None:
    folder = touch(tmp_path / "o", "a.nii.gz", "b/liver.nii.gz", "b/spleen.nii.gz")
    organs = find_organs(folder, ["a", "b"])
    assert [file.mask_name for file in organs["a"]] == [None]
    assert [file.mask_name for file in organs["b"]] == ["liver", "spleen"]
    with pytest.raises(
        PreparationError, match="case a: expected one label map or a folder of masks, found a.nii.gz, a_2"
    ):
        find_organs(touch(folder, "a_2.nii.gz"), ["a", "b"])
    pairs = touch(tmp_path / "pairs", "c_ct.nii.gz", "c_seg_v1.nii.gz", "d.nii.gz", "d_seg.nii.gz")
    organs = find_organs(pairs, ["c", "d"], images=[pairs / "d.nii.gz"])
    assert names_of(organs) == {"c": ["c_seg_v1.nii.gz"], "d": ["d_seg.nii.gz"]}
    beside = touch(tmp_path / "beside", "c_ct.nii.gz", "c_seg_v1.nii.gz")
    (case,), notes = collect_cases(Sources(images=beside, organs=(beside,)))
    assert [file.path.name for files in case.organs for file in files] == ["c_seg_v1.nii.gz"]
    assert notes == ()  # nothing is left out


def test_case_names_become_file_names() -> None:
    assert to_case_id("Pat 1/ü") == "Pat_1__"
    assert to_case_id("_x") == "x"


def test_pattern_finds_cases_whose_names_are_no_file_names(tmp_path: Path) -> None:
    touch(tmp_path, "Müller 1_ct.nii.gz", "Müller 1_seg.nii.gz")
    images = find_images(tmp_path)
    assert list(images) == ["M_ller_1"]
    assert names_of(find_labels(tmp_path, images, ["{id}_seg"])) == {"M_ller_1": ["Müller 1_seg.nii.gz"]}


def test_faults_of_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="nowhere: folder not found."):
        find_images(tmp_path / "nowhere")
    with pytest.raises(PreparationError, match="no images found."):
        find_images(tmp_path)
    with pytest.raises(PreparationError, match="in place of the case's name, found 'ct'"):
        find_images(tmp_path, "ct")
    touch(tmp_path, "a_ct.nii.gz", "a_image.nii.gz")
    with pytest.raises(PreparationError, match="case a has two images, a_ct.nii.gz and"):
        find_images(tmp_path)
    with pytest.raises(
        PreparationError, match="no label files named after the images, such as b.nii.gz or b_seg.nii.gz. Give a name"
    ):
        find_labels(tmp_path, ["b"])
    (tmp_path / "labels.json").write_text("[")
    with pytest.raises(PreparationError, match=r"labels\.json: label names cannot be read as JSON: Expecting"):
        find_labels(tmp_path, ["a"])


def write_dataset(folder: Path, **changes: object) -> Path:
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "whole": [1, 2], "kidney": 1, "tumor": 2},
        "file_ending": ".nii.gz",
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def test_nnunet_dataset_by_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path / "Dataset220_Kits")
    touch(folder, "imagesTr/k1_0000.nii.gz", "imagesTr/k2_0000.nii.gz", "labelsTr/k1.nii.gz", "labelsTr/k2.nii.gz")
    (case, _) = read_dataset(find_dataset(str(folder)))
    assert (case.id, case.image.name, case.labels[0].path.name) == ("k1", "k1_0000.nii.gz", "k1.nii.gz")
    assert case.labels[0].names == {0: "background", 1: "kidney", 2: "tumor"}
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert find_dataset("220") == find_dataset("Dataset220_Kits") == folder
    (folder / "imagesTr/k2_0000.nii.gz").unlink()
    with pytest.raises(PreparationError, match="1 files of training cases are missing; the first is"):
        read_dataset(folder)


def test_nnunet_dataset_by_its_entry(tmp_path: Path) -> None:
    entry = {"k1": {"images": ["../raw/k1_mr.mha", "../raw/k1_ct.mha"], "label": "../raw/k1.nii.gz"}}
    folder = write_dataset(tmp_path / "d", dataset=entry, channel_names={"0": "MR", "1": "ct"})
    touch(tmp_path / "raw", "k1_ct.mha", "k1.nii.gz")
    (case,) = read_dataset(folder)
    assert (case.image.name, case.labels[0].path.name) == ("k1_ct.mha", "k1.nii.gz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": 3}, "nnU-Net's entries 'labels' and 'channel_names' are required, found:"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, "needs one channel, or one named CT, found T1, T2"),
        ({"dataset": {"k1": {"images": []}}}, "images' and 'label' are missing in dataset.k1, found"),
        ({}, "has no training cases in labelsTr"),
    ],
)
def test_faults_of_a_dataset_are_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(PreparationError, match=words):
        read_dataset(write_dataset(tmp_path, **changes))


def test_unknown_dataset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(
        PreparationError, match="--nnunet 7: no raw dataset .*; the variable nnUNet_raw is not set. Check the path"
    ):
        find_dataset("7")


def test_cases_are_collected_with_notes(tmp_path: Path) -> None:
    lab = touch(tmp_path / "lab", *(f"{case}_ct.nii.gz" for case in "abc"), "a_seg.nii.gz", "b_seg.nii.gz")
    organs = touch(tmp_path / "organs", "b.nii.gz")
    cases, notes = collect_cases(Sources(images=lab, labels=lab, organs=(organs,)))
    assert [case.id for case in cases] == ["a", "b"]
    assert [len(case.organs) for case in cases] == [0, 1]
    assert notes == ("Left out, because they have no label file: c.", f"--organs {organs} has nothing for a.")
    (case,), notes = collect_cases(Sources(images=lab, labels=lab, excluded=("a", "c")))
    assert (case.id, notes) == ("b", ())
    unlabelled, _ = collect_cases(Sources(images=lab, image_pattern="{id}_ct"))
    assert [(case.id, case.labels) for case in unlabelled] == [("a", ()), ("b", ()), ("c", ())]


def test_files_that_are_left_out_or_laid_over_others_are_told(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "p1_ct.nii.gz", "p2_ct.nii.gz", "p3.nii.gz")
    labels = touch(tmp_path / "l", "p1.nii.gz", "p1_2.nii.gz", "p2.nii.gz")
    cases, notes = collect_cases(Sources(images=images, labels=labels))
    assert [case.id for case in cases] == ["p1", "p2"]
    assert [note.partition(":")[2] for note in notes[:1]] == [" p3.nii.gz."]
    assert notes[1:] == ("Label files of p1, p1.nii.gz, p1_2.nii.gz, are merged; later ones override earlier ones.",)
    lab = touch(tmp_path / "lab", *(f"p{n}_{kind}.nii.gz" for n in range(9) for kind in ("ct", "oar", "ptv")))
    _, notes = collect_cases(Sources(images=lab, labels=lab))
    assert [note.rpartition("; ")[2] for note in notes] == ["likewise for 8 other cases."]
    patterns = ("{id}_oar", "{id}_ptv")
    assert collect_cases(Sources(images=lab, labels=lab, label_patterns=patterns))[1] == ()
    assert collect_cases(Sources(images=lab, labels=lab, label_patterns=patterns[:1]))[1] == ()


def test_case_is_excluded_by_the_name_of_its_files(tmp_path: Path) -> None:
    lab = touch(tmp_path, "pat 1_ct.nii.gz", "pat 1_seg.nii.gz", "pat 2_ct.nii.gz", "pat 2_seg.nii.gz")
    for name in ("pat 1", "pat_1"):
        (case,), _ = collect_cases(Sources(images=lab, labels=lab, excluded=(name,)))
        assert case.id == "pat_2"


def test_contradicting_sources_are_refused(tmp_path: Path) -> None:
    lab = touch(tmp_path, "a_ct.nii.gz", "a_seg.nii.gz")
    with pytest.raises(PreparationError, match="Sources: --nnunet cannot be used together with --images and --labels"):
        collect_cases(Sources(images=lab, nnunet="7"))
    with pytest.raises(PreparationError, match="Sources: --images with --labels, or --nnunet, is required"):
        collect_cases(Sources())
    with pytest.raises(PreparationError, match="--exclude z: there is no such case; names look like a"):
        collect_cases(Sources(images=lab, labels=lab, excluded=("z",)))
    with pytest.raises(PreparationError, match="Cases: none is left"):
        collect_cases(Sources(images=lab, labels=lab, excluded=("a",)))
