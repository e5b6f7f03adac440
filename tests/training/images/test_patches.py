from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.training.images.patches import PatchPlan, PatchSource
from maisi_aug.training.loop.processes import Share
from maisi_aug.training.loop.settings import VaeLossConfig
from maisi_aug.volumes.grid import Shape
from tests.builders.tiny_training import HEPATIC_TUMOR, SHAPE, SPACING_MM, ArrayStore, build_case, build_store

RAMP: NDArray[np.int16] = (np.arange(np.prod(SHAPE), dtype=np.int16) % 1900 - 950).reshape(SHAPE)


def build_source(store: ArrayStore | None = None, **loss: Any) -> PatchSource:
    config = VaeLossConfig.model_validate({"patch_shape": (8, 6, 4), **loss})
    return PatchSource(store or ramp_store(), config, lesion_ids=(HEPATIC_TUMOR,), seed=0)


def ramp_store(image_hu: NDArray[np.int16] = RAMP) -> ArrayStore:
    case = build_case(0)
    return ArrayStore([type(case)(image_hu, case.label_map, case.spacing_mm, case.modality)])


def cut_by_hand(plan: PatchPlan) -> NDArray[np.int16]:
    """The voxels of a plan without resampling, flipped and turned."""
    i, j, k = (slice(start, start + side) for start, side in zip(plan.corner, plan.box, strict=True))
    return np.rot90(np.flip(RAMP[i, j, k], plan.flipped_axes), plan.quarter_turns, plan.plane)


def test_patches_lie_inside_the_case_and_flip_along_every_axis() -> None:
    source = build_source()
    plans = [source.plan(step)[0] for step in range(60)]
    assert {plan.flipped_axes for plan in plans} == {(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    for plan in plans:
        assert plan.box == (8, 6, 4)
        assert all(0 <= c <= s - b for c, s, b in zip(plan.corner, SHAPE, plan.box, strict=True))
        expected = hu_to_unit(torch.from_numpy(cut_by_hand(plan).copy()))
        assert torch.equal(source.cut(plan), expected)
    assert build_source(batch_count=2).draw(0).shape == (2, 1, 8, 6, 4)


def test_turned_patches_keep_their_shape() -> None:
    source = build_source(rotation_share=0.7)
    plans = [source.plan(step)[0] for step in range(80)]
    assert {(plan.quarter_turns, plan.plane) for plan in plans} == {
        *((turns, plane) for turns in (0, 1, 2, 3) for plane in ((0, 1), (0, 2), (1, 2)))
    }
    assert np.mean([plan.quarter_turns > 0 for plan in plans]) == pytest.approx(0.7, abs=0.15)
    for plan in plans:
        patch = source.cut(plan)
        assert patch.shape == (8, 6, 4)
        assert torch.equal(patch, hu_to_unit(torch.from_numpy(cut_by_hand(plan).copy())))


def test_enlarged_patches_show_fewer_voxels() -> None:
    source = build_source(zoom_range=(0.5, 1.5), patch_shape=(12, 12, 12))
    boxes = [source.plan(step)[0].box[0] for step in range(60)]
    assert min(boxes) == 8
    assert 22 <= max(boxes) <= 24
    assert {source.cut(source.plan(step)[0]).shape for step in range(10)} == {(12, 12, 12)}


def test_zoom_leaves_flat_regions_as_they_are_and_scales_slopes() -> None:
    slope: NDArray[np.int16] = np.broadcast_to((10 * np.arange(SHAPE[0], dtype=np.int16))[:, None, None], SHAPE).copy()
    source = build_source(ramp_store(slope), zoom_range=(0.5, 0.5), patch_shape=(8, 8, 8))
    patch = source.cut(source.plan(3)[0])
    steps = patch.diff(dim=0).abs() * 2000
    assert torch.allclose(steps, torch.full_like(steps, 20.0), atol=0.1)
    assert float(patch.diff(dim=1).abs().max()) < 1e-6


def test_fixed_spacing_is_reached_along_every_axis() -> None:
    wanted: Shape = (8, 8, 8)
    source = build_source(spacing_mm=(6.0, 26.0, 14.0), patch_shape=wanted)
    plan = source.plan(0)[0]
    assert plan.box == tuple(
        round(side * new / old) for side, new, old in zip(wanted, (6.0, 26.0, 14.0), SPACING_MM, strict=True)
    )
    assert source.cut(plan).shape == wanted


def test_what_reaches_beyond_the_image_is_air() -> None:
    flat = ramp_store(np.full(SHAPE, 100, dtype=np.int16))
    source = build_source(flat, rotation_share=1.0, patch_shape=(40, 8, 8))
    patch = source.cut(source.plan(0)[0])
    assert patch.shape == (40, 8, 8)
    assert np.unique(patch).tolist() == [0.0, float(hu_to_unit(torch.tensor(100)))]


def test_small_images_are_taken_whole_where_nothing_is_transformed() -> None:
    assert build_source(patch_shape=(40, 8, 8)).draw(0).shape == (1, 1, 32, 8, 8)


def test_intensities_are_scaled_and_shifted_within_their_bounds() -> None:
    flat = ramp_store(np.zeros(SHAPE, dtype=np.int16))
    source = build_source(flat, intensity_scale=0.1, intensity_shift=0.05)
    values = [float(source.draw(step).mean()) for step in range(200)]
    assert 0.5 * 0.9 - 0.05 <= min(values) < 0.47
    assert 0.53 < max(values) <= 0.5 * 1.1 + 0.05
    bright = build_source(ramp_store(np.full(SHAPE, 1000, dtype=np.int16)), intensity_shift=0.5)
    assert max(float(bright.draw(step).max()) for step in range(10)) == 1.0


def test_transforms_leave_places_and_flips_as_they_were() -> None:
    plain, varied = build_source(), build_source(intensity_scale=0.1)
    for step in range(10):
        ours, theirs = plain.plan(step)[0], varied.plan(step)[0]
        assert (ours.corner, ours.box, ours.flipped_axes) == (theirs.corner, theirs.box, theirs.flipped_axes)


def test_shares_are_the_parts_of_one_batch() -> None:
    store = build_store(3)
    whole = build_source(store, batch_count=6, rotation_share=0.5, intensity_scale=0.1).draw(4)
    parts = [
        build_source(store, batch_count=2, rotation_share=0.5, intensity_scale=0.1).draw(4, Share(index, 3))
        for index in range(3)
    ]
    assert torch.equal(torch.cat(parts), whole)
