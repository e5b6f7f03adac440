from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cli.app import run
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.agreement import MatchedLabel, segment_from_folder
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.detection_curve import (
    draw_chart,
    fit_logistic,
    measure_detection_curve,
    size_at,
    to_report,
)
from maisi_aug.evaluation.report.build import build_report
from maisi_aug.insertion.cohort import insert_cohort
from maisi_aug.insertion.config import resolve_insertion
from maisi_aug.insertion.request import InsertConfig
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_label_map, save_image, save_label_map
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

GRID = Grid.from_spacing(SHAPE, SPACING_MM)
NODULE = MatchedLabel("nodule", (1,), (23,))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three places in two chests with a nodule of 7, 10 and 14 mm each."""
    folder = tmp_path_factory.mktemp("twins")
    for number in range(2):
        save_image(folder / "cts" / f"p{number}.nii.gz", build_chest(seed=number), GRID)
    config = InsertConfig(
        into=str(folder / "cts"),
        labels=("lung nodule",),
        num_cases=3,
        seed=5,
        twins="size=7mm,10mm,14mm",
        painter="procedural",
    )
    assert insert_cohort(resolve_insertion(config), folder / "cohort").is_complete
    return folder / "cohort"


@pytest.fixture(scope="module")
def predictions(cohort: Path) -> Path:
    """Those of a segmenter that finds what has 10 mm or more, all but one of them, and once something else."""
    folder = cohort.parent / "predictions"
    for path in sorted((cohort / "labels").iterdir()):
        found = (load_label_map(path).array == 23).astype(np.uint8)
        if path.name.startswith("case_0003_10mm"):
            found[:] = 0
            found[1:3, 1:3, 1:3] = 1
        save_label_map(folder / path.name, found * np.uint8("_7mm" not in path.name), GRID)
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "nodule": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    return folder


def measure(cohort: Path, predictions: Path) -> dict[str, Any]:
    return measure_detection_curve(
        find_case_set(cohort), segment_from_folder(predictions), [NODULE], segmenter="a made one"
    )


def test_twins_are_counted_by_their_values(cohort: Path, predictions: Path) -> None:
    document = measure(cohort, predictions)
    assert [(row["name"], row["num_found"], row["num"]) for row in document["groups"]] == [
        ("7mm", 0, 3),
        ("10mm", 2, 3),
        ("14mm", 3, 3),
    ]
    low, high = document["groups"][2]["interval"]
    assert low == pytest.approx(0.4385, abs=1e-3)  # Wilson's of 3 of 3
    assert high == 1.0
    first, second = document["pairs"]
    assert (first["only_first"], first["only_second"], first["p"]) == (0, 2, pytest.approx(0.5))
    assert (second["only_first"], second["only_second"]) == (0, 1)
    assert document["num_false_positives"] == 1
    half = document["fit"]["diameters"][0]
    assert half["share"] == 0.5
    assert 7 < half["diameter_mm"] < 12
    assert "| 10mm | 3 |" in to_report(document)
    assert "2 of 3" in draw_chart(document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_command_writes_what_the_report_shows(
    cohort: Path, predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "detection-curve", str(cohort), "--predictions", str(predictions)]
    assert run([*arguments, "--map", "nodule=lung tumor", "--out", str(tmp_path)]) == 0
    assert "Sensitivity by size" in capsys.readouterr().out
    page = build_report(cohort, curve_file=tmp_path / "detection_curve.json")
    assert "Sensitivity by size of the lesion" in page.html
    assert "are found from" in page.markdown
    with pytest.raises(EvaluationError, match="not detection_curve.json as 'maisi-aug evaluate detection-curve"):
        build_report(cohort, curve_file=predictions / "dataset.json")


def test_labels_of_no_lesion_are_refused(cohort: Path, predictions: Path) -> None:
    with pytest.raises(EvaluationError, match="lung tumor"):
        measure_detection_curve(
            find_case_set(cohort),
            segment_from_folder(predictions),
            [MatchedLabel("liver", (1,), (1,))],
            segmenter="a made one",
        )


def test_fit_finds_the_curve_that_drew_the_lesions() -> None:
    rng = np.random.default_rng(0)
    diameters = np.exp(rng.uniform(np.log(3), np.log(30), 4000))
    found = rng.random(4000) < 1 / (1 + np.exp(-3.0 * (np.log(diameters) - np.log(9.0))))
    fitted = fit_logistic(diameters, found)
    assert fitted is not None
    assert fitted[1] == pytest.approx(3.0, rel=0.1)
    assert size_at(fitted, 0.5) == pytest.approx(9.0, rel=0.05)


@pytest.mark.parametrize("found", [[True] * 4, [False] * 4, [True, True, False, False]])
def test_there_is_no_fit_without_a_rise(found: list[bool]) -> None:
    assert fit_logistic(np.array([4.0, 5.0, 10.0, 11.0]), np.array(found)) is None
