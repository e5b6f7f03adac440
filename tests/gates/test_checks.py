"""Gates pass what is right, fail what is wrong, say by how much, and never raise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.gates.checks import (
    Verdict,
    check_geometry,
    check_hu_bias,
    check_lesion_size,
    check_organ_hu,
    check_presence,
)
from maisi_aug.vocabulary.hu import HuRange, bundle_hu_ranges, expected_contrast_sign, reference_hu_ranges
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from maisi_aug.volumes.grid import Grid
from tests.builders.liver_case import GRID, build_case


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
