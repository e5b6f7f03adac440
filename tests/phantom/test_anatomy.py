"""Phantom anatomies: deterministic, within the vocabulary, arranged as in a person, of plausible volumes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError
from maisi_aug.phantom import REGIONS, AnatomyMap, Region, build_label_map, ids, region_for
from maisi_aug.phantom.habitus import VARIETIES
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid

COARSE = Grid.from_spacing((28, 24, 20), (14.5, 12.5, 13.0))
WINDOW = Grid.from_spacing((64, 48, 40), (6.4, 6.4, 6.4))
TORSO = Grid.from_spacing((80, 58, 132), (5.2, 5.2, 5.2))
SEEDS = (3, 11)
VOLUMES_ML = {
    "liver": (900, 2100),
    "spleen": (90, 380),
    "pancreas": (45, 135),
    "right kidney": (100, 260),
    "left kidney": (95, 260),
    "stomach": (130, 750),
    "heart": (330, 900),
    "bladder": (80, 560),
    "aorta": (130, 450),
    "colon": (400, 1600),
    "small bowel": (600, 1700),
}


@cache
def torso(seed: int) -> AnatomyMap:
    return build_label_map(seed=seed, grid=TORSO, region="abdomen")


@cache
def window(seed: int, region: Region) -> AnatomyMap:
    return build_label_map(seed=seed, grid=WINDOW, region=region)


def centre_mm(label_map: NDArray[np.uint8], label: str, grid: Grid) -> NDArray[np.float64]:
    """Centre of mass in millimetres along R, A, S; a missing label fails the test."""
    places = np.argwhere(label_map == MAISI.id_of(label))
    assert len(places) > 0, label
    middle: NDArray[np.float64] = places.mean(axis=0) * np.asarray(grid.spacing_mm)
    return middle


def test_same_seed_gives_same_map_and_next_seed_another() -> None:
    first = build_label_map(seed=5, grid=COARSE)
    again = build_label_map(seed=5, grid=COARSE)
    other = build_label_map(seed=6, grid=COARSE)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    np.testing.assert_array_equal(first.tissue, again.tissue)
    assert (first.label_map != other.label_map).any()


@pytest.mark.parametrize("region", REGIONS)
def test_map_keeps_the_grid_and_the_vocabulary(region: Region) -> None:
    anatomy = build_label_map(seed=2, grid=COARSE, region=region)
    assert anatomy.label_map.shape == anatomy.tissue.shape == COARSE.shape
    assert anatomy.label_map.dtype == np.uint8
    assert anatomy.region == region
    assert all(int(label) == 0 or MAISI.contains(int(label)) for label in np.unique(anatomy.label_map))


def test_map_holds_no_tumor() -> None:
    for region in REGIONS:
        assert not np.isin(window(SEEDS[0], region).label_map, ids.TUMORS).any()


def test_three_windows_show_at_least_90_labels() -> None:
    shown = {int(label) for region in REGIONS for label in np.unique(window(SEEDS[0], region).label_map)} - {0}
    assert len(shown) >= 90
    assert all(np.unique(window(SEEDS[0], region).label_map).size > 28 for region in REGIONS)


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_have_adult_volumes(seed: int) -> None:
    counts_ml = np.bincount(torso(seed).label_map.ravel(), minlength=256) * TORSO.voxel_ml
    found = {name: float(counts_ml[MAISI.id_of(name)]) for name in VOLUMES_ML}
    wrong = {name: ml for name, ml in found.items() if not VOLUMES_ML[name][0] <= ml <= VOLUMES_ML[name][1]}
    assert wrong == {}
    assert 2300 <= counts_ml[list(ids.LUNG_LOBES)].sum() <= 7000


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_lie_on_their_side_and_level(seed: int) -> None:
    label_map = torso(seed).label_map
    at = {
        name: centre_mm(label_map, name, TORSO)
        for name in (
            *("liver", "spleen", "stomach", "left kidney", "right kidney", "heart", "bladder", "gallbladder", "aorta"),
            *("inferior vena cava", "vertebrae L3", "vertebrae T5", "left hip", "right hip", "sternum", "sacrum"),
            *("left lung upper lobe", "left lung lower lobe", "right lung upper lobe", "right lung lower lobe"),
            *("left rib 6", "right rib 6", "pancreas", "trachea", "esophagus"),
        )
    }
    right, front, up = 0, 1, 2
    spine = at["vertebrae L3"]
    assert at["liver"][right] > spine[right] + 20 > at["stomach"][right] + 20
    assert at["spleen"][right] < spine[right] - 50
    assert at["gallbladder"][right] > spine[right]
    assert at["right kidney"][right] > spine[right] > at["left kidney"][right]
    assert at["inferior vena cava"][right] > at["aorta"][right]
    assert at["right hip"][right] > at["left hip"][right]
    assert at["right rib 6"][right] > at["left rib 6"][right]
    assert at["heart"][right] < at["sternum"][right]
    assert at["sternum"][front] > at["heart"][front] > at["vertebrae T5"][front]
    assert at["trachea"][front] > at["esophagus"][front]
    assert at["bladder"][front] > at["sacrum"][front]
    assert at["left lung upper lobe"][up] > at["left lung lower lobe"][up]
    assert at["right lung upper lobe"][up] > at["right lung lower lobe"][up]
    assert at["heart"][up] > at["liver"][up] > at["pancreas"][up] > at["bladder"][up]


def test_numbered_vertebrae_and_ribs_follow_in_order() -> None:
    label_map = torso(SEEDS[0]).label_map
    heights = [np.argwhere(label_map == label)[:, 2].mean() for label in range(ids.VERTEBRA_L5, ids.VERTEBRA_C7)]
    assert (np.diff(heights) > 0).all()
    for first in (ids.LEFT_RIB_1, ids.RIGHT_RIB_1):
        tops = [np.argwhere(label_map == first + number)[:, 2].max() for number in range(12)]
        assert (np.diff(tops) < 0).all()


@pytest.mark.parametrize("region", REGIONS)
def test_body_encloses_every_organ_and_has_no_holes(region: Region) -> None:
    label_map = window(SEEDS[0], region).label_map
    inside = label_map > 0
    assert ndimage.label(~inside)[1] == 1
    assert ndimage.label(inside)[1] == 1
    organs = inside & (label_map != ids.BODY)
    # In every slice that is not cut by the grid a layer of body separates the organs from the air.
    grown = np.stack([ndimage.binary_dilation(organs[:, :, k]) for k in range(organs.shape[2])], axis=2)
    assert np.mean(label_map[grown] == 0) < 2e-3


def test_patient_fits_the_default_field_of_view() -> None:
    grid = Grid.from_spacing((32, 24, 20), (12.8, 12.8, 12.8))
    for seed in range(6):
        inside = build_label_map(seed=seed, grid=grid).label_map > 0
        assert not inside[[0, -1]].any()
        assert not inside[:, [0, -1]].any()


@pytest.mark.parametrize("shape", [(7, 9, 11), (1, 5, 3)])
def test_any_shape_and_spacing_works(shape: tuple[int, int, int]) -> None:
    anatomy = build_label_map(seed=1, grid=Grid.from_spacing(shape, (31.0, 17.0, 40.0)))
    assert anatomy.label_map.shape == shape


def test_unknown_region_is_refused() -> None:
    with pytest.raises(GridError, match="found 'head'"):
        build_label_map(seed=1, grid=COARSE, region="head")  # type: ignore[arg-type]


def test_regions_show_what_they_are_chosen_for() -> None:
    wanted = {"chest": "lung tumor", "abdomen": "hepatic tumor", "pelvis": "bladder"}
    assert {region: region_for(MAISI.id_of(name)) for region, name in wanted.items()} == {r: r for r in wanted}
    for region in REGIONS:
        shown = np.unique(window(SEEDS[0], region).label_map)
        hosts = [
            label for label in (*ids.LUNG_LOBES, ids.LIVER, ids.PANCREAS, ids.BLADDER) if region_for(label) == region
        ]
        assert np.isin(hosts, shown).all()


def test_any_variety_spans_slight_to_obese_patients_and_their_shares_of_air() -> None:
    assert VARIETIES == ("fitting", "any")
    grid = Grid.from_spacing((32, 28, 12), (12.0, 12.0, 20.0))
    shares = [
        float(np.mean(build_label_map(seed=seed, grid=grid, region="abdomen", variety="any").label_map == 0))
        for seed in range(12)
    ]
    assert min(shares) < 0.30
    assert max(shares) > 0.58


def test_unknown_variety_is_refused() -> None:
    with pytest.raises(GridError, match="'huge'"):
        build_label_map(seed=1, grid=Grid.from_spacing((8, 8, 8), (40.0, 40.0, 40.0)), variety="huge")  # type: ignore[arg-type]


def test_muscles_are_parted_by_fascia() -> None:
    """The wall of the trunk is not one block of muscle: thin fat parts its layers and bellies."""
    grid = Grid.from_spacing((128, 112, 40), (3.0, 3.0, 3.0))
    for region in REGIONS:
        anatomy = build_label_map(seed=4, grid=grid, region=region)
        body = anatomy.label_map == ids.BODY
        muscle, fascia = (int((body & (anatomy.tissue == t)).sum()) for t in (ids.TISSUE_MUSCLE, ids.TISSUE_FASCIA))
        assert 0.03 * muscle < fascia < 0.5 * muscle, region
