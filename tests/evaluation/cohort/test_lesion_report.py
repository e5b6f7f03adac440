from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.lesion_report import draw_charts, measure_lesions_of, to_report
from maisi_aug.volumes.image_files import save_image
from tests.builders.made_cases import GRID, build_case, write_cohort, write_folder


def quiet(done: int, total: int) -> None:
    pass


def test_calibration_finds_a_constant_factor(tmp_path: Path) -> None:
    """Realised volumes are 1/1.331 of what was asked for, which is 1/1.1 of the diameter."""
    seeds = [1, 2, 3, 4]
    cohort = find_case_set(write_cohort(tmp_path / "cohort", seeds, requested=dict.fromkeys(seeds, 1.331)))
    document = measure_lesions_of(cohort, quiet)
    overall = document["calibration"][0]
    assert (overall["label"], overall["num_lesions"]) == ("all", 4)
    assert overall["factor"] == pytest.approx(1 / 1.1)
    assert overall["slope"] == pytest.approx(1.0)
    assert overall["bias"] == pytest.approx(1 / 1.1 - 1)
    assert overall["mean_absolute_error"] == pytest.approx(1 - 1 / 1.1)
    assert "| hepatic tumor | 4 | 9.1% | -9.1% | -9.1% | 1.00 | 0.91 |" in to_report(document)


def test_visibility_is_measured_in_the_image(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [1, 2])
    # The second case's image loses its tumour: the map still says that there is one.
    plain, label_map = build_case(2)
    healthy = np.where(label_map == 26, np.int16(90), plain)
    save_image(cohort / "images" / "case_0002.nii.gz", healthy.astype(np.int16), GRID)
    document = measure_lesions_of(find_case_set(cohort), quiet)
    first, second = document["seen"]
    assert (first["is_visible"], second["is_visible"]) == (True, False)
    assert first["contrast_hu"] == pytest.approx(-50, abs=15)
    assert first["noise_hu"] == pytest.approx(6, abs=2)
    assert document["visibility"][0]["visible"] == 0.5
    assert "- case_0002, hepatic tumor: Lesion visibility: expected a lesion darker than its host" in to_report(
        document
    )


def test_charts_show_every_lesion(tmp_path: Path) -> None:
    document = measure_lesions_of(find_case_set(write_cohort(tmp_path / "cohort", [1, 2, 3])), quiet)
    charts = draw_charts(document)
    assert list(charts) == ["lesion_sizes.svg", "lesion_visibility.svg"]
    for chart in charts.values():
        dots = [e for e in ElementTree.fromstring(chart).iter() if e.tag.endswith("circle")]
        assert len(dots) == 4  # three lesions, and a legend or a median


def test_only_cohorts_have_requests(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="must be a cohort with manifest.jsonl, found a"):
        measure_lesions_of(find_case_set(write_folder(tmp_path, [1])), quiet)
