from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.core import TyperGroup

from maisi_aug.cli.app import load_verb
from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.studies import few_cases
from maisi_aug.evaluation.studies.few_cases import (
    LABELS,
    TEST_IDS,
    Sizes,
    Step,
    draw_patients,
    list_patients,
    list_steps,
    main,
    run_step,
)
from maisi_aug.training.images.recipe import load_training_recipe
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map

OTHERS = [f"pt_{number}" for number in range(201, 212)]
SIZES = Sizes(ratio=3, finetune_steps=10, arm_steps=20)


@pytest.fixture
def cts(tmp_path: Path) -> Path:
    folder = tmp_path / "openkbp"
    folder.mkdir()
    for patient in (*TEST_IDS, *OTHERS):
        (folder / f"{patient}_ct.nii.gz").touch()
    return folder


def test_draws_differ_and_the_smaller_one_is_among_the_larger(cts: Path) -> None:
    patients = list_patients(cts)
    for draw in range(5):
        few, more = (set(draw_patients(patients, count, draw)) for count in (4, 8))
        assert len(few) == 4
        assert few < more < set(OTHERS)
    assert len({tuple(draw_patients(patients, 4, draw)) for draw in range(5)}) > 3


def test_every_step_is_a_command_that_is_taken(cts: Path, tmp_path: Path) -> None:
    steps = list(list_steps(cts, tmp_path / "out", list_patients(cts), [4, 8], 2, SIZES))
    assert len(steps) == 4 + 2 * 2 * 5
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        command, words = load_verb(step.words[0]), list(step.words[1:])
        if isinstance(command, TyperGroup):
            command = command.commands[words.pop(0)]
        command.make_context(step.name, words)


def test_base_and_fine_tuning_see_no_test_patient(cts: Path, tmp_path: Path) -> None:
    for step in list_steps(cts, tmp_path / "out", list_patients(cts), [4], 1, SIZES):
        if step.words[0] == "prepare":
            excluded = {step.words[n + 1] for n, word in enumerate(step.words) if word == "--exclude"}
            assert set(TEST_IDS) <= excluded or step.name.endswith("prepare-real")
            assert ("--labels" in step.words) == (step.name != "base/prepare")
            if step.name == "labelled4-draw0/prepare":
                assert len(set(OTHERS) - excluded) == 4


def test_step_is_run_once_and_a_failing_one_is_named(tmp_path: Path) -> None:
    assert run_step(Step("base/labels", ("labels", "--json")), tmp_path)
    assert '"liver"' in (tmp_path / "logs" / "base-labels.log").read_text()
    assert not run_step(Step("base/labels", ("labels", "--json")), tmp_path)
    with pytest.raises(BenchmarkError, match="Step base/train: exit code 2. See .*base-train.log"):
        run_step(Step("base/train", ("train", "nothing")), tmp_path)
    assert len((tmp_path / "costs.jsonl").read_text().splitlines()) == 2


def test_report_says_what_is_finished(
    cts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(cts), "--out", str(tmp_path / "out"), "--report-only"]) == 0
    assert "No draw is finished yet." in capsys.readouterr().out
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "found 0; 14 test patients missing" in capsys.readouterr().err


def build_draws(gains: dict[str, float], num_draws: int = 5) -> list[dict[str, Any]]:
    """Scores of draws in which an arm's Dice lies above that of real cases by its gain, in every patient."""
    rng = np.random.default_rng(0)
    draws = []
    for draw in range(num_draws):
        base = rng.uniform(0.4, 0.6, len(TEST_IDS))
        dice = {
            arm: {label: {p: float(v + gain) for p, v in zip(TEST_IDS, base, strict=True)} for label in LABELS.values()}
            for arm, gain in gains.items()
        }
        draws.append({"count": 4, "draw": draw, "ratio": 3, "dice": dice})
    return draws


