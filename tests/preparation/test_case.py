from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.banks.label_ids import Translation
from maisi_aug.errors import VolumeError
from maisi_aug.preparation.case import AIR_HU, CaseTask, PrepareSettings, build_case, load_ct
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.preparation.survey import dropped_lesions_of, holds_envelope, survey_case, tables_of
from maisi_aug.preparation.tissues import Tissue
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bank import LIVER, SPLEEN, build_ct, build_trunk, trunk_grid
from tests.builders.tiny_lab import (
    MASS,
    OWN_LIVER,
    SHAPE,
    SPACING_MM,
    build_meanings,
    build_own_labels,
    build_settings,
    write_case,
)

NODE = 2  # the first placeholder slot
RULES = ("1=node@liver", "2=liver")


def build_task(case: SourceCase, *rules: str, **changes: object) -> CaseTask:
    meanings = build_meanings(case, *(rules or RULES))
    translations = changes.pop("translations", ())
    settings: PrepareSettings = build_settings(meanings, **changes)
    survey = survey_case(case)
    has_envelope = holds_envelope(case, survey, meanings)
    dropped = dropped_lesions_of(case, survey, meanings)
    return CaseTask(case, tables_of(case, survey, meanings), translations, settings, has_envelope, dropped)  # type: ignore[arg-type]


def test_case_is_brought_to_the_grid_and_the_vocabulary(tmp_path: Path) -> None:
    built = build_case(build_task(write_case(tmp_path, "a")))
    assert built.image_hu.shape == built.label_map.shape == built.grid.shape == SHAPE
    assert built.grid.spacing_mm == pytest.approx(SPACING_MM)
    assert built.image_hu.dtype == np.int16
    assert built.label_map.dtype == np.uint8
    assert set(np.unique(built.label_map)) == {0, NODE, LIVER, BODY_ID}
    own = build_own_labels()
    was_ml, is_ml = (own == MASS).sum() * trunk_grid().voxel_ml, (built.label_map == NODE).sum() * built.grid.voxel_ml
    assert is_ml == pytest.approx(was_ml, rel=0.06)
    assert (built.image_hu[built.label_map == 0] == AIR_HU).all()  # the table is gone
    assert built.notes == ("Cropped to 224 of 260 mm of the length of the patient.",)


