from __future__ import annotations

import numpy as np
import pytest
import torch

from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.images.contrastive import (
    LabelRemover,
    find_regions,
    region_contrastive_loss,
    show_without,
)
from maisi_aug.vocabulary.labels import MAISI, SlotBinding

GLAND, BODY, LIVER = 133, 200, 1
SPACING_MM = (0.7, 0.8, 2.5)


def build_map() -> np.ndarray:
    label_map = np.zeros((28, 36, 44), dtype=np.uint8)
    label_map[2:26, 2:34] = BODY
    label_map[4:12, 4:14, 4:20] = LIVER
    label_map[12:16, 12:16, 16:20] = GLAND
    return label_map


def test_labels_give_way_to_the_nearest_host() -> None:
    taught = TaughtLabel("gland", GLAND, GLAND, (BODY, LIVER), "organ")
    vocabulary = MAISI.with_slots({"gland": SlotBinding(GLAND, (BODY, LIVER), is_organ=True)})
    label_map = build_map()
    before = label_map.copy()
    remover = LabelRemover.of_taught([taught], vocabulary)
    without = remover.remove(label_map, SPACING_MM)
    assert not (without == GLAND).any()
    assert set(np.unique(without[label_map == GLAND])) == {BODY, LIVER}
    np.testing.assert_array_equal(without[label_map != GLAND], label_map[label_map != GLAND])
    np.testing.assert_array_equal(label_map, before)
    np.testing.assert_array_equal(remover.remove(label_map, SPACING_MM), without)


def test_tumours_give_way_to_what_the_vocabulary_says() -> None:
    label_map = build_map()
    label_map[6:9, 6:9, 6:9] = MAISI.id_of("hepatic tumor")
    without = LabelRemover(MAISI).remove(label_map, SPACING_MM)
    assert set(np.unique(without[label_map == MAISI.id_of("hepatic tumor")])) == {LIVER}
    assert (without[label_map == GLAND] == GLAND).all()


def test_cysts_give_way_like_tumours_but_not_where_labels_are_taught() -> None:
    label_map = build_map()
    label_map[20:25, 4:14, 4:20] = MAISI.id_of("left kidney")
    label_map[22:24, 6:9, 6:9] = MAISI.id_of("left kidney cyst")
    without = LabelRemover(MAISI).remove(label_map, SPACING_MM)
    assert set(np.unique(without[22:24, 6:9, 6:9])) == {MAISI.id_of("left kidney")}
    taught = TaughtLabel("gland", GLAND, GLAND, (BODY, LIVER), "organ")
    vocabulary = MAISI.with_slots({"gland": SlotBinding(GLAND, (BODY, LIVER), is_organ=True)})
    kept = LabelRemover.of_taught([taught], vocabulary).remove(label_map, SPACING_MM)
    assert (kept[22:24, 6:9, 6:9] == MAISI.id_of("left kidney cyst")).all()


def test_map_without_the_labels_stays() -> None:
    taught = TaughtLabel("gland", GLAND, GLAND, (BODY,), "organ")
    label_map = np.full((4, 5, 6), BODY, dtype=np.uint8)
    assert LabelRemover.of_taught([taught], MAISI).remove(label_map, SPACING_MM) is label_map


def test_regions_keep_a_small_label_and_a_margin_of_three_voxels() -> None:
    with_label = np.full((1, 16, 16, 16), BODY, dtype=np.uint8)
    without = with_label.copy()
    with_label[0, 7, 7, 7] = GLAND
    changed, outside = find_regions(with_label, without, torch.Size((1, 4, 8, 8, 8)))
    assert changed.sum() == 1  # a single voxel still fills its latent voxel
    assert changed[0, 0, 3, 3, 3] == 1
    near = (1 - outside)[0, 0].nonzero()
    assert near.min(dim=0).values.tolist() == [2, 2, 2]  # voxels 4-10 around it
    assert near.max(dim=0).values.tolist() == [5, 5, 5]


def test_difference_inside_is_rewarded_up_to_the_bound() -> None:
    target = torch.zeros(1, 2, 4, 4, 4)
    regions = find_regions(
        np.where(np.indices((1, 8, 8, 8))[1] < 2, GLAND, BODY).astype(np.uint8),
        np.full((1, 8, 8, 8), BODY, dtype=np.uint8),
        target.shape,
    )
    for difference, expected in ((0.0, 0.0), (1.0, -1.0), (5.0, -2.0)):
        reward, outside = region_contrastive_loss(target + difference, target, target, regions, bound=2.0)
        assert float(reward) == pytest.approx(expected, abs=1e-4)
        assert float(outside) == 0.0


def test_error_counts_outside_the_margin_alone() -> None:
    target = torch.zeros(1, 1, 8, 8, 8)
    with_label = np.full((1, 16, 16, 16), BODY, dtype=np.uint8)
    without_label = with_label.copy()
    with_label[0, :2] = GLAND
    regions = find_regions(with_label, without_label, target.shape)
    near, far = target.clone(), target.clone()
    near[:, :, :2] = 3.0
    far[:, :, 6:] = 3.0
    assert float(region_contrastive_loss(target, near, target, regions, bound=2.0)[1]) == 0.0
    expected = 3.0 * 2 / int(regions.outside[0, 0, :, 0, 0].sum())
    assert float(region_contrastive_loss(target, far, target, regions, bound=2.0)[1]) == pytest.approx(expected, 1e-3)


def test_completed_maps_show_the_host_as_the_networks_know_it() -> None:
    label_map = build_map()
    without = np.where(label_map == GLAND, LIVER, label_map)
    shown = np.where(label_map == LIVER, 160, np.where(label_map == BODY, 240, label_map)).astype(np.uint8)
    found = show_without(shown[None], label_map[None], without[None])[0]
    assert set(np.unique(found[label_map == GLAND])) == {160}
    np.testing.assert_array_equal(found[label_map != GLAND], shown[label_map != GLAND])
    assert show_without(label_map[None], label_map[None], without[None])[0] is not None
    np.testing.assert_array_equal(show_without(label_map[None], label_map[None], without[None])[0], without)
