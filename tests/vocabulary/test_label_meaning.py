"""One resolver tells what names mean: lesions are lesions of their organ, unions are none, and nothing is guessed."""

from __future__ import annotations

import pytest

from maisi_aug.vocabulary.label_meaning import find_label_id, resolve_names
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, MAISI, SlotBinding

TUMORS = {"kidney": 129, "lung": 23, "pancreas": 24, "liver": 26, "colon": 27}
WORDS = ("tumor", "Tumours", "cancer", "lesion", "masses", "nodule", "metastasis", "mets", "neoplasm", "carcinoma")


@pytest.mark.parametrize("organ", TUMORS)
@pytest.mark.parametrize("word", WORDS)
def test_lesion_of_an_organ_is_its_tumour_in_every_spelling(organ: str, word: str) -> None:
    spellings = (f"{organ}_{word}", f"{organ.title()}{word.title()}", f"{word} of the {organ}", f"{organ}-{word}-1")
    assert {find_label_id(name, FULL_VOCABULARY) for name in spellings} == {TUMORS[organ]}


@pytest.mark.parametrize("organ", TUMORS)
@pytest.mark.parametrize("word", WORDS)
def test_bare_lesion_is_that_of_the_organ_beside_it(organ: str, word: str) -> None:
    meaning = resolve_names([organ, word], FULL_VOCABULARY)[word]
    assert (meaning.label_id, meaning.beside) == (TUMORS[organ], organ)


@pytest.mark.parametrize("organ", TUMORS)
@pytest.mark.parametrize("joiner", ["_and_", " + ", " & ", " with ", "/", "_incl_"])
def test_organ_together_with_its_lesion_is_never_the_lesion(organ: str, joiner: str) -> None:
    for word in WORDS:
        union = f"{organ}{joiner}{word}"
        meanings = resolve_names([union, word], FULL_VOCABULARY)
        assert meanings[union].label_id in (None, 1, 4, 62)
        assert meanings[union].is_union
        assert meanings[word].label_id == TUMORS[organ]


def test_bare_lesion_beside_several_organs_is_told_by_its_place() -> None:
    meaning = resolve_names(["liver", "pancreas", "spleen", "tumor"], FULL_VOCABULARY)["tumor"]
    assert meaning.is_unknown_lesion
    assert meaning.choices == {1: 26, 4: 24}


def test_bone_is_no_host_of_a_bare_lesion_where_other_organs_are_named() -> None:
    assert resolve_names(["brain", "skull", "tumor"], MAISI)["tumor"].label_id is None
    assert resolve_names(["liver", "left rib 4", "tumor"], MAISI)["tumor"].label_id == 26
    assert resolve_names(["vertebrae_L1", "rib_left_4", "mets"], MAISI)["mets"].label_id == 128


@pytest.mark.parametrize("name", ["kidney tumor", "adrenal mass", "prostate lesion", "kidney cyst", "brain metastasis"])
def test_lesion_that_the_vocabulary_lacks_is_known_to_be_one(name: str) -> None:
    meaning = resolve_names(["liver", name], MAISI)[name]
    assert meaning.is_unknown_lesion
    assert not meaning.choices


def test_lesion_without_any_organ_means_nothing() -> None:
    assert resolve_names(["Vessel", "Tumour"], MAISI)["Tumour"].is_unknown_lesion
    assert not resolve_names(["Dragon"], MAISI)["Dragon"].is_lesion
    assert find_label_id("26", MAISI) is None


def test_bound_labels_are_lesions_of_their_hosts_unless_they_are_findings() -> None:
    vocabulary = MAISI.with_slots({"splenic lesion": SlotBinding(2, (3,)), "liver cyst": SlotBinding(16, (1,))})
    assert find_label_id("SpleenMetastases", vocabulary) == 2
    assert resolve_names(["spleen", "tumor"], vocabulary)["tumor"].label_id == 2
    assert resolve_names(["liver", "tumor"], vocabulary)["tumor"].label_id == 26
    assert find_label_id("liver_cysts", vocabulary) == 16


def test_names_of_context_tell_without_being_asked_for() -> None:
    meanings = resolve_names(["tumor"], FULL_VOCABULARY, context=["kidney_and_mass"])
    assert {name: meaning.label_id for name, meaning in meanings.items()} == {"tumor": 129}