def test_synthetic_cases_are_compared_with_every_other_arm() -> None:
    """A gain of 0.1 in every patient and draw over all arms but one is what the comparison says."""
    draws = build_draws(dict(zip(few_cases.list_arms(3), (0.0, 0.0, 0.1, 0.1), strict=True)))
    (row,) = few_cases.compare_counts(draws, 3)
    found = {(r["baseline"], r["label"]): r for r in row["comparisons"]}
    assert len(found) == 9
    assert found["real", "mandible"]["difference"]["mean"] == pytest.approx(0.1)
    assert found["real", "mandible"]["verdict"] == "gain"
    assert found["warped:3", "mandible"]["verdict"] != "gain"
    report = few_cases.to_report({"num_unlabelled": 11, "counts": [row], "costs": []})
    assert "## 4 labelled, 5 draws" in report
    assert "| mandible | warped:3 |" in report


def test_draws_of_an_earlier_result_are_not_repeated(
    cts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--counts", "4", "--draws", "2", "--report-only", "--out"]
    assert main([str(cts), *words, str(tmp_path / "none")]) == 0
    earlier = json.loads((tmp_path / "none" / "few_cases.json").read_text())
    earlier["draws"] = build_draws(dict.fromkeys(few_cases.list_arms(3), 0.0), num_draws=3)
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    resumed = [str(cts), *words, str(tmp_path / "out"), "--resume-from", str(tmp_path / "earlier.json")]
    assert main(resumed) == 0
    document = json.loads((tmp_path / "out" / "few_cases.json").read_text())
    assert [row["draw"] for row in document["draws"]] == [0, 1]
    assert document["counts"][0]["num_draws"] == 2
    patients = list_patients(cts)
    assert not list(list_steps(cts, tmp_path, patients, [4], 2, SIZES, {(4, 0), (4, 1)})), "nor is the base trained"
    assert len(list(list_steps(cts, tmp_path, patients, [4], 2, SIZES, {(4, 0)}))) == 4 + 5
    assert main([*resumed, "--steps", "7"]) == 1
    assert "Give the same sizes" in capsys.readouterr().err


def test_crops_show_the_jaw_on_the_grid_of_the_recipe(tmp_path: Path) -> None:
    grid = Grid.from_spacing((128, 128, 128), (4.0, 4.0, 2.5))
    image = np.full(grid.shape, -1000, dtype=np.int16)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    i, j, k = few_cases.JAW_VOXEL
    image[i - 10 : i + 10, j - 10 : j + 10, k - 10 : k + 10] = 40
    labels[i - 10 : i + 10, j - 10 : j + 10, k - 10 : k + 10] = 7
    labels[i - 20 : i - 12, j - 10 : j + 10, k - 10 : k + 10] = 6  # a larynx, which is no label of the study
    save_image(tmp_path / "pt_1_ct.nii.gz", image, grid)
    save_label_map(tmp_path / "pt_1_oar.nii.gz", labels, grid)
    few_cases.write_crops(tmp_path, tmp_path / "crops", ["pt_1"])
    crop, label_map = (
        load_image(tmp_path / "crops" / "pt_1_ct.nii.gz"),
        load_label_map(tmp_path / "crops" / "pt_1_oar.nii.gz"),
    )
    few_cases.write_base_recipe(tmp_path / "recipe.yaml")
    recipe = load_training_recipe(tmp_path / "recipe.yaml")
    assert crop.grid.shape == tuple(recipe.bundle.grid.shape)
    assert crop.grid.spacing_mm == pytest.approx(recipe.bundle.grid.spacing_mm)
    assert recipe.controlnet.loop.num_steps == few_cases.BASE_STEPS["controlnet"]
    assert set(np.unique(label_map.array)) == {0, 7}
    middle = np.argwhere(label_map.array == 7).mean(axis=0)
    np.testing.assert_allclose(middle, (np.array(few_cases.SHAPE) - 1) / 2, atol=1)
    volume = (label_map.array == 7).sum() * np.prod(few_cases.SPACING_MM)
    assert volume == pytest.approx(20**3 * 40, rel=0.1)
    assert np.median(crop.array[label_map.array == 7]) == 40
