from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.networks.mask_decoding import class_ids
from maisi_aug.training.cases.data import read_array
from maisi_aug.training.masks.label_maps import (
    ClassMaps,
    VariedMaps,
    draw_warp,
    mirror,
    mirrored_classes,
    store_maps,
    take_patch,
    to_classes,
)
from maisi_aug.training.masks.recipe import WarpConfig
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from tests.builders.tiny_mask_training import ClassList, build_maps, class_of
from tests.builders.tiny_training import SPACING_MM

STILL = WarpConfig(degrees=0, stretch=0, shift_mm=0)


def test_every_class_goes_to_its_id_and_back() -> None:
    label_map = class_ids().reshape(5, 5, 5)
    np.testing.assert_array_equal(class_ids()[to_classes(label_map)], label_map)


def test_labels_without_a_class_become_their_host_or_body() -> None:
    vocabulary = MAISI.with_slots({"spleen tumor": SlotBinding(id=130, hosts=(3,))})
    label_map = np.array([[[116, 117, 130, 131, 16]]], dtype=np.uint8)
    found = class_ids()[to_classes(label_map, vocabulary)].ravel()
    assert found.tolist() == [MAISI.id_of("left kidney"), MAISI.id_of("right kidney"), 3, 200, 200]


def test_mirroring_twice_gives_the_map_back_and_exchanges_sides() -> None:
    ids, partners = class_ids(), mirrored_classes()
    # The right lung has three lobes and the left one two: the middle one stays.
    np.testing.assert_array_equal(partners[partners], np.arange(len(ids)))
    names = {MAISI.name_of(int(ids[a])): MAISI.name_of(int(ids[b])) for a, b in enumerate(partners)}
    assert names["left kidney"] == "right kidney"
    assert names["right rib 12"] == "left rib 12"
    assert names["left lung lower lobe"] == "right lung lower lobe"
    assert names["right lung middle lobe"] == "right lung middle lobe"
    assert names["liver"] == "liver"
    for name, other in names.items():
        has_side = {"left", "right"} & set(name.split())
        alone = name in {"right lung middle lobe", "left atrial appendage"}
        assert (name != other) == (bool(has_side) and not alone)


def test_mirrored_patch_is_flipped_along_the_first_axis() -> None:
    classes = np.zeros((4, 3, 2), dtype=np.uint8)
    classes[0, 1, 1] = class_of(MAISI.id_of("left kidney"))
    flipped = mirror(classes)
    assert flipped[3, 1, 1] == class_of(MAISI.id_of("right kidney"))
    np.testing.assert_array_equal(mirror(flipped), classes)


def test_patch_without_a_warp_is_the_box() -> None:
    classes = np.random.default_rng(0).integers(0, 125, (7, 9, 11)).astype(np.uint8)
    matrix, shift = draw_warp(STILL, (0.7, 0.8, 2.5), np.random.default_rng(0))
    patch = take_patch(classes, (3, 4, 5), np.array([2.0, 2.5, 6.0]) + shift, matrix)
    np.testing.assert_array_equal(patch, classes[1:4, 1:5, 4:9])
    beyond = take_patch(classes, (3, 3, 3), np.array([0.0, 1.0, 1.0]), matrix)
    assert not beyond[0].any()
    np.testing.assert_array_equal(beyond[1:], classes[:2, :3, :3])


def test_warp_turns_in_millimetres() -> None:
    spacing = (1.0, 1.0, 4.0)
    matrix, _ = draw_warp(WarpConfig(degrees=20, stretch=0, shift_mm=0), spacing, np.random.default_rng(3))
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / np.asarray(spacing))
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert abs(in_mm - np.eye(3)).max() > 0.05


def test_variants_begin_with_the_map_and_keep_its_labels() -> None:
    maps = build_maps(2)
    varied = VariedMaps(maps, 3, WarpConfig(degrees=4, stretch=0.05, shift_mm=5), spacing_mm=SPACING_MM, seed=1)
    assert len(varied) == 6
    np.testing.assert_array_equal(varied[3], maps[1])
    for index in (4, 5):
        assert (varied[index] != maps[1]).any()
        assert set(np.unique(varied[index])) <= set(np.unique(maps[1]))
        np.testing.assert_array_equal(varied[index], varied[index])
    assert (varied[4] != varied[5]).any()


def test_class_maps_keep_no_more_than_there_is_room_for() -> None:
    asked = []

    class Asked(ClassList):
        def __getitem__(self, index: int) -> np.ndarray:
            asked.append(index)
            return super().__getitem__(index)

    source = Asked([class_ids()[one] for one in build_maps(3).maps])
    maps = ClassMaps(source, MAISI, cache_bytes=2 * source.maps[0].nbytes)
    for index in (0, 1, 0, 2, 0, 1):
        np.testing.assert_array_equal(maps[index], build_maps(3)[index])
    assert asked == [0, 1, 2, 1]
    assert len(maps) == 3


def test_maps_are_stored_once_and_those_that_cannot_be_had_are_left_out(tmp_path: Path) -> None:
    built = []

    def build(place: int) -> np.ndarray | None:
        built.append(place)
        return None if place == 1 else np.full((2, 3, 4), place, dtype=np.uint8)

    reports: list[tuple[int, int]] = []
    paths = store_maps(tmp_path, ["a", "b", "c"], build, report=lambda done, total: reports.append((done, total)))
    assert [path.stem for path in paths] == ["a", "c"]
    assert reports[-1] == (3, 3)
    again = store_maps(tmp_path, ["a", "b", "c"], build)
    assert built == [0, 1, 2, 1]
    np.testing.assert_array_equal(read_array(again[1], "label_map"), np.full((2, 3, 4), 2, dtype=np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_warp_without_room_does_nothing(seed: int) -> None:
    matrix, shift = draw_warp(STILL, SPACING_MM, np.random.default_rng(seed))
    np.testing.assert_allclose(matrix, np.eye(3))
    np.testing.assert_allclose(shift, 0.0)
