"""Gates pass what is right, fail what is wrong, say by how much, and never raise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.grid import Grid
from maisi_aug.labels import MAISI
from maisi_aug.quality import (
    HuRange,
    Verdict,
    check_geometry,
    check_label_visibility,
    check_lesion_size,
    check_lesion_visibility,
    check_organ_hu,
    check_presence,
    expected_contrast_sign,
    reference_hu_ranges,
)

GRID = Grid.from_spacing((44, 40, 36), (2.0, 2.2, 2.5))
SPACING_MM = GRID.spacing_mm


def build_case(
    *, contrast_hu: float = -40.0, noise_hu: float = 10.0, diameter_mm: float = 20.0, trend_hu: float = 0.0
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A liver at 110 HU in fat, with a round lesion in its middle, noise, and a trend along I."""
    label_map = np.full(GRID.shape, 200, dtype=np.uint8)
    label_map[6:38, 5:35, 4:32] = 1
    index = np.moveaxis(np.indices(GRID.shape), 0, -1)
    steps_mm = (index - np.array([22, 20, 18])) * SPACING_MM
    label_map[np.linalg.norm(steps_mm, axis=-1) <= diameter_mm / 2] = 26
    image = np.where(label_map == 200, -90.0, 110.0) + np.where(label_map == 26, contrast_hu, 0.0)
    image += trend_hu * (index[..., 0] - 22)
    image += np.random.default_rng(0).normal(0, noise_hu, GRID.shape)
    return np.rint(image).astype(np.int16), label_map


def check_liver_lesion(image: NDArray[Any], label_map: NDArray[np.uint8], sign: int = -1) -> Verdict:
    return check_lesion_visibility(
        image, label_map, label_map == 26, host_ids=(1,), expected_sign=sign, spacing_mm=SPACING_MM
    )


def test_geometry_passes_only_on_the_expected_grid_with_a_real_image() -> None:
    image, label_map = build_case()
    assert check_geometry(image, label_map, GRID, GRID).passed
    other = Grid.from_spacing(GRID.shape, (2.0, 2.2, 3.0))
    broken = image.astype(np.float32)
    broken[0, 0, 0] = np.nan
    wild = image.copy()
    wild[0, 0, 0] = 20_000
    for verdict, reason in (
        (check_geometry(image, label_map, other, GRID), "a grid that is not the expected one"),
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
    assert not check_presence(label_map, (26,), min_voxels=10_000).passed


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


def test_lesion_without_enough_host_is_compared_with_body() -> None:
    image, label_map = build_case()
    label_map[label_map == 1] = 200
    label_map[0, 0, 0] = 1
    verdict = check_liver_lesion(image, label_map)
    assert verdict.figures["surroundings"] == "body"
    assert verdict.passed


def test_neighbouring_lesions_are_no_host_and_are_judged_one_by_one() -> None:
    image, label_map = build_case(contrast_hu=-40.0, diameter_mm=14.0)
    label_map[22:25, 20:23, 24:28] = 26
    image[22:25, 20:23, 24:28] = 300
    for label_id in (26, 129):
        relabelled = np.where(label_map == 26, label_id, label_map).astype(np.uint8)
        for hosts, surroundings in (((1,), "host"), ((250,), "body")):
            verdicts = check_label_visibility(
                image, relabelled, label_id, host_ids=hosts, expected_sign=-1, spacing_mm=SPACING_MM
            )
            assert [verdict.passed for verdict in verdicts] == [True, False]
            assert verdicts[0].figures["host_hu"] == pytest.approx(110, abs=3)
            assert verdicts[0].figures["surroundings"] == surroundings
    assert check_label_visibility(image, label_map, 23, host_ids=(28,), expected_sign=1, spacing_mm=SPACING_MM) == ()


def test_nothing_raises_on_a_bad_case() -> None:
    image, label_map = build_case()
    nothing = np.zeros_like(label_map)
    floating = image.astype(np.float32)
    floating[20:24] = np.nan
    everything = np.full_like(label_map, 26)
    verdicts = [
        check_organ_hu(image[:-1], label_map),
        check_lesion_visibility(
            image[:-1], label_map, label_map == 26, host_ids=(1,), expected_sign=-1, spacing_mm=SPACING_MM
        ),
        check_liver_lesion(image, nothing),
        check_liver_lesion(image, everything),
        check_liver_lesion(floating, label_map),
        check_organ_hu(np.full(GRID.shape, np.nan), label_map),
        check_liver_lesion(np.full(GRID.shape, np.inf), label_map),
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
        check_liver_lesion(image, label_map),
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
