from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.copy_paste import cut_lesion, paste_lesion
from maisi_aug.evaluation.benchmark.data import LoadedCase
from maisi_aug.volumes.grid import Grid
from tests.builders.tiny_benchmark import draw_case

LIVER, TUMOR = 1, 2


def load(seed: int, *, has_tumor: bool = True, shift_hu: int = 0) -> LoadedCase:
    image_hu, label_map, grid = draw_case(seed, has_tumor=has_tumor)
    return LoadedCase((image_hu + shift_hu).astype(np.int16), label_map, grid)


def test_lesion_lands_in_its_organ_and_takes_over_its_level(rng: np.random.Generator) -> None:
    target, donor = load(1, has_tumor=False, shift_hu=40), load(2)
    before = target.classes.copy()
    pasted = paste_lesion(target, [donor], [TUMOR], rng=rng)
    lesion = pasted.classes == TUMOR
    assert lesion.sum() == (donor.classes == TUMOR).sum()
    assert (target.classes[lesion] == LIVER).mean() >= 0.9
    np.testing.assert_array_equal(target.classes, before)
    np.testing.assert_array_equal(pasted.classes[~lesion], target.classes[~lesion])
    # 80 HU below the liver in the donor, so 80 below the brighter liver here; the blended border softens it.
    contrast = pasted.image_hu[lesion].mean() - target.image_hu[lesion].mean()
    assert -85 < contrast < -45


def test_far_voxels_keep_their_values(rng: np.random.Generator) -> None:
    target, donor = load(1, has_tumor=False), load(2)
    pasted = paste_lesion(target, [donor], [TUMOR], rng=rng)
    changed = np.argwhere(pasted.image_hu != target.image_hu)
    inside = np.argwhere(pasted.classes == TUMOR)
    assert (changed >= inside.min(axis=0) - 4).all()
    assert (changed <= inside.max(axis=0) + 4).all()


def test_lesion_keeps_its_size_in_millimetres(rng: np.random.Generator) -> None:
    donor = load(2)
    fine = Grid.from_spacing((44, 36, 26), (1.0, 1.1, 1.5))
    target = LoadedCase(np.zeros(fine.shape, np.int16), np.ones(fine.shape, np.uint8), fine)
    lesion = cut_lesion(donor, [TUMOR], target, rng=rng)
    assert lesion is not None
    volume_ml = lesion.mask.sum() * fine.voxel_ml
    assert volume_ml == pytest.approx((donor.classes == TUMOR).sum() * donor.grid.voxel_ml, rel=0.15)
    assert lesion.host == LIVER


def test_same_seed_gives_the_same_case() -> None:
    target, donors = load(1), [load(2), load(3)]
    first, again, other = (paste_lesion(target, donors, [TUMOR], rng=np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.image_hu, again.image_hu)
    assert (first.image_hu != other.image_hu).any()


def test_lesions_stay_apart(rng: np.random.Generator) -> None:
    target = load(1)
    pasted = paste_lesion(target, [load(2)], [TUMOR], rng=rng)
    assert (pasted.classes == TUMOR).sum() == 2 * 48
    np.testing.assert_array_equal(pasted.classes[target.classes == TUMOR], TUMOR)


def test_nothing_to_paste_and_no_room_are_named(rng: np.random.Generator) -> None:
    with pytest.raises(BenchmarkError, match="Copy-paste: no other training case has a lesion"):
        paste_lesion(load(1), [load(2, has_tumor=False)], [TUMOR], rng=rng)
    no_liver = LoadedCase(np.zeros((9, 9, 9), np.int16), np.zeros((9, 9, 9), np.uint8), load(1).grid)
    with pytest.raises(BenchmarkError, match="Copy-paste: none of 12 chosen lesions fits into its organ"):
        paste_lesion(no_liver, [load(2)], [TUMOR], rng=rng)
