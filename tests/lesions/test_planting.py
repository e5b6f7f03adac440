"""Lesions: exact size, connected, reproducible, in their host, apart from each other; bounded without room."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.lesions import planting
from maisi_aug.lesions.lesion import GrowthRule, Lesion, growth_rule_of
from maisi_aug.lesions.planting import (
    draw_part,
    grow_roundest,
    largest_that_fits_ml,
    measure_lesions,
    plant_lesions,
    require_num_voxels,
)
from maisi_aug.volumes.components import TOUCHING, bounding_box, flood, is_any_of, label_parts
from tests.builders.lesions import ask_for
from tests.builders.processor_time import is_done_within

LabelMap = NDArray[np.uint8]
SPACING_MM = (3.2, 3.2, 3.2)
ANISOTROPIC_MM = (0.7, 0.8, 2.5)
VOXEL_ML = 3.2**3 / 1000
Mask = NDArray[np.bool_]
DIAMETERS_MM = (8.0, 12.0, 20.0, 30.0, 50.0)


def sphere_ml(diameter_mm: float) -> float:
    return float(np.pi / 6.0 * diameter_mm**3 / 1000.0)


def build_map() -> LabelMap:
    """A body with a liver, a pancreas, two touching vertebrae and a rib apart."""
    label_map = np.zeros((80, 60, 50), dtype=np.uint8)
    label_map[4:76, 4:56] = 200
    label_map[40:72, 20:50, 18:46] = 1
    label_map[12:36, 30:38, 20:28] = 4
    label_map[34:44, 6:16, 4:12] = 33
    label_map[34:44, 6:16, 12:20] = 34
    label_map[10:14, 10:40, 40:43] = 63
    return label_map


BONES = (33, 34, 63)


@pytest.mark.parametrize(
    ("label_id", "hosts", "diameter_mm"),
    [(26, (1,), mm) for mm in (8, 10, 20, 35, 50)] + [(24, (4,), mm) for mm in (8, 20, 30)] + [(128, BONES, 12)],
)
def test_planted_lesion_has_the_wanted_volume_inside_its_host(
    label_id: int, hosts: tuple[int, ...], diameter_mm: float
) -> None:
    label_map = build_map()
    wish = ask_for(label_id, hosts, sphere_ml(diameter_mm))
    for seed in range(3):
        planted_map, (lesion,) = plant_lesions(
            label_map, [wish], spacing_mm=SPACING_MM, rng=np.random.default_rng(seed)
        )
        mask = planted_map == label_id
        assert mask.sum() == lesion.num_voxels == round(wish.requested_ml / VOXEL_ML)
        assert lesion.realised_ml == pytest.approx(mask.sum() * VOXEL_ML)
        assert set(np.unique(label_map[mask])) <= set(hosts)
        assert ndimage.label(mask, TOUCHING)[1] == 1
        assert planted_map[lesion.centre_ijk] == label_id
        assert lesion.host_id in hosts
        np.testing.assert_array_equal(planted_map[~mask], label_map[~mask])
    np.testing.assert_array_equal(label_map, build_map())


def test_planted_lesions_never_touch_each_other() -> None:
    label_map = build_map()
    wanted = [
        ask_for(24, (4,), 1.0),
        *(ask_for(26, (1,), sphere_ml(mm)) for mm in (8, 12, 20, 30, 10)),
        ask_for(129, (1,), 2.0),
    ]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        planted_map, lesions = plant_lesions(label_map, wanted, spacing_mm=SPACING_MM, rng=rng)
        assert [lesion.label_id for lesion in lesions] == [wish.label_id for wish in wanted]
        parts, num_parts = ndimage.label(is_any_of(planted_map, (24, 26, 129)), TOUCHING)
        assert num_parts == len(wanted)
        for wish, lesion in zip(wanted, lesions, strict=True):
            assert lesion.num_voxels == round(wish.requested_ml / VOXEL_ML)
            assert (parts == parts[lesion.centre_ijk]).sum() == lesion.num_voxels
        measured = measure_lesions(planted_map, 26, VOXEL_ML)
        expected = sorted((lesion.realised_ml or 0.0 for lesion in lesions if lesion.label_id == 26), reverse=True)
        assert measured == pytest.approx(expected)


def test_planted_lesion_keeps_apart_from_lesions_already_there() -> None:
    label_map = build_map()
    label_map[45:55, 25:35, 25:35] = 26
    label_map[60:68, 25:35, 25:35] = 23
    before = is_any_of(label_map, (23, 26))
    for seed in range(5):
        planted_map, (lesion,) = plant_lesions(
            label_map,
            [ask_for(26, (1,), 6.0)],
            spacing_mm=SPACING_MM,
            rng=np.random.default_rng(seed),
            other_lesion_ids=(23,),
        )
        planted = (planted_map == 26) & ~before
        assert planted.sum() == lesion.num_voxels
        assert not (ndimage.binary_dilation(before, TOUCHING) & planted).any()


def test_lesion_too_large_for_one_bone_grows_over_touching_bones() -> None:
    label_map = build_map()
    single_ml = float((label_map == 33).sum()) * VOXEL_ML
    planted_map, (lesion,) = plant_lesions(
        label_map, [ask_for(128, BONES, 1.3 * single_ml)], spacing_mm=SPACING_MM, rng=np.random.default_rng(0)
    )
    replaced = set(np.unique(label_map[planted_map == 128]))
    assert replaced == {33, 34}
    assert lesion.host_id in replaced


def test_hosts_with_ample_room_are_all_used() -> None:
    label_map = build_map()
    used = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, (lesion,) = plant_lesions(label_map, [ask_for(128, BONES, 0.5)], spacing_mm=SPACING_MM, rng=rng)
        used.add(lesion.host_id)
    assert used == set(BONES)


def build_thin_pancreas() -> LabelMap:
    """A pancreas of 128 mm by 19 mm by 19 mm, 47.19 mL, in body, with air below."""
    label_map = np.zeros((60, 50, 40), dtype=np.uint8)
    label_map[2:58, 2:48, 10:] = 200
    label_map[10:50, 20:26, 12:18] = 4
    return label_map


BULGING = GrowthRule(0.7, 10.0, rim_mm=30.0, in_cavity=False, room_share=0.0, max_spread=3.0, source="a test")


def plant_pancreatic(diameter_mm: float, *, rule: GrowthRule | None, seed: int) -> tuple[LabelMap, Lesion]:
    label_map = build_thin_pancreas()
    wish = ask_for(24, (4,), sphere_ml(diameter_mm), rule=rule)
    rng = np.random.default_rng(seed)
    planted_map, (lesion,) = plant_lesions(label_map, [wish], spacing_mm=SPACING_MM, rng=rng)
    mask = planted_map == 24
    assert mask.sum() == lesion.num_voxels == round(wish.requested_ml / VOXEL_ML)
    assert ndimage.label(mask, TOUCHING)[1] == 1
    assert set(np.unique(label_map[mask])) <= ({4, 200} if rule else {4})
    outside = (label_map[mask] != 4).mean()
    assert lesion.share_outside == pytest.approx(outside, abs=1e-4)
    assert outside <= (rule.max_share_outside if rule else 0.0)
    assert lesion.host_id == 4
    return planted_map, lesion


def longest_side_mm(label_map: LabelMap) -> float:
    box = bounding_box(label_map == 24)
    return max(float(part.stop - part.start) * step for part, step in zip(box, SPACING_MM, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_lesion_bulges_out_of_a_thin_host_where_it_may(seed: int) -> None:
    inside, _ = plant_pancreatic(42, rule=None, seed=seed)
    bulging, _ = plant_pancreatic(42, rule=BULGING, seed=seed)
    assert longest_side_mm(bulging) < 0.8 * longest_side_mm(inside)


def test_lesion_larger_than_its_host_fits_where_it_may_bulge() -> None:
    with pytest.raises(LesionError, match="in one connected part of its host"):
        plant_pancreatic(50, rule=None, seed=0)
    plant_pancreatic(50, rule=BULGING, seed=0)


def test_lesion_that_would_lie_mostly_outside_its_host_is_refused() -> None:
    with pytest.raises(
        LesionError,
        match="47.19 mL are free,",
    ):
        plant_pancreatic(70, rule=BULGING, seed=0)


def test_lesion_too_large_beside_its_host_is_refused_and_the_largest_that_fits_is_found() -> None:
    rule = growth_rule_of("pancreatic tumor")
    with pytest.raises(LesionError, match=r"65\.45 mL \(50\.0 mm\) requested, .* at most 100% of its host, 47\.19 mL"):
        plant_pancreatic(50, rule=rule, seed=0)
    wish = ask_for(24, (4,), 65.45, rule=rule)
    largest_ml = largest_that_fits_ml(build_thin_pancreas(), wish, spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    assert 5.0 < largest_ml <= 47.19
    for seed in range(3):
        small = ask_for(24, (4,), 0.9 * largest_ml, rule=rule)
        plant_lesions(build_thin_pancreas(), [small], spacing_mm=SPACING_MM, rng=np.random.default_rng(seed))
    nowhere = ask_for(24, (5,), 10.0, rule=rule)
    assert largest_that_fits_ml(build_map(), nowhere, spacing_mm=SPACING_MM, rng=np.random.default_rng(0)) == 0.0


def test_lesion_with_room_for_a_round_shape_stays_inside() -> None:
    for seed in range(3):
        may, _ = plant_pancreatic(20, rule=BULGING, seed=seed)
        must, _ = plant_pancreatic(20, rule=None, seed=seed)
        np.testing.assert_array_equal(may, must)


def build_flank() -> LabelMap:
    """A kidney of 90 mL under a rib, beside a muscle, near the skin; a liver and a colon in front of it."""
    label_map = np.zeros((70, 60, 50), dtype=np.uint8)
    label_map[4:66, 4:56] = 200
    i, j, k = np.ogrid[:70, :60, :50]
    label_map[((i - 22) / 8) ** 2 + ((j - 20) / 8) ** 2 + ((k - 25) / 10.5) ** 2 < 1] = 14
    label_map[36:44, 8:24] = 104
    label_map[8:11, 8:40, 22:25] = 70
    label_map[14:50, 34:50, 10:45] = 1
    label_map[12:20, 28:33, 5:45] = 62
    return label_map


@pytest.mark.parametrize("seed", range(4))
def test_large_lesion_pushes_organs_aside_and_leaves_bone_muscle_and_skin_alone(seed: int) -> None:
    label_map = build_flank()
    kidney_ml = float((label_map == 14).sum()) * VOXEL_ML
    rule = growth_rule_of("kidney tumor")
    wish = ask_for(129, (14,), 1.1 * kidney_ml, rule=rule)
    planted_map, (lesion,) = plant_lesions(label_map, [wish], spacing_mm=SPACING_MM, rng=np.random.default_rng(seed))
    tumor = planted_map == 129
    assert tumor.sum() == round(wish.requested_ml / VOXEL_ML)
    assert lesion.share_outside is not None
    assert lesion.spread is not None
    assert lesion.share_outside <= rule.max_share_outside
    assert lesion.spread <= rule.max_spread
    for fixed in (0, 104, 70):
        np.testing.assert_array_equal(planted_map == fixed, label_map == fixed)
    depth_mm = ndimage.distance_transform_edt(planted_map > 0) * SPACING_MM[0]
    assert depth_mm[tumor].min() >= 12.0
    # The kidney gives way: more of it is left than a lesion that only replaces tissue would leave.
    assert (planted_map == 14).sum() * VOXEL_ML > kidney_ml - (1 - lesion.share_outside) * wish.requested_ml + 1.0
    assert (planted_map == 1).sum() > 0.6 * (label_map == 1).sum()


def test_planting_depends_on_its_seed_alone() -> None:
    wanted = [ask_for(26, (1,), 2.0), ask_for(26, (1,), 8.0)]

    def plant(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return plant_lesions(build_map(), wanted, spacing_mm=ANISOTROPIC_MM, rng=rng)[0].tobytes()

    assert plant(7) == plant(7)
    assert plant(7) != plant(8)


def test_anisotropic_lesions_keep_their_volume() -> None:
    label_map = np.full((7, 9, 11), 1, dtype=np.uint8)
    planted_map, (lesion,) = plant_lesions(
        label_map, [ask_for(26, (1,), 0.1)], spacing_mm=ANISOTROPIC_MM, rng=np.random.default_rng(0)
    )
    assert lesion.num_voxels == (planted_map == 26).sum() == round(0.1 / (0.7 * 0.8 * 2.5 / 1000))


def test_lesion_without_room_fails_soon_and_says_why() -> None:
    label_map = build_map()
    assert is_done_within(5.0, lambda: _fail_without_room(label_map))


def _fail_without_room(label_map: NDArray[np.uint8]) -> None:
    with pytest.raises(
        LesionError,
        match=r"pancreatic tumor: .* 65\.45 mL \(50\.0 mm\) .*\(pancreas\): 50\.33 mL are free, 50\.33 mL",
    ):
        plant_lesions(
            label_map, [ask_for(24, (4,), sphere_ml(50))], spacing_mm=SPACING_MM, rng=np.random.default_rng(0)
        )
    with pytest.raises(LesionError, match=r"my label: .* \(label 250\): 0\.00 mL are free"):
        plant_lesions(
            label_map,
            [ask_for(251, (250,), 1.0, label="my label")],
            spacing_mm=SPACING_MM,
            rng=np.random.default_rng(0),
        )
    crowd = [ask_for(24, (4,), 12.0)] * 6
    with pytest.raises(LesionError, match=r"pancreatic tumor: .* 12\.00 mL .* in the largest part\. Request"):
        plant_lesions(label_map, crowd, spacing_mm=SPACING_MM, rng=np.random.default_rng(0))


def test_no_wish_gives_an_equal_copy() -> None:
    label_map = build_map()
    planted_map, lesions = plant_lesions(label_map, [], spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(planted_map, label_map)
    assert planted_map is not label_map
    assert lesions == ()


def test_lesions_are_measured_by_touching_voxels_largest_first() -> None:
    label_map = np.zeros((7, 9, 11), dtype=np.int16)
    label_map[0, 0, 0] = label_map[1, 1, 1] = 26  # a corner is enough
    label_map[4:6, 4:6, 4:6] = 26
    assert measure_lesions(label_map, 26, 0.5) == [4.0, 1.0]
    assert measure_lesions(label_map, 27, 0.5) == []


def test_planted_lesion_is_the_one_that_was_asked_for() -> None:
    asked = replace(ask_for(26, (1,), 1.0), index=3, percentile=0.2, size_source="lab")
    _, (lesion,) = plant_lesions(build_map(), [asked], spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    assert (asked.realised_ml, asked.centre_ijk) == (None, None)
    assert (lesion.index, lesion.requested_ml, lesion.percentile, lesion.size_source) == (3, 1.0, 0.2, "lab")
    assert lesion.realised_ml == pytest.approx(lesion.num_voxels * VOXEL_ML)
    assert lesion.diameter_mm == pytest.approx(lesion.requested_mm, rel=0.05)


def test_lung_tumour_crosses_a_fissure_where_another_lesion_keeps_to_its_host() -> None:
    label_map = np.full((40, 40, 40), 200, dtype=np.uint8)
    label_map[6:34, 6:34, 6:20] = 29
    label_map[6:34, 6:34, 20:34] = 28
    lobe_ml = float((label_map == 28).sum()) * VOXEL_ML
    rule = growth_rule_of("lung tumor")
    for seed in range(3):
        wish = ask_for(23, (28, 29), 0.3 * lobe_ml, rule=rule)
        planted_map, (lesion,) = plant_lesions(
            label_map, [wish], spacing_mm=SPACING_MM, rng=np.random.default_rng(seed)
        )
        kept, _ = plant_lesions(
            label_map, [replace(wish, rule=None)], spacing_mm=SPACING_MM, rng=np.random.default_rng(seed)
        )
        assert {28, 29} <= set(np.unique(label_map[planted_map == 23]))
        assert len(np.unique(label_map[kept == 23])) == 1
        assert lesion.spread is not None
        assert lesion.spread < 1.2


def draw_ellipsoid(shape: tuple[int, int, int], spacing_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> Mask:
    centred = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]
    i, j, k = np.ix_(*centred)
    return np.asarray((i / radii_mm[0]) ** 2 + (j / radii_mm[1]) ** 2 + (k / radii_mm[2]) ** 2 <= 1.0)


def is_connected(mask: Mask) -> bool:
    return bool(ndimage.label(mask, TOUCHING)[1] == 1)


def grow_lesion(
    host: Mask,
    *,
    volume_ml: float,
    spacing_mm: tuple[float, ...],
    rng: np.random.Generator,
    room: Mask | None = None,
) -> Mask:
    """A lesion in the frame of its host, as planting grows it: inside the host, or anywhere in a room around it."""
    num_voxels = require_num_voxels(volume_ml, spacing_mm)
    part = draw_part(host, host if room is None else room, num_voxels, spacing_mm, rng)
    assert part is not None
    lesion = np.zeros(host.shape, dtype=bool)
    lesion[part[0]] = grow_roundest(part[1], part[2], num_voxels, spacing_mm, rng)[0]
    return lesion


LIVER_LIKE = draw_ellipsoid((52, 44, 40), SPACING_MM, (76.0, 62.0, 58.0))
FLAT = draw_ellipsoid((90, 70, 22), ANISOTROPIC_MM, (30.0, 26.0, 25.0))


@pytest.mark.parametrize("diameter_mm", DIAMETERS_MM)
@pytest.mark.parametrize("seed", range(4))
def test_lesion_has_exact_voxel_count_and_stays_connected_inside_host(diameter_mm: float, seed: int) -> None:
    host = LIVER_LIKE.copy()
    volume_ml = sphere_ml(diameter_mm)
    lesion = grow_lesion(host, volume_ml=volume_ml, spacing_mm=SPACING_MM, rng=np.random.default_rng(seed))
    assert lesion.shape == host.shape
    assert lesion.dtype == bool
    assert lesion.sum() == round(volume_ml / (3.2**3 / 1000))
    assert not (lesion & ~host).any()
    assert is_connected(lesion)
    np.testing.assert_array_equal(host, LIVER_LIKE)


@pytest.mark.parametrize("diameter_mm", [3.0, 8.0, 14.0, 25.0])
def test_lesion_is_as_long_in_millimetres_on_every_axis_of_an_anisotropic_grid(diameter_mm: float) -> None:
    volume_ml = sphere_ml(diameter_mm)
    extents_mm = []
    for seed in range(8):
        lesion = grow_lesion(FLAT, volume_ml=volume_ml, spacing_mm=ANISOTROPIC_MM, rng=np.random.default_rng(seed))
        assert lesion.sum() == round(volume_ml / (0.7 * 0.8 * 2.5 / 1000))
        assert not (lesion & ~FLAT).any()
        assert is_connected(lesion)
        box = bounding_box(lesion)
        extents_mm.append([(part.stop - part.start) * step for part, step in zip(box, ANISOTROPIC_MM, strict=True)])
    mean_mm = np.mean(extents_mm, axis=0)
    assert mean_mm.min() > 0.75 * diameter_mm
    assert mean_mm.max() < 1.6 * diameter_mm + 2.5


def test_lesion_depends_on_its_seed_alone() -> None:
    def grow(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return grow_lesion(LIVER_LIKE, volume_ml=4.0, spacing_mm=SPACING_MM, rng=rng).tobytes()

    assert grow(3) == grow(3)
    assert grow(3) != grow(4)


def test_lesion_is_irregular(monkeypatch: pytest.MonkeyPatch) -> None:
    def overlap_with_ball() -> float:
        shares = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            lesion = grow_lesion(LIVER_LIKE, volume_ml=14.0, spacing_mm=SPACING_MM, rng=rng)
            centre = np.argwhere(lesion).mean(axis=0)
            squared = ((np.argwhere(LIVER_LIKE) - centre) ** 2).sum(axis=1)
            ball = np.zeros_like(lesion)
            ball[tuple(np.argwhere(LIVER_LIKE)[np.argsort(squared)[: lesion.sum()]].T)] = True
            shares.append((ball & lesion).sum() / lesion.sum())
        return float(np.mean(shares))

    assert 0.6 < overlap_with_ball() < 0.9
    monkeypatch.setattr(planting, "IRREGULARITY", 0.0)
    assert overlap_with_ball() > 0.93


@pytest.mark.parametrize("num_voxels", range(1, 11))
def test_lesion_of_a_few_voxels_is_compact(num_voxels: int) -> None:
    for seed in range(5):
        volume_ml = num_voxels * 3.2**3 / 1000
        lesion = grow_lesion(LIVER_LIKE, volume_ml=volume_ml, spacing_mm=SPACING_MM, rng=np.random.default_rng(seed))
        assert lesion.sum() == num_voxels
        assert is_connected(lesion)
        assert max(part.stop - part.start for part in bounding_box(lesion)) <= 4


def test_lesion_follows_a_thin_host() -> None:
    rib = np.zeros((60, 9, 9), dtype=bool)
    rib[2:58, 4:6, 3:5] = True
    lesion = grow_lesion(rib, volume_ml=100 * 3.2**3 / 1000, spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    assert lesion.sum() == 100
    assert is_connected(lesion)
    assert not (lesion & ~rib).any()


def test_lesion_can_fill_a_whole_host_of_any_form() -> None:
    maze = np.random.default_rng(1).random((9, 11, 7)) < 0.35
    parts, _ = ndimage.label(maze, TOUCHING)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    volume_ml = float(largest.sum()) * 3.2**3 / 1000
    lesion = grow_lesion(maze, volume_ml=volume_ml, spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(lesion, largest)


def test_lesion_leaves_its_host_where_it_has_room_around_it() -> None:
    small = draw_ellipsoid((21, 19, 17), SPACING_MM, (12.0, 12.0, 12.0))
    volume_ml = sphere_ml(36.0)
    rng = np.random.default_rng(0)
    lesion = grow_lesion(small, volume_ml=volume_ml, spacing_mm=SPACING_MM, rng=rng, room=np.ones_like(small))
    assert lesion.sum() == round(volume_ml / (3.2**3 / 1000))
    assert is_connected(lesion)
    assert (lesion & small).any()
    assert (lesion & ~small).any()


def test_host_without_room_for_a_lesion_has_no_part_for_it() -> None:
    host = np.zeros((7, 9, 11), dtype=bool)
    host[1:4, 1:4, 1:4] = True
    host[5:7, 6:8, 6:8] = True
    rng = np.random.default_rng(0)
    assert draw_part(host, host, 27, ANISOTROPIC_MM, rng) is not None
    assert draw_part(host, host, 28, ANISOTROPIC_MM, rng) is None


@pytest.mark.parametrize("volume_ml", [0.0, -1.0, 0.0002, float("nan")])
def test_lesion_below_half_a_voxel_is_refused(volume_ml: float) -> None:
    with pytest.raises(LesionError, match=rf"at least half a voxel, 0\.0007 mL, found {volume_ml} mL"):
        require_num_voxels(volume_ml, ANISOTROPIC_MM)


def test_parts_are_numbered_as_scipy_numbers_them() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(tuple(rng.integers(1, 12, 3))) < rng.random() for _ in range(300)]
    masks += [ndimage.gaussian_filter(rng.random((17, 19, 23)), 1.5) > 0.5, np.zeros((0, 3, 4), dtype=bool)]
    masks += [np.asfortranarray(masks[-2]), masks[-2][::2, 1:, ::-1], np.arange(13).reshape(1, 1, 13) % 2 == 0]
    for mask in masks:
        labelled, num_parts = label_parts(mask)
        expected, num_expected = ndimage.label(mask, TOUCHING)
        assert num_parts == num_expected
        np.testing.assert_array_equal(labelled, expected)


def test_flood_equals_a_flood_with_a_priority_queue() -> None:
    """The oracle takes the reachable voxel of lowest score one at a time."""

    def flood_slowly(score: NDArray[np.float64], room: Mask, start: tuple[int, ...], num_voxels: int) -> Mask:
        taken, queue, seen = np.zeros_like(room), [(score[start], start)], {start}
        while taken.sum() < num_voxels:
            _, here = heapq.heappop(queue)
            taken[here] = True
            for step in np.argwhere(TOUCHING) - 1:
                there = tuple(int(value) for value in np.add(here, step))
                inside = all(0 <= value < side for value, side in zip(there, room.shape, strict=True))
                if inside and room[there] and there not in seen:
                    seen.add(there)
                    heapq.heappush(queue, (score[there], there))
        return taken

    rng = np.random.default_rng(5)
    num_equal = 0
    for _ in range(20):
        score = ndimage.gaussian_filter(rng.standard_normal((9, 11, 7)), 1.0)
        room = rng.random(score.shape) < 0.8
        start = tuple(int(value) for value in np.argwhere(room)[np.argmin(score[room])])
        taken = flood(score, room, np.array(start), 40)
        assert taken is not None
        assert taken.sum() == 40
        assert is_connected(taken)
        num_equal += np.array_equal(taken, flood_slowly(score, room, start, 40))
    assert num_equal >= 10  # they differ only in how the last pocket is filled
