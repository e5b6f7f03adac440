from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.review.cases import open_cases
from maisi_aug.evaluation.review.reader_test import (
    READINGS_NAME,
    ReaderTest,
    Reading,
    load_readings,
    measure_readings,
)
from maisi_aug.evaluation.review.volumes import FolderFiles
from maisi_aug.volumes.grid import Grid
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort


def begin(folder: Path, real: Path, *, reviewer: str = "anna", num_images: int = 6, seed: int = 0) -> ReaderTest:
    sides = [(open_cases(path).read_on(), FolderFiles(path, path.parent / "scratch")) for path in (folder, real)]
    return ReaderTest(folder, sides[0], sides[1], reviewer=reviewer, num_images=num_images, seed=seed)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    cases = [[HEPATIC_TUMOR]] * 4
    return write_cohort(tmp_path / "cohort", *cases), write_cohort(tmp_path / "real", *cases)


def order_of(test: ReaderTest, total: int, folder: Path) -> list[bool]:
    return [test.find(number)[1].files["image"].is_relative_to(folder) for number in range(total)]


def test_half_of_the_images_are_synthetic_and_the_order_is_the_readers_own(folders: tuple[Path, Path]) -> None:
    anna, again, ben = (begin(*folders, reviewer=name) for name in ("anna", "anna", "ben"))
    assert anna.to_state()["total"] == 6
    orders = [[str(test.find(number)[1].files["image"]) for number in range(6)] for test in (anna, again, ben)]
    assert orders[0] == orders[1] != orders[2]
    assert sum(order_of(anna, 6, folders[0])) == 3
    assert len(set(orders[0])) == 6


def test_what_the_page_is_given_does_not_tell_the_kind(folders: tuple[Path, Path]) -> None:
    state = begin(*folders).to_state()
    assert state == {"total": 6, "done": 0, "next": 0, "after": 1, "reviewer": "anna"}


def test_answers_are_saved_and_gone_on_with(folders: tuple[Path, Path]) -> None:
    test = begin(*folders)
    assert test.answer(0, "real", 3, 4.25)["next"] == 1
    test.answer(1, "synthetic", 5, 2.0)
    with pytest.raises(EvaluationError, match="Reader test: image 1 was already read"):
        test.answer(1, "real", 5, 2.0)
    with pytest.raises(EvaluationError, match="Reader test: images are numbered 0 to 5, found 6"):
        test.answer(6, "real", 5, 2.0)
    readings = load_readings(folders[0])
    kinds = ["synthetic" if is_ours else "real" for is_ours in order_of(test, 2, folders[0])]
    assert [reading.truth for reading in readings] == kinds
    assert begin(*folders).to_state()["next"] == 2
    assert begin(*folders, reviewer="ben").to_state()["next"] == 0
    assert begin(*folders, seed=1).to_state()["next"] == 0


def test_images_of_other_voxels_are_named_as_a_giveaway(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    assert begin(*folders).find_giveaway() == ""
    grid = Grid.from_spacing((7, 9, 11), (1.0, 1.0, 1.0))
    other = write_cohort(tmp_path / "other", [HEPATIC_TUMOR], grid=grid)
    assert (
        "voxels of 1.0 x 1.0 x 1.0 mm, synthetic ones of 0.7 x 0.8 x 2.5 mm" in begin(folders[0], other).find_giveaway()
    )


def test_test_without_real_images_is_refused(folders: tuple[Path, Path]) -> None:
    files = FolderFiles(folders[0], folders[0])
    with pytest.raises(EvaluationError, match="Reader test: there are no real images"):
        ReaderTest(folders[0], (open_cases(folders[0]).read_on(), files), ((), files))


def test_damaged_line_is_named_and_a_torn_one_skipped(folders: tuple[Path, Path]) -> None:
    begin(*folders).answer(0, "real", 3, 4.0)
    path = folders[0] / READINGS_NAME
    path.write_text(path.read_text() + '{"case')
    assert len(load_readings(folders[0])) == 1
    path.write_text(path.read_text() + "\n")
    with pytest.raises(EvaluationError, match="not a reading:"):
        load_readings(folders[0])


def reading(truth: str, answer: str, confidence: int = 3) -> Reading:
    return Reading("case", truth, answer, confidence, 5.0, "anna", 0, 0)  # type: ignore[arg-type]


def test_accuracy_has_an_exact_interval_and_the_area_counts_pairs() -> None:
    readings = [
        *[reading("real", "real", 5)] * 6,
        *[reading("real", "synthetic", 1)] * 2,
        *[reading("synthetic", "synthetic", 4)] * 5,
        *[reading("synthetic", "real", 2)] * 3,
    ]
    found = measure_readings(readings)
    assert (found["num_right"], found["num_images"]) == (11, 16)
    # Clopper and Pearson's ends, of the beta distribution.
    assert found["low"] == pytest.approx(stats.beta.ppf(0.025, 11, 6))
    assert found["high"] == pytest.approx(stats.beta.ppf(0.975, 12, 5))
    assert found["called_synthetic"] == {"real": 0.25, "synthetic": 0.625}
    real, synthetic = [-5] * 6 + [1] * 2, [4] * 5 + [-2] * 3
    pairs = [(s > r) + 0.5 * (s == r) for s in synthetic for r in real]
    assert found["auc"] == pytest.approx(np.mean(pairs))


def test_reader_of_one_kind_alone_has_no_area() -> None:
    found = measure_readings([reading("real", "real")])
    assert found["auc"] is None
    assert found["called_synthetic"] == {"real": 0.0, "synthetic": None}
