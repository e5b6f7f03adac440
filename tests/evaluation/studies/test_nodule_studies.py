"""The studies of inserted nodules, on made chests and nodules."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.studies import nodule_blind, nodule_pools, nodule_protocol, nodule_slices
from maisi_aug.evaluation.studies.nodule_slices import NoduleStack, dice, draw_patch, find_by_threshold, to_stack
from maisi_aug.insertion.painting import ProceduralPainter
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

GRID = Grid.from_spacing(SHAPE, SPACING_MM)


def build_stack(number: int, patient: str) -> NoduleStack:
    rng = np.random.default_rng(number)
    x, y, z = np.meshgrid(*(np.arange(side) - side // 2 for side in (40, 44, 7)), indexing="ij")
    mask = x**2 + (y * 0.9) ** 2 + (3 * z) ** 2 <= (4 + number % 5) ** 2
    image = np.where(mask, 20.0, -850.0) + rng.normal(0, 30, mask.shape)
    return to_stack(f"n{number}", patient, image.astype(np.int16), mask, (0.7, 0.7, 1.5))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Nodules of seven patients, and a chest."""
    folder = tmp_path_factory.mktemp("nodules")
    rows = []
    for number in range(7):
        stack = build_stack(number, f"p{number}")
        image, mask = (np.moveaxis(array, 0, -1) for array in (stack.image_hu, stack.mask))
        grid = Grid.from_spacing(image.shape, (0.8, 0.8, 1.5))
        save_image(folder / "lidc" / "images" / f"n{number}.nii.gz", image.astype(np.int16), grid)
        save_label_map(folder / "lidc" / "labels" / f"n{number}.nii.gz", mask.astype(np.uint8), grid)
        rows.append((f"n{number}.nii.gz", f"p{number}", "train" if number < 4 else "val"))
    with (folder / "lidc" / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "patient", "split"), *rows])
    save_image(folder / "chests" / "a_ct.nii.gz", build_chest(), GRID)
    return folder / "lidc", folder / "chests"


def test_stack_keeps_the_volume() -> None:
    stack = build_stack(3, "p")
    volume = stack.mask.sum() * 0.8 * 0.8 * 1.5
    assert volume == pytest.approx(np.pi / 6 * stack.diameter_mm**3, rel=0.1)


def test_patch_shows_the_nodule_where_its_mask_is() -> None:
    stack, rng = build_stack(4, "p"), np.random.default_rng(0)
    patches = [draw_patch(stack, rng) for _ in range(20)]
    shown = [(image[0, 2][mask[0, 0] > 0], image[0, 2][mask[0, 0] == 0]) for image, mask in patches if mask.any()]
    assert len(shown) >= 12
    assert all(float(inside.median()) > float(outside.median()) + 0.8 for inside, outside in shown)


def test_threshold_takes_the_part_in_the_middle() -> None:
    stack = build_stack(2, "p")
    image = stack.image_hu.copy()
    image[:, :4] = 50.0
    beside = NoduleStack("n", "p", stack.diameter_mm, image, stack.mask, stack.spacing_mm)
    assert dice(stack.mask, find_by_threshold(beside)) > 0.9


def test_pools_lie_in_the_lung_and_are_read_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    chests = nodule_pools.load_chests(folders[1])
    drawn = nodule_pools.draw_pool(chests, ProceduralPainter(), num_nodules=3, seed=1)
    pasted = nodule_pools.paste_pool(chests, [build_stack(3, "p")], num_nodules=3, seed=1)
    for stack in (*drawn, *pasted):
        assert stack.mask.any()
        assert np.median(stack.image_hu[stack.mask]) > np.median(stack.image_hu[~stack.mask])
    nodule_pools.save_pool(tmp_path / "pool.npz", pasted)
    read = nodule_pools.load_pool(tmp_path / "pool.npz")
    assert [stack.name for stack in read] == [stack.name for stack in pasted]
    np.testing.assert_array_equal(read[0].mask, pasted[0].mask)


def test_protocol_runs_and_goes_on(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*map(str, folders), "--out", str(tmp_path), "--patients", "2", "--seeds", "1", "--steps", "4"]
    words += ["--nodules", "3", "--arms", "real", "copy-paste", "procedural", "threshold", "--draws"]
    assert nodule_protocol.main([*words, "1"]) == 0
    assert "Training real, 2 patients, draw 0" in capsys.readouterr().err
    assert nodule_protocol.main([*words, "2"]) == 0
    told = capsys.readouterr().err
    assert "draw 1" in told
    assert "draw 0" not in told
    document = json.loads((tmp_path / "nodule_protocol.json").read_text())
    rows = {(row["class"], row["arm"]): row for row in document["results"][0]["rows"]}
    assert rows["all", "threshold"]["dice"] > 0.9
    assert document["num_test_patients"] == 3
    assert nodule_protocol.main([*words, "1", "--test", str(folders[0])]) == 1, "another protocol"


