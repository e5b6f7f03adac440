from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import BankFiles
from maisi_aug.banks.label_ids import require_known_targets
from maisi_aug.cohort.plan import CohortPlan, plan_from_texts
from maisi_aug.errors import BankError, RequestError
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid

GRID = Grid.from_spacing((64, 48, 40), (4.0, 4.0, 2.5))
VOXEL_ML = 0.04


def plan(*texts: str, num_cases: int = 4) -> CohortPlan:
    return plan_from_texts(texts, vocabulary=MAISI, num_cases=num_cases, seed=1)


def test_mapping_to_names_and_ids_is_accepted_and_so_is_a_word() -> None:
    require_known_targets({"1": "liver", "2": 26, "Milz": "spleen"}, MAISI, subject="Mask labels")
    require_known_targets("totalsegmentator-v2", MAISI, subject="Mask labels")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("livr", "Mask labels, '7': Label 'livr': not a name or id .* Did you mean 'liver'"),
        (140, "Mask labels, '7': Label id 140: not in this vocabulary"),
    ],
)
def test_mapping_to_what_is_no_label_is_refused(target: str | int, message: str) -> None:
    with pytest.raises(BankError, match=message):
        require_known_targets({"1": "liver", "7": target}, MAISI, subject="Mask labels")


def test_bank_needs_one_map_that_looks_usable() -> None:
    skipped = [("a.nii.gz", "a.nii.gz is empty"), ("b.nii.gz", "b.nii.gz is missing")]
    BankFiles(Path("bank"), [BankEntry("c.nii.gz", (Path("c.nii.gz"),))], skipped, []).require_maps()
    with pytest.raises(BankError, match=r"no usable label map \(a\.nii\.gz: a\.nii\.gz is empty\)\. Check"):
        BankFiles(Path("bank"), [], skipped, []).require_maps()
    with pytest.raises(BankError, match="Mask bank bank: no usable label map. Check the folder's layout."):
        BankFiles(Path("bank"), [], [], []).require_maps()


def test_lesion_above_half_a_voxel_is_accepted() -> None:
    plan(f"lung tumor:{0.51 * VOXEL_ML}mL", "liver").require_drawable(GRID)
    plan("liver").require_drawable(GRID)


def test_lesion_that_rounding_would_lose_is_refused() -> None:
    planned = plan("hepatic tumor:0.5", "lung tumor:0.01-0.02mL", num_cases=10)
    smallest = min(planned.cases, key=lambda case: case.lesions[0].requested_ml)
    sentence = (
        f"Label request 'lung tumor:0.01-0.02mL': lung tumor of 0.01 mL (2.7 mm) in {smallest.case_id} is smaller than "
        "half a voxel of the grid, 0.02 mL (3.4 mm). Request larger lesions or a smaller --spacing."
    )
    with pytest.raises(RequestError) as caught:
        planned.require_drawable(GRID)
    assert str(caught.value) == sentence
    with pytest.raises(RequestError, match="in case_0001"):
        plan(f"lung tumor:{VOXEL_ML / 2}mL").require_drawable(GRID)
