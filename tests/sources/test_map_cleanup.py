"""What a mask generator drew is put right: islands, holes, stray tumours and the envelope; as a slow oracle does it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import VocabularyError, VolumeError
from maisi_aug.sources.map_cleanup import (
    DUST_ML,
    MAX_PASSES,
    MAX_SKULL_HOLE_ML,
    MIN_PART_ML,
    MIN_PART_SHARE,
    SEVERAL_PARTS,
    clean_label_map,
)
from maisi_aug.vocabulary.labels import FULL_VOCABULARY

LabelMap = NDArray[np.uint8]
Voxel = tuple[int, ...]

SHAPE = (31, 27, 19)
SPACING_MM = (1.4, 1.7, 2.5)
LIVER, SPLEEN, PANCREAS, PORTAL_VEIN, COLON, BODY = 1, 3, 4, 17, 62, 200
LUNG_TUMOR, PANCREATIC_TUMOR, HEPATIC_VESSEL, HEPATIC_TUMOR, BONE_LESION, KIDNEY_MASS = 23, 24, 25, 26, 128, 129
TOUCHING = np.ones((3, 3, 3), dtype=bool)


@pytest.fixture
def torso() -> LabelMap:
    """A body in air with a liver, a spleen, two lobes of a lung, a vertebra and a colon in two pieces."""
    torso = np.zeros(SHAPE, dtype=np.uint8)
    torso[2:-2, 2:-2] = BODY
    torso[4:16, 5:20, 3:15] = LIVER
    torso[20:26, 5:12, 3:10] = SPLEEN
    torso[18:28, 14:20, 10:14] = 28
    torso[18:28, 14:20, 14:17] = 29
    torso[18:24, 14:18, 2:7] = 33
    torso[5:9, 21:24, 3:6] = COLON
    torso[22:26, 21:24, 3:6] = COLON
    return torso


def _clean(label_map: LabelMap, *keep: int) -> LabelMap:
    before = label_map.copy()
    cleaned = clean_label_map(label_map, spacing_mm=SPACING_MM, keep_tumor_ids=keep)
    np.testing.assert_array_equal(label_map, before)
    assert cleaned.dtype == np.uint8
    assert cleaned.shape == label_map.shape
    assert cleaned.flags.owndata
    return cleaned


def _with(label_map: LabelMap, label_id: int, *box: tuple[int, int]) -> LabelMap:
    changed = label_map.copy()
    changed[tuple(slice(*side) for side in box)] = label_id
    return changed


def test_clean_map_stays_as_it_is(torso: LabelMap) -> None:
    np.testing.assert_array_equal(_clean(torso), torso)


@pytest.mark.parametrize(
    ("label_id", "box"),
    [
        (SPLEEN, ((8, 11), (9, 11), (6, 9))),  # an organ within another
        (LIVER, ((28, 29), (22, 24), (15, 18))),  # in tissue
        (SPLEEN, ((9, 10), (9, 10), (9, 10))),
        (90, ((0, 1), (0, 2), (0, 3))),  # outside of the body
        (0, ((8, 12), (8, 12), (6, 9))),  # a hole in an organ
        (BODY, ((8, 12), (8, 12), (6, 9))),
        (0, ((16, 18), (12, 13), (0, 2))),  # a void that runs out of the first slice
        (HEPATIC_VESSEL, ((8, 12), (8, 12), (6, 9))),
        (HEPATIC_TUMOR, ((8, 12), (8, 12), (6, 9))),
        (LUNG_TUMOR, ((22, 25), (15, 18), (11, 13))),
        (LUNG_TUMOR, ((8, 11), (9, 11), (6, 9))),  # a lung tumour in the liver
        (BONE_LESION, ((19, 22), (15, 17), (3, 6))),
        (PANCREATIC_TUMOR, ((28, 29), (22, 24), (15, 18))),  # without a host
    ],
)
def test_what_does_not_belong_becomes_what_surrounds_it(
    torso: LabelMap, label_id: int, box: tuple[tuple[int, int], ...]
) -> None:
    np.testing.assert_array_equal(_clean(_with(torso, label_id, *box)), torso)


def test_tumour_across_a_fissure_goes_back_to_both_lobes(torso: LabelMap) -> None:
    np.testing.assert_array_equal(_clean(_with(torso, LUNG_TUMOR, (21, 24), (15, 18), (12, 16))), torso)


def test_kidney_mass_that_was_not_asked_for_becomes_kidney(torso: LabelMap) -> None:
    torso[torso == SPLEEN] = 14
    np.testing.assert_array_equal(_clean(_with(torso, KIDNEY_MASS, (22, 24), (7, 9), (5, 7))), torso)


def test_kept_tumour_keeps_its_largest_part_at_its_host_without_holes(torso: LabelMap) -> None:
    expected = _with(torso, HEPATIC_TUMOR, (6, 11), (7, 12), (5, 9))
    drawn = _with(expected, LIVER, (8, 9), (9, 10), (7, 8))  # a hole in it
    drawn = _with(drawn, HEPATIC_TUMOR, (13, 14), (17, 18), (12, 14))  # a smaller part
    drawn = _with(drawn, HEPATIC_TUMOR, (20, 28), (14, 20), (10, 17))  # a larger one that is no part of a liver
    cleaned = _clean(drawn, HEPATIC_TUMOR)
    lungs_lost = (torso == 28) | (torso == 29)
    np.testing.assert_array_equal(cleaned[~lungs_lost], expected[~lungs_lost])
    assert HEPATIC_TUMOR not in cleaned[lungs_lost]


def test_kept_tumour_that_divides_its_host_costs_none_of_it(torso: LabelMap) -> None:
    divided = _with(torso, HEPATIC_TUMOR, (10, 12), (5, 20), (3, 15))
    np.testing.assert_array_equal(_clean(divided, HEPATIC_TUMOR), divided)


def test_kept_tumour_may_leave_its_host(torso: LabelMap) -> None:
    bulging = _with(torso, HEPATIC_TUMOR, (14, 17), (10, 13), (6, 9))
    np.testing.assert_array_equal(_clean(bulging, HEPATIC_TUMOR, LUNG_TUMOR), bulging)


def test_kept_tumour_without_its_host_is_removed(torso: LabelMap) -> None:
    np.testing.assert_array_equal(
        _clean(_with(torso, PANCREATIC_TUMOR, (16, 18), (22, 24), (14, 17)), PANCREATIC_TUMOR), torso
    )


def test_femur_cut_by_the_border_keeps_head_and_trochanter(torso: LabelMap) -> None:
    cut = _with(_with(torso, 93, (5, 9), (21, 24), (16, 19)), 93, (12, 16), (21, 24), (15, 19))
    np.testing.assert_array_equal(_clean(cut), cut)
    inside = np.roll(cut, -1, axis=2)
    assert (inside == 93).sum() > (_clean(inside) == 93).sum() == 4 * 3 * 4


def test_skull_keeps_what_it_holds_and_loses_pores(torso: LabelMap) -> None:
    skull = _with(_with(torso, 120, (3, 17), (4, 21), (2, 16)), BODY, (6, 14), (7, 18), (5, 13))
    np.testing.assert_array_equal(_clean(_with(skull, BODY, (4, 5), (10, 11), (8, 9))), skull)


def test_piece_of_tissue_between_two_organs_stays(torso: LabelMap) -> None:
    torso[16:20, 5:12, 3:10] = 12
    pocket = _with(torso, BODY, (14, 18), (6, 10), (4, 8))
    np.testing.assert_array_equal(_clean(pocket), pocket)


def test_envelope_becomes_one_piece_without_holes() -> None:
    drawn = _noisy_map(7)
    cleaned = _clean(drawn)
    parts, num_parts = ndimage.label(cleaned > 0)
    assert num_parts == 1, np.bincount(parts.ravel())
    assert all(ndimage.binary_fill_holes(cleaned[:, :, k] > 0).any() for k in range(SHAPE[2]))
    np.testing.assert_array_equal(ndimage.binary_fill_holes(cleaned > 0), cleaned > 0)


def test_map_without_a_body_is_refused() -> None:
    with pytest.raises(VolumeError, match="label 200"):
        _clean(np.ones((3, 4, 5), dtype=np.uint8))


@pytest.mark.parametrize(("label_id", "found"), [(1, "found 'liver'"), (140, "found an id without a label")])
def test_what_is_kept_has_to_be_a_tumour(torso: LabelMap, label_id: int, found: str) -> None:
    with pytest.raises(VocabularyError, match=found):
        _clean(torso, label_id)


@pytest.mark.parametrize("keep", [(), (HEPATIC_TUMOR,), (LUNG_TUMOR, KIDNEY_MASS)])
def test_second_cleaning_changes_nothing(keep: tuple[int, ...]) -> None:
    for seed in (*range(8), 38, 334):  # in the last two, an organ outgrows a part of it
        cleaned = _clean(_noisy_map(seed), *keep)
        np.testing.assert_array_equal(_clean(cleaned, *keep), cleaned)


@pytest.mark.parametrize("keep", [(), (HEPATIC_TUMOR,), (LUNG_TUMOR, BONE_LESION)])
@pytest.mark.parametrize("seed", range(4))
def test_map_equals_that_of_the_slow_and_obvious_way(seed: int, keep: tuple[int, ...]) -> None:
    drawn = _noisy_map(seed)[8:25, 3:18, :13]
    np.testing.assert_array_equal(_clean(drawn, *keep), _clean_slowly(drawn, keep))


def _noisy_map(seed: int) -> LabelMap:
    """Ellipsoids of organs and tumours in a body, cut by the borders, with specks and with blocks of any label."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(SHAPE, dtype=np.uint8)
    drawn[3:-2, 2:-3] = BODY
    grid = np.indices(SHAPE)
    organs = (LIVER, SPLEEN, PANCREAS, PORTAL_VEIN, COLON, 5, 28, 29, 33, 87, 120, 116)
    tumors = (LUNG_TUMOR, PANCREATIC_TUMOR, HEPATIC_VESSEL, HEPATIC_TUMOR, BONE_LESION, KIDNEY_MASS)
    for label_id in (*rng.permutation(organs), *rng.permutation(tumors), BODY, 0, 0):
        centre, radii = rng.uniform(2, np.array(SHAPE) - 2), rng.uniform(2.0, 7.0 if label_id in organs else 3.0, 3)
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)) < 1
        drawn[inside & (drawn > 0)] = label_id
    specks = rng.random(SHAPE) < rng.choice([0.0, 0.005, 0.03])
    drawn[specks] = rng.choice([0, BODY, *organs, *tumors], size=int(specks.sum()))
    for _ in range(6):
        corner = rng.integers(0, np.array(SHAPE) - 3)
        label_id = int(rng.choice([0, BODY, *organs, *tumors]))
        drawn[tuple(slice(c, c + s) for c, s in zip(corner, rng.integers(1, 4, 3), strict=True))] = label_id
    return drawn


