from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.review import Decision, append_decision, now
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chest") / "p0.nii.gz"
    save_image(path, build_chest(), Grid.from_spacing(SHAPE, SPACING_MM))
    return path


def test_command_draws_lesions_and_says_what_comes_next(run_cli: Run, chest: Path, tmp_path: Path) -> None:
    words = ["insert", "--into", chest, "--labels", "lung nodule:8-12mm", "-n", "2", "--out", tmp_path / "cohort"]
    words += ["--painter", "procedural"]
    outcome = run_cli(*words, "--texture", "solid", "--place", "free")
    assert outcome.code == 0
    assert f"{tmp_path / 'cohort'}: 2 of 2 cases accepted." in outcome.stdout
    assert "maisi-aug export nnunet" in outcome.stdout
    again = run_cli(*words, "--texture", "solid", "--place", "free", "--json", "--quiet")
    assert (again.code, again.stderr) == (0, "")
    assert json.loads(again.stdout)["num_new"] == 0
    append_decision(tmp_path / "cohort", Decision("case_0002", 0, "reject", "artefact", "anna", now()))
    before = load_manifest(tmp_path / "cohort").accepted
    shard = run_cli(*words, "--texture", "solid", "--place", "free", "--redraw-rejected", "--shard", "1/2")
    assert "--redraw-rejected cannot be used with --shard. Use it after maisi-aug cohort merge." in shard.stderr
    other = run_cli(*words, "--redraw-rejected")
    assert other.code == 1  # another configuration gives nothing up
    assert load_manifest(tmp_path / "cohort").accepted == before
    redrawn = run_cli(*words, "--texture", "solid", "--place", "free", "--redraw-rejected", "--quiet")
    assert redrawn.code == 0, redrawn.stderr
    after = load_manifest(tmp_path / "cohort").accepted
    assert [(record.case_id, record.attempt) for record in after] == [("case_0001", 0), ("case_0002", 1)]
    assert after[0] == before[0]
    assert after[1].files["image"].sha256 != before[1].files["image"].sha256
    exported = run_cli("export", "monai", tmp_path / "cohort", "--out", tmp_path / "data.json")
    assert exported.code == 0


def test_rejected_cases_end_with_a_sentence_and_exit_code_one(run_cli: Run, chest: Path, tmp_path: Path) -> None:
    outcome = run_cli(
        *("insert", "--into", chest, "--labels", "hepatic tumor:12mm", "-n", "1", "--max-attempts", "1"),
        *("--out", tmp_path / "cohort"),
    )
    assert outcome.code == 1
    assert "Rejected case_0001: hepatic tumor: no label map of the CT has its host organ" in outcome.stdout
    assert "Traceback" not in outcome.stdout + outcome.stderr


def test_missing_ct_is_one_sentence(run_cli: Run, tmp_path: Path) -> None:
    outcome = run_cli("insert", "--into", tmp_path / "no", "--labels", "lung nodule:9mm", "--out", tmp_path / "cohort")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "not found" in outcome.stderr
    assert not (tmp_path / "cohort").exists()


def test_recipe_gives_what_flags_do_not(run_cli: Run, chest: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "twins.yaml"
    recipe.write_text("kind: insertion\nlabels: [lung nodule]\ntwins: size=8mm,12mm\nnum_cases: 3\ntexture: solid\n")
    words = ["insert", "--recipe", recipe, "--into", chest, "-n", "1", "--out", tmp_path / "cohort"]
    words += ["--painter", "procedural"]
    assert run_cli(*words).code == 0
    assert sorted(path.name for path in (tmp_path / "cohort" / "images").iterdir()) == [
        "case_0001_12mm.nii.gz",
        "case_0001_8mm.nii.gz",
    ]
    again = run_cli("insert", "--recipe", tmp_path / "cohort" / "cohort.yaml", "--out", tmp_path / "cohort")
    assert again.code == 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("labels: [lung nodule]", "not a recipe for insert, which has 'kind: insertion'"),
        ("kind: insertion\nlabel: [lung nodule]", "label: unknown key"),
        ("kind: insertion\nlabels: [lung nodule]\nnum_cases: many", "num_cases: expected a valid integer"),
    ],
)
def test_recipe_that_is_none_is_refused(run_cli: Run, chest: Path, tmp_path: Path, recipe: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(recipe)
    outcome = run_cli("insert", "--recipe", tmp_path / "r.yaml", "--into", chest, "--out", tmp_path / "cohort")
    assert outcome.code == 2
    assert message in outcome.stderr


def test_recipe_of_insertion_is_none_of_synthesize(run_cli: Run, tmp_path: Path) -> None:
    outcome = run_cli("synthesize", "--recipe", "insert-lung-nodules", "--out", tmp_path / "cohort")
    assert outcome.code == 2
    assert "Run it with 'maisi-aug insert --recipe insert-lung-nodules --into CTS --out cohort'" in outcome.stderr


def test_dataset_is_balanced(run_cli: Run, chest: Path, tmp_path: Path) -> None:
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    for number in range(2):
        nodule = np.zeros(SHAPE, dtype=np.uint8)
        nodule[30:35, 40:45, 10:13] = 1  # about 9 mm
        save_label_map(tmp_path / "real" / f"{number}.nii.gz", nodule, grid)
    outcome = run_cli(
        *("insert", "--into", chest, "--labels", "lung nodule:6-20mm", "-n", "2", "--out", tmp_path / "cohort"),
        *("--balance-against", tmp_path / "real", "--size-bins", "6,10,20", "--max-lesions", "1"),
        *("--map", "1=lung nodule", "--painter", "procedural"),
    )
    assert outcome.code == 0
    diameters = [record.lesions[0].diameter_mm or 0 for record in load_manifest(tmp_path / "cohort").accepted]
    assert all(10 <= diameter <= 20.5 for diameter in diameters)
    assert (tmp_path / "cohort" / "balance.json").is_file()
