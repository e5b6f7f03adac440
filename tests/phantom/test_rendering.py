"""Rendered phantoms: the image obeys its label map, in organs and in tumours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import maisi_aug
from maisi_aug.errors import GridError, LesionError
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.phantom import PHASES, REGIONS, Phantom, Phase, Region, build_label_map, build_phantom, ids, render_hu
from maisi_aug.phantom.intensity import draw_appearance, draw_phase
from maisi_aug.phantom.rendering import guess_tissue
from maisi_aug.volumes.grid import Grid
from tests.builders.lesions import ask_for

COARSE = Grid.from_spacing((28, 24, 20), (14.5, 12.5, 13.0))
WINDOW = Grid.from_spacing((72, 54, 44), (5.6, 5.6, 5.6))
HU_RANGES = Path(maisi_aug.__file__).parent / "data" / "hu_ranges.json"
# Tumour, window, volume in mL, and where its median HU lies relative to its host (sign) or absolutely.
WISHES = (
    ask_for(ids.HEPATIC_TUMOR, (ids.LIVER,), 14.0),
    ask_for(ids.PANCREATIC_TUMOR, (ids.PANCREAS,), 9.0),
    ask_for(ids.KIDNEY_TUMOR, ids.KIDNEYS, 12.0),
    ask_for(ids.COLON_TUMOR, (ids.COLON,), 9.0),
    ask_for(ids.BONE_LESION, ids.VERTEBRAE, 7.0),
)


@cache
def phantom_with_tumors(seed: int) -> Phantom:
    return build_phantom(seed=seed, grid=WINDOW, region="abdomen", lesions=WISHES)


def median_hu(image: NDArray[np.int16], label_map: NDArray[np.uint8], labels: tuple[int, ...]) -> float:
    return float(np.median(image[np.isin(label_map, labels)]))


def test_same_seed_gives_same_image_and_next_seed_another() -> None:
    first, again, other = (build_phantom(seed=seed, grid=COARSE) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.image_hu, again.image_hu)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert first.lesions == again.lesions
    assert (first.image_hu != other.image_hu).any()


def test_image_is_int16_and_air_outside_the_body() -> None:
    phantom = build_phantom(seed=8, grid=COARSE, lesions=False)
    assert phantom.image_hu.dtype == np.int16
    assert phantom.image_hu.shape == COARSE.shape
    assert (phantom.image_hu[phantom.label_map == 0] == -1000).all()
    assert phantom.image_hu.min() >= -1000


def test_rendering_leaves_its_inputs_alone() -> None:
    anatomy = build_label_map(seed=8, grid=COARSE)
    label_map, tissue = anatomy.label_map.copy(), anatomy.tissue.copy()
    anatomy.label_map.setflags(write=False)
    anatomy.tissue.setflags(write=False)
    render_hu(anatomy.label_map, seed=8, grid=COARSE, tissue=anatomy.tissue)
    np.testing.assert_array_equal(anatomy.label_map, label_map)
    np.testing.assert_array_equal(anatomy.tissue, tissue)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("region", REGIONS)
def test_organ_medians_lie_in_the_reference_ranges(region: Region, phase: Phase) -> None:
    anatomy = build_label_map(seed=13, grid=WINDOW, region=region)
    image = render_hu(anatomy.label_map, seed=13, grid=WINDOW, phase=phase, tissue=anatomy.tissue)
    checked = 0
    for organ in json.loads(HU_RANGES.read_text(encoding="utf-8"))["organs"]:
        inside = np.isin(anatomy.label_map, organ["label_ids"])
        if inside.sum() < 30:
            continue
        checked += 1
        assert organ["low_hu"] < np.median(image[inside]) < organ["high_hu"], organ["name"]
    assert checked >= 1


def test_phase_is_drawn_from_the_seed_and_shows_in_the_aorta() -> None:
    label_map = build_label_map(seed=13, grid=COARSE, region="chest").label_map
    aorta = {}
    for phase in PHASES:
        image = render_hu(label_map, seed=13, grid=COARSE, phase=phase)
        aorta[phase] = median_hu(image, label_map, (ids.AORTA,))
    assert aorta["arterial"] > aorta["portal"] + 25 > aorta["delayed"] + 25 > aorta["non-contrast"] + 25
    assert {draw_phase(seed) for seed in range(60)} == set(PHASES)
    assert build_phantom(seed=3, grid=COARSE).phase == draw_phase(3)


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_wished_tumors_have_their_volume_and_sign(seed: int) -> None:
    phantom = phantom_with_tumors(seed)
    image, label_map = phantom.image_hu, phantom.label_map
    assert [lesion.label_id for lesion in phantom.lesions] == [wish.label_id for wish in WISHES]
    for wish in WISHES:
        (volume_ml,) = measure_lesions(label_map, wish.label_id, WINDOW.voxel_ml)
        assert volume_ml == pytest.approx(wish.requested_ml, abs=WINDOW.voxel_ml)
    for tumor in (ids.HEPATIC_TUMOR, ids.PANCREATIC_TUMOR, ids.KIDNEY_TUMOR, ids.BONE_LESION):
        host = median_hu(image, label_map, ids.TUMOR_HOSTS[tumor])
        assert median_hu(image, label_map, (tumor,)) < host - 12, tumor
    colon = median_hu(image, label_map, (ids.COLON,))
    assert median_hu(image, label_map, (ids.COLON_TUMOR,)) > colon + 30


def test_lung_tumor_is_soft_tissue_in_air() -> None:
    wish = ask_for(ids.LUNG_TUMOR, ids.LUNG_LOBES, 15.0)
    phantom = build_phantom(seed=31, grid=WINDOW, region="chest", lesions=[wish])
    assert -120 < median_hu(phantom.image_hu, phantom.label_map, (ids.LUNG_TUMOR,)) < 90
    assert median_hu(phantom.image_hu, phantom.label_map, ids.LUNG_LOBES) < -700


def test_drawn_lesions_are_reported_as_they_are() -> None:
    for seed in range(4):
        phantom = build_phantom(seed=seed, grid=WINDOW)
        planted = [lesion.label_id for lesion in phantom.lesions]
        assert 0 < len(planted) <= 4
        assert len(set(planted)) <= 3
        for tumor in ids.TUMORS:
            own = (lesion for lesion in phantom.lesions if lesion.label_id == tumor)
            volumes = sorted((lesion.realised_ml or 0.0 for lesion in own), reverse=True)
            assert measure_lesions(phantom.label_map, tumor, WINDOW.voxel_ml) == pytest.approx(volumes)


def test_phantom_without_lesions_is_its_anatomy() -> None:
    phantom = build_phantom(seed=9, grid=COARSE, lesions=False)
    assert phantom.lesions == ()
    np.testing.assert_array_equal(phantom.label_map, build_label_map(seed=9, grid=COARSE).label_map)


def test_wish_that_does_not_fit_is_refused() -> None:
    with pytest.raises(LesionError, match="900"):
        build_phantom(seed=9, grid=WINDOW, region="abdomen", lesions=[ask_for(ids.PANCREATIC_TUMOR, (4,), 900.0)])


def test_tissue_can_be_guessed_from_the_labels() -> None:
    anatomy = build_label_map(seed=14, grid=WINDOW, region="abdomen")
    guessed = guess_tissue(anatomy.label_map, WINDOW.spacing_mm)
    body = anatomy.label_map == ids.BODY
    is_muscle = anatomy.tissue == ids.TISSUE_MUSCLE
    assert np.mean((guessed == ids.TISSUE_MUSCLE)[body] == is_muscle[body]) > 0.6
    image = render_hu(anatomy.label_map, seed=14, grid=WINDOW)
    assert -130 < median_hu(image, anatomy.label_map, (ids.BODY,)) < 70


def test_map_of_another_shape_is_refused() -> None:
    with pytest.raises(GridError, match=r"found \(4, 4, 4\)"):
        render_hu(np.zeros((4, 4, 4), dtype=np.uint8), seed=1, grid=COARSE)


def test_foreign_labels_and_empty_maps_render() -> None:
    label_map = np.zeros(COARSE.shape, dtype=np.uint8)
    assert (render_hu(label_map, seed=1, grid=COARSE) == -1000).all()
    label_map[4:24, 4:20] = 200
    label_map[10:14, 8:12, 5:9] = 22
    image = render_hu(label_map, seed=1, grid=COARSE)
    assert 0 < median_hu(image, label_map, (22,)) < 120


def test_one_dose_scales_the_enhancement_of_all_organs() -> None:
    """Patients who enhance more do so in the aorta, the portal vein and the spleen alike."""
    plain = draw_appearance(0, "non-contrast").hu
    drawn = np.array([draw_appearance(seed, "portal").hu - plain for seed in range(60)])
    for organ in (ids.PORTAL_AND_SPLENIC_VEIN, ids.SPLEEN, ids.KIDNEY_MEDULLA):
        assert np.corrcoef(drawn[:, ids.AORTA], drawn[:, organ])[0, 1] > 0.4, organ


def test_compact_bone_of_the_femur_is_denser_than_that_of_vertebrae() -> None:
    grid = Grid.from_spacing((128, 90, 40), (3.0, 3.0, 3.0))
    phantom = build_phantom(seed=5, grid=grid, region="pelvis", lesions=False)
    cortex = np.isin(phantom.detail, ids.CORTICES)
    femur = phantom.image_hu[cortex & np.isin(phantom.label_map, (ids.LEFT_FEMUR, ids.RIGHT_FEMUR))]
    spine = phantom.image_hu[cortex & np.isin(phantom.label_map, (*ids.VERTEBRAE, ids.SACRUM))]
    assert 700 < np.percentile(femur, 95) < 1300
    assert 180 < np.median(spine) < np.median(femur) - 100
