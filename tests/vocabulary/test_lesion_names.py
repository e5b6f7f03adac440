from __future__ import annotations

import pytest

from maisi_aug.vocabulary.labels import is_bare_lesion_name, lesion_word


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("KidneyTumor", "tumor"),
        ("hepatic_tumours", "tumour"),
        ("adrenal metastases", "metastas"),
        ("GTVp", "gtv"),
        ("Hepatocellular Carcinoma", "carcinoma"),
        ("intracranial hemorrhage", "hemorrhage"),
        ("liver", None),
        ("masseter", None),
    ],
)
def test_name_tells_lesions(name: str, word: str | None) -> None:
    assert lesion_word(name) == word


@pytest.mark.parametrize("name", ["cancer", " Tumours", "lesion", "mass", "metastasis", "metastases", "nodules"])
def test_bare_name_tells_no_organ(name: str) -> None:
    assert is_bare_lesion_name(name)


@pytest.mark.parametrize("name", ["liver tumor", "masseter", "kidney", "tumor 1"])
def test_name_of_an_organ_is_not_bare(name: str) -> None:
    assert not is_bare_lesion_name(name)
