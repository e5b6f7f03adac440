"""Completed maps: the user's labels stay, and whatever subset they are, the rest becomes a patient around them."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError, MaisiAugWarning
from maisi_aug.phantom import AnatomyMap, Region, build_label_map, ids, render_hu
from maisi_aug.phantom.completion import complete_anatomy
from maisi_aug.phantom.distances import signed_distance
from maisi_aug.phantom.landmarks import reference_body
from maisi_aug.phantom.patient import has_outline
from maisi_aug.training.cases.label_sets import LABEL_SETS, LabelSet, reduce_labels
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.totalsegmentator import totalsegmentator_mapping
from maisi_aug.volumes.body import add_body
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map
from maisi_aug.volumes.orientation import turn_volume

GRID = Grid.from_spacing((74, 56, 46), (5.4, 5.4, 5.4))
LabelMap = NDArray[np.uint8]


@cache
def patient(region: Region = "abdomen", seed: int = 3) -> AnatomyMap:
    return build_label_map(seed=seed, grid=GRID, region=region)


def keep(label_map: LabelMap, *labels: int) -> LabelMap:
    """The outline with the given labels."""
    return np.where(np.isin(label_map, labels), label_map, np.where(label_map > 0, ids.BODY, 0)).astype(np.uint8)


def centre_mm(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    assert mask.any()
    middle: NDArray[np.float64] = np.argwhere(mask).mean(axis=0) * GRID.spacing_mm
    return middle


def require_patient(label_map: LabelMap, tissue: NDArray[np.uint8]) -> None:
    """Bones, organs, fat and muscle where the networks, and radiologists, expect them, with their HU."""
    image = render_hu(label_map, seed=2, grid=GRID, phase="portal", tissue=tissue)
    body = label_map == ids.BODY
    fat = image[body & np.isin(tissue, (ids.TISSUE_FAT, ids.TISSUE_SUBCUTANEOUS))]
    muscle = image[body & (tissue == ids.TISSUE_MUSCLE)]
    assert fat.size > 0.12 * (label_map > 0).sum()
    assert muscle.size > 0.06 * (label_map > 0).sum()
    assert -125 < np.median(fat) < -75
    assert 30 < np.median(muscle) < 80
    assert np.isin(label_map, ids.VERTEBRAE).sum() * GRID.voxel_ml > 60
    assert all(int(label) == 0 or MAISI.contains(int(label)) for label in np.unique(label_map))
    outside = np.isin(tissue, (ids.TISSUE_SUBCUTANEOUS, ids.TISSUE_SKIN)) & body
    depth = -signed_distance(label_map > 0, GRID.spacing_mm)
    assert np.median(depth[outside]) < np.median(depth[body & ~outside]) - 6


@pytest.mark.parametrize("label_set", LABEL_SETS)
@pytest.mark.parametrize("region", ["abdomen", "chest"])
def test_any_subset_of_labels_becomes_a_patient(label_set: LabelSet, region: Region) -> None:
    given = reduce_labels(patient(region).label_map, label_set, np.random.default_rng(6))
    before = given.copy()
    completed, tissue = complete_anatomy(given, seed=1, grid=GRID)
    np.testing.assert_array_equal(given, before)
    assert completed.dtype == tissue.dtype == np.dtype(np.uint8)
    assert completed.shape == tissue.shape == GRID.shape
    labelled = ~np.isin(given, (0, ids.BODY))
    np.testing.assert_array_equal(completed[labelled], given[labelled])
    np.testing.assert_array_equal(completed > 0, given > 0)
    require_patient(completed, tissue)


def test_liver_with_a_tumour_gets_its_neighbours_where_they_belong() -> None:
    full = patient().label_map
    given = keep(full, ids.LIVER)
    given[tuple(np.argwhere(given == ids.LIVER)[400])] = ids.HEPATIC_TUMOR
    completed, tissue = complete_anatomy(given, seed=1, grid=GRID)
    require_patient(completed, tissue)
    assert (completed == ids.HEPATIC_TUMOR).sum() == 1
    for organ in (ids.SPLEEN, ids.RIGHT_KIDNEY, ids.LEFT_KIDNEY, ids.STOMACH, ids.AORTA, ids.VERTEBRA_L5 + 4):
        away = np.linalg.norm(centre_mm(completed == organ) - centre_mm(full == organ))
        assert away < 45, (MAISI.name_of(organ), away)
    lungs = np.isin(completed, ids.LUNG_LOBES)
    assert centre_mm(lungs)[2] > centre_mm(completed == ids.LIVER)[2] + 30


def test_lungs_alone_get_ribs_around_and_a_heart_between_them() -> None:
    full = patient("chest").label_map
    completed, tissue = complete_anatomy(keep(full, *ids.LUNG_LOBES), seed=1, grid=GRID)
    require_patient(completed, tissue)
    heart, ribs = completed == ids.HEART, np.isin(completed, ids.RIBS)
    assert 200 < heart.sum() * GRID.voxel_ml < 1100
    assert ribs.sum() * GRID.voxel_ml > 100
    near = ndimage.distance_transform_edt(~np.isin(full, ids.LUNG_LOBES), sampling=GRID.spacing_mm)[ribs]
    assert np.median(near) < 20
    assert np.isin(np.unique(completed[np.isin(full, ids.LUNG_LOBES)]), ids.LUNG_LOBES).all()


def test_tissue_of_a_fully_labelled_map_agrees_with_its_phantom() -> None:
    anatomy = patient()
    completed, tissue = complete_anatomy(anatomy.label_map, seed=1, grid=GRID)
    both = (completed == ids.BODY) & (anatomy.label_map == ids.BODY)
    fatty = (ids.TISSUE_FAT, ids.TISSUE_SUBCUTANEOUS, ids.TISSUE_FASCIA)
    agrees = np.isin(tissue, fatty) == np.isin(anatomy.tissue, fatty)
    assert agrees[both].mean() > 0.80


def test_pulmonary_trunk_above_a_given_heart_is_a_vessel() -> None:
    full = patient("chest").label_map
    heart = np.argwhere(full == ids.HEART)
    above = np.arange(full.shape[2]) > np.quantile(heart[:, 2], 0.85)
    given = np.where((full == ids.HEART) & above, ids.BODY, full).astype(np.uint8)
    completed, tissue = complete_anatomy(given, seed=1, grid=GRID)
    cut = (full == ids.HEART) & (given == ids.BODY)
    assert (completed[cut] != ids.HEART).all()
    assert (tissue[cut & (completed == ids.BODY)] == ids.TISSUE_VESSEL).mean() > 0.3


def test_lesions_are_never_painted() -> None:
    completed, _ = complete_anatomy(keep(patient().label_map), seed=1, grid=GRID)
    assert not np.isin(completed, (*ids.TUMORS, ids.LEFT_KIDNEY_CYST, ids.RIGHT_KIDNEY_CYST)).any()


def test_same_seed_gives_the_same_anatomy_and_the_next_another() -> None:
    given = keep(patient().label_map, ids.SPLEEN)
    first, again, other = (complete_anatomy(given, seed=seed, grid=GRID) for seed in (8, 8, 9))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.01


def test_one_label_for_all_vertebrae_stands_for_them() -> None:
    full = patient().label_map
    given = np.where(np.isin(full, ids.VERTEBRAE), ids.VERTEBRA_L5 + 2, full).astype(np.uint8)
    completed, _ = complete_anatomy(given, seed=1, grid=GRID)
    assert set(np.unique(completed)) & set(ids.VERTEBRAE) == {ids.VERTEBRA_L5 + 2}


def test_missing_outline_is_built_around_the_labels() -> None:
    full = patient().label_map
    given = np.where(full == ids.BODY, 0, full).astype(np.uint8)
    assert not has_outline(given)
    assert has_outline(full)
    completed, tissue = complete_anatomy(given, seed=1, grid=GRID)
    np.testing.assert_array_equal(completed[given > 0], given[given > 0])
    overlap = 2 * ((completed > 0) & (full > 0)).sum() / ((completed > 0).sum() + (full > 0).sum())
    assert overlap > 0.85
    require_patient(completed, tissue)


@pytest.mark.parametrize("codes", ["LPS", "SAR", "ILP"])
def test_axes_may_run_in_any_direction(codes: str) -> None:
    given = keep(patient().label_map, ids.LIVER)
    turned, grid = turn_volume(given, GRID, codes)
    expected = complete_anatomy(given, seed=1, grid=GRID)
    found = complete_anatomy(np.ascontiguousarray(turned), seed=1, grid=grid)
    for volume, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(turn_volume(volume, grid, "RAS")[0], wanted)


def test_head_without_labels_of_its_own_is_muscle_below_fat() -> None:
    grid = Grid.from_spacing((40, 44, 40), (6.0, 6.0, 6.0))
    given = np.zeros(grid.shape, dtype=np.uint8)
    i, j, k = np.indices(grid.shape)
    given[np.hypot((i - 20) / 13, (j - 22) / 16) < 1] = ids.BODY
    given[(given == ids.BODY) & (k > 15) & (np.hypot((i - 20) / 9, (j - 22) / 11) < 1)] = ids.BRAIN
    with pytest.warns(MaisiAugWarning, match="much of its body lies above the neck or below the hips"):
        completed, tissue = complete_anatomy(given, seed=1, grid=grid)
    assert (completed[given == ids.BRAIN] == ids.BRAIN).all()
    assert not np.isin(completed, (ids.LIVER, ids.HEART, *ids.LUNG_LOBES)).any()
    rest = completed == ids.BODY
    assert np.isin(tissue[rest], (ids.TISSUE_MUSCLE, ids.TISSUE_FASCIA)).mean() > 0.3


def test_shoulders_and_neck_are_known_by_their_outline_and_the_spine_lies_around_the_given_cord() -> None:
    """A trunk with arms and a head that are cut off; the cord, its only label, goes on in the air and lies in front."""
    grid = Grid.from_spacing((100, 50, 60), (5.0, 5.0, 5.0))
    given = np.zeros(grid.shape, dtype=np.uint8)
    x, y, z = ((np.indices(grid.shape)[a] - 0.5 * (grid.shape[a] - 1)) * 5.0 for a in range(3))
    width = np.interp(z, [-150, -40, 0, 50, 90], [225, 215, 170, 70, 65])
    depth = np.interp(z, [-150, -40, 0, 50, 90], [115, 110, 95, 70, 85])
    inside = (np.abs(x) / width) ** 2.3 + (np.abs(y) / depth) ** 2.3 < 1
    given[inside & (z > -90) & (z < 90)] = ids.BODY
    given[(np.hypot(x, y + 35) < 6) & (z > -125) & (z < 90)] = ids.SPINAL_CORD
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaisiAugWarning)
        completed, _ = complete_anatomy(given, seed=1, grid=grid)
    lungs = np.flatnonzero(np.isin(completed, ids.LUNG_LOBES).any(axis=(0, 1)))
    assert len(lungs)
    assert -60 < z[0, 0, lungs.max()] < 50  # the apices: behind the collar bones, where the neck begins
    spine = np.isin(completed[:, :, z[0, 0] < 0], ids.VERTEBRAE)
    bones, cord = np.argwhere(spine), np.argwhere(given[:, :, z[0, 0] < 0] == ids.SPINAL_CORD)
    across_mm = np.abs(np.median(bones, axis=0) - np.median(cord, axis=0))[:2] * 5.0
    assert across_mm.max() < 12.0  # the cord is the middle of a vertebra with its processes


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (7, 9, 11), (1, 40, 40)])
@pytest.mark.parametrize("label", [ids.BODY, ids.LIVER])
def test_tiny_maps_and_maps_without_air_are_completed(shape: tuple[int, int, int], label: int) -> None:
    given = np.full(shape, ids.BODY, dtype=np.uint8)
    given.flat[0] = label
    completed, tissue = complete_anatomy(given, seed=1, grid=Grid.from_spacing(shape, (3.0, 4.0, 5.0)))
    assert completed.shape == tissue.shape == shape
    assert completed.flat[0] == label or label == ids.BODY
    assert (completed > 0).all()


def test_empty_map_and_another_shape_are_refused() -> None:
    with pytest.raises(GridError, match="found only 0"):
        complete_anatomy(np.zeros(GRID.shape, dtype=np.uint8), seed=1, grid=GRID)
    with pytest.raises(GridError, match=r"found \(4, 4, 4\)"):
        complete_anatomy(np.ones((4, 4, 4), dtype=np.uint8), seed=1, grid=GRID)


def test_fine_map_keeps_its_outline_and_its_labels_to_the_voxel() -> None:
    part = keep(patient().label_map, ids.LIVER)[24:62, 6:44, 12:34]
    fine = np.repeat(np.repeat(np.repeat(part, 4, axis=0), 4, axis=1), 4, axis=2)
    rim = (fine == ids.BODY) & ~ndimage.binary_erosion(fine > 0, border_value=1)
    fine[rim & (np.random.default_rng(5).random(fine.shape) < 0.3)] = 0  # as ragged as outlines of noisy CTs
    completed, _ = complete_anatomy(fine, seed=1, grid=Grid.from_spacing(fine.shape, (1.35, 1.35, 1.35)))
    np.testing.assert_array_equal(completed > 0, fine > 0)
    np.testing.assert_array_equal(completed[fine == ids.LIVER], ids.LIVER)
    assert np.isin(completed, ids.VERTEBRAE).any()


def test_lesion_between_the_voxels_that_a_fit_reads_is_not_lost() -> None:
    given = np.zeros((40, 36, 30), dtype=np.uint8)
    given[20, 18, 14] = ids.HEPATIC_TUMOR
    completed, _ = complete_anatomy(given, seed=1, grid=Grid.from_spacing(given.shape, (0.7, 0.7, 1.0)))
    assert completed[20, 18, 14] == ids.HEPATIC_TUMOR
    assert (completed > 0).mean() > 0.5


def test_reference_body_has_the_labels_of_the_phantoms() -> None:
    reference = reference_body()
    assert len(reference.surfaces) > 100
    assert reference_body() is reference


def load_example(folder: Path) -> tuple[LabelMap, NDArray[np.int16], Grid]:
    """A real CT and its labels, TotalSegmentator's, as MAISI's ids."""
    folder = folder / "totalsegmentator-example"
    found = load_label_map(folder / "example_seg_v1_104classes.nii.gz")
    table = np.zeros(256, dtype=np.uint8)
    for source, label in totalsegmentator_mapping("v1").items():
        table[int(source)] = label
    assert "1" in json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    image = np.asarray(load_image(folder / "example_ct.nii.gz").array, dtype=np.int16)
    label_map = add_body(table[np.asarray(found.array, dtype=int)], image, found.grid.spacing_mm)
    return label_map, image, found.grid


@pytest.mark.slow
@pytest.mark.parametrize(("label_set", "least"), [("all", 0.76), ("random", 0.70), ("coarse bones", 0.72)])
def test_real_map_gets_its_fat_where_the_ct_has_it(real_data: Path, label_set: LabelSet, least: float) -> None:
    label_map, image, grid = load_example(real_data)
    given = reduce_labels(label_map, label_set, np.random.default_rng(2))
    completed, tissue = complete_anatomy(given, seed=3, grid=grid)
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    fat = (smooth > -200) & (smooth < -40) & (given == ids.BODY)
    fatty = np.isin(tissue, (ids.TISSUE_FAT, ids.TISSUE_SUBCUTANEOUS, ids.TISSUE_FASCIA, ids.TISSUE_SKIN))
    assert (fatty & (completed == ids.BODY))[fat].mean() > least


@pytest.mark.slow
def test_map_of_the_networks_grid_takes_seconds() -> None:
    grid = Grid.from_spacing((128, 112, 80), (3.0, 3.0, 3.0))
    full = build_label_map(seed=3, grid=grid, region="abdomen").label_map
    reference_body()
    started = process_time()
    complete_anatomy(full, seed=1, grid=grid)
    assert process_time() - started < 12
