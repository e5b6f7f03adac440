"""Contrast phases as ids: none is a label or taken twice, and maps of two phases differ where they must."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.phantom import PHASES, Phase, build_label_map, ids, render_hu
from maisi_aug.phantom.phases import (
    BASE_PHASE,
    ENHANCED_GROUPS,
    OTHER_PHASES,
    condition_seed,
    describe_completion,
    infer_phase,
    phase_for,
    phase_table,
    with_phase,
)
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid

GRID = Grid.from_spacing((48, 36, 30), (8.4, 8.4, 8.4))


def test_every_group_and_phase_has_an_id_that_nothing_else_has() -> None:
    table = phase_table()
    own = {
        tuple(sorted({table[label, phase] for label in group})) for group in ENHANCED_GROUPS for phase in OTHER_PHASES
    }
    assert len(own) == len(ENHANCED_GROUPS) * len(OTHER_PHASES) == len({ids_of[0] for ids_of in own})
    assert all(len(ids_of) == 1 for ids_of in own)
    for (used,) in own:
        assert not MAISI.contains(used)
        assert used not in ids.DETAIL_IDS
        assert used != ids.BODY


def test_no_label_is_in_two_groups() -> None:
    listed = [label for group in ENHANCED_GROUPS for label in group]
    assert len(listed) == len(set(listed)) >= 50


@pytest.mark.parametrize("phase", PHASES)
def test_map_of_a_phase_differs_in_the_enhanced_groups_alone(phase: Phase) -> None:
    detail = np.arange(136, dtype=np.uint8).reshape(2, 4, 17)
    before = detail.copy()
    shown = with_phase(detail, phase)
    np.testing.assert_array_equal(detail, before)
    enhanced = {label for group in ENHANCED_GROUPS for label in group}
    changed = {int(label) for label in detail[shown != detail]}
    assert changed == (set() if phase == BASE_PHASE else enhanced & set(range(136)))
    assert shown.dtype == np.uint8


def test_modality_decides_whether_there_is_contrast_agent() -> None:
    assert {phase_for("ct_wo_contrast", seed) for seed in range(20)} == {"non-contrast"}
    assert {phase_for("ct_contrast", seed) for seed in range(60)} == set(PHASES) - {"non-contrast"}
    assert {phase_for("ct", seed) for seed in range(60)} == set(PHASES)
    assert phase_for("ct", 7) == phase_for("ct", 7)


def test_description_names_phase_and_seed() -> None:
    described = describe_completion(11, "ct_contrast")
    assert described["seed"] == condition_seed(11) != condition_seed(12)
    assert described["phase"] == phase_for("ct_contrast", condition_seed(11))


@pytest.mark.parametrize("phase", PHASES)
def test_phase_is_read_off_an_image(phase: Phase) -> None:
    anatomy = build_label_map(seed=4, grid=GRID, region="abdomen")
    image = render_hu(anatomy.label_map, seed=4, grid=GRID, phase=phase, tissue=anatomy.tissue)
    assert infer_phase(anatomy.label_map, image, modality="ct") == phase
    assert infer_phase(anatomy.label_map, image, modality="ct_wo_contrast") == "non-contrast"
    assert infer_phase(anatomy.label_map, image, modality="ct_contrast") != "non-contrast"
    assert infer_phase(np.full(GRID.shape, 200, dtype=np.uint8), image, modality="ct") == BASE_PHASE
