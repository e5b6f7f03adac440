from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort import likeness
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.memorization import (
    draw_chart,
    find_body_box,
    find_nearest,
    find_reference,
    judge,
    measure_memorization,
    to_report,
    trace_roc,
)
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.made_cases import GRID, build_case, write_cohort, write_folder

QUICK_ROUNDS = tuple(stage._replace(num_steps=2) for stage in likeness.ROUNDS)
TRAIN, HELD_OUT, NEW = range(8), range(20, 26), range(40, 45)


@pytest.fixture(autouse=True)
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well moved images are aligned is what ``test_likeness`` tests."""
    monkeypatch.setattr(likeness, "ROUNDS", QUICK_ROUNDS)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("real")
    return {"train": write_folder(folder / "train", TRAIN), "held_out": write_folder(folder / "held_out", HELD_OUT)}


def test_new_cases_show_no_sign(tmp_path: Path, real: dict[str, Path]) -> None:
    cohort = write_cohort(tmp_path / "cohort", list(NEW))
    document, pairs = measure_memorization(*(find_case_set(p) for p in (cohort, real["train"], real["held_out"])))
    planted = document["planted"]
    assert document["moved_images"]["typical"] > 0
    assert planted["num_planted"] == planted["roc"][-1]["num_found"] == len(TRAIN)
    assert "| real cases called copies |" in to_report(document)
    for kind in ("images", "label_maps"):
        assert document[kind]["verdict"] == "no sign of memorization"
        assert not any(row["is_copy"] for row in document[kind]["cases"])
        assert document[kind]["p"] > 0.05
    assert pairs.size[0] > 700
    assert "## Images: no sign of memorization" in to_report(document)
    assert "held-out" in draw_chart(document)


def test_copies_are_found_with_noise_and_another_field_of_view(tmp_path: Path, real: dict[str, Path]) -> None:
    """Two training cases, one noisy and one cut to its body, among three new ones."""
    folder = write_folder(tmp_path / "synthetic", [41, 42, 43])
    image, label_map = build_case(3)
    noisy = image + np.random.default_rng(0).normal(0, 20, image.shape)
    save_image(folder / "images" / "copy_a.nii.gz", np.rint(noisy).astype(np.int16), GRID)
    save_label_map(folder / "labels" / "copy_a.nii.gz", label_map, GRID)
    image, label_map = build_case(5)
    cut = np.ix_(*(np.arange(part.start, part.stop) for part in find_body_box(image)))
    i, j, k = image[cut].shape
    smaller = Grid.from_spacing((i, j, k), GRID.spacing_mm)
    save_image(folder / "images" / "copy_b.nii.gz", image[cut], smaller)
    save_label_map(folder / "labels" / "copy_b.nii.gz", label_map[cut], smaller)
    document, _ = measure_memorization(*(find_case_set(p) for p in (folder, real["train"], real["held_out"])))
    copies = {row["case"]: row["nearest"] for row in document["images"]["cases"] if row["is_copy"]}
    assert copies == {"copy_a": "real_03", "copy_b": "real_05"}
    assert document["images"]["verdict"] == "2 of 5 repeat a training case"
    assert {row["nearest"] for row in document["label_maps"]["cases"][:2]} == {"real_03", "real_05"}


@pytest.mark.parametrize("num_synthetic", [1, 5])
@pytest.mark.parametrize("held_out", ["apart", "none"])
def test_a_case_that_lies_twice_hides_no_copies(
    tmp_path: Path, real: dict[str, Path], num_synthetic: int, held_out: str
) -> None:
    """A training case once more, among the held-out ones or, without those, among the training ones."""
    folders = {name: shutil.copytree(path, tmp_path / name) for name, path in real.items()}
    twice = folders["held_out" if held_out == "apart" else "train"]
    for kind in ("images", "labels"):
        shutil.copy(real["train"] / kind / "real_02.nii.gz", twice / kind / "twin.nii.gz")
    synthetic = write_folder(tmp_path / "synthetic", range(num_synthetic))
    apart = find_case_set(folders["held_out"]) if held_out == "apart" else None
    document, _ = measure_memorization(find_case_set(synthetic), find_case_set(folders["train"]), apart)
    for kind in ("images", "label_maps"):
        assert document[kind]["verdict"] == f"{num_synthetic} of {num_synthetic} repeat a training case"
        assert all(row["is_copy"] for row in document[kind]["cases"])
        assert [{row["case"], row["other"]} for row in document[kind]["doubles"]] == [{"real_02", "twin"}]
        assert document[kind]["held_out_lowest"] > 0.1
    assert "are almost identical" in to_report(document)


def test_copies_are_found_where_all_real_cases_are_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", [0])
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "real_00.nii.gz", folder / kind / "twin.nii.gz")
    document, _ = measure_memorization(
        find_case_set(write_folder(tmp_path / "s", [0])), find_case_set(tmp_path / "train"), None
    )
    assert document["images"]["verdict"] == "1 of 1 repeat a training case"
    assert document["images"]["held_out"] == []
    assert "there is no held-out case to compare with" in to_report(document)
    assert "images, training" not in draw_chart(document)


def test_scans_of_one_patient_are_no_reference(tmp_path: Path, real: dict[str, Path]) -> None:
    """Noise over a training case is a follow-up scan of its patient: near, and not almost identical."""
    train = shutil.copytree(real["train"], tmp_path / "train")
    image, label_map = build_case(0)
    noisy = image + np.random.default_rng(0).normal(0, 150, image.shape)
    save_image(train / "images" / "later.nii.gz", np.rint(noisy).astype(np.int16), GRID)
    save_label_map(train / "labels" / "later.nii.gz", label_map, GRID)
    found = find_case_set(train)
    patient_of = {"later": "real_00"}
    cases = tuple(replace(case, patient=patient_of.get(case.case_id, case.case_id)) for case in found.cases)
    cohort = find_case_set(write_cohort(tmp_path / "cohort", list(NEW)))
    document, _ = measure_memorization(cohort, replace(found, cases=cases), None)
    assert document["images"]["doubles"] == [{"case": "later", "other": "real_00", "reason": "of the same patient"}]
    assert document["images"]["verdict"] == "no sign of memorization"


def test_a_smooth_image_is_no_copy(tmp_path: Path, real: dict[str, Path]) -> None:
    from scipy.ndimage import gaussian_filter

    folder = write_folder(tmp_path / "smooth", NEW)
    for path in sorted((folder / "images").iterdir()):
        image = build_case(int(path.name[5:7]))[0].astype(np.float32)
        save_image(path, np.rint(gaussian_filter(image, 2.0)).astype(np.int16), GRID)
    document, _ = measure_memorization(*(find_case_set(p) for p in (folder, real["train"], real["held_out"])))
    assert not any(row["is_copy"] for row in document["images"]["cases"])


def test_training_cases_stand_in_for_held_out_ones(tmp_path: Path, real: dict[str, Path]) -> None:
    cohort = write_cohort(tmp_path / "cohort", list(NEW))
    document, _ = measure_memorization(find_case_set(cohort), find_case_set(real["train"]), None)
    assert len(document["images"]["held_out"]) == len(TRAIN)
    assert min(document["images"]["held_out"]) > 0.1  # no case is held against itself
    assert "training cases, each against the others" in to_report(document)


def test_bare_volumes_are_compared_as_images_alone(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", range(3), labelled=False)
    document, _ = measure_memorization(find_case_set(write_cohort(tmp_path / "c", [9])), find_case_set(train), None)
    assert document["images"]["verdict"] == "undecided with fewer than 5 cases of a kind"
    assert document["label_maps"]["verdict"].startswith("not compared: one of the sets has no label maps")
    cohort, one = find_case_set(tmp_path / "c"), find_case_set(train / "images" / "real_00.nii.gz")
    with pytest.raises(EvaluationError, match="at least two training cases are needed, found one that can be read"):
        measure_memorization(cohort, one, None)


def test_nearer_without_a_copy_is_said() -> None:
    held_out = np.linspace(0.8, 1.0, 20)
    verdict, p, copies = judge(np.linspace(0.6, 0.79, 20), held_out, num_train=9)
    assert verdict == "closer to training cases than held-out cases are, but no copies"
    assert p is not None
    assert p < 1e-5
    assert not copies.any()


def test_few_cases_make_a_copy_of_the_almost_identical_alone() -> None:
    verdict, p, copies = judge(np.array([0.01, 0.2]), np.array([0.5, 0.9]), num_train=8)
    assert (verdict, p, copies.tolist()) == ("1 of 2 repeat a training case", None, [True, False])
    many = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    assert judge(np.array([0.2]), many, num_train=8)[2].tolist() == [True]
    assert judge(np.array([0.2]), many, num_train=3)[2].tolist() == [False]


def test_one_near_pair_moves_the_threshold_little() -> None:
    """A follow-up scan whose patient is not named: its pair are the two nearest of twenty."""
    held_out = np.array([0.06, 0.06, *np.linspace(0.5, 0.9, 18)])
    _, _, copies = judge(np.array([0.15, 0.3]), held_out, num_train=20)
    assert copies.tolist() == [True, False]


def test_reference_leaves_out_the_same_patient_and_the_almost_identical() -> None:
    distances = np.array([[np.nan, 0.001, 0.5, 0.6], [0.2, 0.4, 0.5, 0.6], [0.0, 1e-7, 1e-7, 0.0]])
    relative, doubles = find_reference(distances, ["a", "b", ""], ["b", "c", "", ""])
    assert relative.tolist() == pytest.approx([1.0, 0.4 / 0.45])
    assert [(row, column) for row, column, _ in doubles][:2] == [(0, 1), (1, 0)]
    assert [double.is_same_patient for double in doubles][:2] == [False, True]


def test_nearest_ignores_what_cannot_be_compared() -> None:
    found = find_nearest(np.array([[0.4, np.nan, 0.2], [np.nan, 1.0, 3.0]]))
    assert found.indices.tolist() == [2, 1]
    assert found.distances.tolist() == [0.2, 1.0]
    assert found.relative.tolist() == pytest.approx([0.2 / 0.3, 0.5])
    assert find_nearest(np.array([[0.4, np.nan, 0.2]]), 0.8).relative.tolist() == pytest.approx([0.25])


def test_roc_has_the_largest_threshold_of_every_number_of_false_alarms() -> None:
    points = trace_roc(np.array([0.6, 0.4, 0.6]), np.array([0.1, 0.3, 0.5, 0.6]))
    assert [(p["num_false"], p["num_found"]) for p in points] == [(0, 2), (1, 3), (3, 4)]
    assert [p["threshold"] for p in points[:2]] == [0.4, 0.6]
    assert [(p["num_false"], p["num_found"]) for p in trace_roc(np.array([]), np.array([0.2]))] == [(0, 1)]


def test_body_box_leaves_the_table_out() -> None:
    image = np.full((40, 40, 30), -1000, dtype=np.int16)
    image[10:30, 8:25, 3:28] = 40
    image[5:35, 36:38, :] = 0
    assert find_body_box(image) == (slice(10, 30), slice(8, 25), slice(3, 28))
    assert find_body_box(np.full((5, 6, 7), -1000)) == (slice(0, 5), slice(0, 6), slice(0, 7))


def test_body_that_runs_out_of_the_scan_reaches_its_border() -> None:
    image = np.full((250, 40, 30), -1000, dtype=np.int16)
    image[50:200, 10:30, :] = 40
    assert find_body_box(image) == (slice(50, 200), slice(10, 30), slice(0, 30))
