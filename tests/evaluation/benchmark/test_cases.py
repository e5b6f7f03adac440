from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.cases import CaseFiles, find_lesion_labels, find_real_cases, find_synthetic_cases
from maisi_aug.evaluation.benchmark.config import build_benchmark_config
from maisi_aug.evaluation.benchmark.split import find_leaks, find_published_training, require_patients, split_patients
from maisi_aug.integrations.monai_data_list import export_monai
from maisi_aug.integrations.nnunet import dataset as nnunet
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_benchmark import write_dataset, write_pairs
from tests.builders.tiny_cohort import HEPATIC_TUMOR, LIVER, save_case, write_cohort
from tests.builders.tiny_prepared import GLAND, NODULE, write_prepared


def test_nnunet_dataset_gives_cases_and_labels(tmp_path: Path) -> None:
    source = find_real_cases(write_dataset(tmp_path / "d", 3), None)
    assert [case.case_id for case in source.cases] == ["case_000", "case_001", "case_002"]
    assert source.label_ids == {"liver": (1,), "tumor": (2,)}
    assert all(case.image.is_file() and case.label.is_file() for case in source.cases)


def test_files_that_dataset_json_refers_to_are_found(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", 2)
    listed = {
        "a": {"images": ["imagesTr/case_000_0000.nii.gz"], "label": "labelsTr/case_000.nii.gz"},
        "b": {"images": [str(tmp_path / "d/imagesTr/case_001_0000.nii.gz")], "label": "labelsTr/gone.nii.gz"},
    }
    source = find_real_cases(write_dataset(tmp_path / "d", 2, dataset=listed), None)
    assert [case.case_id for case in source.cases] == ["a"]
    assert any("b was left out" in note and "gone.nii.gz is missing" in note for note in source.notes)


def test_regions_and_ignored_voxels_are_named(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": [1, 2], "tumor": 2, "ignore": 3}
    source = find_real_cases(write_dataset(tmp_path / "d", 2, labels=labels), None)
    assert source.label_ids == {"tumor": (2,)}
    assert len(source.notes) == 2
    assert find_real_cases(tmp_path / "d", {"organ": (1, 2)}).label_ids == {"organ": (1, 2)}


def test_folder_of_pairs_gives_cases_and_labels(tmp_path: Path) -> None:
    source = find_synthetic_cases("other", write_pairs(tmp_path / "p", 3), ["tumor"], {})
    assert [case.case_id for case in source.cases] == ["made_0000", "made_0001", "made_0002"]
    assert [case.image.name for case in source.cases] == [case.label.name for case in source.cases]
    assert source.label_ids == {"tumor": (2,)}


def test_mapping_names_labels_by_name_or_id(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "p", 1)
    assert find_synthetic_cases("s", folder, ["organ"], {"organ": ("liver", "2")}).label_ids == {"organ": (1, 2)}
    with pytest.raises(BenchmarkError, match="Label 'organ': .* has no label 'organ', found liver, tumor"):
        find_synthetic_cases("s", folder, ["organ"], {})


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "folder not found"),
        (lambda folder: folder.mkdir(), "no images with label maps found"),
        (lambda folder: write_dataset(folder, 1, channel_names={"0": "CT", "1": "PET"}), "expected one channel"),
        (
            lambda folder: (write_pairs(folder, 1) / "labels.json").unlink(),
            "its labels have no names in dataset.json or labels.json",
        ),
        (
            lambda folder: (write_dataset(folder, 1) / "dataset.json").write_text("{}"),
            "nnU-Net's labels cannot be read: KeyError",
        ),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, prepare: object, message: str) -> None:
    prepare(tmp_path / "d")  # type: ignore[operator]
    with pytest.raises(BenchmarkError, match=message):
        find_real_cases(tmp_path / "d", None)


