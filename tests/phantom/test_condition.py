"""Condition maps: what networks of bundles that complete label maps are shown."""

from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.phantom import build_label_map, ids
from maisi_aug.phantom.condition import complete_map, condition_map
from maisi_aug.phantom.detail import draw_detail
from maisi_aug.phantom.phases import condition_seed, phase_for, phase_table, with_phase
from maisi_aug.volumes.grid import Grid

GRID = Grid.from_spacing((60, 46, 36), (6.6, 6.6, 6.6))


@pytest.fixture(scope="module")
def liver_and_tumor() -> np.ndarray:
    """Outline, liver and a tumour in it."""
    full = build_label_map(seed=3, grid=GRID, region="abdomen").label_map
    given = np.where(full == ids.LIVER, full, np.where(full > 0, ids.BODY, 0)).astype(np.uint8)
    middle = np.argwhere(given == ids.LIVER).mean(axis=0)
    near = np.linalg.norm(np.indices(given.shape).T.swapaxes(0, 2) - middle, axis=-1) < 3
    given[near & (given == ids.LIVER)] = ids.HEPATIC_TUMOR
    return given


def test_every_voxel_of_the_body_is_labelled_anatomy(liver_and_tumor: np.ndarray) -> None:
    shown = condition_map(liver_and_tumor, grid=GRID, seed=4, modality="ct_contrast")
    assert shown.dtype == np.uint8
    assert not (shown == ids.BODY).any()
    np.testing.assert_array_equal(shown > 0, liver_and_tumor > 0)
    assert {ids.VISCERAL_FAT, ids.SUBCUTANEOUS_FAT} <= set(np.unique(shown).tolist())


def test_phase_follows_the_modality_and_the_seed(liver_and_tumor: np.ndarray) -> None:
    plain = condition_map(liver_and_tumor, grid=GRID, seed=4, modality="ct_wo_contrast")
    table = phase_table()
    given = liver_and_tumor == ids.HEPATIC_TUMOR
    assert set(np.unique(plain[given])) == {table[ids.HEPATIC_TUMOR, "non-contrast"]}
    liver = np.unique(plain[liver_and_tumor == ids.LIVER])
    assert table[ids.LIVER, "non-contrast"] in liver
    assert ids.LIVER not in liver
    np.testing.assert_array_equal(plain, condition_map(liver_and_tumor, grid=GRID, seed=4, modality="ct_wo_contrast"))
    other = condition_map(liver_and_tumor, grid=GRID, seed=5, modality="ct_wo_contrast")
    assert (plain != other).mean() > 0.01


def test_same_patient_without_lesions_differs_in_the_lesions_alone(liver_and_tumor: np.ndarray) -> None:
    completed = complete_map(liver_and_tumor, grid=GRID, seed=4)
    healthy = np.where(completed.label_map == ids.HEPATIC_TUMOR, ids.LIVER, completed.label_map).astype(np.uint8)
    changed = completed.to_condition("ct", healthy) != completed.to_condition("ct")
    np.testing.assert_array_equal(changed, liver_and_tumor == ids.HEPATIC_TUMOR)


def test_phantoms_keep_their_own_tissue() -> None:
    anatomy = build_label_map(seed=3, grid=GRID, region="abdomen")
    shown = condition_map(anatomy.label_map, grid=GRID, seed=4, modality="ct", tissue=anatomy.tissue)
    own = condition_seed(4)
    detail = draw_detail(anatomy.label_map, anatomy.tissue, seed=own, grid=GRID)
    np.testing.assert_array_equal(shown, with_phase(detail, phase_for("ct", own)))
