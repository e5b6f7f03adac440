"""Label maps vary smoothly, keep their labels, and nothing beside the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.lesions.deformation import (
    MIN_DEPTH_MM,
    _shift_mm,
    deform_case,
    deform_label_map,
    find_cavity,
    find_loose,
    find_outside_room,
    make_room,
    spline_basis,
    spline_field,
)

SPACING_MM = (1.4, 1.6, 5.0)
TRUNK_SPACING_MM = (3.0, 3.5, 4.0)
LIVER, SPLEEN, RIB, MUSCLE, BODY = 1, 3, 70, 104, 200
CENTRE = (34, 26, 20)


def build_map() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    label_map = np.zeros((90, 70, 30), dtype=np.uint8)
    label_map[8:82, 6:64] = 200
    label_map[20:60, 20:50, 6:24] = 1
    label_map[65:70, 30:36, 10:14] = 8
    return label_map


def test_deformation_keeps_the_input_the_labels_and_roughly_their_volumes() -> None:
    label_map = build_map()
    untouched = label_map.copy()
    for seed in range(6):
        deformed = deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(seed))
        assert deformed.dtype == np.uint8
        assert deformed.shape == label_map.shape
        assert not np.array_equal(deformed, label_map)
        np.testing.assert_array_equal(np.unique(deformed), np.unique(label_map))
        assert 0.75 < (deformed == 1).sum() / (label_map == 1).sum() < 1.3
        assert ndimage.label(deformed == 1)[1] == 1
        assert ndimage.label(deformed == 8, np.ones((3, 3, 3)))[1] == 1
    np.testing.assert_array_equal(label_map, untouched)


def test_deformation_moves_by_millimetres_not_voxels() -> None:
    """A ramp of ids along each axis turns the deformation into displacements that can be read off."""
    shape = (60, 50, 40)
    deviations_mm = []
    for axis, side in enumerate(shape):
        ramp = np.arange(side, dtype=np.uint8).reshape([-1 if other == axis else 1 for other in range(3)])
        # The highest and lowest ids lie at the border and could be lost: they are not part of the measurement.
        moved = [
            deform_label_map(
                np.broadcast_to(ramp, shape).copy(), spacing_mm=SPACING_MM, rng=np.random.default_rng(seed)
            )
            for seed in range(4)
        ]
        inner = np.moveaxis(np.stack(moved).astype(float) - ramp, axis + 1, 1)[:, 10:-10]
        deviations_mm.append(float(inner.std()) * SPACING_MM[axis])
    assert all(1.0 < value < 7.0 for value in deviations_mm)


def test_deformation_depends_on_its_seed_alone() -> None:
    label_map = build_map()

    def deform(seed: int) -> bytes:
        return deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(seed)).tobytes()

    assert deform(1) == deform(1)
    assert deform(1) != deform(2)


def test_image_is_warped_along_with_its_label_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interpolated image shows at a voxel is what the map shows there, wherever its surroundings are alike."""
    label_map = build_map()
    image_hu = label_map.astype(np.int16) * 10 - 1000
    before = image_hu.copy()
    monkeypatch.setattr("maisi_aug.lesions.deformation.MAX_SLAB_VOXELS", 7 * 70 * 30)
    warped, deformed = deform_case(image_hu, label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(3))
    alone = deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(deformed, alone)
    assert (deformed != label_map).any()
    inside = ndimage.maximum_filter(deformed, 3) == ndimage.minimum_filter(deformed, 3)
    np.testing.assert_allclose(warped[inside], deformed[inside] * 10.0 - 1000, atol=1e-3)
    np.testing.assert_array_equal(image_hu, before)


def test_deformation_without_strength_changes_nothing() -> None:
    label_map = build_map()
    deformed = deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(0), strength=0.0)
    np.testing.assert_array_equal(deformed, label_map)
    assert deformed is not label_map


def test_deformation_never_loses_a_label_of_one_voxel() -> None:
    label_map = np.zeros((40, 30, 20), dtype=np.uint8)
    label_map.ravel()[np.random.default_rng(0).choice(label_map.size, 200, replace=False)] = np.arange(1, 201)
    for seed in range(3):
        deformed = deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(seed), strength=1.0)
        assert len(np.unique(deformed)) == 201


