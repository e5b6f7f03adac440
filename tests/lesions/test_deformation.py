"""Label maps vary smoothly, keep their labels, and nothing beside the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.lesions.deformation import deform_label_map, spline_basis, spline_field

SPACING_MM = (1.4, 1.6, 5.0)


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
