from __future__ import annotations

import pytest

from maisi_aug.vocabulary.labels import lesion_word, read_label_name


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("KidneyTumor", "tumor"),
        ("hepatic_tumours", "tumor"),
        ("livertumour", "tumor"),
        ("adrenal metastases", "metastasis"),
        ("kidney_mass", "mass"),
        ("GTVp", "gtvp"),
        ("Hepatocellular Carcinoma", "carcinoma"),
        ("intracranial hemorrhage", "hemorrhage"),
        ("non-small cell lung cancer", "cancer"),
        ("glioblastoma", "glioblastoma"),
        ("liver", None),
        ("masseter", None),
        ("zygoma", None),
        ("kidney_and_mass", None),
        ("liver without tumor", None),
        ("tumor-free liver", None),
    ],
)
def test_name_tells_lesions(name: str, word: str | None) -> None:
    assert lesion_word(name) == word


@pytest.mark.parametrize(
    "name", ["cancer", " Tumours", "lesion", "mass", "mets", "nodules", "tumor 1", "neoplasm", "primary_tumor", "GTV"]
)
def test_bare_name_tells_no_organ(name: str) -> None:
    reading = read_label_name(name)
    assert (reading.kind, reading.organ_words) == ("tumor", frozenset())


@pytest.mark.parametrize(
    ("name", "organ"),
    [
        ("liver_tumor", "liver"),
        ("HepaticMetastases", "liver"),
        ("renal mass", "kidney"),
        ("left kidney tumour 2", "kidney"),
        ("pulmonary_nodule", "lung"),
        ("lesions of the pancreas", "pancreas"),
        ("Vertebrae L3 lesion", "vertebrae"),
        ("squamous cell carcinoma lung", "lung"),
    ],
)
def test_organ_of_a_lesion_is_told_in_one_spelling(name: str, organ: str) -> None:
    reading = read_label_name(name)
    assert (reading.kind, reading.organ_words) == ("tumor", frozenset({organ}))


@pytest.mark.parametrize(
    ("name", "organ"),
    [
        *(("kidney_and_mass", "kidney"), ("KidneyAndMass", "kidney"), ("kidney+tumor", "kidney")),
        *(("liver & lesions", "liver"), ("left kidney with tumour", "left kidney"), ("colon incl. cancer", "colon")),
        *(("non-tumor liver", "liver"), ("liver minus mets", "liver"), ("liver/tumor", "liver")),
    ],
)
def test_organ_with_or_without_its_lesion_is_a_union(name: str, organ: str) -> None:
    reading = read_label_name(name)
    assert (reading.kind, reading.organ_text, reading.word) == ("union", organ, "")


@pytest.mark.parametrize("name", ["kidney cyst", "tumor and cyst", "masses except tumor", "GTVn", "lymphoma"])
def test_findings_are_lesions_but_no_tumour_by_their_name(name: str) -> None:
    assert read_label_name(name).kind == "finding"
