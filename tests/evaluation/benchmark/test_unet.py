from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from torch import nn

from maisi_aug.evaluation.benchmark.config import PRESETS, Preset
from maisi_aug.evaluation.benchmark.data import LoadedCase, plan_training, to_classes
from maisi_aug.evaluation.benchmark.patch_networks import BalancedDiceCrossEntropy, StrongVariation, build_unet
from maisi_aug.evaluation.benchmark.unet import PatchObjective, TrainingSet, predict_case
from maisi_aug.training.loop.processes import Share
from tests.builders.tiny_benchmark import draw_case

PRESET = PRESETS["cpu"]
CASES = [LoadedCase(*draw_case(seed)) for seed in range(3)]
PLAN = plan_training(CASES, PRESET)


def build_network(preset: Preset) -> nn.Module:
    return build_unet(preset.widths, num_channels=1, num_classes=3)


def build_objective(num_cases: int = 3, seed: int = 0) -> PatchObjective:
    cases = TrainingSet(num_cases, lambda index: CASES[index], 3)
    return PatchObjective(build_network(PRESET), cases, PLAN, PRESET, seed=seed, device="cpu")


def test_plan_has_the_median_spacing_and_the_hu_of_what_is_labelled() -> None:
    assert PLAN.spacing_mm == (2.0, 2.2, 3.0)
    assert PLAN.patch_shape == (24, 24, 16)
    labelled = np.concatenate([case.image_hu[case.classes > 0] for case in CASES])
    assert PLAN.clip_hu == tuple(np.percentile(labelled, [0.5, 99.5]))
    normalised = np.concatenate([PLAN.normalise(case.image_hu)[case.classes > 0] for case in CASES])
    assert abs(normalised.mean()) < 0.02
    assert abs(normalised.std() - 1) < 0.02


def test_large_cases_are_planned_coarser() -> None:
    few = Preset((8, 16), 48, 2, 10, 1e-3, CASES[0].image_hu.size // 8)
    coarse = plan_training(CASES, few)
    np.testing.assert_allclose(np.divide(coarse.spacing_mm, PLAN.spacing_mm), 2.0, atol=0.01)
    assert coarse.grid_for(CASES[0].grid).shape == (11, 9, 6)


def test_batch_depends_on_the_seed_and_the_step_alone() -> None:
    one, other = build_objective(), build_objective()
    other.draw_batch(1)
    for mine, theirs in zip(one.draw_batch(5), other.draw_batch(5), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert not torch.equal(one.draw_batch(5)[0], one.draw_batch(6)[0])
    assert not torch.equal(one.draw_batch(5)[0], build_objective(seed=1).draw_batch(5)[0])


def test_strong_augmentation_moves_image_and_classes_alike() -> None:
    grid = np.indices((28, 28, 28))
    classes = (np.abs(grid - np.array([9, 14, 18])[:, None, None, None]).max(axis=0) < 6).astype(np.uint8)
    image = classes * np.float32(2) - 1
    variation = StrongVariation((20, 20, 20))
    assert variation.wide_shape == (28, 28, 28)
    moved = 0
    for seed in range(12):
        varied, found = variation.apply(image, classes, np.random.default_rng(seed))
        assert varied.shape == found.shape == (20, 20, 20)
        assert set(np.unique(found)) <= {0, 1}
        assert np.corrcoef(varied.ravel(), found.ravel())[0, 1] > 0.75
        moved += int((found != classes[4:24, 4:24, 4:24]).any())
        np.testing.assert_array_equal(varied, variation.apply(image, classes, np.random.default_rng(seed))[0])
    assert 2 <= moved <= 10


def test_strong_augmentation_is_the_same_in_a_training_step_of_half_precision() -> None:
    image, classes = np.random.default_rng(1).standard_normal((28, 28, 28), np.float32), np.ones((28, 28, 28), np.uint8)
    variation = StrongVariation((20, 20, 20))
    for seed in range(6):
        plain, _ = variation.apply(image, classes, np.random.default_rng(seed))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed, _ = variation.apply(image, classes, np.random.default_rng(seed))
        np.testing.assert_array_equal(mixed, plain)


def test_strong_patches_have_the_planned_shape_and_show_labels() -> None:
    objective = replace(build_objective(), strong=StrongVariation(PLAN.patch_shape))
    images, classes = objective.draw_batch(3)
    assert images.shape == (PRESET.batch_count, 1, *PLAN.patch_shape)
    assert classes.shape == (PRESET.batch_count, *PLAN.patch_shape)
    assert classes.dtype == torch.uint8
    assert torch.isfinite(images).all()
    assert set(np.unique(classes.numpy())) >= {0, 1}


def test_shares_of_a_batch_are_its_parts() -> None:
    objective = build_objective()
    parts = [objective.draw_batch(2, Share(index, 2))[0] for index in range(2)]
    assert [len(part) for part in parts] == [PRESET.batch_count] * 2
    assert not torch.equal(*parts)
    again = build_objective().draw_batch(2, Share(1, 2))[0]
    torch.testing.assert_close(parts[1], again, rtol=0, atol=0)


def test_small_cases_are_filled_up_with_air() -> None:
    images, classes = build_objective().draw_batch(0)
    assert images.shape == (PRESET.batch_count, 1, *PLAN.patch_shape)
    assert classes.shape == (PRESET.batch_count, *PLAN.patch_shape)
    assert not classes[:, 22:].any()
    assert set(np.unique(classes.numpy()).tolist()) == {0, 1, 2}


def test_classes_follow_the_order_of_the_names() -> None:
    label_map = np.array([[[0, 5, 14, 200, 26]]], dtype=np.uint8)
    np.testing.assert_array_equal(to_classes(label_map, {"kidneys": (5, 14), "tumor": (26,)}), [[[0, 1, 1, 0, 2]]])


def test_prediction_comes_back_to_the_grid_of_the_case() -> None:
    preset = Preset((8, 16, 16), 48, 2, 10, 1e-3, 1000)
    coarse = plan_training(CASES, preset)
    grid = coarse.grid_for(CASES[0].grid)
    empty = LoadedCase(np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.uint8), grid)
    found = predict_case(build_network(preset).eval(), empty, coarse, target=CASES[0].grid, device="cpu")
    assert found.shape == CASES[0].classes.shape
    assert found.dtype == np.uint8
    assert found.max() <= 2


def test_loss_counts_small_labels_and_leaves_out_those_that_are_not_shown() -> None:
    classes = torch.zeros(2, 8, 8, 8, dtype=torch.uint8)
    classes[:, 2:4, 2:4, 2:4] = 1
    criterion = BalancedDiceCrossEntropy()
    right = torch.nn.functional.one_hot(classes.long(), 3).movedim(-1, 1).float()
    assert criterion(30 * right, classes) < 0.01
    missed = 30 * right
    missed[:, :2] = 30 * torch.nn.functional.one_hot(torch.zeros_like(classes).long(), 2).movedim(-1, 1)
    # Every voxel of label 1 missed by 30: Dice 0, a mean over classes of 15, and of voxels of 30 / 64.
    torch.testing.assert_close(criterion(missed, classes), torch.tensor(1 + (15 + 30 / 64) / 2), atol=0.01, rtol=0)
    traces = 30 * right
    traces[:, 2] = 24.0  # label 2, which no patch shows
    assert criterion(traces, classes) < 0.01
    usual = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert usual(traces, classes[:, None]) > 0.4