def test_regions_are_labels_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", 2)
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"] = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "cyst": [4, 5]}
    (folder / "dataset.json").write_text(json.dumps(description))
    source = find_real_cases(folder, None)
    assert source.label_ids == {"tumor": (2,), "cyst": (4, 5)}
    assert source.notes == (
        "Regions that contain other labels were left out (kidney, masses): choose them with --label.",
    )
    asked = find_real_cases(folder, {"kidney": (), "masses": ()})
    assert (asked.label_ids, asked.notes) == ({"kidney": (1, 2, 3), "masses": (2, 3)}, ())
    found = find_synthetic_cases("s", folder, ["tumor", "lesion"], {"lesion": ("masses",)})
    assert found.label_ids == {"tumor": (2,), "lesion": (2, 3)}


def test_pairs_keep_regions_whole(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "d", 2)
    (folder / "labels.json").write_text(json.dumps({"background": 0, "organ": [1, 2], "part": 2}))
    assert find_real_cases(folder, {"organ": ()}).label_ids == {"organ": (1, 2)}
    assert find_real_cases(folder, None).label_ids == {"part": (2,)}


def test_patients_are_told_apart_and_listed_ones_known() -> None:
    cases = [CaseFiles(f"p{n // 2}_{n}", Path("i"), Path("l"), patient=f"p{n // 2}") for n in range(6)]
    config = build_benchmark_config(real="x", arms=("real",))
    with pytest.raises(
        BenchmarkError, match="Real cases: the 6 cases seem to be of 3 patients, but no pattern assigns them"
    ):
        require_patients(cases, config)
    told = config.model_copy(update={"patient_pattern": r"^(p\d+)"})
    require_patients(cases, told)
    require_patients(cases, told.model_copy(update={"test_patients": ("p0", "p2")}))
    with pytest.raises(BenchmarkError, match="Test patient 'p9': not one of the 3 real patients, such as p0"):
        require_patients(cases, told.model_copy(update={"test_patients": ("p0", "p9")}))


def test_prepared_folder_gives_cases_and_names(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "d", num_cases=3)
    source = find_real_cases(folder, None)
    assert source.label_ids == {"liver": (1,), "gland": (GLAND,), "bright nodule": (NODULE,)}
    assert [case.case_id for case in source.cases] == ["p0", "p1", "p2"]
    assert source.cases[0].label == folder / "labels" / "p0.nii.gz"
    chosen = find_real_cases(folder, {"gland": (), "lump": (NODULE, 1)})
    assert chosen.label_ids == {"gland": (GLAND,), "lump": (NODULE, 1)}
    with pytest.raises(
        BenchmarkError, match="'node', found bright nodule, gland, liver. Give .* with --map \"1\\+2=node"
    ):
        find_real_cases(folder, {"node": ()})


def test_lesion_labels_are_told_by_their_name() -> None:
    names = ["liver", "Kidney_Tumour", "lung nodule", "cancer", "aorta", "GTV"]
    assert find_lesion_labels(names) == ("Kidney_Tumour", "lung nodule", "cancer", "GTV")


def without_lesions(case_ids: Iterable[str]) -> dict[str, frozenset[str]]:
    return dict.fromkeys(case_ids, frozenset())


def test_patients_never_lie_on_both_sides() -> None:
    config = build_benchmark_config(real="x", arms=("real",), patient_pattern=r"^(p\d+)")
    cases = [f"p{patient}_{scan}" for patient in range(10) for scan in range(1 + patient % 3)]
    split = split_patients(without_lesions(cases), config)
    assert sorted(split.train + split.test) == sorted(cases)
    assert not {config.patient_of(c) for c in split.train} & {config.patient_of(c) for c in split.test}
    assert len({config.patient_of(c) for c in split.test}) == 4
    assert split_patients(without_lesions(cases[::-1]), config) == split
    assert split_patients(without_lesions(cases), config.model_copy(update={"seed": 1})) != split


