from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.banks.case_reader import is_same_place
from maisi_aug.errors import PreparationError
from maisi_aug.preparation.mapping import labels_of
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.preparation.survey import require_labels, require_readable, survey_case
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.tiny_bank import trunk_grid
from tests.builders.tiny_lab import MASS, OWN_LIVER, build_meanings, build_own_labels, write_case


def test_survey_counts_the_labels(tmp_path: Path) -> None:
    case, own = write_case(tmp_path, "a"), build_own_labels()
    (counts,) = survey_case(case).counts
    assert counts == {number: int((own == number).sum()) for number in (0, MASS, OWN_LIVER)}
    assert [label.id for label in labels_of(case.labels[0], counts)] == [1, 2]
    save_label_map(tmp_path / "mass.nii.gz", np.where(own == MASS, 7, 0).astype(np.uint8), trunk_grid())
    mask = LabelFile(tmp_path / "mass.nii.gz", mask_name="mass")
    (counts,) = survey_case(replace(case, labels=(mask,))).counts
    assert counts[1] == int((own == MASS).sum())


def test_mask_of_several_ids_is_refused_with_the_ids(tmp_path: Path) -> None:
    case, own = write_case(tmp_path, "a"), build_own_labels()
    mask = LabelFile(case.labels[0].path, mask_name="a_seg")
    sizes = [int((own == label_id).sum()) for label_id in (1, 2)]
    assert survey_case(replace(case, labels=(mask,))).problem.startswith(
        "a_seg.nii.gz: expected a mask of one label, 'a_seg', found 2 ids: "
        f"1 ({sizes[0]} voxels), 2 ({sizes[1]} voxels). Provide it as a label map"
    )


def test_rounded_header_is_the_same_place() -> None:
    grid = trunk_grid()
    affine = grid.affine.copy()
    affine[:3, 3] += 0.3
    assert is_same_place(Grid(grid.shape, affine), grid)
    affine[0, 0] += 0.05  # two millimetres at the far end
    assert not is_same_place(Grid(grid.shape, affine), grid)
    assert not is_same_place(Grid((2, 2, 2), grid.affine), grid)


def test_unusable_cases_are_named_together(tmp_path: Path) -> None:
    good, shifted, cut = (write_case(tmp_path, name) for name in "abc")
    affine = trunk_grid().affine.copy()
    affine[2, 3] += 50
    save_label_map(shifted.labels[0].path, build_own_labels(), Grid(trunk_grid().shape, affine))
    cut.labels[0].path.write_bytes(cut.labels[0].path.read_bytes()[:200])
    surveys = [survey_case(case) for case in (good, shifted, cut)]
    with pytest.raises(
        PreparationError,
        match=r"Cases: 2 of 3 have unusable files \(case b: b_seg.nii.gz: expected the image's grid, 44x36x40 at "
        r"7x7.5x6.5 mm from \(-30.0, 12.0, 900.0\), found .*950.0\); case c: .*c_seg.nii.gz: not a readable image"
        r".*out with --exclude",
    ):
        require_readable(surveys)
    require_readable(surveys[:1])


def test_negative_and_fractional_labels_are_told(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    assert survey_case(SourceCase("a", case.image, (LabelFile(case.image),))).problem.startswith(
        f"{case.image}: expected labels between 0 and 65535, found -1000"
    )


def test_empty_case_is_named(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, "a"), write_case(tmp_path, "b")]
    save_label_map(cases[1].labels[0].path, np.zeros(trunk_grid().shape, dtype=np.uint8), trunk_grid())
    surveys = [survey_case(case) for case in cases]
    meanings = build_meanings(cases[0], "1=node@liver", "2=liver")
    with pytest.raises(PreparationError, match="1 of 2 cases have no labels: b. Leave them out with --exc"):
        require_labels(cases, surveys, meanings, allow_empty=False)
    require_labels(cases, surveys, meanings, allow_empty=True)


def test_new_label_that_no_case_holds_is_named(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    case = replace(case, labels=(replace(case.labels[0], names={1: "mass", 2: "liver", 3: "duct"}),))
    meanings = build_meanings(case, "mass=node@liver", "duct=new:bile duct")
    with pytest.raises(PreparationError, match="the new label 'bile duct' has no voxels in any of the 1 cases"):
        require_labels([case], [survey_case(case)], meanings, allow_empty=False)