# The oracle: label after label and voxel after voxel.


def _clean_slowly(drawn: LabelMap, keep: tuple[int, ...]) -> LabelMap:
    voxel_ml = float(np.prod(SPACING_MM)) / 1000.0
    drawn = np.where(drawn == HEPATIC_VESSEL, LIVER, drawn).astype(np.uint8)
    parts, num_parts = ndimage.label(drawn > 0)
    sizes = [int((parts == number).sum()) for number in range(1, num_parts + 1)]
    drawn[parts != 1 + int(np.argmax(sizes))] = 0
    for air in _parts_of(drawn == 0, faces_only=True):
        sides = (air[0], air[-1], air[:, 0], air[:, -1])
        if not any(side.any() for side in sides) or air.sum() * voxel_ml < DUST_ML:
            drawn[air] = BODY
    cleaned, unclaimed = drawn.copy(), np.zeros(drawn.shape, dtype=bool)
    for tumor_id in FULL_VOCABULARY.tumor_ids:
        tumor = cleaned == tumor_id
        unclaimed |= _grow_slowly(cleaned, tumor, set(FULL_VOCABULARY.hosts_of(tumor_id)))
        cleaned[unclaimed] = 0
    unclaimed |= _find_islands_slowly(cleaned, voxel_ml)
    for _ in range(MAX_PASSES):
        cleaned[unclaimed] = 0
        cleaned[_grow_slowly(cleaned, unclaimed, set(range(1, 256)))] = BODY
        _close_holes_slowly(cleaned, voxel_ml)
        unclaimed = _find_islands_slowly(cleaned, voxel_ml)
    for tumor_id in keep:
        hosts = FULL_VOCABULARY.hosts_of(tumor_id)
        tumor = drawn == tumor_id
        host = np.isin(cleaned, hosts) & ~tumor
        touching = [part for part in _parts_of(tumor) if (ndimage.binary_dilation(part, TOUCHING) & host).any()]
        if touching:
            lesion = max(touching, key=lambda part: int(part.sum()))
            holes = ndimage.binary_fill_holes(lesion) & np.isin(cleaned, (*hosts, BODY))
            cleaned[lesion | holes] = tumor_id
    return cleaned


