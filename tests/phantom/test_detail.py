"""Detail maps: hidden structure under ids that the vocabulary leaves free, labels and lesions kept."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import GridError
from maisi_aug.phantom import Phantom, build_label_map, build_phantom, draw_detail, ids, render_hu
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid
from tests.builders.lesions import ask_for

REGIONS = ("chest", "abdomen", "pelvis")
GRID = Grid.from_spacing((96, 84, 60), (4.0, 4.0, 4.0))
ANISOTROPIC = Grid.from_spacing((70, 56, 30), (5.0, 5.5, 8.0))
LUMEN = (ids.GUT_GAS, ids.GUT_FLUID, ids.STOOL, ids.STOOL_GAS, ids.DENSE_STOOL, ids.ORAL_CONTRAST)
GUT = (ids.ESOPHAGUS, ids.STOMACH, ids.DUODENUM, ids.SMALL_BOWEL, ids.COLON)
# Id of the detail map -> labels that it may replace.
PLACES = {
    ids.KIDNEY_MEDULLA: ids.KIDNEYS,
    ids.LEFT_BLOOD_POOL: (ids.HEART,),
    ids.RIGHT_BLOOD_POOL: (ids.HEART,),
    **dict.fromkeys(ids.CORTICES, ids.BONES),
    ids.FAT_STRAND: (ids.BODY,),
    ids.MUSCLE_STREAK: (*ids.MUSCLES, ids.BODY),
    ids.LUNG_VESSEL: ids.LUNG_LOBES,
    ids.LUNG_LINE: ids.LUNG_LOBES,
    **dict.fromkeys(LUMEN, GUT),
    **{ids.DETAIL_TISSUE + tissue: (ids.BODY,) for tissue in ids.TISSUES},
}


@cache
def phantom_of(seed: int, region: str) -> Phantom:
    return build_phantom(seed=seed, grid=GRID, region=region, lesions=False)  # type: ignore[arg-type]


def test_no_id_of_detail_maps_is_a_label_of_the_vocabulary() -> None:
    assert set(PLACES) == set(ids.DETAIL_IDS)
    assert len(set(ids.DETAIL_IDS)) == len(ids.DETAIL_IDS)
    assert not {label.id for label in FULL_VOCABULARY.labels} & set(ids.DETAIL_IDS)


@pytest.mark.parametrize("region", REGIONS)
def test_detail_replaces_only_what_hides_it(region: str) -> None:
    phantom = phantom_of(5, region)
    changed = phantom.detail != phantom.label_map
    for number in np.unique(phantom.detail[changed]):
        hidden = np.unique(phantom.label_map[changed & (phantom.detail == number)])
        assert set(hidden) <= set(PLACES[int(number)]), number
    assert not (phantom.detail == ids.BODY).any()  # every voxel of the body is some tissue


def test_all_kinds_of_structure_are_drawn() -> None:
    found = {int(number) for region in REGIONS for number in np.unique(phantom_of(5, region).detail)}
    assert set(ids.DETAIL_IDS) - found <= {ids.GUT_FLUID, ids.ORAL_CONTRAST}  # a patient drank one of them


def test_detail_map_depends_on_seed_alone_and_leaves_its_inputs_alone() -> None:
    anatomy = build_label_map(seed=3, grid=ANISOTROPIC, region="abdomen")
    label_map, tissue = anatomy.label_map.copy(), anatomy.tissue.copy()
    first = draw_detail(label_map, tissue, seed=3, grid=ANISOTROPIC)
    np.testing.assert_array_equal(first, draw_detail(label_map, tissue, seed=3, grid=ANISOTROPIC))
    assert (first != draw_detail(label_map, tissue, seed=4, grid=ANISOTROPIC)).any()
    np.testing.assert_array_equal(label_map, anatomy.label_map)
    np.testing.assert_array_equal(tissue, anatomy.tissue)


def test_lesions_keep_their_voxels() -> None:
    wishes = (ask_for(ids.HEPATIC_TUMOR, (ids.LIVER,), 20.0), ask_for(ids.BONE_LESION, ids.VERTEBRAE, 8.0))
    phantom = build_phantom(seed=6, grid=GRID, region="abdomen", lesions=wishes)
    for tumor in ids.TUMORS:
        np.testing.assert_array_equal(phantom.detail == tumor, phantom.label_map == tumor)
    drawn = draw_detail(phantom.label_map, phantom.tissue, seed=6, grid=GRID)
    np.testing.assert_array_equal(drawn, phantom.detail)


def test_image_obeys_the_detail_map() -> None:
    """Structure that labels do not show has its own HU; order and rough values as in a CT."""
    image, detail = phantom_of(5, "abdomen").image_hu, phantom_of(5, "abdomen").detail

    def hu(number: int) -> float:
        return float(np.median(image[inner_part(detail == number)]))

    assert -125 < hu(ids.SUBCUTANEOUS_FAT) < -85
    assert -125 < hu(ids.VISCERAL_FAT) < -70
    assert 35 < hu(ids.UNLABELLED_MUSCLE) < 80
    assert hu(ids.GUT_GAS) < -700
    assert float(np.percentile(image[np.isin(detail, ids.CORTICES)], 90)) > 350


def inner_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask that the scanner's blur does not mix with others; all of them where the mask is thin."""
    inner = ndimage.binary_erosion(mask)
    return inner if inner.sum() > 20 else mask