def test_grid_stays_in_the_scanner_where_the_labels_were(tmp_path: Path) -> None:
    built = build_case(build_task(write_case(tmp_path, "a")))

    def centre_mm(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
        return np.asarray(grid.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + grid.affine[:3, 3])

    was = centre_mm(build_own_labels() == MASS, trunk_grid())
    assert centre_mm(built.label_map == NODE, built.grid) == pytest.approx(was, abs=2.5)


def test_surroundings_stay_on_request(tmp_path: Path) -> None:
    built = build_case(build_task(write_case(tmp_path, "a"), keeps_surroundings=True))
    assert built.image_hu[built.label_map == 0].max() > 0


def test_scan_larger_than_the_grid_is_cropped_around_the_new_label(tmp_path: Path) -> None:
    built = build_case(build_task(write_case(tmp_path, "a"), shape=(48, 32, 16)))
    assert (built.label_map == NODE).sum() * built.grid.voxel_ml == pytest.approx(
        (build_own_labels() == MASS).sum() * trunk_grid().voxel_ml, rel=0.06
    )
    assert built.notes == ("Cropped to 112 of 260 mm of the length of the patient.",)


def test_label_larger_than_the_grid_is_told(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", radius_mm=45.0)
    built = build_case(build_task(case, shape=(48, 32, 8)))
    whole_ml = (build_own_labels(45.0) == MASS).sum() * trunk_grid().voxel_ml
    (cropped, label) = built.notes
    assert cropped.startswith("Cropped to 56 of 260 mm of the length")
    assert label.endswith(f"of {whole_ml:.3g} mL of 'node' lie inside the grid.")
    assert (built.label_map == NODE).sum() * built.grid.voxel_ml == pytest.approx(float(label.split()[0]), rel=0.1)


def test_labels_win_in_the_stated_order(tmp_path: Path) -> None:
    grid, case = trunk_grid(), write_case(tmp_path, "a")
    trunk = build_trunk(with_body=False)
    organs = np.where(trunk == LIVER, 9, 0).astype(np.uint8)  # the lab's liver and mass win over it
    organs[trunk == SPLEEN] = 8
    later = np.where(trunk == SPLEEN, 7, 0).astype(np.uint8)
    later[:, :18] = 0
    save_label_map(tmp_path / "organs.nii.gz", organs, grid)
    save_label_map(tmp_path / "later.nii.gz", later, grid)
    case = replace(case, organs=((LabelFile(tmp_path / "organs.nii.gz"),), (LabelFile(tmp_path / "later.nii.gz"),)))
    translations = (Translation({0: 0, 9: 4, 8: 3}, frozenset()), Translation({0: 0, 7: 14}, frozenset()))
    settings = {"shape": (48, 48, 40), "spacing_mm": grid.spacing_mm, "translations": translations}
    built = build_case(build_task(case, tissues=(Tissue(120, 50, 70),), **settings))
    counts = np.bincount(built.label_map.ravel(), minlength=256)
    own = build_own_labels()
    assert counts[LIVER] == pytest.approx((own == OWN_LIVER).sum(), rel=0.02)
    assert counts[NODE] == pytest.approx((own == MASS).sum(), abs=1)
    assert counts[14] == pytest.approx((later == 7).sum(), rel=0.02)
    assert counts[3] == pytest.approx((organs == 8).sum() - (later == 7).sum(), rel=0.02)
    assert counts[4] == 0
    assert counts[120] > 1000  # the body's 60 HU, where nothing else is


def test_masks_of_labels_are_laid_over_each_other_lesions_last(tmp_path: Path) -> None:
    case, grid, own = write_case(tmp_path, "a"), trunk_grid(), build_own_labels()
    save_label_map(tmp_path / "a_mass.nii.gz", (own == MASS).astype(np.uint8), grid)
    save_label_map(tmp_path / "liver.nii.gz", (own > 0).astype(np.uint8) * 255, grid)
    files = (
        LabelFile(tmp_path / "a_mass.nii.gz", mask_name="mass"),
        LabelFile(tmp_path / "liver.nii.gz", mask_name="liver"),
    )
    whole = build_case(build_task(case)).label_map
    masks = build_case(build_task(replace(case, labels=files), "mass=node@liver")).label_map
    np.testing.assert_array_equal(masks, whole)


def test_organs_on_another_grid_are_resampled(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    coarse = Grid(tuple(side // 2 for side in trunk_grid().shape), trunk_grid().affine @ np.diag([2, 2, 2, 1]))  # type: ignore[arg-type]
    save_label_map(tmp_path / "spleen.nii.gz", (build_trunk()[::2, ::2, ::2] == SPLEEN).astype(np.uint8), coarse)
    case = replace(case, organs=((LabelFile(tmp_path / "spleen.nii.gz", mask_name="spleen"),),))
    built = build_case(build_task(case, translations=(Translation({0: 0, 1: SPLEEN}, frozenset()),)))
    assert (built.label_map == SPLEEN).sum() * built.grid.voxel_ml == pytest.approx(
        (build_trunk() == SPLEEN).sum() * trunk_grid().voxel_ml, rel=0.2
    )


def test_body_that_the_lab_drew_is_taken(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    label_map = build_trunk()
    label_map[:12] = 0  # narrower than the CT shows
    label_map[label_map == BODY_ID] = 4
    save_label_map(case.labels[0].path, label_map, trunk_grid())
    built = build_case(build_task(case, "1=liver", "3=spleen", "14=left kidney", "4=body"))
    width = np.flatnonzero((built.label_map > 0).any(axis=(1, 2))).size * 7.0
    drawn = np.flatnonzero((label_map > 0).any(axis=(1, 2))).size * 7.0
    assert width == pytest.approx(drawn, abs=14)


@pytest.mark.parametrize("rule", ["4=pulmonary artery", "4=body"])
def test_few_voxels_called_body_leave_the_patient_to_be_found(tmp_path: Path, rule: str) -> None:
    case = write_case(tmp_path, "a")
    whole = build_case(build_task(case)).label_map
    own = build_own_labels()
    own[22:24, 20:22, 20:22] = 4
    save_label_map(case.labels[0].path, own, trunk_grid())
    built = build_case(build_task(case, *RULES, rule))
    assert np.count_nonzero(built.label_map) == pytest.approx(np.count_nonzero(whole), rel=0.01)
    assert built.notes[0] == (
        "Body (200) as labelled and the other labels fill 7% of the patient; the rest of the patient was found in the "
        "CT."
    )


def test_body_that_is_a_shell_is_filled_and_told(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    trunk = build_trunk() > 0
    own = np.where(trunk & ~ndimage.binary_erosion(trunk, np.ones((3, 3, 1))), 4, 0).astype(np.uint8)
    own[build_own_labels() > 0] = OWN_LIVER
    save_label_map(case.labels[0].path, own, trunk_grid())
    built = build_case(build_task(case, "2=liver", "4=body"))
    assert np.count_nonzero(built.label_map) == pytest.approx(
        np.count_nonzero(build_case(build_task(write_case(tmp_path, "b"))).label_map), rel=0.05
    )
    assert built.notes[0].startswith("Body (200) as labelled is hollow;")


def test_body_that_the_lab_drew_keeps_the_organs_below_it(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    trunk = build_trunk()
    save_label_map(tmp_path / "organs.nii.gz", np.where(trunk == SPLEEN, SPLEEN, 0).astype(np.uint8), trunk_grid())
    save_label_map(case.labels[0].path, np.where(trunk > 0, 4, 0).astype(np.uint8), trunk_grid())
    case = replace(case, organs=((LabelFile(tmp_path / "organs.nii.gz"),),))
    translation = Translation({0: 0, SPLEEN: SPLEEN}, frozenset())
    built = build_case(build_task(case, "4=body", translations=(translation,)))
    volume_ml = (built.label_map == SPLEEN).sum() * built.grid.voxel_ml
    assert volume_ml == pytest.approx((trunk == SPLEEN).sum() * trunk_grid().voxel_ml, rel=0.2)


def test_values_beyond_a_ct_do_not_spread(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    image = build_ct(build_trunk()).astype(np.int16)
    image[20:22, 18:20, 20:22] = 26_000
    image[0] = -3024
    save_image(case.image, image, trunk_grid())
    built = build_case(build_task(case, keeps_surroundings=True))
    assert built.image_hu.max() <= 3071
    assert built.image_hu.min() >= -1024


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 1024.0), (0.001, 0.0)])
def test_image_that_is_not_in_hu_is_refused(tmp_path: Path, scale: float, offset: float) -> None:
    image = build_ct(build_trunk()).astype(np.float32) * scale + offset
    save_image(tmp_path / "a.nii.gz", np.rint(image), trunk_grid())
    with pytest.raises(VolumeError, match="a.nii.gz: expected HU, with air near -1000 .* found values between"):
        load_ct(tmp_path / "a.nii.gz")


def test_image_without_a_patient_is_refused(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    image = np.full(trunk_grid().shape, -1000, dtype=np.int16)
    image[0, 0, 0] = 50
    save_image(case.image, image, trunk_grid())
    with pytest.raises(VolumeError, match="Body envelope: no patient was found in the CT: values lie between"):
        build_case(build_task(case))


def test_key_changes_with_every_input(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a")
    key = build_task(case).hash_inputs()
    assert build_task(case).hash_inputs() == key
    others = [
        build_task(case, "1=node@liver", "2=spleen").hash_inputs(),
        build_task(case, keeps_surroundings=True).hash_inputs(),
        build_task(case, tissues=(Tissue(120, 150, 3000),)).hash_inputs(),
    ]
    write_case(tmp_path, "a", seed=1)
    others.append(build_task(case).hash_inputs())
    assert len({key, *others}) == 5


@pytest.mark.parametrize("rule", ["mass=-", "mass=body"])
def test_dropped_lesion_leaves_no_hole_in_its_organ(tmp_path: Path, rule: str) -> None:
    case, own = write_case(tmp_path, "a"), build_own_labels()
    named = replace(case, labels=(replace(case.labels[0], names={MASS: "mass", OWN_LIVER: "liver"}),))
    built = build_case(build_task(named, rule))
    whole = (own > 0).sum() * trunk_grid().voxel_ml
    assert (built.label_map == LIVER).sum() * built.grid.voxel_ml == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("is_mask", [False, True])
def test_unknown_lesion_of_the_organ_labels_becomes_the_organ(tmp_path: Path, is_mask: bool) -> None:
    case, own, grid = write_case(tmp_path, "a"), build_own_labels(), trunk_grid()
    translation = Translation({0: 0, 1: BODY_ID, 2: LIVER}, frozenset(), (), {1: {}}, ("cyst",))
    files: tuple[LabelFile, ...] = (LabelFile(tmp_path / "organs.nii.gz"),)
    save_label_map(tmp_path / "organs.nii.gz", own, grid)
    if is_mask:
        files = (LabelFile(tmp_path / "cyst.nii.gz", mask_name="cyst"), LabelFile(tmp_path / "l.nii.gz", mask_name="l"))
        save_label_map(tmp_path / "cyst.nii.gz", (own == MASS).astype(np.uint8), grid)
        save_label_map(tmp_path / "l.nii.gz", (own == OWN_LIVER).astype(np.uint8), grid)
    healthy = replace(case, labels=(), organs=(files,))
    settings = build_settings(build_meanings(case, *RULES))
    built = build_case(CaseTask(healthy, (), (translation,), settings))
    save_label_map(tmp_path / "whole.nii.gz", np.where(own > 0, 2, 0).astype(np.uint8), grid)
    whole = replace(healthy, organs=((LabelFile(tmp_path / "whole.nii.gz"),),))
    expected = build_case(CaseTask(whole, (), (Translation({0: 0, 2: LIVER}, frozenset()),), settings))
    np.testing.assert_array_equal(built.label_map, expected.label_map)