def _find_islands_slowly(cleaned: LabelMap, voxel_ml: float) -> NDArray[np.bool_]:
    islands = np.zeros(cleaned.shape, dtype=bool)
    for label_id in set(np.unique(cleaned).tolist()) - {0, BODY}:
        parts_of_organ = _parts_of(cleaned == label_id)
        largest = max(parts_of_organ, key=lambda part: int(part.sum()))
        for part in parts_of_organ:
            may_stay = label_id in SEVERAL_PARTS or _touches_border(part)
            is_large = part.sum() >= MIN_PART_SHARE * largest.sum() or part.sum() * voxel_ml >= MIN_PART_ML
            if part.sum() * voxel_ml < DUST_ML or not (part is largest or (may_stay and is_large)):
                islands |= part
    return islands


def _close_holes_slowly(labels: LabelMap, voxel_ml: float) -> None:
    tissue = _parts_of(labels == BODY, faces_only=True)
    padded = np.pad(labels, 1)
    for part in sorted(tissue, key=lambda part: -int(part.sum()))[1:]:
        counts = np.zeros(256, dtype=int)
        for voxel in np.argwhere(part):
            for neighbour in _faces_of(tuple(voxel + 1)):
                counts[padded[neighbour]] += 1
        counts[BODY] = 0
        is_open, counts[0] = counts[0] > 0, 0
        organ = int(counts.argmax())
        may_be_large = organ != 120 or part.sum() * voxel_ml <= MAX_SKULL_HOLE_ML
        is_hole = not is_open and np.count_nonzero(counts) == 1 and may_be_large
        if is_hole or part.sum() * voxel_ml < DUST_ML:
            labels[part] = organ


