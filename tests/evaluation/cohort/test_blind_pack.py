from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.blind_pack import blind, measure_reader, name_key, read_answers
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, load_image
from tests.builders.made_cases import GRID, build_case, write_cohort, write_folder

RunCli = Callable[..., Any]


@pytest.fixture
def pack(run_cli: RunCli, tmp_path: Path) -> Path:
    real, cohort = write_folder(tmp_path / "real", range(1, 7)), write_cohort(tmp_path / "cohort", range(20, 25))
    (real / "images" / "real_03.nii.gz").write_bytes(b"no volume")
    out = tmp_path / "pack"
    outcome = run_cli("evaluate", "blind-pack", real, cohort, "--out", out, "-n", "4", "--spacing", "4", "--volumes")
    assert outcome.code in (0, 1), outcome.stderr
    return out


def test_pack_holds_nothing_that_tells(pack: Path) -> None:
    key = json.loads(name_key(pack).read_text())
    names = [f"item-{number:03d}" for number in range(1, 9)]
    pictures = [f"{name}.png" for name in names]
    volumes = [f"{name}.nii.gz" for name in names]
    assert sorted(path.name for path in pack.iterdir()) == sorted(["README.txt", "answers.csv", *pictures, *volumes])
    assert sorted(key["items"]) == names
    truths = [item["truth"] for item in key["items"].values()]
    assert truths.count("real") == 4
    assert truths[:4] != ["real"] * 4
    assert "real_03" not in {item["case"] for item in key["items"].values()}
    grids = [load_image(pack / name).grid for name in volumes]
    assert {grid.spacing_mm for grid in grids} == {(4.0, 4.0, 4.0)}
    for picture in pictures:
        with Image.open(pack / picture) as image:
            assert image.info == {}
            assert image.width > 200
    assert (pack / "answers.csv").read_text().splitlines()[:2] == ["item,answer", "item-001,"]


def test_table_field_of_view_and_metal_are_gone() -> None:
    image, _ = build_case(1)
    shown = image.copy()
    shown[:, 0] = 300  # a table at the back
    shown[18:22, 16:20, 15:18] = 3000
    blinded = blind(Volume(shown, GRID), 3.0)
    assert blinded.array.max() == 1000
    assert blinded.array.shape[1] < GRID.shape[1]
    moved = Grid(GRID.shape, np.diag([1, 1, 1, 1]) @ GRID.affine)
    np.testing.assert_array_equal(blind(Volume(image, moved), 3.0).array, blind(Volume(image, GRID), 3.0).array)


def test_answers_are_scored_by_the_command(run_cli: RunCli, pack: Path, tmp_path: Path) -> None:
    key = json.loads(name_key(pack).read_text())["items"]
    rows = "".join(f"{name}, {item['truth'].upper()}\n" for name, item in key.items())
    (tmp_path / "anna.csv").write_text(f"item,answer\n{rows}", encoding="utf-8-sig")
    (tmp_path / "ben.csv").write_text("item,answer\nitem-001,real\nitem-002,\n")
    answers = [tmp_path / "anna.csv", tmp_path / "ben.csv"]
    outcome = run_cli("evaluate", "blind-score", name_key(pack), *answers, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    readers = json.loads((tmp_path / "out" / "reader-test.json").read_text())["readers"]
    assert (readers[0]["reader"], readers[0]["all"]["num_right"], readers[0]["all"]["num"]) == ("anna", 8, 8)
    assert (readers[0]["verdict"], readers[1]["num_unanswered"]) == ("can tell", 7)
    assert "| anna | can tell | 8/8, 1.00 (0.63 to 1.00)" in outcome.stdout


def test_what_cannot_be_packed_or_scored_is_a_sentence(run_cli: RunCli, pack: Path, tmp_path: Path) -> None:
    words = ["evaluate", "blind-pack", tmp_path / "real", tmp_path / "cohort", "--out"]
    again = run_cli(*words, pack)
    assert (again.code, "already exists" in again.stderr) == (1, True)
    many = run_cli(*words, tmp_path / "other", "-n", "30")
    assert (many.code, "needs at least" in many.stderr) == (1, True)
    with pytest.raises(EvaluationError, match="not the key of a blind pack:"):
        measure_reader(pack / "README.txt", [], margin=0.2)
    with pytest.raises(EvaluationError, match="needs a table with the columns item and answer:"):
        read_answers(pack / "README.txt")
    (tmp_path / "twice.csv").write_text("item,answer\nitem-001,real\nitem-001,real\n")
    with pytest.raises(EvaluationError, match="'item-001' is listed twice"):
        measure_reader(name_key(pack), [tmp_path / "twice.csv"], margin=0.2)