def test_gas_lies_in_front_and_ends_at_level_surfaces() -> None:
    fluid_and_gas = np.zeros(GRID.shape, dtype=np.uint8)
    fluid_and_gas[10:86, 10:74] = ids.BODY
    fluid_and_gas[30:60, 30:60, 20:40] = ids.STOMACH
    tissue = np.zeros(GRID.shape, dtype=np.uint8)
    with_gas = 0
    for seed in range(4):
        detail = draw_detail(fluid_and_gas, tissue, seed=seed, grid=GRID)
        gas = np.argwhere(detail == ids.GUT_GAS)
        rest = np.argwhere(np.isin(detail, LUMEN[1:]))
        assert len(rest)
        if len(gas):
            with_gas += 1
            assert gas[:, 1].min() > rest[:, 1].max()  # axis J runs to the front of a supine patient
    assert with_gas >= 2


@pytest.mark.parametrize(("spacing_mm", "deep"), [(3.0, 1), (1.5, 1), (1.0, 2), (8.0, 0)])
def test_cortex_is_about_two_millimetres_thick(spacing_mm: float, deep: int) -> None:
    grid = Grid.from_spacing((24, 24, 24), (spacing_mm,) * 3)
    label_map = np.full(grid.shape, ids.BODY, dtype=np.uint8)
    label_map[6:18, 6:18, 6:18] = ids.LEFT_HIP
    detail = draw_detail(label_map, np.zeros(grid.shape, dtype=np.uint8), seed=1, grid=grid)
    assert int((np.isin(detail[12, 12, 6:12], ids.CORTICES)).sum()) == deep


def test_maps_of_another_shape_are_refused() -> None:
    whole, part = np.zeros(GRID.shape, dtype=np.uint8), np.zeros((4, 4, 4), dtype=np.uint8)
    with pytest.raises(GridError, match=r"Label map.*found \(4, 4, 4\)"):
        draw_detail(part, whole, seed=1, grid=GRID)
    with pytest.raises(GridError, match=r"Tissue map.*found \(4, 4, 4\)"):
        draw_detail(whole, part, seed=1, grid=GRID)


def test_map_without_patient_stays_empty() -> None:
    empty = np.zeros(GRID.shape, dtype=np.uint8)
    assert not draw_detail(empty, empty, seed=1, grid=GRID).any()
    assert (render_hu(empty, seed=1, grid=GRID) == -1000).all()
