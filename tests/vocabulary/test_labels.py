from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maisi_aug.errors import VocabularyError
from maisi_aug.phantom import ids
from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path
from maisi_aug.vocabulary.labels import (
    BODY_ID,
    FREE_IDS,
    FULL_VOCABULARY,
    KNOWN_SLOTS,
    MAISI,
    SLOT_IDS,
    Label,
    SlotBinding,
    Vocabulary,
)
from maisi_aug.vocabulary.totalsegmentator import (
    TotalSegmentatorVersion,
    totalsegmentator_mapping,
    totalsegmentator_names,
)

KIDNEY_TUMOR = SlotBinding(id=129, hosts=(5, 14))
PUBLISHED_IDS = {
    "liver": 1,
    "spleen": 3,
    "right kidney": 5,
    "left kidney": 14,
    "bladder": 15,
    "brain": 22,
    "lung tumor": 23,
    "pancreatic tumor": 24,
    "hepatic vessel": 25,
    "hepatic tumor": 26,
    "colon cancer primaries": 27,
    "left lung upper lobe": 28,
    "right lung lower lobe": 32,
    "vertebrae L5": 33,
    "vertebrae C1": 56,
    "trachea": 57,
    "right iliac vena": 61,
    "colon": 62,
    "left rib 1": 63,
    "right rib 12": 86,
    "right femur": 94,
    "sacrum": 97,
    "right iliopsoas": 107,
    "heart": 115,
    "spinal cord": 121,
    "sternum": 122,
    "left subclavian artery": 123,
    "vertebrae S1": 127,
    "bone lesion": 128,
    "airway": 132,
    "body": 200,
}


@pytest.fixture
def kidney_vocabulary() -> Vocabulary:
    return MAISI.with_slots({"kidney tumor": KIDNEY_TUMOR})


def test_known_slots_are_bound_as_the_embedded_bundle_binds_them() -> None:
    recipe = load_training_recipe(training_recipe_path("train-phantom-ct"))
    bound = {name: SlotBinding(id=slot.id, hosts=slot.hosts) for name, slot in recipe.bundle.slots.items()}
    assert KNOWN_SLOTS == bound == {"kidney tumor": KIDNEY_TUMOR}
    assert FULL_VOCABULARY.label(ids.KIDNEY_TUMOR).hosts == ids.KIDNEYS


def test_vocabulary_holds_background_132_labels_and_body() -> None:
    assert [label.id for label in MAISI] == [*range(133), BODY_ID]
    assert len({label.name for label in MAISI}) == 134


@pytest.mark.parametrize(("name", "label_id"), PUBLISHED_IDS.items())
def test_names_have_the_published_ids(name: str, label_id: int) -> None:
    assert MAISI.id_of(name) == label_id
    assert MAISI.name_of(label_id) == name


def test_every_name_and_alias_finds_its_own_label() -> None:
    for label in MAISI:
        for name in (label.name, *label.aliases, str(label.id), label.name.upper(), label.name.replace(" ", "_")):
            assert MAISI.label(name) is label, name


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("liver tumor", "hepatic tumor"),
        ("Liver Lesion", "hepatic tumor"),
        ("tumour of the liver", "hepatic tumor"),
        ("HCC", "hepatic tumor"),
        ("lung nodule", "lung tumor"),
        ("lung-nodules", "lung tumor"),
        ("pancreas tumour", "pancreatic tumor"),
        ("colon cancer", "colon cancer primaries"),
        ("bone metastases", "bone lesion"),
        ("kidney_left", "left kidney"),
        ("kidney left", "left kidney"),
        ("Right Kidney", "right kidney"),
        ("urinary bladder", "bladder"),
        ("IVC", "inferior vena cava"),
        ("oesophagus", "esophagus"),
        ("heart_myocardium", "heart"),
        ("lung_upper_lobe_left", "left lung upper lobe"),
        ("vertebrae_L5", "vertebrae L5"),
        ("L5 vertebra", "vertebrae L5"),
        ("Th12", "vertebrae T12"),
        ("left clavicle", "left clavicula"),
        (" 26 ", "hepatic tumor"),
        (26, "hepatic tumor"),
        ("pulmonary_artery", "body"),
    ],
)
def test_label_is_found_as_people_type_it(typed: str | int, name: str) -> None:
    assert MAISI.label(typed).name == name


def test_six_kinds_of_lesion_grow_where_they_should(kidney_vocabulary: Vocabulary) -> None:
    assert kidney_vocabulary.tumor_ids == (23, 24, 26, 27, 128, 129)
    assert kidney_vocabulary.hosts_of(23) == (28, 29, 30, 31, 32)
    assert kidney_vocabulary.hosts_of(24) == (4,)
    assert kidney_vocabulary.hosts_of(26) == (1,)
    assert kidney_vocabulary.hosts_of(27) == (62,)
    assert kidney_vocabulary.hosts_of(129) == (5, 14)
    assert kidney_vocabulary.hosts_of(1) == ()
    bones = {*range(33, 57), *range(63, 97), 97, 120, 122, 127}
    assert set(kidney_vocabulary.hosts_of(128)) == bones
    assert len(kidney_vocabulary.hosts_of(128)) == len(bones) == 62


def test_removed_tumour_becomes_its_organ_or_body(kidney_vocabulary: Vocabulary) -> None:
    found = {tumor: kidney_vocabulary.background_id_for(tumor) for tumor in kidney_vocabulary.tumor_ids}
    assert found == {23: 28, 24: 4, 26: 1, 27: 62, 128: 200, 129: 5}
    with pytest.raises(VocabularyError, match=": only lesions can be removed, and this is of kind 'organ'"):
        MAISI.background_id_for(1)


