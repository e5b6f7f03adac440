from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chest") / "p0.nii.gz"
    save_image(path, build_chest(), Grid.from_spacing(SHAPE, SPACING_MM))
    return path


def test_command_draws_lesions_and_says_what_comes_next(run_cli: Run, chest: Path, tmp_path: Path) -> None:
    words = ["insert", "--into", chest, "--labels", "lung nodule:8-12mm", "-n", "2", "--out", tmp_path / "cohort"]
    outcome = run_cli(*words, "--texture", "solid", "--place", "free")
    assert outcome.code == 0
    assert f"{tmp_path / 'cohort'}: 2 of 2 cases accepted." in outcome.stdout
    assert "maisi-aug export nnunet" in outcome.stdout
    again = run_cli(*words, "--texture", "solid", "--place", "free", "--json", "--quiet")
    assert (again.code, again.stderr) == (0, "")
    assert json.loads(again.stdout)["num_new"] == 0
    exported = run_cli("export", "monai", tmp_path / "cohort", "--out", tmp_path / "data.json")
    assert exported.code == 0


def test_rejected_cases_end_with_a_sentence_and_exit_code_one(run_cli: Run, chest: Path, tmp_path: Path) -> None:
    outcome = run_cli(
        *("insert", "--into", chest, "--labels", "hepatic tumor:12mm", "-n", "1", "--max-attempts", "1"),
        *("--out", tmp_path / "cohort"),
    )
    assert outcome.code == 1
    assert "Rejected case_0001: hepatic tumor: expected its host organ in a label map" in outcome.stdout
    assert "Traceback" not in outcome.stdout + outcome.stderr


def test_missing_ct_is_one_sentence(run_cli: Run, tmp_path: Path) -> None:
    outcome = run_cli("insert", "--into", tmp_path / "no", "--labels", "lung nodule:9mm", "--out", tmp_path / "cohort")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "expected a CT or a folder of CTs, found nothing there" in outcome.stderr
    assert not (tmp_path / "cohort").exists()
