from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import BundleError, RecipeError
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.networks.mask_conditions import (
    CONDITION_IDS,
    NUM_NEAREST,
    SIZED_TUMORS,
    draw_condition,
    find_told_tumor,
    give_sizes,
    load_size_conditions,
    read_organ_sizes,
    require_not_absent,
)
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.sizes import reference_distribution
from tests.builders.lesions import ask_for
from tests.builders.tiny_masks import build_size_rows

LIVER, PANCREAS, HEPATIC_TUMOR, BONE_LESION, KIDNEY_TUMOR = 1, 4, 26, 128, 129
ROWS = np.array(build_size_rows(200), dtype=np.float32)
PLACE = {label_id: place for place, label_id in enumerate(CONDITION_IDS)}


def wish(label_id: int, volume_ml: float = 5.0) -> Lesion:
    return ask_for(label_id, (LIVER,), volume_ml)


def test_numbers_stand_in_the_published_order() -> None:
    names = [MAISI.name_of(label_id) for label_id in CONDITION_IDS]
    assert names[:5] == ["gallbladder", "liver", "stomach", "pancreas", "colon"]
    assert names[5:] == ["lung tumor", "pancreatic tumor", "hepatic tumor", "colon cancer primaries", "bone lesion"]


def test_given_numbers_stay_and_at_most_one_tumour_is_there() -> None:
    given = give_sizes([wish(HEPATIC_TUMOR)], {PANCREAS: 0.25})
    for seed in range(30):
        drawn = draw_condition(ROWS, given, present_ids={LIVER}, rng=np.random.default_rng(seed))
        assert drawn.shape == (10,)
        assert drawn[PLACE[PANCREAS]] == np.float32(0.25)
        tumors = {label_id for label_id in SIZED_TUMORS if drawn[PLACE[label_id]] != -1}
        assert tumors == {HEPATIC_TUMOR}
        assert drawn[PLACE[LIVER]] >= 0, "the tumour's host is there"
        assert (((drawn >= 0) & (drawn <= 1)) | (drawn == -1)).all()


def test_numbers_that_are_not_given_come_from_one_of_the_nearest_rows() -> None:
    given = {**dict.fromkeys(SIZED_TUMORS, -1.0), LIVER: 0.5}
    distances = np.abs(ROWS[:, [PLACE[i] for i in given]] - np.array(list(given.values()), dtype=np.float32)).sum(1)
    nearest = ROWS[np.argsort(distances, kind="stable")[:NUM_NEAREST]]
    free = [PLACE[label_id] for label_id in CONDITION_IDS if label_id not in given]
    for seed in range(20):
        drawn = draw_condition(ROWS, given, present_ids=(), rng=np.random.default_rng(seed))
        assert (drawn[free] == nearest[:, free]).all(axis=1).any()


def test_cases_differ_and_a_seed_repeats() -> None:
    given = give_sizes([wish(HEPATIC_TUMOR)], {})

    def draw(seed: int) -> tuple[float, ...]:
        return tuple(draw_condition(ROWS, given, present_ids=(), rng=np.random.default_rng(seed)).tolist())

    assert draw(3) == draw(3)
    assert len({draw(seed) for seed in range(60)}) >= NUM_NEAREST // 2


def test_rows_that_agree_equally_well_all_take_part() -> None:
    rows = np.tile(ROWS[:1], (100, 1))
    rows[:, PLACE[LIVER]] = np.linspace(0.0, 1.0, 100)
    given = {PANCREAS: float(rows[0, PLACE[PANCREAS]])}
    drawn = [draw_condition(rows, given, present_ids=(), rng=np.random.default_rng(seed)) for seed in range(200)]
    assert len({float(row[PLACE[LIVER]]) for row in drawn}) > 2 * NUM_NEAREST


def test_file_with_fewer_rows_than_are_drawn_from_will_do() -> None:
    drawn = draw_condition(ROWS[:2], {LIVER: 0.5}, present_ids=(), rng=np.random.default_rng(0))
    assert drawn[PLACE[LIVER]] == np.float32(0.5)


@pytest.mark.parametrize("percentile", [0.1, 0.5, 0.9])
def test_requested_volume_becomes_its_percentile(percentile: float) -> None:
    volume_ml = reference_distribution("hepatic tumor").volume_ml(percentile)
    assert give_sizes([wish(HEPATIC_TUMOR, volume_ml)], {})[HEPATIC_TUMOR] == pytest.approx(percentile)
    assert 0 <= give_sizes([wish(BONE_LESION, 1e6)], {})[BONE_LESION] <= 1


def test_only_one_lesion_of_a_known_kind_is_told() -> None:
    assert find_told_tumor([wish(HEPATIC_TUMOR)]) == HEPATIC_TUMOR
    for others in ([], [wish(KIDNEY_TUMOR)], [wish(HEPATIC_TUMOR)] * 2, [wish(HEPATIC_TUMOR), wish(BONE_LESION)]):
        assert find_told_tumor(others) is None
        assert set(give_sizes(others, {}).items()) == {(label_id, -1.0) for label_id in SIZED_TUMORS}


def test_organ_sizes_are_found_by_any_name() -> None:
    assert read_organ_sizes({"Liver": 0.5, "gallbladder": -1}) == {1: 0.5, 10: -1.0}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"spleen": 0.5}, "size_of 'spleen': the mask networks are not conditioned on its size, only on"),
        ({"livr": 0.5}, "size_of 'livr': .*Did you mean 'liver'"),
        ({"hepatic tumor": 0.5}, "size_of 'hepatic tumor': is a lesion; .* --labels 'hepatic tumor:0.5'"),
        ({"liver": 1.5}, "size_of 'liver': expected a percentile from 0 to 1, or -1 for absent, found 1.5"),
        ({"liver": -0.5}, "found -0.5"),
        ({"liver": 0.5, "Liver": 0.6}, "size_of 'Liver': given twice"),
    ],
)
def test_wrong_organ_size_is_refused(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_organ_sizes(sizes)


def test_organ_that_is_needed_cannot_be_absent() -> None:
    require_not_absent({LIVER: 0.1, PANCREAS: -1.0}, {LIVER})
    with pytest.raises(RecipeError, match="size_of 'pancreas': cannot be -1"):
        require_not_absent({PANCREAS: -1.0}, {PANCREAS})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "sizes.json: rows with ten numbers under 'organ_size' cannot be read"),
        (json.dumps([{"size": [0.1] * 10}]), "cannot be read .KeyError"),
        (json.dumps([{"organ_size": [0.1] * 9}]), "rows must have 10 numbers, found the shape"),
        (json.dumps([]), "rows must have 10 numbers, found the shape"),
        (json.dumps([{"organ_size": [0.1] * 10}, {"organ_size": [0.1] * 9 + [1.5]}]), "found 1.5 in row 2"),
    ],
)
def test_damaged_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        load_size_conditions(tmp_path / "sizes.json")