def _grow_slowly(labels: LabelMap, room: NDArray[np.bool_], growing: set[int]) -> NDArray[np.bool_]:
    waiting = {tuple(map(int, voxel)) for voxel in np.argwhere(room)}
    while waiting:
        layer: dict[Voxel, int] = {}
        for voxel in waiting:
            counts: dict[int, int] = {}
            for neighbour in _faces_of(voxel):
                if all(0 <= place < side for place, side in zip(neighbour, labels.shape, strict=True)):
                    label_id = int(labels[neighbour])
                    if neighbour not in waiting and label_id in growing:
                        counts[label_id] = counts.get(label_id, 0) + 1
            if counts:
                layer[voxel] = min(counts, key=lambda label_id: (-counts[label_id], label_id))
        if not layer:
            break
        for voxel, label_id in layer.items():
            labels[voxel] = label_id
        waiting -= set(layer)
    left = np.zeros(labels.shape, dtype=bool)
    for voxel in waiting:
        left[voxel] = True
    return left


def _faces_of(voxel: Voxel) -> list[Voxel]:
    steps = [step for step in product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    return [tuple(int(a) + b for a, b in zip(voxel, step, strict=True)) for step in steps]


def _parts_of(mask: NDArray[np.bool_], *, faces_only: bool = False) -> list[NDArray[np.bool_]]:
    parts, num_parts = ndimage.label(mask, None if faces_only else TOUCHING)
    return [parts == number for number in range(1, num_parts + 1)]


def _touches_border(part: NDArray[np.bool_]) -> bool:
    return any(bool(part.take(side, axis=axis).any()) for axis in range(3) for side in (0, -1))
