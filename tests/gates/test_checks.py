"""Gates pass what is right, fail what is wrong, say by how much, and never raise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.cohort.request import GateConfig
from maisi_aug.gates.checks import (
    Verdict,
    check_geometry,
    check_hu_bias,
    check_label_visibility,
    check_lesion_size,
    check_lesion_visibility,
    check_organ_hu,
    check_patient,
    check_presence,
    measure_patient,
)
from maisi_aug.gates.judgement import judge_bare_image
from maisi_aug.vocabulary.hu import HuRange, bundle_hu_ranges, expected_contrast_sign, reference_hu_ranges
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image
from tests.builders.liver_case import GRID, SPACING_MM, build_case

BODY_GRID = Grid.from_spacing((48, 40, 20), (7.0, 7.5, 9.0))


def test_geometry_passes_only_on_the_expected_grid_with_a_real_image() -> None:
    image, label_map = build_case()
    assert check_geometry(image, label_map, GRID, GRID).passed
    other = Grid.from_spacing(GRID.shape, (2.0, 2.2, 3.0))
    broken = image.astype(np.float32)
    broken[0, 0, 0] = np.nan
    wild = image.copy()
    wild[0, 0, 0] = 20_000
    for verdict, reason in (
        (check_geometry(image, label_map, other, GRID), "another grid than expected"),
        (check_geometry(image[:-1], label_map, GRID, GRID), "shapes that are not the expected one"),
        (check_geometry(image, label_map[:-1], GRID, GRID), "shapes that are not the expected one"),
        (check_geometry(broken, label_map, GRID, GRID), "1 values that are not finite"),
        (check_geometry(np.zeros_like(image), label_map, GRID, GRID), "an image without any structure"),
        (check_geometry(wild, label_map, GRID, GRID), "20000 HU"),
        (check_geometry(np.full(GRID.shape, np.nan), label_map, GRID, GRID), "not finite"),
    ):
        assert not verdict.passed
        assert reason in verdict.message


def test_presence_names_what_is_missing() -> None:
    _, label_map = build_case()
    assert check_presence(label_map, (1, 26)).passed
    verdict = check_presence(label_map, (1, 26, 5))
    assert not verdict.passed
    assert verdict.figures["missing_ids"] == [5]
    assert "0 voxels of right kidney" in verdict.message


def test_presence_names_slots_as_the_bundle_does_and_never_raises() -> None:
    _, label_map = build_case()
    bound = MAISI.with_slots({"kidney tumor": SlotBinding(129, (5, 14))})
    message = check_presence(label_map, (129, 250), vocabulary=bound).message
    assert message == "Presence: found 0 voxels of kidney tumor; 0 voxels of label 250."


@pytest.mark.parametrize(
    ("requested_ml", "realised_ml", "passed"),
    [
        (10.0, 11.0, True),
        (10.0, 8.9, False),
        (0.27, 0.27 + 2 * 0.0328, True),
        (0.27, 0.27 + 3 * 0.0328, False),
        ((1.0, 5.0), (5.2, 0.95), True),
        ((1.0, 5.0), (5.2,), False),
        ((1.0,), (1.0, 0.03), False),
        (1.0, float("nan"), False),
        ((), (), True),
    ],
)
def test_lesion_size_allows_ten_percent_or_two_voxels(requested_ml: Any, realised_ml: Any, passed: bool) -> None:
    verdict = check_lesion_size(requested_ml, realised_ml, 0.0328)
    assert verdict.passed is passed
    assert (verdict.message.startswith("Lesion size: found")) is not passed


def test_reference_ranges_follow_their_rule() -> None:
    ranges = {bounds.name: bounds for bounds in reference_hu_ranges()}
    assert sorted(ranges) == ["bone", "brain", "kidney", "liver", "lung", "pancreas", "spleen"]
    assert ranges["lung"].label_ids == (28, 29, 30, 31, 32)
    assert ranges["bone"].high_hu == 1000.0
    assert len(ranges["bone"].label_ids) == 24 + 35 + 3
    assert (ranges["liver"].low_hu, ranges["liver"].high_hu) == (-21.6, 162.0)
    assert all(bounds.low_hu < bounds.high_hu for bounds in ranges.values())
    assert [bounds.name for bounds in ranges["kidney"].split()] == ["right kidney", "left kidney"]
    assert all(MAISI.contains(label_id) for bounds in ranges.values() for label_id in bounds.label_ids)


def test_organ_hu_judges_organs_that_are_large_enough() -> None:
    image, label_map = build_case()
    verdict = check_organ_hu(image, label_map)
    assert verdict.passed
    assert verdict.figures["num_judged"] == 1
    assert verdict.figures["organs"][0]["median_hu"] == pytest.approx(110, abs=2)

    label_map[0:3, 0:3, 0:3] = 3  # 27 voxels of fat called spleen: reported, not judged
    verdict = check_organ_hu(image, label_map)
    assert verdict.passed
    spleen = verdict.figures["organs"][1]
    assert (spleen["organ"], spleen["judged"], spleen["inside"]) == ("spleen", False, False)

    label_map[0:4, 0:4, 0:4] = 32  # the lobe that is easily forgotten
    verdict = check_organ_hu(image, label_map)
    assert not verdict.passed
    assert "lung at -90 HU outside -1089 to -367" in verdict.message


def test_organ_hu_takes_further_ranges() -> None:
    image, label_map = build_case(contrast_hu=-40.0)
    tumor = HuRange("hepatic tumor", (26,), 0.0, 60.0)
    verdict = check_organ_hu(image, label_map, (*reference_hu_ranges(), tumor))
    assert not verdict.passed
    assert "hepatic tumor at 70 HU outside 0 to 60" in verdict.message


def test_nothing_raises_on_a_bad_case() -> None:
    image, label_map = build_case()
    verdicts = [
        check_organ_hu(image[:-1], label_map),
        check_organ_hu(np.full(GRID.shape, np.nan), label_map),
    ]
    assert not any(verdict.passed for verdict in verdicts)
    json.dumps([verdict.to_dict() for verdict in verdicts], allow_nan=False)


def test_verdicts_convert_to_json() -> None:
    image, label_map = build_case()
    verdicts = [
        check_geometry(image, label_map, GRID, GRID),
        check_presence(label_map, np.array([1, 26]).tolist()),
        check_lesion_size(1.0, float("inf"), 0.03),
        check_organ_hu(image, label_map),
        Verdict("presence", True, {"numbers": (np.int64(3), np.float32(0.5), np.bool_(True))}),
    ]
    for verdict in verdicts:
        plain = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
        assert plain["gate"] == verdict.gate
        assert plain["passed"] is verdict.passed
    assert verdicts[2].to_dict()["figures"]["realised_ml"] == [None]
    assert verdicts[-1].to_dict()["figures"]["numbers"] == [3, 0.5, True]


def test_every_tumor_has_an_expected_contrast() -> None:
    signs = {name: expected_contrast_sign(name) for name in map(MAISI.name_of, MAISI.tumor_ids)}
    assert signs["lung tumor"] == signs["colon cancer primaries"] == 1
    assert signs["hepatic tumor"] == signs["pancreatic tumor"] == signs["bone lesion"] == -1
    assert expected_contrast_sign("kidney tumor") == -1
    assert expected_contrast_sign("something else") == 0


def paint(shift_hu: float, bundle: str = "") -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[HuRange, ...]]:
    """Blocks of organs at their usual HU plus a shift."""
    ranges = bundle_hu_ranges(bundle)
    label_map = np.zeros((len(ranges) * 6, 8, 6), dtype=np.uint8)
    image = np.full(label_map.shape, -1000, dtype=np.int16)
    for place, bounds in enumerate(ranges):
        block = slice(place * 6, place * 6 + 5)
        assert bounds.median_hu is not None
        label_map[block], image[block] = bounds.label_ids[0], round(bounds.median_hu + shift_hu)
    return image, label_map, ranges


@pytest.mark.parametrize("bundle", ["", "phantom-ct"])
@pytest.mark.parametrize(
    ("shift_hu", "passed"), [(-60, False), (-50, False), (-40, False), (-20, True), (0, True), (45, True), (80, False)]
)
def test_bias_over_all_organs_is_told_and_a_dark_case_fails(bundle: str, shift_hu: int, passed: bool) -> None:
    image, label_map, ranges = paint(shift_hu, bundle)
    organs = check_organ_hu(image, label_map, ranges)
    verdict = check_hu_bias(organs, ranges, max_dark_hu=38.0, max_bright_hu=60.0)
    assert verdict.passed is passed
    assert verdict.figures["bias_hu"] == pytest.approx(shift_hu, abs=1)
    assert verdict.figures["num_organs"] == len(ranges)
    assert ("HU bias: found organs" in verdict.message) is not passed


def test_many_bones_count_as_one_organ_of_the_bias() -> None:
    image, label_map, ranges = paint(-50)
    singles = tuple(single for bounds in ranges for single in bounds.split())
    bones = np.zeros((60, 8, 6), dtype=np.uint8)
    for place in range(10):
        bones[place * 6 : place * 6 + 5] = 33 + place
    label_map = np.concatenate([label_map, bones])
    image = np.concatenate([image, np.where(bones, 272, -1000).astype(np.int16)])
    verdict = check_hu_bias(check_organ_hu(image, label_map, singles), singles, max_dark_hu=38.0, max_bright_hu=60.0)
    assert not verdict.passed
    assert verdict.figures["deviations_hu"]["bone"] == pytest.approx(0, abs=1)


def test_bias_of_one_organ_is_told_and_not_judged() -> None:
    image, label_map = build_case()
    ranges = reference_hu_ranges()
    verdict = check_hu_bias(check_organ_hu(image - 60, label_map), ranges, max_dark_hu=5.0, max_bright_hu=5.0)
    assert verdict.passed
    assert "not judged" in verdict.message


def check_liver_lesion(
    image: NDArray[Any], label_map: NDArray[np.uint8], sign: int = -1, tumor_ids: Sequence[int] = MAISI.tumor_ids
) -> Verdict:
    return check_lesion_visibility(
        image,
        label_map,
        label_map == 26,
        host_ids=(1,),
        tumor_ids=tumor_ids,
        expected_sign=sign,
        spacing_mm=SPACING_MM,
    )


def test_visible_lesion_passes_with_its_figures() -> None:
    image, label_map = build_case(contrast_hu=-40.0, noise_hu=12.0)
    verdict = check_liver_lesion(image, label_map)
    assert verdict.passed
    assert verdict.figures["contrast_hu"] == pytest.approx(-40, abs=3)
    assert verdict.figures["noise_hu"] == pytest.approx(12, abs=2)
    assert verdict.figures["diameter_mm"] == pytest.approx(20, abs=0.7)
    assert verdict.figures["surroundings"] == "host"


def test_lesion_of_the_wrong_sign_or_hidden_in_noise_fails() -> None:
    assert not check_liver_lesion(*build_case(contrast_hu=40.0)).passed
    assert check_liver_lesion(*build_case(contrast_hu=40.0), sign=1).passed
    assert check_liver_lesion(*build_case(contrast_hu=40.0), sign=0).passed
    hidden = check_liver_lesion(*build_case(contrast_hu=-15.0, noise_hu=30.0))
    assert not hidden.passed
    assert hidden.figures["right_sign"]
    assert not check_liver_lesion(*build_case(contrast_hu=0.0, noise_hu=0.0), sign=0).passed


def test_small_lesion_is_judged_on_its_sign_alone() -> None:
    verdict = check_liver_lesion(*build_case(contrast_hu=-20.0, noise_hu=30.0, diameter_mm=8.0))
    assert verdict.figures["cnr"] < 1.0
    assert verdict.figures["judged_on_sign_alone"]
    assert verdict.passed
    assert not check_liver_lesion(*build_case(contrast_hu=60.0, noise_hu=10.0, diameter_mm=8.0)).passed


def test_trend_across_the_host_is_not_noise() -> None:
    image, label_map = build_case(contrast_hu=-40.0, noise_hu=8.0, trend_hu=10.0)
    verdict = check_liver_lesion(image, label_map)
    assert verdict.figures["noise_hu"] == pytest.approx(8, abs=2)
    assert verdict.passed


@pytest.mark.parametrize("contrast_hu", [-40.0, 40.0])
def test_lesion_without_enough_host_is_compared_with_body_in_either_direction(contrast_hu: float) -> None:
    image, label_map = build_case(contrast_hu=contrast_hu)
    label_map[label_map == 1] = 200
    label_map[0, 0, 0] = 1
    verdict = check_liver_lesion(image, label_map)
    assert verdict.figures["surroundings"] == "body"
    assert verdict.passed
    hidden = check_liver_lesion(build_case(contrast_hu=contrast_hu / 10)[0], label_map)
    assert not hidden.passed
    assert "expected a lesion brighter or darker than its body by 1 x 10 HU of noise" in hidden.message


@pytest.mark.parametrize("label_id", [26, 129])
def test_neighbouring_lesions_are_no_host_and_are_judged_one_by_one(label_id: int) -> None:
    image, label_map = build_case(contrast_hu=-40.0, diameter_mm=14.0)
    label_map[22:25, 20:23, 24:28] = 26
    image[22:25, 20:23, 24:28] = 300
    label_map[label_map == 26] = label_id
    for hosts, surroundings, passed in (((1,), "host", [True, False]), ((250,), "body", [True, True])):
        verdicts = check_label_visibility(
            image,
            label_map,
            label_id,
            host_ids=hosts,
            tumor_ids=(*MAISI.tumor_ids, 129),
            expected_sign=-1,
            spacing_mm=SPACING_MM,
        )
        assert [verdict.passed for verdict in verdicts] == passed
        assert verdicts[0].figures["host_hu"] == pytest.approx(110, abs=3)
        assert verdicts[0].figures["surroundings"] == surroundings


def test_label_without_a_lesion_has_no_verdict() -> None:
    image, label_map = build_case()
    verdicts = check_label_visibility(
        image, label_map, 23, host_ids=(28,), tumor_ids=(23,), expected_sign=1, spacing_mm=SPACING_MM
    )
    assert verdicts == ()


def test_tumour_of_a_bound_slot_is_no_body_to_compare_with() -> None:
    image, label_map = build_case(contrast_hu=-40.0)
    label_map[label_map == 1] = 200
    label_map[:, 22:] = np.where(label_map[:, 22:] == 200, 129, label_map[:, 22:])
    image[label_map == 129] = 400
    bound = check_liver_lesion(image, label_map, tumor_ids=(*MAISI.tumor_ids, 129))
    assert bound.figures["surroundings"] == "body"
    assert bound.figures["host_hu"] == pytest.approx(110, abs=3)
    unbound = check_liver_lesion(image, label_map)
    assert unbound.figures["num_surrounding_voxels"] > 1.5 * bound.figures["num_surrounding_voxels"]


def test_visibility_raises_on_no_bad_case() -> None:
    image, label_map = build_case()
    floating = image.astype(np.float32)
    floating[20:24] = np.nan
    verdicts = [
        check_lesion_visibility(
            image[:-1],
            label_map,
            label_map == 26,
            host_ids=(1,),
            tumor_ids=(26,),
            expected_sign=-1,
            spacing_mm=SPACING_MM,
        ),
        check_liver_lesion(image, np.zeros_like(label_map)),
        check_liver_lesion(image, np.full_like(label_map, 26)),
        check_liver_lesion(floating, label_map),
        check_liver_lesion(np.full(GRID.shape, np.inf), label_map),
    ]
    assert not any(verdict.passed for verdict in verdicts)
    json.dumps([verdict.to_dict() for verdict in verdicts], allow_nan=False)


def build_patient(rng: np.random.Generator, *, noise_hu: float = 15.0, tissue_hu: float = 50.0) -> NDArray[np.int16]:
    """A trunk of soft tissue with a spine, in air."""
    i, j, _ = np.indices(BODY_GRID.shape, sparse=True)
    trunk = ((i - 24) / 20) ** 2 + ((j - 20) / 14) ** 2 <= 1
    spine = ((i - 24) / 3) ** 2 + ((j - 10) / 3) ** 2 <= 1
    image = np.where(spine, 400.0, np.where(trunk, tissue_hu, -1000.0)) + np.zeros(BODY_GRID.shape)
    image += rng.normal(0, noise_hu, BODY_GRID.shape) * trunk
    patient: NDArray[np.int16] = np.rint(image).astype(np.int16)
    return patient


def test_patient_passes(rng: np.random.Generator) -> None:
    verdict = check_patient(build_patient(rng), BODY_GRID.spacing_mm)
    assert verdict.passed
    assert verdict.figures["body_share"] == pytest.approx(np.pi * 20 * 14 / (48 * 40), rel=0.1)
    assert verdict.figures["median_step_hu"] == pytest.approx(15 * np.sqrt(2) * 0.6745, rel=0.15)


def build_noise(name: str, rng: np.random.Generator) -> NDArray[np.int16]:
    images: dict[str, Any] = {
        "air": np.full(BODY_GRID.shape, -1000),
        "noisy air": rng.normal(-950, 30, BODY_GRID.shape),
        "uniform noise": rng.uniform(-1000, 1000, BODY_GRID.shape),
        "full of tissue": rng.normal(50, 15, BODY_GRID.shape),
        "noisy patient": build_patient(rng, noise_hu=200.0),
        "stone": build_patient(rng, tissue_hu=700.0),
    }
    noise: NDArray[np.int16] = np.rint(images[name]).astype(np.int16)
    return noise


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("air", "a body that fills 0% of the image"),
        ("noisy air", "a body that fills 0% of the image"),
        ("uniform noise", "which indicates noise|fills 100% of the image"),
        ("full of tissue", "a body that fills 100% of the image"),
        ("noisy patient", "soft tissue in which neighbouring voxels differ by .* HU, which indicates noise"),
        ("stone", "a body of which 0% is soft tissue"),
    ],
)
def test_what_is_no_patient_fails(name: str, found: str, rng: np.random.Generator) -> None:
    image_hu = build_noise(name, rng)
    verdict = check_patient(image_hu, BODY_GRID.spacing_mm)
    assert not verdict.passed
    with pytest.raises(AssertionError, match=found):
        raise AssertionError(verdict.message)
    noted = check_patient(image_hu, BODY_GRID.spacing_mm, is_judged=False)
    assert noted.passed
    assert "Not judged, because this bundle is known to draw poorly without a label map." in noted.message
    assert {**noted.figures, "is_judged": True} == verdict.figures


def test_gates_of_a_bare_image(rng: np.random.Generator) -> None:
    def judge(image_hu: NDArray[np.int16], *, is_known_poor: bool = False, **options: Any) -> dict[str, bool]:
        gates = GateConfig(**options)
        found = judge_bare_image(image_hu, BODY_GRID, BODY_GRID, gates=gates, is_known_poor=is_known_poor)
        return {verdict.gate: verdict.passed for verdict in found}

    patient, noise = build_patient(rng), build_noise("uniform noise", rng)
    assert judge(patient) == {"geometry": True, "patient": True}
    assert judge(noise) == {"geometry": True, "patient": False}
    assert judge(noise, is_known_poor=True) == {"geometry": True, "patient": True}
    assert judge(noise, organ_hu=False) == {"geometry": True}
    assert judge(patient[:-1])["geometry"] is False


def test_real_scan_is_a_patient(real_data: Path) -> None:
    volume = load_image(real_data / "totalsegmentator-example" / "example_ct.nii.gz")
    assert check_patient(volume.array, volume.grid.spacing_mm).passed
    assert measure_patient(volume.array, volume.grid.spacing_mm)["median_step_hu"] < 40
