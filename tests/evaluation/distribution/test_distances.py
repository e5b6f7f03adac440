from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.distribution.distances import draw_chart, measure_distribution, measure_region, to_report
from maisi_aug.system.progress import report_nothing
from tests.builders.made_cases import write_cohort, write_folder


def blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [row[None] for row in rows]


def test_distance_is_the_formula_by_scipys_matrix_root(rng: np.random.Generator) -> None:
    real, synthetic = rng.normal(3, 2, (60, 5)), rng.normal(4, 3, (50, 5))
    found = measure_region(blocks(real), blocks(synthetic), seed=0)
    scaled = [(side - real.mean(0)) / real.std(0, ddof=1) for side in (real, synthetic)]
    first, second = (np.cov(side.T) for side in scaled)
    step = scaled[0].mean(0) - scaled[1].mean(0)
    expected = step @ step + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert found["frd"] == pytest.approx(expected)
    assert found["frd_interval"][0] < found["frd"] < found["frd_interval"][1]
    assert found["frd_p"] == pytest.approx(1 / 201)
    assert (found["nearest"], found["num_features"], found["is_singular"]) == (5, 5, False)


def test_sets_of_one_kind_are_seldom_found_apart(rng: np.random.Generator) -> None:
    p_values = [
        measure_region(blocks(rng.normal(size=(12, 6))), blocks(rng.normal(size=(14, 6))), seed=n)["frd_p"]
        for n in range(40)
    ]
    assert np.mean(np.array(p_values) < 0.05) <= 0.15
    assert 0.3 < np.mean(p_values) < 0.7


def test_feature_that_real_cases_do_not_vary_in_is_left_out(rng: np.random.Generator) -> None:
    real, synthetic = rng.normal(size=(2, 12, 3))
    real[:, 1] = 7
    found = measure_region(blocks(real), blocks(synthetic), seed=0)
    assert found["num_features"] == 2
    assert np.isfinite(found["frd"])


def test_cohort_is_compared_region_by_region(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", range(1, 12)))
    (real.path / "images" / "broken.nii.gz").write_bytes(b"no volume")
    synthetic = find_case_set(write_cohort(tmp_path / "cohort", range(30, 41)))
    document = measure_distribution(find_case_set(real.path), synthetic, spacing_mm=4.0, notify=report_nothing)
    assert [row["region"] for row in document["regions"]] == ["body", "liver", "spleen", "hepatic tumor"]
    assert all(row["is_singular"] for row in document["regions"])
    assert [row["case"] for row in document["real"]["skipped"]] == ["broken"]
    report = to_report(json.loads(json.dumps(document)))
    assert "Fewer rows than features" in report
    assert "- real broken: " in report
    assert "real halves" in draw_chart(document)


def test_too_few_cases_are_refused_in_a_sentence(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", [1]))
    with pytest.raises(EvaluationError, match="needs at least 10 measurable cases, found 1"):
        measure_distribution(real, real, spacing_mm=6.0, notify=report_nothing)
