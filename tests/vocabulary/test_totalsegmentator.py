from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import VocabularyError
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.totalsegmentator import (
    TotalSegmentatorTask,
    TotalSegmentatorVersion,
    to_totalsegmentator,
    totalsegmentator_class,
    totalsegmentator_mapping,
    totalsegmentator_names,
    totalsegmentator_task_mapping,
    totalsegmentator_task_names,
)


@pytest.mark.parametrize(
    ("version", "class_id", "name", "maisi_name"),
    [
        ("v1", 2, "kidney_right", "right kidney"),
        ("v1", 15, "lung_upper_lobe_right", "right lung upper lobe"),
        ("v1", 41, "vertebrae_C1", "vertebrae C1"),
        ("v1", 46, "heart_ventricle_left", "heart"),
        ("v1", 49, "pulmonary_artery", "body"),
        ("v1", 81, "rib_right_12", "right rib 12"),
        ("v1", 87, "clavicula_right", "right clavicula"),
        ("v1", 93, "face", "body"),
        ("v1", 104, "urinary_bladder", "bladder"),
        ("v2", 7, "pancreas", "pancreas"),
        ("v2", 23, "kidney_cyst_left", "left kidney cyst"),
        ("v2", 26, "vertebrae_S1", "vertebrae S1"),
        ("v3", 26, "vertebrae_L6", "body"),
        ("v3", 27, "vertebrae_L5", "vertebrae L5"),
        ("v3", 117, "costal_cartilages", "costal cartilages"),
        ("v2", 51, "heart", "heart"),
        ("v2", 55, "subclavian_artery_right", "right subclavian artery"),
        ("v2", 61, "atrial_appendage_left", "left atrial appendage"),
        ("v2", 79, "spinal_cord", "spinal cord"),
        ("v2", 91, "skull", "skull"),
        ("v2", 117, "costal_cartilages", "costal cartilages"),
    ],
)
def test_class_numbers_are_totalsegmentators_own(
    version: TotalSegmentatorVersion, class_id: int, name: str, maisi_name: str
) -> None:
    assert totalsegmentator_names(version)[class_id] == name
    assert MAISI.name_of(totalsegmentator_mapping(version)[class_id]) == maisi_name


def test_only_heart_and_body_stand_for_several_classes() -> None:
    repeated = {
        version: {
            label_id: count
            for label_id, count in Counter(totalsegmentator_mapping(version).values()).items()
            if count > 1
        }
        for version in ("v1", "v2", "v3")
    }
    assert repeated == {"v1": {115: 5, 200: 2}, "v2": {}, "v3": {}}


def test_no_class_becomes_a_tumour_or_a_slot() -> None:
    for version in ("v1", "v2", "v3"):
        kinds = {MAISI.label(label_id).kind for label_id in totalsegmentator_mapping(version).values()}
        assert kinds <= {"organ", "body", "background"}


def test_v1_table_agrees_with_a_published_label_map(real_data: Path) -> None:
    published = json.loads((real_data / "totalsegmentator-example" / "labels.json").read_text())
    names = totalsegmentator_names("v1")
    assert {int(class_id): name for class_id, name in published.items() if class_id != "0"}.items() <= names.items()


def test_unknown_version_is_refused() -> None:
    version: Any = "v4"
    with pytest.raises(VocabularyError, match="expected 'v1', 'v2' or 'v3', found 'v4'"):
        totalsegmentator_mapping(version)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_way_back_is_the_inverse(version: TotalSegmentatorVersion) -> None:
    there, back = totalsegmentator_mapping(version), to_totalsegmentator(version)
    assert all(there[class_id] == label_id for label_id, class_id in back.items())
    missing = set(there.values()) - set(back)
    assert missing == {"v1": {115, 200}, "v2": set(), "v3": {200}}[version]  # several classes in v1


@pytest.mark.parametrize(
    ("task", "class_id", "name", "maisi_name"),
    [
        ("liver_lesions", 1, "liver_lesions", "hepatic tumor"),
        ("liver_vessels", 1, "liver_vessels", "hepatic vessel"),
        ("liver_vessels", 2, "liver_tumor", "hepatic tumor"),
        ("lung_nodules", 1, "lung", "body"),
        ("lung_nodules", 2, "lung_nodules", "lung tumor"),
        ("lung_vessels", 1, "lung_airways", "airway"),
        ("lung_vessels", 2, "lung_airways_wall", "body"),
        ("lung_vessels", 3, "lung_arteries", "body"),
        ("lung_vessels", 4, "lung_veins", "body"),
        ("lung_vessels_LEGACY", 1, "lung_vessels", "body"),
        ("lung_vessels_LEGACY", 2, "lung_trachea_bronchia", "airway"),
        ("kidney_cysts", 1, "kidney_cyst_left", "left kidney cyst"),
        ("kidney_cysts", 2, "kidney_cyst_right", "right kidney cyst"),
        ("body", 1, "body_trunc", "body"),
    ],
)
def test_classes_of_the_other_tasks_are_known(
    task: TotalSegmentatorTask, class_id: int, name: str, maisi_name: str
) -> None:
    assert totalsegmentator_task_names(task)[class_id] == name
    label_id = totalsegmentator_task_mapping(task)[class_id]
    assert MAISI.name_of(label_id) == maisi_name
    if maisi_name != "body":  # a folder with one mask per class is read by these names
        assert find_label_id(name, MAISI) == label_id


@pytest.mark.parametrize(
    ("label_id", "expected"),
    [
        (1, ("total", "liver")),
        (115, ("total", "heart")),
        (26, ("liver_lesions", "liver_lesions")),
        (23, ("lung_nodules", "lung_nodules")),
        (25, ("liver_vessels", "liver_vessels")),
        (132, ("lung_vessels", "lung_airways")),
        (24, None),
        (129, None),
        (200, None),
        (0, None),
    ],
)
def test_label_is_named_as_totalsegmentator_does(label_id: int, expected: tuple[str, str] | None) -> None:
    assert totalsegmentator_class(label_id) == expected


def test_unknown_task_is_refused() -> None:
    task: Any = "teeth"
    with pytest.raises(VocabularyError, match="expected one of liver_lesions, .*, found 'teeth'"):
        totalsegmentator_task_mapping(task)