@pytest.mark.parametrize("seed", range(5))
def test_rare_lesions_are_dealt_to_both_sides(seed: int) -> None:
    config = build_benchmark_config(real="x", arms=("real",), seed=seed, patient_pattern=r"^(p\d+)", test_share=0.5)
    lesions = without_lesions(f"p{patient}_{scan}" for patient in range(12) for scan in range(2))
    lesions |= {"p3_1": frozenset({"tumor"}), "p7_0": frozenset({"tumor"})}
    split = split_patients(lesions, config)
    assert [sum(bool(lesions[case]) for case in side) for side in (split.train, split.test)] == [1, 1]
    assert len(split.train) == len(split.test)


def test_number_of_training_patients_can_be_given() -> None:
    config = build_benchmark_config(real="x", arms=("real",), num_train=4)
    assert len(split_patients(without_lesions(f"c{n}" for n in range(9)), config).train) == 4
    with pytest.raises(BenchmarkError, match="Real cases: 6 patients are needed, 4 to train on and at least"):
        split_patients(without_lesions(f"c{n}" for n in range(5)), config)


def test_patients_to_test_on_can_be_listed() -> None:
    cases = [f"p{patient}_{scan}" for patient in range(6) for scan in range(2)]
    listed = {"real": "x", "arms": ("real",), "patient_pattern": r"^(p\d+)", "test_patients": ("p1", "p4")}
    config = build_benchmark_config(**listed)
    split = split_patients(without_lesions(cases), config)
    assert split.test == ("p1_0", "p1_1", "p4_0", "p4_1")
    assert sorted(split.train + split.test) == sorted(cases)
    few = split_patients(without_lesions(cases), config.model_copy(update={"num_train": 3}))
    assert few.test == split.test
    assert len(few.train) == 6
    assert set(few.train) < set(split.train)
    with pytest.raises(BenchmarkError, match="Real cases: 5 patients to train on are requested, but only 4"):
        split_patients(without_lesions(cases), config.model_copy(update={"num_train": 5}))
    assert build_benchmark_config(**{**listed, "test_patients": ("p4", "p1", "p4")}) == config
    more = config.model_copy(update={"test_patients": ("p1", "p3", "p4")})
    unreadable = split_patients(without_lesions(case for case in cases if not case.startswith("p1")), more)
    assert unreadable.test == ("p3_0", "p3_1", "p4_0", "p4_1")
    with pytest.raises(BenchmarkError, match="to train on and at least 2 to test on; found"):
        split_patients(without_lesions(cases), config.model_copy(update={"test_patients": ("p1",)}))


def test_one_case_is_refused() -> None:
    config = build_benchmark_config(real="x", arms=("real",))
    with pytest.raises(BenchmarkError, match="Real cases: 3 patients are needed,"):
        split_patients(without_lesions(["only"]), config)


def test_dataset_of_both_kinds_is_no_real_one_and_gives_its_synthetic_cases(tmp_path: Path) -> None:
    mark = {"format": 1, "real_dataset": "Dataset003_X", "synthetic_cases": ["case_001", "case_002"]}
    folder = write_dataset(tmp_path / "d", 3, maisi_aug=mark)
    source = find_synthetic_cases("synthetic", folder, ["tumor"], {})
    assert [case.case_id for case in source.cases] == ["case_001", "case_002"]
    assert source.notes[0] == "1 of the 3 cases of 'synthetic' are real and are left out."
    with pytest.raises(
        BenchmarkError, match="was exported with --like and has synthetic cases, but tests need real ones"
    ):
        find_real_cases(folder, None)


def test_variables_in_dataset_json_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CASES", str(tmp_path / "d"))
    row = {"images": ["$MY_CASES/imagesTr/case_000_0000.nii.gz"], "label": "${MY_CASES}/labelsTr/case_000.nii.gz"}
    source = find_real_cases(write_dataset(tmp_path / "d", 1, dataset={"a": row}), None)
    assert [case.case_id for case in source.cases] == ["a"]


