from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.errors import PreparationError, VocabularyError
from maisi_aug.preparation.mapping import (
    LabelMeanings,
    MapRule,
    SourceLabel,
    name_new_labels,
    parse_rule,
    resolve_meanings,
)
from maisi_aug.preparation.prepared import NewLabel
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.vocabulary.labels import BODY_ID, FREE_IDS, MAISI, SLOT_IDS

OAR = [
    SourceLabel("oar", 1, "Brainstem"),
    SourceLabel("oar", 2, "SpinalCord"),
    SourceLabel("oar", 3, "RightParotid"),
    SourceLabel("oar", 4, "LeftParotid"),
]
PTV = [SourceLabel("ptv", 1, "PTV56"), SourceLabel("ptv", 2, "PTV63")]


def resolve(labels: list[SourceLabel], *rules: str) -> LabelMeanings:
    return resolve_meanings(labels, list(map(parse_rule, rules)), MAISI)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("1=kidney tumor", MapRule(None, "1", "kidney tumor")),
        (
            " OAR/Left_Parotid = left parotid@ skull, body ",
            MapRule("oar", "Left_Parotid", "left parotid", ("skull", "body")),
        ),
        ("ptv/*=-", MapRule("ptv", "*", "-")),
        ("2=new:node", MapRule(None, "2", "node", is_new=True)),
    ],
)
def test_rule_is_read(text: str, rule: MapRule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["kidney", "=kidney", "1=", "1=new:", "ptv/=x", "1=node@"])
def test_rule_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(PreparationError, match="--map: expected LABEL=NAME, .* found '"):
        parse_rule(text)


def test_names_of_the_vocabulary_need_no_rule() -> None:
    meanings = resolve(
        [SourceLabel("", 1, "SpinalCord"), SourceLabel("", 7, "kidney_left"), SourceLabel("", 0, "background")]
    )
    assert list(meanings.ids.values()) == [121, 14, 0]
    assert meanings.new_labels == {}


def test_new_names_get_slots_of_their_own_in_the_order_of_the_rules() -> None:
    meanings = resolve(OAR, "4=left parotid@body", "3=right parotid@body", "Brainstem=brainstem@brain")
    assert meanings.new_labels == {
        "left parotid": NewLabel(id=2, hosts=(BODY_ID,)),
        "right parotid": NewLabel(id=16, hosts=(BODY_ID,)),
        "brainstem": NewLabel(id=18, hosts=(22,)),
    }
    assert [meanings.ids[label] for label in OAR] == [18, 121, 16, 2]
    assert meanings.vocabulary.id_of("Left Parotid") == 2


def test_new_label_never_takes_an_id_in_use() -> None:
    labels = [SourceLabel("", number, None) for number in range(1, 12)]
    rules = ["1=dummy1", "2=dummy3", *(f"{number}=new:thing {number}" for number in range(3, 12))]
    ids = [label.id for label in resolve(labels, *rules).new_labels.values()]
    assert ids == [16, 20, 21, 129, 130, 131, *FREE_IDS[:3]]
    assert not {2, 18} & set(ids)


def test_known_slot_keeps_its_usual_id_and_hosts() -> None:
    meanings = resolve([SourceLabel("", 1, None), SourceLabel("", 2, None)], "1=new:node", "2=kidney tumor")
    assert meanings.new_labels == {"node": NewLabel(id=2), "kidney tumor": NewLabel(id=129, hosts=(5, 14))}


def test_names_that_the_bundle_binds_keep_its_ids() -> None:
    vocabulary = load_bundle("phantom-ct").vocabulary
    label = SourceLabel("", 1, "tumor")
    meanings = resolve_meanings([label], [parse_rule("tumor=kidney tumor")], vocabulary)
    assert meanings.ids == {label: vocabulary.id_of("kidney tumor")}
    assert set(meanings.new_labels) == {"kidney tumor"}


def test_rule_by_name_wins_over_a_pattern_and_over_the_own_name() -> None:
    meanings = resolve([*OAR, *PTV], "*=-", "ptv/1=new:target", "SpinalCord=new:cord", "oar/Brain*=brain")
    assert [meanings.ids[label] for label in (*OAR, *PTV)] == [0, 16, 0, 0, 2, 0]
    assert [meanings.ids[label] for label in (OAR[0],)] == [0]  # of two patterns the first one given
    assert resolve(OAR, "oar/Brain*=brain", "*=-").ids[OAR[0]] == 22


