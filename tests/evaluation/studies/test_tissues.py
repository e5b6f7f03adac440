from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from maisi_aug.evaluation.studies.tissues import LESION, list_tissues, mean_dice, measure_dice, to_class_map
from maisi_aug.vocabulary.labels import MAISI, SlotBinding

VOCABULARY = MAISI.with_slots({"kidney tumor": SlotBinding(id=129, hosts=(5, 14))})
TISSUES = list_tissues(VOCABULARY)


def test_no_label_belongs_to_two_tissues() -> None:
    assert all(not set(one.label_ids) & set(other.label_ids) for one, other in combinations(TISSUES, 2))
    assert len(TISSUES) == 13


def test_last_tissue_holds_every_tumor_and_bound_slots() -> None:
    assert TISSUES[-1].name == LESION
    assert TISSUES[-1].label_ids == (23, 24, 26, 27, 128, 129)
    assert 129 not in list_tissues(MAISI)[-1].label_ids


def test_class_map_names_tissues_and_leaves_the_rest_out() -> None:
    label_map = np.array([[[0, 1, 25, 200, 129, 5, 14, 19]]], dtype=np.uint8)
    before = label_map.copy()
    classes = to_class_map(label_map, TISSUES)
    names = ["-", *(tissue.name for tissue in TISSUES)]
    assert [names[n] for n in classes.ravel()] == ["-", "liver", "liver", "-", "lesion", "kidneys", "kidneys", "-"]
    np.testing.assert_array_equal(label_map, before)


def test_dice_agrees_with_its_definition(rng: np.random.Generator) -> None:
    expected = rng.integers(0, 4, (7, 9, 11), dtype=np.uint8)
    found = rng.integers(0, 4, (7, 9, 11), dtype=np.uint8)
    dice = measure_dice(expected, found, TISSUES)
    for number in (1, 2, 3):
        one, other = expected == number, found == number
        assert dice[TISSUES[number - 1].name] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_dice_of_a_tissue_out_of_view_is_none_and_of_a_missed_one_zero() -> None:
    expected, found = np.ones((2, 3, 4), dtype=np.uint8), np.full((2, 3, 4), 2, dtype=np.uint8)
    dice = measure_dice(expected, found, TISSUES)
    assert dice[TISSUES[0].name] == 0.0
    assert dice[TISSUES[1].name] is None
    assert mean_dice([dice, {**dice, TISSUES[0].name: 0.5}], TISSUES[0].name) == 0.25
    assert mean_dice([dice], TISSUES[1].name) is None
