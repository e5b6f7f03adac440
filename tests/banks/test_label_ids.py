"""Source labels become vocabulary ids by name or by a stated mapping; what is unknown is told, not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.banks.label_ids import Translation, build_translation, guess_maisi_ids, load_mapping
from maisi_aug.errors import BankError, VolumeError
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.totalsegmentator import totalsegmentator_mapping

NAMES = {0: "background", 1: "liver", 2: "liver_tumor", 3: "Dragon", 4: "kidney_left"}


def _build(
    mapping: object, names: dict[int, str] | None = None, *, has_vocabulary_ids: bool = False
) -> Translation | None:
    return build_translation(mapping, names, MAISI, has_vocabulary_ids=has_vocabulary_ids, subject="Bank x")  # type: ignore[arg-type]


def test_names_become_ids_and_unknown_ones_body() -> None:
    translation = _build("auto", NAMES)
    assert translation is not None
    assert translation.ids == {0: 0, 1: 1, 2: 26, 3: 200, 4: 14}
    assert translation.unknown == ("Dragon",)
    assert translation.envelope_ids == frozenset()


def test_translation_keeps_background_and_sends_unlisted_ids_to_body() -> None:
    translation = _build("auto", NAMES)
    assert translation is not None
    source = np.array([[[0, 1, 2, 9]]], dtype=np.uint16)
    translated = translation.apply(source)
    assert translated.dtype == np.uint8
    assert translated.tolist() == [[[0, 1, 26, 200]]]
    assert source.tolist() == [[[0, 1, 2, 9]]]
    assert translation.find_unlisted(np.unique(source)) == ("id 9",)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_totalsegmentator_numbers_win_over_names(version: str) -> None:
    translation = _build(f"totalsegmentator-{version}", NAMES)
    assert translation is not None
    assert dict(translation.ids) == totalsegmentator_mapping(version)  # type: ignore[arg-type]
    assert translation.envelope_ids == frozenset()


def test_envelope_is_known_only_where_a_label_means_all_of_the_body() -> None:
    by_name = _build("auto", {1: "liver", 2: "Body", 3: "face"})
    by_mapping = _build({"1": "liver", "2": "body", "3": "face"})
    by_id = _build("maisi")
    assert by_name is not None and by_mapping is not None and by_id is not None  # noqa: PT018
    assert by_name.envelope_ids == by_mapping.envelope_ids == {2}
    assert by_id.envelope_ids == {200}


def test_mapping_of_ids_and_names_leaves_the_rest_to_the_names() -> None:
    translation = _build({"Dragon": 12, 2: "hepatic vessel"}, NAMES)
    assert translation is not None
    assert translation.ids == {0: 0, 1: 1, 2: 25, 3: 12, 4: 14}
    assert translation.unknown == ()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"unicorn": "liver"}, "the mapping names 'unicorn', but no label has that name"),
        ({"1": "lever"}, r"mapping of '1': .*'liver'"),
    ],
)
def test_mapping_that_names_nothing_is_refused(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(BankError, match=message):
        _build(mapping, NAMES)


def test_names_written_in_camel_case_are_read() -> None:
    translation = _build("auto", {1: "SpinalCord", 2: "LeftKidney", 3: "Parotid"})
    assert translation is not None
    assert translation.ids == {0: 0, 1: 121, 2: 14, 3: 200}


def test_names_that_all_mean_nothing_are_refused() -> None:
    with pytest.raises(BankError, match="Bank x: none of its label names is in the vocabulary: PTV56, PTV63"):
        _build("auto", {0: "background", 1: "PTV56", 2: "PTV63"})


def test_maps_of_this_package_need_no_names() -> None:
    translation = _build("auto", has_vocabulary_ids=True)
    assert translation is not None
    assert translation.ids[26] == 26
    assert _build("auto") is None


def test_ids_are_taken_for_maisi_only_where_the_map_proves_it() -> None:
    assert guess_maisi_ids(np.array([0, 1, 26, 200]), MAISI, subject="a_seg.nii.gz").ids[26] == 26
    for present in ([0, 1, 26], [0, 1, 200, 210]):
        with pytest.raises(VolumeError, match="the meaning of its labels is unknown: it has ids up to"):
            guess_maisi_ids(np.array(present), MAISI, subject="a_seg.nii.gz")


def test_mapping_file(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"1": "liver"}))
    assert load_mapping(str(tmp_path / "m.json")) == {"1": "liver"}
    assert load_mapping("totalsegmentator-v1") == "totalsegmentator-v1"
    with pytest.raises(BankError, match="expected auto, maisi, totalsegmentator-v1, .* found 'mrsegmentator'"):
        load_mapping("mrsegmentator")
    with pytest.raises(BankError, match=r"Mask labels .*gone\.json: file not found\."):
        load_mapping(str(tmp_path / "gone.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BankError, match=r"Mask labels .*broken\.json: not a readable JSON file: Expecting"):
        load_mapping(str(tmp_path / "broken.json"))
    (tmp_path / "l.json").write_text("[]")
    with pytest.raises(BankError, match="found a list"):
        load_mapping(str(tmp_path / "l.json"))


def _settle(names: dict[int, str], mapping: object = "auto") -> tuple[list[int], Translation]:
    """What becomes of a lesion of id 2 in the middle of an organ of id 1, and of another of id 3."""
    translation = _build(mapping, names)
    assert translation is not None
    source = np.ones((9, 7, 5), dtype=np.uint8)
    source[4:, :, :] = 3
    source[1:3, 2:5, 2:4] = 2
    source[6:8, 2:5, 2:4] = 2
    translated = translation.apply(source)
    return [int(translated[place]) for place in ((0, 0, 0), (1, 3, 3), (8, 0, 0), (7, 3, 3))], translation


def test_bare_lesion_is_that_of_the_organ_beside_it() -> None:
    assert _settle({1: "liver", 2: "cancer", 3: "spleen"})[0] == [1, 26, 3, 26]


def test_lesion_beside_several_organs_is_that_of_the_one_it_lies_in() -> None:
    values, translation = _settle({1: "liver", 2: "tumor", 3: "pancreas"})
    assert values == [1, 26, 4, 24]
    assert translation.unknown_lesions == ("tumor",)
    assert translation.unknown == ()


@pytest.mark.parametrize("name", ["kidney tumor", "adrenal_mass", "cyst", "hemorrhage", "prostate lesion"])
def test_lesion_that_the_vocabulary_lacks_is_healed_and_no_hole(name: str) -> None:
    values, translation = _settle({1: "liver", 2: name, 3: "spleen"})
    assert values == [1, 1, 3, 3]
    assert translation.unknown_lesions == (name,)


@pytest.mark.parametrize("target", ["body", 0, "200"])
def test_lesion_that_is_mapped_away_leaves_no_hole(target: object) -> None:
    assert _settle({1: "liver", 2: "tumor", 3: "spleen"}, {"tumor": target})[0] == [1, 1, 3, 3]


def test_name_of_a_mapping_tells_the_organ_of_a_bare_lesion() -> None:
    assert _settle({1: "structure one", 2: "tumour", 3: "spleen"}, {1: "liver"})[0] == [1, 26, 3, 26]


def test_lesions_alone_mean_nothing_and_are_refused() -> None:
    with pytest.raises(BankError, match="none of its label names is in the vocabulary: Vessel, Tumour"):
        _build("auto", {1: "Vessel", 2: "Tumour"})


CTMR = dict(
    zip(
        (
            "liver",
            "kidney",
            "spleen",
            "rectum",
            "lung",
            "bone",
            "hepatic tumor",
            "left lung upper lobe",
            "vertebrae L5",
        ),
        (1, 2, 3, 18, 20, 21, 26, 28, 33),
        strict=True,
    )
) | {
    "left kidney cyst": 116,
    "airway": 132,
    "left lung": 135,
    "left mandible": 200,
    "larynx": 210,
    "brain tumor ET": 403,
}
"""Names and ids as in NVIDIA's label_dict_ctmr.json."""


