from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import PreparationError, VolumeError
from maisi_aug.insertion.backgrounds import find_backgrounds
from maisi_aug.preparation.mapping import parse_rule
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map

GRID = Grid.from_spacing((9, 11, 7), (0.8, 0.7, 2.5))


def write_ct(path: Path, *, offset: int = 0) -> None:
    image = np.full(GRID.shape, -900 + offset, dtype=np.int16)
    image[4:] = 40 + offset
    save_image(path, image, GRID)


def test_a_file_a_folder_and_a_dataset_are_read(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000", "imagesTr/b_0000"):
        write_ct(tmp_path / f"{name}.nii.gz")
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[5:7, 3:5, 2:4] = 1
    for name in ("a", "b"):
        save_label_map(tmp_path / "labelsTr" / f"{name}.nii.gz", labels, GRID)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "nodule": 1}, "file_ending": ".nii.gz"})
    )
    rule = parse_rule("nodule=lung nodule")
    dataset = find_backgrounds(tmp_path, vocabulary=MAISI, rules=[rule])
    folder = find_backgrounds(tmp_path / "imagesTr", vocabulary=MAISI)
    alone = find_backgrounds(tmp_path / "imagesTr" / "b_0000.nii.gz", vocabulary=MAISI)
    assert [len(found.cases) for found in (dataset, folder, alone)] == [2, 2, 1]
    read = dataset.load(1)
    assert read.label_map is not None
    np.testing.assert_array_equal(read.label_map == 23, labels > 0)
    assert folder.load(0).label_map is None
    assert alone.load(0).image.dtype == np.int16
    with pytest.raises(PreparationError, match="Labels: every label needs a meaning"):
        find_backgrounds(tmp_path, vocabulary=MAISI)


def test_a_ct_without_its_offset_is_named(tmp_path: Path) -> None:
    write_ct(tmp_path / "a.nii.gz", offset=1024)
    found = find_backgrounds(tmp_path / "a.nii.gz", vocabulary=MAISI)
    with pytest.raises(VolumeError, match="a CT stored without its offset of 1024"):
        found.load(0)


def test_nothing_there_is_named_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="not found"):
        find_backgrounds(tmp_path / "missing", vocabulary=MAISI)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PreparationError, match="--into .*empty: no images found"):
        find_backgrounds(tmp_path / "empty", vocabulary=MAISI)


def test_other_files_make_other_backgrounds(tmp_path: Path) -> None:
    write_ct(tmp_path / "a.nii.gz")
    before = find_backgrounds(tmp_path, vocabulary=MAISI).describe()
    assert before == find_backgrounds(tmp_path, vocabulary=MAISI).describe()
    write_ct(tmp_path / "b.nii.gz")
    assert find_backgrounds(tmp_path, vocabulary=MAISI).describe() != before