def test_test_cases_in_a_synthetic_folder_are_leaks(tmp_path: Path) -> None:
    tested = find_real_cases(write_dataset(tmp_path / "d", 2), None).cases[:1]
    mixed = write_pairs(tmp_path / "p", 2)
    for folder, file in (("images", tested[0].image), ("labels", tested[0].label)):
        shutil.copy(file, mixed / folder / "renamed.nii.gz")
    cases = find_synthetic_cases("synthetic", mixed, ["tumor"], {}).cases
    assert len(cases) == 3
    assert find_leaks(cases, tested) == ("renamed",)


def test_cases_made_from_test_maps_are_leaks(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", 2)
    tested = find_real_cases(tmp_path / "d", None).cases[:1]
    digest = sha256_of(tested[0].label)
    made = [
        CaseFiles("by_name", Path("i"), Path("l"), ("plant", "labelsTr/case_000.nii.gz")),
        CaseFiles("by_hash", Path("i"), Path("l"), ("plant", "renamed.nii.gz", digest[:16])),
        CaseFiles("by_whole_hash", Path("i"), Path("l"), (digest,)),
        CaseFiles("clean", Path("i"), Path("l"), ("plant", "labelsTr/case_001.nii.gz", "0123456789abcdef")),
    ]
    assert find_leaks(made, tested) == ("by_name", "by_hash", "by_whole_hash")


@pytest.mark.parametrize("kind", ["nnunet", "monai"])
def test_exports_keep_what_their_cases_were_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tested = find_real_cases(write_dataset(tmp_path / "d", 2), None).cases[:1]
    cohort = tmp_path / "cohort"
    write_cohort(cohort, [HEPATIC_TUMOR], mask_origin={"source": "bank", "file": "labelsTr/case_000.nii.gz"})
    with ManifestWriter(cohort / MANIFEST_NAME) as writer:
        writer.append(save_case(cohort, 1, [HEPATIC_TUMOR], mask_origin={"source": "bank", "file": "case_001.nii.gz"}))
    monkeypatch.setattr(nnunet, "verify_integrity", lambda dataset, num_processes: None)
    if kind == "nnunet":
        folder = nnunet.export_nnunet(cohort, dataset_id=503, name="B", out=tmp_path / "raw").path
    else:
        folder = export_monai(cohort, tmp_path / "monai").path
    names = {"tumor": ("hepatic tumor" if kind == "nnunet" else "1",)}
    source = find_synthetic_cases("s", folder, ["tumor"], names)
    assert find_leaks(source.cases, tested) == ("case_0001",)
    assert source.notes == ()
    mapping = json.loads((folder / MAPPING_NAME).read_text())
    for row in mapping["cases"].values():
        del row["mask_origin"]
    (folder / MAPPING_NAME).write_text(json.dumps(mapping))
    older = find_synthetic_cases("s", folder, ["tumor"], names)
    assert older.notes[0].startswith("The origin of the label maps of all 2 cases of 's' is unknown: a case made")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Dataset003_Liver", "MSD Task03 Liver"),
        ("Task10_Colon", "MSD Task10 Colon"),
        ("Dataset003_Sarcoma", ""),
        ("AMOS22", "AMOS"),
        ("my_hospital_splits", ""),
        ("autoPET-III", "autoPET 2023"),
        ("LiTS17", "MSD Task03 Liver"),
        ("Dataset017_LiTS", "MSD Task03 Liver"),
        ("Pancreas-CT", "Pancreas-CT"),
        ("Dataset082_PancreasCT", "Pancreas-CT"),
        ("Bone-Lesion", "Bone-Lesion"),
        ("NLST", "NLST"),
        ("Dataset055_AeroPath", "AeroPath"),
        ("COVID-19", "COVID-19"),
        ("CRLM-CT", "CRLM-CT"),
        ("CTPelvic1K-CLINIC", "CTPelvic1K-CLINIC"),
        ("Multi-organ-Abdominal-CT", "Multi-organ-Abdominal-CT"),
        ("StonyBrook-CT", "StonyBrook-CT"),
        ("COVID-19-NY-SBU", "StonyBrook-CT"),
        ("TCIA_Colon", "TCIA_Colon"),
    ],
)
def test_published_training_data_is_recognised(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / name).mkdir()
    assert find_published_training(tmp_path / name) == found