def test_deformation_in_slabs_equals_deformation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    label_map = build_map()
    whole = deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    monkeypatch.setattr("maisi_aug.lesions.deformation.MAX_SLAB_VOXELS", 7 * 70 * 30)
    slabs = deform_label_map(label_map, spacing_mm=SPACING_MM, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(whole, slabs)


def test_spline_weights_sum_to_one_and_reproduce_a_line() -> None:
    positions = np.linspace(0.0, 4.7, 33)
    basis = spline_basis(positions)
    np.testing.assert_allclose(basis.sum(axis=1), 1.0)
    np.testing.assert_allclose(basis @ (np.arange(basis.shape[1]) - 1.0), positions)


def test_spline_field_equals_the_triple_sum() -> None:
    rng = np.random.default_rng(0)
    bases = [spline_basis(np.sort(rng.uniform(0.0, 2.0, size))) for size in (4, 5, 6)]
    knots = rng.standard_normal([basis.shape[1] for basis in bases])
    expected = np.einsum("abc,ia,jb,kc->ijk", knots, *bases)
    np.testing.assert_allclose(spline_field(knots, bases), expected)


def build_trunk() -> NDArray[np.uint8]:
    """A liver and a spleen with fat between them, a rib over the liver, a muscle behind, skin all around."""
    label_map = np.zeros((70, 54, 42), dtype=np.uint8)
    label_map[4:66, 4:50] = BODY
    label_map[22:50, 16:40, 8:34] = LIVER
    label_map[10:17, 20:34, 12:30] = SPLEEN
    label_map[8:60, 8:10, 20:23] = RIB
    label_map[18:52, 43:47] = MUSCLE
    return label_map


def push(radius_mm: float, room_share: float = 0.4) -> NDArray[np.uint8]:
    label_map = build_trunk()
    loose = find_loose(label_map, TRUNK_SPACING_MM)
    moved = make_room(
        label_map, CENTRE, radius_mm=radius_mm, room_share=room_share, loose=loose, spacing_mm=TRUNK_SPACING_MM
    )
    assert moved is not None
    return moved


def test_host_swells_by_about_the_room_that_is_made() -> None:
    voxel_ml, made_ml = np.prod(TRUNK_SPACING_MM) / 1000, 0.4 * 4 / 3 * np.pi * 3.6**3
    gained_ml = (int((push(36.0) == LIVER).sum()) - int((build_trunk() == LIVER).sum())) * voxel_ml
    assert 0.2 * made_ml < gained_ml < 1.1 * made_ml  # the host itself is pressed together, too


@pytest.mark.parametrize("stiff", [0, RIB, MUSCLE])
def test_bone_muscle_and_the_outside_stay_where_they_are(stiff: int) -> None:
    np.testing.assert_array_equal(push(30.0) == stiff, build_trunk() == stiff)


def test_input_is_left_alone_and_what_is_far_away_too() -> None:
    label_map = build_trunk()
    push(8.0)
    np.testing.assert_array_equal(label_map, build_trunk())
    np.testing.assert_array_equal(push(8.0)[10:17], label_map[10:17])


def test_lesion_that_is_there_keeps_every_voxel() -> None:
    label_map = build_trunk()
    label_map[44:48, 24:28, 18:22] = 26
    loose = find_loose(label_map, TRUNK_SPACING_MM)
    loose[43:49, 23:29, 17:23] = False
    moved = make_room(label_map, CENTRE, radius_mm=18.0, room_share=0.4, loose=loose, spacing_mm=TRUNK_SPACING_MM)
    assert moved is not None
    np.testing.assert_array_equal(moved == 26, label_map == 26)


def test_organ_that_would_be_squeezed_flat_is_not() -> None:
    label_map = build_trunk()
    label_map[50:51, 18:38, 10:32] = 10  # a gallbladder of one voxel's width on the liver
    loose = find_loose(label_map, TRUNK_SPACING_MM)
    found = [
        make_room(label_map, (46, 26, 20), radius_mm=24.0, room_share=share, loose=loose, spacing_mm=TRUNK_SPACING_MM)
        for share in (0.4, 0.7, 0.9)
    ]
    for moved in found:
        assert moved is None or (moved == 10).sum() >= 0.6 * (label_map == 10).sum()


def test_shift_never_folds_a_ray_and_ends_where_it_should() -> None:
    radii = np.linspace(0.0, 120.0, 2401)
    shift = _shift_mm(radii, 30.0, 0.5)
    assert (np.diff(radii - shift) > 0).all()
    assert shift[0] == 0
    assert (shift[radii >= 90.0] < 1e-9).all()
    assert shift.max() == pytest.approx(30.0 * (1 - 0.5 ** (1 / 3)), rel=1e-3)


def test_cavity_is_the_organs_and_the_fat_between_them() -> None:
    label_map = build_trunk()
    cavity = find_cavity(label_map, TRUNK_SPACING_MM)
    assert cavity[label_map == LIVER].all()
    assert cavity[19, 26, 20]  # between spleen and liver
    assert not cavity[34, 6, 20]  # under the skin
    assert not cavity[np.isin(label_map, (0, RIB, MUSCLE))].any()
    assert not find_cavity(np.full((5, 6, 7), BODY, dtype=np.uint8), TRUNK_SPACING_MM).any()


def test_cavity_of_thin_voxels_is_that_of_thick_ones() -> None:
    label_map = build_trunk()
    fine = np.kron(label_map, np.ones((3, 3, 1), dtype=np.uint8))
    thin = find_cavity(fine, (1.0, 3.5 / 3, 4.0))
    thick = find_cavity(label_map, TRUNK_SPACING_MM)
    assert (thin[1::3, 1::3] != thick).mean() < 0.03


def test_room_outside_is_body_near_the_host_and_never_the_skin() -> None:
    label_map = build_trunk()
    host = label_map == LIVER
    for rim_mm, in_cavity in ((0.0, True), (10.0, False), (10.0, True)):
        room = find_outside_room(label_map, host, rim_mm=rim_mm, in_cavity=in_cavity, spacing_mm=TRUNK_SPACING_MM)
        assert room.any()
        assert set(np.unique(label_map[room])) == {BODY}
        assert not room[:, : 4 + int(MIN_DEPTH_MM / TRUNK_SPACING_MM[1])].any()
    none = find_outside_room(label_map, host, rim_mm=0.0, in_cavity=False, spacing_mm=TRUNK_SPACING_MM)
    assert not none.any()