def test_kidney_cysts_are_lesions_for_guidance_and_anatomy_elsewhere() -> None:
    """MAISI's own table: 26 to 1, 24 to 4, 27 to 62, 116 to 14, 117 to 5."""
    assert MAISI.lesion_ids == (23, 24, 26, 27, 116, 117, 128)
    assert [MAISI.background_id_for(label_id) for label_id in (26, 24, 27, 116, 117)] == [1, 4, 62, 14, 5]
    assert not {116, 117} & set(MAISI.tumor_ids)
    assert {MAISI.label(label_id).kind for label_id in (116, 117)} == {"organ"}


def test_slots_are_the_published_ones() -> None:
    assert {label.id: label.name for label in MAISI if label.kind == "slot"} == {
        label_id: f"dummy{number}" for number, label_id in enumerate(SLOT_IDS, start=1)
    }
    assert tuple(label_id for label_id in range(256) if not MAISI.contains(label_id)) == FREE_IDS


def test_bound_slot_is_found_by_its_names_and_known_aliases(kidney_vocabulary: Vocabulary) -> None:
    for name in ("kidney tumor", "Kidney Tumours", "RCC", "renal_tumour", "dummy6", 129):
        assert kidney_vocabulary.name_of(kidney_vocabulary.id_of(name)) == "kidney tumor"
    assert kidney_vocabulary.label(129).is_slot
    assert MAISI.name_of(129) == "dummy6"


def test_slot_without_hosts_is_an_organ_and_free_ids_can_be_bound() -> None:
    vocabulary = MAISI.with_slots({"stent graft": SlotBinding(id=133, aliases=("EVAR",))})
    assert vocabulary.label("evar") == Label(133, "stent graft", "organ", aliases=("EVAR",), is_slot=True)
    assert vocabulary.contains(133)
    assert not MAISI.contains(133)


def test_same_binding_twice_is_the_same_vocabulary(kidney_vocabulary: Vocabulary) -> None:
    assert kidney_vocabulary.with_slots({"kidney tumor": KIDNEY_TUMOR}) == kidney_vocabulary


def test_an_alias_that_is_bound_itself_belongs_to_that_binding() -> None:
    vocabulary = MAISI.with_slots({"kidney tumor": KIDNEY_TUMOR, "RCC": SlotBinding(id=130, hosts=(5, 14))})
    assert vocabulary.id_of("RCC") == 130
    assert vocabulary.id_of("renal tumor") == 129


@pytest.mark.parametrize(
    ("name", "binding", "message"),
    [
        ("liver tumour", SlotBinding(130), "'liver tumour': this is already a name of 'hepatic tumor'"),
        ("kidney", SlotBinding(1), "expected a placeholder slot .* found 1, the id of 'liver'"),
        ("kidney", SlotBinding(300), "found 300, an id outside 0-255"),
        ("device", SlotBinding(129), "id 129 is already bound to 'kidney tumor'"),
        ("a+b", SlotBinding(130), "a name must consist of words without '"),
        ("42", SlotBinding(130), "or '@', found '42'"),
        (" ", SlotBinding(130), "a name must consist of words without '"),
        ("device", SlotBinding(130, hosts=(26, 133)), "hosts must be ids of organs, found"),
        ("device", SlotBinding(130, aliases=("spleen",)), "this name is taken by 'spleen'"),
    ],
)
def test_binding_that_collides_is_refused(
    name: str, binding: SlotBinding, message: str, kidney_vocabulary: Vocabulary
) -> None:
    with pytest.raises(VocabularyError, match=message):
        kidney_vocabulary.with_slots({name: binding})


def test_two_labels_cannot_share_an_id() -> None:
    with pytest.raises(VocabularyError, match="id 1: has two names, 'liver' and 'spleen'"):
        Vocabulary((Label(1, "liver", "organ"), Label(1, "spleen", "organ")))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("hepatic tumr", "'hepatic tumr': .* Did you mean 'hepatic tumor'"),
        ("liver_tumr", "Did you mean 'liver tumor'"),
        (
            "kidney",
            "ambiguous, part of several names: 'right kidney', 'left kidney', 'left kidney cyst', 'right kidney cyst'",
        ),
        ("ribs", r"several names: 'left rib 1', .*, \.\.\."),
        ("kidney tumour", "this name needs a placeholder slot that this bundle does not bind"),
        ("qqqq", "'qqqq': not a name or id .* List the labels"),
        ("", "'': not a name or id"),
        (133, "id 133: not in this vocabulary"),
        ("201", "id 201: not in this vocabulary"),
    ],
)
def test_unknown_label_is_answered_with_what_is_close(typed: str | int, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        MAISI.id_of(typed)


@pytest.mark.parametrize(("version", "num_classes"), [("v1", 104), ("v2", 117)])
def test_every_totalsegmentator_class_is_mapped_as_its_name_says(
    version: TotalSegmentatorVersion, num_classes: int
) -> None:
    names, mapping = totalsegmentator_names(version), totalsegmentator_mapping(version)
    assert list(names) == list(range(1, num_classes + 1))
    assert len(set(names.values())) == num_classes
    assert mapping == {0: 0, **{class_id: MAISI.id_of(name) for class_id, name in names.items()}}


def test_vocabulary_imports_nothing_heavy(repository: Path) -> None:
    code = (
        "import sys, maisi_aug.cohort.grammar, maisi_aug.vocabulary.totalsegmentator;"
        "print(*{'torch', 'numpy', 'yaml', 'pydantic', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