def test_published_training_data_is_recognised_by_its_description(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "Dataset701_Mine", 1, description="The LiTS challenge, renamed")
    assert find_published_training(folder) == "MSD Task03 Liver"


@pytest.mark.parametrize(
    "description", [{"labels": {"background": 0, "bone lesion": 1}}, {"description": "scanned before COVID-19"}]
)
def test_common_words_of_a_description_are_no_published_training_data(
    tmp_path: Path, description: dict[str, Any]
) -> None:
    assert find_published_training(write_dataset(tmp_path / "Dataset701_Mine", 1, **description)) == ""


def test_every_dataset_of_the_published_list_is_known(tmp_path: Path) -> None:
    """The table in section 2 of MAISI's data/README.md, the tasks of the MSD as their archives are called."""
    others = "AbdomenCT-1K AeroPath AMOS22 autoPET23 Bone-Lesion BTCV COVID-19 CRLM-CT CT-ORG CTPelvic1K-CLINIC LIDC"
    others += " Multi-organ-Abdominal-CT NLST Pancreas-CT StonyBrook-CT TCIA_Colon TotalSegmentatorV2 VerSe"
    tasks = "Task03_Liver Task06_Lung Task07_Pancreas Task08_HepaticVessel Task09_Spleen Task10_Colon"
    found = {find_published_training(tmp_path / name) for name in (others + " " + tasks).split()}
    assert len(found - {""}) == 24


def test_images_numbered_like_channels_are_cases(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "p", 3)
    assert len(find_real_cases(folder, None).cases) == 3
    shutil.copy(folder / "images/made_0000.nii.gz", folder / "images/scan_0000.nii.gz")
    shutil.copy(folder / "images/made_0001.nii.gz", folder / "images/scan_0001.nii.gz")
    shutil.copy(folder / "labels/made_0000.nii.gz", folder / "labels/scan.nii.gz")
    case = next(c for c in find_real_cases(folder, None).cases if c.case_id == "scan")
    assert case.image.name == "scan_0000.nii.gz"


def test_cohort_gives_full_label_maps_and_its_vocabulary(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    source = find_synthetic_cases("s", cohort, ["liver", "tumor"], {"tumor": ("hepatic tumor", "23")})
    assert source.label_ids == {"liver": (LIVER,), "tumor": (23, HEPATIC_TUMOR)}
    assert [case.label.parent.name for case in source.cases] == ["anatomy"] * 2
    with pytest.raises(BenchmarkError, match="Label 'my tumour': not in the vocabulary of.*Name it with --map \"my"):
        find_synthetic_cases("s", cohort, ["my tumour"], {})


def test_bare_lesion_of_the_real_dataset_is_that_of_its_organ(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    assert find_synthetic_cases("s", cohort, ["liver", "cancer"], {}).label_ids == {
        "liver": (LIVER,),
        "cancer": (HEPATIC_TUMOR,),
    }
    found = find_synthetic_cases("s", cohort, ["tumour"], {}, context=["liver and tumour"])
    assert found.label_ids == {"tumour": (HEPATIC_TUMOR,)}
    pairs = write_pairs(tmp_path / "p", 1)
    assert find_synthetic_cases("s", pairs, ["Liver", "cancer"], {}).label_ids == {"Liver": (1,), "cancer": (2,)}


def test_union_of_an_organ_and_its_lesion_has_to_be_mapped(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    with pytest.raises(
        BenchmarkError, match='Name it with --map "liver and tumor=NAME" or --map "liver and tumor=NAME'
    ):
        find_synthetic_cases("s", cohort, ["liver and tumor"], {})
