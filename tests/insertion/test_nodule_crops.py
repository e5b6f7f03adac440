from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import PreparationError
from maisi_aug.insertion.nodule_crops import (
    GROUND_GLASS_ID,
    PART_SOLID_ID,
    SOLID_ID,
    WINDOW,
    cut_window,
    draw_turn,
    main,
    texture_id,
)
from maisi_aug.insertion.surroundings import LUNG_ID
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

HEADER = "file,patient,texture,split\n"


def write_nodules(folder: Path) -> None:
    grid = Grid.from_spacing((30, 44, 6), (0.6, 0.7, 2.0))
    for number in range(3):
        image = np.random.default_rng(number).normal(-850, 30, grid.shape).astype(np.int16)
        nodule = np.zeros(grid.shape, dtype=np.uint8)
        nodule[10:18, 20:28, 1:4] = 1
        image[nodule > 0] = 0
        save_image(folder / "images" / f"n{number}.nii.gz", image, grid)
        save_label_map(folder / "labels" / f"n{number}.nii.gz", nodule, grid)
    (folder / "index.csv").write_text(
        HEADER + "n0.nii.gz,A,5,train\nn1.nii.gz,B,1,train\nn2.nii.gz,C,3,val\n", encoding="utf-8"
    )


def test_crops_are_those_of_train_patients_at_their_own_spacing(tmp_path: Path) -> None:
    for folder in ("nodules/images", "nodules/labels", "lungs"):
        (tmp_path / folder).mkdir(parents=True)
    write_nodules(tmp_path / "nodules")
    save_image(tmp_path / "lungs" / "one_ct.nii.gz", build_chest(), Grid.from_spacing(SHAPE, SPACING_MM))
    out = tmp_path / "crops"
    arguments = [str(tmp_path / "nodules"), str(tmp_path / "lungs"), "--out", str(out)]
    main([*arguments, "--copies", "2", "--lung-crops", "3"])
    store = PreparedStore.from_folder(out)
    assert {record.id for record in store.cases} == {
        *("n0-0", "n0-1", "n1-0", "n1-1"),
        *("one-lung-0", "one-lung-1", "one-lung-2"),
    }
    for index, record in enumerate(store.cases):
        assert store.image_hu(index).shape == WINDOW
        assert store.facts(index).spacing_mm == (SPACING_MM if "lung" in record.id else (0.6, 0.7, 2.0))
        wanted = {"n0": {SOLID_ID}, "n1": {GROUND_GLASS_ID}, "on": set()}[record.id[:2]]
        assert set(np.unique(store.label_map(index))) - {0, LUNG_ID, 200} == wanted
        if wanted:
            assert np.isin(store.label_map(index), list(wanted)).sum() == 8 * 8 * 3
            assert (store.label_map(index) == 0).sum() == np.prod(WINDOW) - 30 * 40 * 6
    with pytest.raises(PreparationError, match="already exists"):
        main(arguments)


def test_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="has no index.csv of nodules"):
        main([str(tmp_path), str(tmp_path), "--out", str(tmp_path / "crops")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("score", "label_id"),
    [(1, GROUND_GLASS_ID), (2, GROUND_GLASS_ID), (3, PART_SOLID_ID), (4, SOLID_ID), (5, SOLID_ID)],
)
def test_texture_follows_the_readers(score: int, label_id: int) -> None:
    assert texture_id(score) == label_id


def test_window_beyond_the_crop_repeats_its_edge_and_has_no_label() -> None:
    image = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
    labels = np.full((4, 5, 3), 7, dtype=np.uint8)
    window, found = cut_window(image, labels, (-1, 0, 1), (6, 5, 4))
    np.testing.assert_array_equal(window[0], window[1])
    assert (found[0] == 0).all()
    assert (found[1:5, :, :2] == 7).all()
    assert (found[:, :, 2:] == 0).all()


def test_image_and_labels_turn_alike() -> None:
    image = np.random.default_rng(0).integers(0, 99, (8, 8, 3)).astype(np.int16)
    for seed in range(6):
        turned, labels = draw_turn(image, image.astype(np.uint8), np.random.default_rng(seed))
        np.testing.assert_array_equal(turned, labels)
        assert sorted(turned.ravel()) == sorted(image.ravel())
