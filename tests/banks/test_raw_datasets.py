from __future__ import annotations

import json
from pathlib import Path

import pytest

from maisi_aug.banks.files import list_bank
from maisi_aug.banks.raw_datasets import RawDataset, find_dataset, label_values, note_never_trained
from maisi_aug.errors import BankError, EvaluationError, ExportError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.integrations.nnunet.real import load_real_dataset

CT = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 1, "file_ending": ".nii.gz"}


def write_dataset(folder: Path, document: object = None, case_id: str = "a") -> Path:
    for name in (f"imagesTr/{case_id}_0000.nii.gz", f"labelsTr/{case_id}.nii.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "dataset.json").write_text(json.dumps(CT if document is None else document))
    return folder


@pytest.mark.parametrize("name", ["3", "003", "Liver", "Dataset003_Liver"])
def test_dataset_is_found_by_number_or_name_wherever_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write_dataset(tmp_path / "raw" / "Dataset003_Liver")
    write_dataset(tmp_path / "raw" / "Dataset030_LiverTwo")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert find_dataset(name) == folder
    assert find_case_set(Path(name)).path == folder
    assert load_real_dataset(Path(name)).folder == folder
    (entry,) = list_bank(Path(name), lambda word: False).entries
    assert entry.label_paths == (folder / "labelsTr" / "a.nii.gz",)


def test_path_that_exists_goes_before_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "Dataset003_Liver")
    (tmp_path / "3").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert find_dataset("3") == Path("3")
    assert find_dataset("4") == Path("4")
    assert find_dataset(tmp_path / "gone" / "3") == tmp_path / "gone" / "3"
    monkeypatch.delenv("nnUNet_raw")
    assert find_dataset("Liver") == Path("Liver")


def test_unknown_name_is_refused_by_the_one_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    with pytest.raises(BankError, match="not found"):
        list_bank(Path("7"), lambda word: False)
    with pytest.raises(EvaluationError, match="7: not found"):
        find_case_set(Path("7"))
    with pytest.raises(ExportError, match="7: not a raw dataset of nnU-Net, DatasetXXX_Name with a dataset.json"):
        load_real_dataset(Path("7"))


@pytest.mark.parametrize(
    ("document", "channel"),
    [({}, 0), (CT, 0), ({"modality": {"0": "PET", "1": "ct "}}, 1), ({"channel_names": {"0": "noNorm"}}, 0)],
)
def test_ct_is_the_channel_that_is_called_so_or_the_only_one(document: dict[str, object], channel: int) -> None:
    assert RawDataset(Path("here"), document).ct_channel == channel


def test_several_channels_without_one_ct_are_refused() -> None:
    for names in ({"0": "T1", "1": "T2"}, {"0": "CT", "1": "CT"}):
        with pytest.raises(BankError, match="dataset.json: needs one channel, or one named CT, found"):
            _ = RawDataset(Path("here"), {"channel_names": names}).ct_channel


def test_cases_are_read_from_folders_and_from_the_entry(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "Dataset003_Liver")
    dataset = RawDataset.read(folder)
    (case,) = dataset.list_cases()
    assert not dataset.names_files
    assert (case.id, case.image, case.label) == (
        "a",
        folder / "imagesTr" / "a_0000.nii.gz",
        folder / "labelsTr" / "a.nii.gz",
    )
    (folder / "imagesTr" / "a_0000.nii.gz").unlink()
    (case,) = dataset.list_cases()
    assert case.image == folder / "imagesTr" / "a_0000.nii.gz"
    channels = {"0": "PET", "1": "CT"}
    files = {"dataset": {"b": {"images": ["x_pet.mha", "x_ct.mha"], "label": "x.mha"}, "c": {"label": "y.mha"}}}
    dataset = RawDataset(folder, {"channel_names": channels, **files})
    assert dataset.names_files
    assert [(case.id, case.image, case.label) for case in dataset.list_cases()] == [
        ("b", folder / "x_ct.mha", folder / "x.mha"),
        ("c", None, folder / "y.mha"),
    ]
    with pytest.raises(BankError, match="images' and 'label' are missing in dataset.b, found"):
        RawDataset(folder, {"dataset": {"b": {}}}).list_cases()
    # One channel is the CT, whatever its number.
    alone = RawDataset(
        folder, {"channel_names": {"1": "CT"}, "dataset": {"b": {"images": ["x.mha"], "label": "y.mha"}}}
    )
    assert [case.image for case in alone.list_cases()] == [folder / "x.mha"]


def test_labels_are_read_in_either_spelling() -> None:
    expected = {"background": (0,), "liver": (1,), "tumor": (2,)}
    assert label_values({"background": 0, "liver": 1, "tumor": 2}) == expected
    assert label_values({"0": "background", "1": "liver", "2": "tumor"}) == expected
    assert label_values({"background": 0, "whole": [1, "2"]}) == {"background": (0,), "whole": (1, 2)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "nnU-Net's description cannot be read: Expecting"), ("[]", "expected nnU-Net's description, found a list")],
)
def test_damaged_description_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(BankError, match=rf"dataset\.json: {problem}"):
        RawDataset.read(tmp_path)


def test_cases_that_nnunet_leaves_out_are_told() -> None:
    assert note_never_trained(["a", "segment_1", "b_seg_2"]) == ""
    assert note_never_trained(["a", "b_seg", "a_seg"]) == (
        "nnU-Net never trains on cases whose names end in _seg, "
        "because it takes them for label maps; 2 cases do (a_seg, b_seg). Rename them."
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1.5, [1, float("inf")]])
def test_label_values_are_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="an integer is required, found"):
        label_values({"background": 0, "liver": value})
    assert label_values({"background": 0, "liver": 2.0}) == {"background": (0,), "liver": (2,)}


def test_path_longer_than_any_is_said_in_a_sentence(tmp_path: Path) -> None:
    content = {"labels": {"liver": 1}, "dataset": {"case_1": {"images": ["i.nii.gz"], "label": "a" * 5000}}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(BankError, match=r"dataset\.json: lists a path that cannot exist: File name too long"):
        RawDataset.read(tmp_path).list_cases()
