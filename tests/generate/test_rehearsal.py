"""A dry run tries what a run would try first, and says what fits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.plan import plan_from_texts
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import resolve
from maisi_aug.errors import BankError, LesionError
from maisi_aug.generate.rehearsal import MAX_VOXELS, coarsen, find_hardest, rehearse
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.tiny_bank import BODY, HEPATIC_TUMOR, LIVER, build_trunk, trunk_grid


def rehearse_config(**values: Any) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    rehearse(resolve(build_request(values)), lambda done, total: told.append((done, total)))
    return told


def test_cohort_that_fits_is_tried_once_for_every_kind_of_case() -> None:
    assert rehearse_config(labels=["hepatic tumor:10-40mm", "spleen"], num_cases=6) == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            "hepatic tumor:150mm",
            r"^case_0001: hepatic tumor: 1767\.15 mL .* The largest that fits, by \d+ label maps",
        ),
        ("kidney tumor:0.95", r"^case_0001: kidney tumor: 659\.56 mL .* The largest that fits, .* about \d+"),
    ],
)
def test_lesion_larger_than_its_host_bears_is_refused_with_the_largest_that_fits(label: str, message: str) -> None:
    with pytest.raises(LesionError, match=message):
        rehearse_config(labels=[label], num_cases=2)


def test_bank_without_organs_is_refused_unless_the_bundle_completes_maps(tmp_path: Path, bundle_path: Path) -> None:
    label_map = build_trunk(tumours_mm=(15.0,))
    label_map[(label_map != LIVER) & (label_map != HEPATIC_TUMOR) & (label_map != 0)] = BODY
    save_label_map(tmp_path / "a_seg.nii.gz", label_map, trunk_grid())
    values = {"labels": ["hepatic tumor:20mm"], "mask_bank": str(tmp_path), "mask_labels": "maisi"}
    assert rehearse_config(**values)[-1] == (1, 1)
    values["bundle"] = str(bundle_path)
    with pytest.raises(BankError, match=r"found 1 \(liver\) in a_seg.nii.gz.*--run-totalsegmentator"):
        rehearse_config(**values)
    with pytest.warns(UserWarning, match="organs around the lesions"):
        assert rehearse_config(**values, allow_few_organs=True)[-1] == (1, 1)


def test_bank_that_lacks_the_host_is_refused_as_a_run_would(tmp_path: Path) -> None:
    save_label_map(tmp_path / "a_seg.nii.gz", build_trunk(), trunk_grid())
    with pytest.raises(BankError, match="pancreatic tumor"):
        rehearse_config(labels=["pancreatic tumor:20mm"], mask_bank=str(tmp_path), mask_labels="maisi")


def test_hardest_case_is_the_one_with_the_most_lesion_volume() -> None:
    plan = resolve(build_request({"labels": ["lung tumor:8-30mm", "liver tumor:20mm"], "num_cases": 8})).plan
    largest = {case.request: case for case in find_hardest(plan, has_own_lesions=False)}
    assert len(largest) == 2
    sizes = [case.lesions[0].requested_ml for case in plan.cases if case.request == "lung tumor:8-30mm"]
    assert largest["lung tumor:8-30mm"].lesions[0].requested_ml == max(sizes)
    own = {case.lesions[0].requested_ml for case in find_hardest(plan, has_own_lesions=True)}
    assert {min(sizes), max(sizes)} <= own


def test_large_grids_are_rehearsed_on_a_coarser_one_that_keeps_the_smallest_lesion() -> None:
    plan = plan_from_texts(["hepatic tumor:30mm"], vocabulary=MAISI, num_cases=1, seed=0)
    fine = Grid.from_spacing((512, 512, 300), (0.75, 0.75, 1.0))
    coarse = coarsen(fine, plan.cases)
    assert math.prod(coarse.shape) <= MAX_VOXELS
    assert coarse.extent_mm == pytest.approx(fine.extent_mm)
    tiny = plan_from_texts(["hepatic tumor:3mm"], vocabulary=MAISI, num_cases=1, seed=0)
    assert coarsen(fine, tiny.cases) is fine
    small = Grid.from_spacing((96, 80, 64), (4.0, 4.0, 4.0))
    assert coarsen(small, plan.cases) is small
