"""Lesions that a map has are removed into the nearest host, and resized to the voxel without leaving it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.lesions.editing import describe_lesion, remove_lesions, resize_lesion, settle_lesions
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from tests.builders.lesions import ask_for

SPACING_MM = (1.7, 1.8, 2.5)
SHAPE = (31, 29, 23)
LIVER, BODY, HEPATIC_TUMOR, LUNG_TUMOR, BONE_LESION, KIDNEY_TUMOR = 1, 200, 26, 23, 128, 129


def _ball(centre: tuple[int, int, int], radius_mm: float) -> NDArray[np.bool_]:
    grid = np.indices(SHAPE, sparse=True)
    distance = sum(((axis - middle) * side) ** 2 for axis, middle, side in zip(grid, centre, SPACING_MM, strict=True))
    return np.asarray(distance <= radius_mm**2)


@pytest.fixture
def liver_map() -> NDArray[np.uint8]:
    label_map = np.full(SHAPE, BODY, dtype=np.uint8)
    label_map[_ball((15, 14, 11), 22.0)] = LIVER
    label_map[_ball((13, 13, 10), 7.0)] = HEPATIC_TUMOR
    return label_map


def test_removed_tumour_leaves_its_host_and_nothing_else_changes(liver_map: NDArray[np.uint8]) -> None:
    before = liver_map.copy()
    healthy = remove_lesions(liver_map, MAISI, spacing_mm=SPACING_MM)
    np.testing.assert_array_equal(healthy, np.where(before == HEPATIC_TUMOR, LIVER, before))
    np.testing.assert_array_equal(liver_map, before)


def test_lung_tumour_on_a_fissure_goes_back_to_both_lobes() -> None:
    label_map = np.full(SHAPE, 28, dtype=np.uint8)
    label_map[:, 14:] = 29
    label_map[_ball((15, 14, 11), 6.0)] = LUNG_TUMOR
    healthy = remove_lesions(label_map, MAISI, spacing_mm=SPACING_MM)
    expected = np.full(SHAPE, 28, dtype=np.uint8)
    expected[:, 14:] = 29
    assert (healthy != expected).mean() < 0.002
    assert set(np.unique(healthy)) == {28, 29}


def test_bone_lesion_without_a_bone_nearby_becomes_what_the_vocabulary_says() -> None:
    label_map = np.full(SHAPE, BODY, dtype=np.uint8)
    label_map[5:8, 5:8, 5:8] = BONE_LESION
    assert (remove_lesions(label_map, MAISI, spacing_mm=SPACING_MM) == BODY).all()


def test_bound_slot_is_removed_too(liver_map: NDArray[np.uint8]) -> None:
    label_map = np.where(liver_map == HEPATIC_TUMOR, KIDNEY_TUMOR, np.where(liver_map == LIVER, 14, liver_map))
    vocabulary = MAISI.with_slots({"kidney tumor": SlotBinding(KIDNEY_TUMOR, (5, 14))})
    healthy = remove_lesions(label_map.astype(np.uint8), vocabulary, spacing_mm=SPACING_MM)
    assert set(np.unique(healthy)) == {14, BODY}


def test_cysts_become_their_own_kidney_where_guidance_asks_and_stay_otherwise() -> None:
    label_map = np.full(SHAPE, BODY, dtype=np.uint8)
    label_map[_ball((8, 14, 11), 11.0)], label_map[_ball((22, 14, 11), 11.0)] = 5, 14
    expected = label_map.copy()
    label_map[_ball((8, 14, 11), 5.0)], label_map[_ball((22, 14, 11), 5.0)] = 117, 116
    np.testing.assert_array_equal(remove_lesions(label_map, MAISI, spacing_mm=SPACING_MM), label_map)
    healthy = remove_lesions(label_map, MAISI, spacing_mm=SPACING_MM, with_cysts=True)
    np.testing.assert_array_equal(healthy, expected)
    lone = np.where(label_map == 116, 116, BODY).astype(np.uint8)  # no kidney beside it: the left one, as MAISI has it
    assert set(np.unique(remove_lesions(lone, MAISI, spacing_mm=SPACING_MM, with_cysts=True))) == {14, BODY}


def test_kept_lesion_stays_whole_while_the_other_goes(liver_map: NDArray[np.uint8]) -> None:
    liver_map[_ball((22, 16, 12), 3.0)] = HEPATIC_TUMOR
    keep = np.zeros(SHAPE, dtype=bool)
    keep[22, 16, 12] = True
    healthy = remove_lesions(liver_map, MAISI, spacing_mm=SPACING_MM, keep=keep)
    np.testing.assert_array_equal(healthy == HEPATIC_TUMOR, _ball((22, 16, 12), 3.0))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.3, 2.0])
def test_resized_lesion_has_the_exact_number_of_voxels_and_stays_in_its_host(
    liver_map: NDArray[np.uint8], factor: float
) -> None:
    before = liver_map.copy()
    lesion = liver_map == HEPATIC_TUMOR
    wanted = round(factor * int(lesion.sum()))
    resized, now = resize_lesion(liver_map, lesion, num_voxels=wanted, hosts=(LIVER,), spacing_mm=SPACING_MM)
    np.testing.assert_array_equal(resized == HEPATIC_TUMOR, now)
    assert int(now.sum()) == wanted
    assert ndimage.label(now)[1] == 1
    np.testing.assert_array_equal(resized == BODY, before == BODY)
    assert (now & lesion).sum() == min(wanted, int(lesion.sum()))
    np.testing.assert_array_equal(liver_map, before)


def test_growing_lesion_never_touches_its_neighbour(liver_map: NDArray[np.uint8]) -> None:
    neighbour = np.zeros(SHAPE, dtype=bool)
    neighbour[19:21, 12:15, 9:12] = True
    neighbour &= liver_map == LIVER
    liver_map[neighbour] = HEPATIC_TUMOR
    lesion = (liver_map == HEPATIC_TUMOR) & ~neighbour
    resized, _ = resize_lesion(
        liver_map, lesion, num_voxels=2 * int(lesion.sum()), hosts=(LIVER,), spacing_mm=SPACING_MM
    )
    assert ndimage.label(resized == HEPATIC_TUMOR, np.ones((3, 3, 3)))[1] == 2


def test_description_measures_the_lesion(liver_map: NDArray[np.uint8]) -> None:
    lesion = liver_map == HEPATIC_TUMOR
    asked = ask_for(HEPATIC_TUMOR, (4, LIVER), 5.0)
    found = describe_lesion(liver_map, lesion, asked, spacing_mm=SPACING_MM)
    assert (found.label_id, found.host_id, found.centre_ijk) == (HEPATIC_TUMOR, LIVER, (13, 13, 10))
    assert found.num_voxels == int(lesion.sum())
    assert found.realised_ml == pytest.approx(lesion.sum() * np.prod(SPACING_MM) / 1000)
    assert (found.requested_ml, found.share_outside) == (5.0, None)


def test_unknown_lesion_becomes_the_organ_that_it_lies_in(liver_map: NDArray[np.uint8]) -> None:
    lesion = _ball((13, 13, 10), 7.0)
    before = liver_map.copy()
    settled = settle_lesions(np.where(lesion, BODY, liver_map).astype(np.uint8), lesion)
    np.testing.assert_array_equal(settled, np.where(before == HEPATIC_TUMOR, LIVER, before))
    as_tumor = settle_lesions(liver_map, lesion, tumor_of_host={LIVER: HEPATIC_TUMOR, 4: 24})
    np.testing.assert_array_equal(as_tumor, before)
    np.testing.assert_array_equal(liver_map, before)


def test_lesion_that_touches_an_organ_without_lying_in_it_is_body() -> None:
    label_map = np.full(SHAPE, BODY, dtype=np.uint8)
    label_map[7:12, 13, 10] = LIVER
    lesion = np.zeros(SHAPE, dtype=bool)
    lesion[1:7, 12:16, 9:13] = True
    assert (settle_lesions(label_map, lesion)[lesion] == BODY).all()


def test_part_of_a_tumour_becomes_the_tumour(liver_map: NDArray[np.uint8]) -> None:
    settled = settle_lesions(liver_map, _ball((13, 13, 10), 3.0))
    np.testing.assert_array_equal(settled, liver_map)