def test_label_dictionary_of_nvidia_says_what_ids_are(tmp_path: Path) -> None:
    (tmp_path / "label_dict_ctmr.json").write_text(json.dumps(CTMR))
    mapping = load_mapping(str(tmp_path / "label_dict_ctmr.json"))
    assert mapping == {"1": 1, "3": 3, "26": 26, "28": 28, "33": 33, "116": 116, "132": 132}
    translation = _build(mapping)
    assert translation is not None
    assert translation.envelope_ids == frozenset(), "200 is the left mandible there, and no body"
    label_map = np.array([0, 1, 2, 26, 132, 200, 210, 403], dtype=np.uint16).reshape(2, 2, 2)
    assert translation.apply(label_map).ravel().tolist() == [0, 1, 200, 26, 132, 200, 200, 200]
    (tmp_path / "label_dict.json").write_text(json.dumps({**CTMR, "left mandible": 201, "body": 200}))
    with_body = _build(load_mapping(str(tmp_path / "label_dict.json")))
    assert with_body is not None
    assert with_body.envelope_ids == {200}


def test_mapping_of_names_is_no_label_dictionary(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"Leber": 1, "Tumor": 26}))
    assert load_mapping(str(tmp_path / "map.json")) == {"Leber": 1, "Tumor": 26}
