from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.api.synthesis import look_ahead
from maisi_aug.cohort.request import build_request, override
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.review.cases import ShownCase
from maisi_aug.evaluation.review.planned import AIR_HU, PlannedCases, paint_hu
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.image_files import load_image, load_label_map
from tests.builders.tiny_cohort import BODY, HEPATIC_TUMOR, LIVER, LUNG_TUMOR, build_anatomy

PATIENCE_S = 240


def plan(**fields: object) -> CohortRun:
    asked = {"labels": ("hepatic tumor:20mm",), "num_cases": 2, **fields}
    return look_ahead(build_request(override({}, asked), source="test")).cohort


def draw_all(run: CohortRun, scratch: Path) -> list[ShownCase]:
    source, until = PlannedCases(run, scratch), time.monotonic() + PATIENCE_S
    cases: list[ShownCase] = []
    with source.draw_meanwhile():
        while len(cases) < len(run.plan.cases) and time.monotonic() < until:
            cases += source.read_on()
            time.sleep(0.05)
    return cases


def test_planned_label_maps_hold_their_lesions_of_the_size_asked_for(tmp_path: Path) -> None:
    cases = draw_all(plan(), tmp_path)
    assert [case.case.case_id for case in cases] == ["case_0001", "case_0002"]
    for case in cases:
        (lesion,) = case.lesions
        assert lesion["mm"] == pytest.approx(20.0, rel=0.1)
        label_map = load_label_map(case.files["anatomy"]).array
        assert label_map[tuple(lesion["centre"])] == HEPATIC_TUMOR
        assert load_image(case.files["image"]).array.shape == label_map.shape


def test_no_network_is_loaded_for_a_look(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.evaluation.review.test_planned import draw_all, plan\n"
        f"assert len(draw_all(plan(num_cases=1), Path({str(tmp_path)!r}))) == 1\n"
        "sys.exit(f'torch was imported' if 'torch' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_maps_that_networks_draw_are_refused(tmp_path: Path) -> None:
    run = plan(labels=(), mask_source="none")
    with pytest.raises(EvaluationError, match="found the source 'none'"):
        PlannedCases(run, tmp_path)


def test_organs_are_painted_in_their_usual_hu() -> None:
    label_map = build_anatomy(HEPATIC_TUMOR, LUNG_TUMOR)
    painted = paint_hu(label_map, MAISI)
    value = {label_id: painted[label_map == label_id] for label_id in np.unique(label_map).tolist()}
    assert all(len(set(values.tolist())) == 1 for values in value.values())
    assert value[0][0] == AIR_HU
    assert 40 <= value[LIVER][0] <= 90
    assert value[HEPATIC_TUMOR][0] < value[LIVER][0]
    assert value[LUNG_TUMOR][0] > -100
    assert AIR_HU < value[BODY][0] < 0
