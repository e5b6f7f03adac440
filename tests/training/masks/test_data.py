from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.errors import TrainingError
from maisi_aug.preparation.prepared import PreparedCase, PreparedDataset, PreparedSpec
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.masks.data import MaskSplit, open_bank, open_phantoms, open_prepared
from maisi_aug.training.masks.recipe import MaskTrainingRecipe
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bank import build_trunk, write_case
from tests.builders.tiny_mask_training import build_mask_recipe, class_of
from tests.builders.tiny_training import SHAPE, SPACING_MM, build_case

IDS = {str(label.id): label.name for label in MAISI if label.id not in (0, 26)}


def build_bank_recipe() -> MaskTrainingRecipe:
    return build_mask_recipe(grid__shape=[32, 24, 24], grid__spacing_mm=[10.0, 11.0, 8.0], data__num_held_out=4)


def open_trunks(folder: Path, num_maps: int, out: Path) -> MaskSplit:
    for number in range(num_maps):
        write_case(folder, f"case{number}", build_trunk(tumours_mm=(9.0,), seed=number))
    recipe = build_bank_recipe()
    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    return open_bank(recipe, FolderBank(folder, vocabulary=MAISI, grid=grid, mapping="maisi"), out)


def test_bank_is_cut_once_and_a_fifth_of_it_held_out(tmp_path: Path) -> None:
    split = open_trunks(tmp_path / "bank", 6, tmp_path / "out")
    assert (len(split.training), len(split.held_out)) == (5, 1)
    assert split.training[0].shape == (32, 24, 24)
    for classes in (*(split.training[n] for n in range(5)), split.held_out[0]):
        assert {class_of(label_id) for label_id in (1, 200, 26)} <= set(np.unique(classes).tolist())
    stored = sorted(path for path in (tmp_path / "out").rglob("*.npz"))
    before = [path.stat().st_mtime_ns for path in stored]
    again = open_trunks(tmp_path / "bank", 6, tmp_path / "out")
    assert (again.key, [path.stat().st_mtime_ns for path in stored]) == (split.key, before)
    assert split.origin == "6 maps of bank"


def test_another_bank_of_the_same_name_is_other_data(tmp_path: Path) -> None:
    first = open_trunks(tmp_path / "a" / "bank", 2, tmp_path / "out")
    for number in range(2):
        write_case(tmp_path / "b" / "bank", f"case{number}", build_trunk(tumours_mm=(22.0,), seed=number + 2))
    recipe = build_bank_recipe()
    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    other = FolderBank(tmp_path / "b" / "bank", vocabulary=MAISI, grid=grid, mapping="maisi")
    second = open_bank(recipe, other, tmp_path / "out")
    assert first.key != second.key
    assert (first.training[0] != second.training[0]).any()
    renamed = FolderBank(tmp_path / "b" / "bank", vocabulary=MAISI, grid=grid, mapping={"26": "bone lesion"} | IDS)
    assert open_bank(recipe, renamed, tmp_path / "out").key != second.key


def test_bank_of_one_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="Label maps for training: at least two are needed, one of them held out, found 1"
    ):
        open_trunks(tmp_path / "bank", 1, tmp_path / "out")


def test_map_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "broken_seg.nii.gz").write_bytes(b"no volume")
    split = open_trunks(tmp_path / "bank", 2, tmp_path / "out")
    assert len(split.training) + len(split.held_out) == 2


def test_phantoms_for_validation_are_others_than_those_for_training(tmp_path: Path) -> None:
    split = open_phantoms(build_mask_recipe(data__num_phantoms=1), tmp_path)
    assert (len(split.training), len(split.held_out)) == (1, 1)
    assert (split.training[0] != split.held_out[0]).any()
    assert split.origin == "1 procedural phantoms, seed 5"


def write_prepared(folder: Path, *, folds: tuple[int, ...], shape: tuple[int, int, int] = SHAPE) -> PreparedStore:
    grid = Grid.from_spacing(shape, SPACING_MM)
    cases = []
    for number, fold in enumerate(folds):
        case = build_case(number)
        save_image(folder / "images" / f"p{number}.nii.gz", case.image_hu, Grid.from_spacing(SHAPE, SPACING_MM))
        save_label_map(folder / "labels" / f"p{number}.nii.gz", case.label_map, Grid.from_spacing(SHAPE, SPACING_MM))
        cases.append(
            PreparedCase(
                id=f"p{number}",
                patient=f"p{number}",
                fold=fold,
                modality="ct",
                shape=grid.shape,
                spacing_mm=SPACING_MM,
                voxels={},
                image_sha256="0" * 64,
                label_sha256=f"{number:064d}",
                image_source="ct",
                label_sources=("labels",),
                key="0" * 64,
            )
        )
    content = {"name": "tiny", "grid": {"shape": shape, "spacing_mm": SPACING_MM}, "labels": {}, "num_folds": 2}
    return PreparedStore(PreparedDataset(folder, PreparedSpec.model_validate(content), tuple(cases)))


def test_prepared_cases_of_the_first_fold_are_held_out(tmp_path: Path) -> None:
    split = open_prepared(build_mask_recipe(), write_prepared(tmp_path, folds=(1, 0, 1)))
    assert (len(split.training), len(split.held_out)) == (2, 1)
    assert class_of(26) in split.held_out[0]
    assert split.origin.startswith("2 prepared cases of ")


def test_other_folds_are_other_data(tmp_path: Path) -> None:
    keys = [open_prepared(build_mask_recipe(), write_prepared(tmp_path, folds=f)).key for f in ((1, 0), (0, 1), (1, 0))]
    assert keys[0] == keys[2] != keys[1]


def test_prepared_cases_on_another_grid_are_refused(tmp_path: Path) -> None:
    store = write_prepared(tmp_path, folds=(0, 1), shape=(32, 24, 32))
    with pytest.raises(TrainingError, match="case p0: expected the recipe's grid, 32x24x24 .*, found 32x24x32"):
        open_prepared(build_mask_recipe(), store)


def test_prepared_cases_of_one_fold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs cases in at least two folds, one of them held out, found 1"):
        open_prepared(build_mask_recipe(), write_prepared(tmp_path, folds=(0, 0)))