def test_protocol_goes_on_from_a_table_in_another_folder(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*map(str, folders), "--patients", "2", "--seeds", "1", "--steps", "4", "--nodules", "3"]
    words += ["--arms", "real", "copy-paste", "--draws", "1"]
    assert nodule_protocol.main([*words, "--out", str(tmp_path / "first")]) == 0
    table = tmp_path / "first" / nodule_protocol.TABLE_NAME
    capsys.readouterr()
    resumed = [*words, "--out", str(tmp_path / "second"), "--resume-from"]
    assert nodule_protocol.main([*resumed, str(table)]) == 0
    assert not capsys.readouterr().err, "nothing is trained or pasted again"
    first, second = (json.loads((tmp_path / name / "nodule_protocol.json").read_text()) for name in ("first", "second"))
    assert first == second
    assert table.read_bytes() == (tmp_path / "second" / nodule_protocol.TABLE_NAME).read_bytes()
    assert nodule_protocol.main([*resumed, str(table), "--share", "0.8"]) == 1
    assert "not a training of this protocol" in capsys.readouterr().err
    assert nodule_protocol.main([*resumed, str(folders[0] / "index.csv")]) == 1
    assert "expected the columns training, steps, share, nodules" in capsys.readouterr().err


def test_bootstrap_knows_a_gain_from_none() -> None:
    rng = np.random.default_rng(0)
    low, high, p = nodule_protocol.bootstrap_difference(0.05 + rng.normal(0, 0.05, (4, 40)), seed=1)
    assert 0 < low < 0.05 < high
    assert p < 0.01
    low, high, p = nodule_protocol.bootstrap_difference(rng.normal(0, 0.05, (4, 40)), seed=1)
    assert low < 0 < high
    assert p > 0.05


def test_classifier_tells_what_differs_and_nothing_else(tmp_path: Path) -> None:
    stacks = [build_stack(number, f"p{number}") for number in range(24)]
    darker = [
        NoduleStack(s.name, s.patient, s.diameter_mm, np.minimum(s.image_hu, -300), s.mask, s.spacing_mm)
        for s in stacks
    ]
    told = nodule_blind.make_test(stacks, darker, tmp_path, num_each=5, seed=1)
    assert told["auc"] > 0.95
    assert nodule_blind.make_test(stacks[::2], stacks[1::2], tmp_path, num_each=5, seed=1)["auc"] < 0.85


def test_pictures_of_a_pair_end_at_the_same_distance() -> None:
    def build(first: int, side: int) -> NoduleStack:
        shape = (3, side, 60)
        mask = np.zeros(shape, dtype=bool)
        mask[1, first : first + 4, 28:32] = True
        image = np.broadcast_to(np.arange(side, dtype="f4")[:, None], shape).copy()
        return NoduleStack("n", "p", 8.0, image, mask, (1.0, 1.0, 1.0))

    (short, mask), (whole, _) = nodule_blind.cut_tiles([build(8, 16), build(28, 60)])
    assert short.shape == whole.shape == (nodule_blind.SIDE, nodule_blind.SIDE)
    assert mask.any()
    repeated = [int((np.abs(np.diff(tile, axis=0)).max(axis=1) == 0).sum()) for tile in (short, whole)]
    assert repeated[0] == repeated[1] > 20


def test_pairs_have_one_size_and_one_resolution() -> None:
    def build(diameter_mm: float, spacing_mm: tuple[float, float, float]) -> nodule_slices.NoduleStack:
        rng, shape = np.random.default_rng(2), (10, 40, 40)
        mask = np.zeros(shape, dtype=bool)
        mask[2:6, 15:25, 15:25] = True
        return nodule_slices.NoduleStack("n", "p", diameter_mm, rng.normal(size=shape).astype("f4"), mask, spacing_mm)

    fine, coarse, large = build(8, (0.7, 0.7, 1.25)), build(8.5, (1.6, 1.6, 2.5)), build(20, (1.6, 1.6, 2.5))
    (real,), (inserted,) = nodule_blind.pair_alike([fine], [large, coarse])
    assert inserted.diameter_mm == 8.5
    assert inserted.image_hu is coarse.image_hu
    assert real.spacing_mm == coarse.spacing_mm
    assert real.image_hu.shape == (5, 40, 40)
    assert real.image_hu.std() < 0.6 * fine.image_hu.std()
    assert real.mask.mean() == pytest.approx(fine.mask.mean(), rel=0.3)
    with pytest.raises(EvaluationError, match="Nodules: there are no real and inserted ones of the same sizes"):
        nodule_blind.pair_alike([fine], [large])


def test_answers_are_scored(tmp_path: Path) -> None:
    (tmp_path / "key.csv").write_text("number,kind\n1,real\n2,inserted\n")
    (tmp_path / "answers.csv").write_text("number,kind\n1,real\n2,real\n")
    assert nodule_blind.score_answers(tmp_path / "answers.csv", tmp_path / "key.csv") == 0.5
    (tmp_path / "answers.csv").write_text("number,kind\n1,real\n")
    with pytest.raises(EvaluationError, match="for each of 2 numbers"):
        nodule_blind.score_answers(tmp_path / "answers.csv", tmp_path / "key.csv")


def test_folder_without_nodules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="has no index.csv with patients and splits"):
        nodule_slices.load_nodules(tmp_path, "val")