def test_all_labels_without_a_meaning_are_named_at_once() -> None:
    with pytest.raises(
        PreparationError,
        match=r"missing for oar/1 \(Brainstem\), oar/3 \(RightParotid\), oar/4 \(LeftParotid\)\. Add a --map for "
        r"each, such as 'Brainstem=brainstem', or 'Brainstem=-' to drop it",
    ):
        resolve(OAR)
    with pytest.raises(PreparationError, match="ids above 255 need one as well"):
        resolve([SourceLabel("", 300, None)])


def test_id_above_255_can_be_mapped() -> None:
    label = SourceLabel("", 300, None)
    assert resolve([label], "300=liver").ids == {label: 1}


def test_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(PreparationError, match="--map '"):
        resolve(OAR, "9=liver")


def test_misspelt_name_is_not_taken_for_a_new_label() -> None:
    label = SourceLabel("", 1, None)
    with pytest.raises(PreparationError, match="=hepatic tumor', or '1=new:"):
        resolve([label], "1=hepatc tumor")
    assert set(resolve([label], "1=new:hepatc tumor").new_labels) == {"hepatc tumor"}
    assert set(resolve([label], "1=left parotid").new_labels) == {"left parotid"}


def test_known_name_takes_no_hosts() -> None:
    with pytest.raises(
        PreparationError, match="is in the vocabulary, so its host organs are fixed; only a new name can stand"
    ):
        resolve([SourceLabel("", 1, None)], "1=liver@body")


def test_unknown_id_and_unknown_host_are_refused() -> None:
    label = SourceLabel("", 1, None)
    with pytest.raises(PreparationError, match="Label id 140: not in this vocabulary"):
        resolve([label], "1=140")
    with pytest.raises(PreparationError, match="--map '1=node': hosts: Label 'lever': not a name"):
        resolve([label], "1=node@lever")
    with pytest.raises(VocabularyError, match="hosts must be ids of organs, found"):
        resolve([label], "1=node@hepatic tumor")


def test_slots_are_the_first_to_be_given() -> None:
    labels = [SourceLabel("", number, None) for number in range(1, len(SLOT_IDS) + 1)]
    meanings = resolve(labels, *(f"{label.id}=new:thing {label.id}" for label in labels))
    assert {label.id for label in meanings.new_labels.values()} == set(SLOT_IDS)


def test_new_labels_are_named_by_the_data_unless_a_rule_says_otherwise() -> None:
    def case(names: dict[int, str]) -> SourceCase:
        return SourceCase("a", Path("a_ct"), (LabelFile(Path("a_seg"), names=names),))

    def name(labels: list[str], names: dict[int, str], *rules: str) -> list[tuple[str, str]]:
        found = name_new_labels(labels, [case(names)], list(map(parse_rule, rules)), MAISI)
        return [(rule.source, rule.target) for rule in found]

    names = {1: "LeftParotid", 2: "node", 3: "liver"}
    assert name(["left parotid", "node", "liver"], names) == [("LeftParotid", "left parotid"), ("node", "node")]
    assert name(["node"], names, "*=-") == [("node", "node")]
    assert name(["node"], names, "2=lymph node@body") == []
    assert name(["node"], names, "1=node@body") == []
    assert name(["2", "nod*", "gland"], names) == []


def test_advice_for_one_kind_of_file_leaves_the_others_alone() -> None:
    labels = [SourceLabel("oar", 1, None), SourceLabel("ptv", 1, None)]
    with pytest.raises(PreparationError, match=r"Add a --map for each, such as 'oar/1=kidney tumor', or 'oar/1=-'"):
        resolve(labels)
    with pytest.raises(PreparationError, match="Add a --map for each, such as 'ptv/1="):
        resolve(labels, "oar/1=liver")
    with pytest.raises(PreparationError, match=r"such as '1=kidney tumor'"):
        resolve([SourceLabel("seg", 1, None)])


def test_lesions_are_told_by_the_organs_beside_them() -> None:
    liver, cancer = SourceLabel("", 1, "liver"), SourceLabel("", 2, "cancer")
    assert resolve([liver, cancer]).ids == {liver: 1, cancer: 26}
    number = SourceLabel("", 1, None)
    assert resolve([number, cancer], "1=liver").ids == {number: 1, cancer: 26}


def test_lesion_that_may_be_of_several_organs_is_asked_for() -> None:
    labels = [SourceLabel("", n, name) for n, name in enumerate(("liver", "pancreas", "tumor"), start=1)]
    with pytest.raises(PreparationError, match=r"missing for 3 \(tumor\)\. Add .* such as 'tumor=pancreatic tumor'"):
        resolve(labels)


def test_union_is_the_organ_and_never_the_lesion() -> None:
    union, tumor = SourceLabel("", 1, "liver_and_tumor"), SourceLabel("", 2, "tumor")
    assert resolve([union, tumor]).ids == {union: 1, tumor: 26}
