from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.request import GateConfig
from maisi_aug.gates.judgement import judge_image, judge_label_map, judge_organ_hu, overlay_ranges
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.vocabulary.hu import HuRange, reference_hu_ranges
from maisi_aug.vocabulary.labels import BODY_ID, MAISI
from maisi_aug.volumes.grid import Grid

GRID = Grid.from_spacing((40, 30, 20), (3.0, 3.0, 4.0))
VOXEL_ML = 0.036
LARGE_ML, SMALL_ML = 6 * 6 * 5 * VOXEL_ML, 3 * 3 * 3 * VOXEL_ML


IN_SMALL, IN_LARGE = (31, 19, 13), (23, 11, 7)


def drawn(requested_ml: float, centre_ijk: tuple[int, int, int], realised_ml: float, **figures: float) -> Lesion:
    asked = Lesion(26, "hepatic tumor", requested_ml, 0.3, size_source="a stand-in", hosts=(1,))
    num_voxels = round(realised_ml / VOXEL_ML)
    placed = {"num_voxels": num_voxels, "spacing_mm": GRID.spacing_mm, "centre_ijk": centre_ijk, "host_id": 1}
    return asked.drawn(**{**placed, "spread": 1.2, **figures})  # type: ignore[arg-type]


LESIONS = (drawn(SMALL_ML, IN_SMALL, SMALL_ML), drawn(LARGE_ML, IN_LARGE, LARGE_ML))
CASE = CasePlan("case_0001", 0, "hepatic tumor x2 + spleen", LESIONS, (3,))


@pytest.fixture
def label_map() -> NDArray[np.uint8]:
    """A liver with a large and a small lesion, and a spleen."""
    label_map = np.zeros(GRID.shape, dtype=np.uint8)
    label_map[2:38, 2:28, :] = BODY_ID
    label_map[18:36, 4:26, 2:18] = 1
    label_map[4:10, 10:20, 5:15] = 3
    label_map[20:26, 8:14, 5:10] = 26
    label_map[30:33, 18:21, 12:15] = 26
    return label_map


@pytest.fixture
def image_hu(label_map: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int16]:
    """Plausible HU with a little noise; the lesions are darker than the liver."""
    table = np.full(256, -1000.0)
    table[[BODY_ID, 1, 3, 26]] = 30.0, 105.0, 110.0, 55.0
    noise = rng.normal(0, 5, label_map.shape) * (label_map > 0)
    image: NDArray[np.int16] = np.rint(table[label_map] + noise).astype(np.int16)
    return image


def judge_map(label_map: NDArray[np.uint8], case: CasePlan = CASE, **options: Any) -> Any:
    return judge_label_map(case, label_map, GRID, vocabulary=MAISI, gates=GateConfig(**options))


def judge(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8], **options: Any) -> dict[str, list[bool]]:
    gates = GateConfig(**options)
    found = judge_image(CASE, image_hu, label_map, GRID, GRID, vocabulary=MAISI, gates=gates)
    return {gate: [v.passed for v in found if v.gate == gate] for gate in {verdict.gate for verdict in found}}


def test_good_label_map_passes_and_its_lesions_are_measured_the_largest_first(label_map: NDArray[np.uint8]) -> None:
    judgement = judge_map(label_map)
    assert judgement.reason == ""
    assert [verdict.gate for verdict in judgement.verdicts] == ["presence", "lesion size", "lesion place"]
    for record, volume_ml in zip(judgement.lesions, (LARGE_ML, SMALL_ML), strict=True):
        assert record.requested_ml == pytest.approx(volume_ml)
        assert record.realised_ml == pytest.approx(volume_ml)
        assert (record.percentile, record.size_source) == (0.3, "a stand-in")


def test_lesion_has_the_volume_of_the_part_that_it_lies_in(label_map: NDArray[np.uint8]) -> None:
    crossed = (drawn(SMALL_ML, IN_LARGE, SMALL_ML), drawn(LARGE_ML, IN_SMALL, LARGE_ML))
    judgement = judge_map(label_map, replace(CASE, lesions=crossed))
    assert [record.centre_ijk for record in judgement.lesions] == [IN_SMALL, IN_LARGE]
    assert [record.realised_ml for record in judgement.lesions] == pytest.approx([SMALL_ML, LARGE_ML])
    assert {record.host_id for record in judgement.lesions} == {1}


def test_missing_organ_fails(label_map: NDArray[np.uint8]) -> None:
    label_map[label_map == 3] = BODY_ID
    assert "spleen" in judge_map(label_map).reason


def test_lost_lesion_fails_and_is_recorded_as_absent(label_map: NDArray[np.uint8]) -> None:
    label_map[30:33, 18:21, 12:15] = 1
    judgement = judge_map(label_map)
    assert judgement.reason.startswith("hepatic tumor: ")
    assert "1 lesions where 2 were requested" in judgement.reason
    assert judgement.lesions[1].realised_ml is None


def test_lesion_of_another_size_fails_unless_the_tolerance_allows_it(label_map: NDArray[np.uint8]) -> None:
    label_map[26, 8:14, 5:10] = 26  # a sixth more
    assert "hepatic tumor: " in judge_map(label_map).reason
    assert judge_map(label_map, size_tolerance=0.2).reason == ""


def test_good_image_passes_every_gate(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]) -> None:
    verdicts = judge(image_hu, label_map)
    assert verdicts == {
        "geometry": [True],
        "organ HU": [True],
        "HU bias": [True],
        "lesion visibility": [True, True],
    }


def test_gates_can_be_switched_off(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]) -> None:
    assert set(judge(image_hu, label_map, organ_hu=False, visibility=False)) == {"geometry"}


def test_each_fault_of_an_image_fails_its_own_gate(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]) -> None:
    bright = np.where(label_map == 3, 700, image_hu).astype(np.int16)
    assert judge(bright, label_map)["organ HU"] == [False]
    hidden = np.where(label_map == 26, 105, image_hu).astype(np.int16)
    assert judge(hidden, label_map)["lesion visibility"].count(False) >= 1
    assert judge(np.zeros_like(image_hu), label_map)["geometry"] == [False]


def test_required_contrast_grows_with_the_setting(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]) -> None:
    assert judge(image_hu, label_map, minimum_cnr=100.0)["lesion visibility"][0] is False


def test_grid_elsewhere_in_the_scanner_passes_and_another_spacing_does_not(
    image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]
) -> None:
    affine = np.diag([3.0, 3.0, 4.0, 1.0])
    affine[:3, :3] = affine[:3, :3] @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine[:3, 3] = 100.0, -50.0, 7.0
    elsewhere, finer = Grid(GRID.shape, affine), Grid.from_spacing(GRID.shape, (3.0, 3.0, 3.9))
    for grid, passed in ((elsewhere, True), (finer, False)):
        first, *_ = judge_image(CASE, image_hu, label_map, grid, GRID, vocabulary=MAISI, gates=GateConfig())
        assert (first.gate, first.passed) == ("geometry", passed)


def test_verdicts_can_be_written_as_json(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]) -> None:
    import json

    for verdict in judge_image(CASE, image_hu, label_map, GRID, GRID, vocabulary=MAISI, gates=GateConfig()):
        json.dumps(verdict.figures, allow_nan=False)


def test_case_whose_organs_are_all_too_dark_does_not_pass(
    image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]
) -> None:
    dark = np.where(label_map > 0, image_hu - 90, image_hu).astype(np.int16)  # 15 and 20 HU: in the ranges, each
    verdicts = judge(dark, label_map)
    assert (verdicts["organ HU"], verdicts["HU bias"]) == ([True], [False])
    for switched in ({"hu_bias": False}, {"organ_hu": False}):
        assert "HU bias" not in judge(dark, label_map, **switched)
    assert judge(dark, label_map, max_dark_hu=60.0)["HU bias"] == [True]


def test_own_ranges_stand_above_published_ones(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]) -> None:
    own = (HuRange("liver", (1,), 110.0, 130.0, 120.0), HuRange("spleen", (3,), 100.0, 125.0, 112.0))
    organs, bias = judge_organ_hu(image_hu, label_map, bundle=None, gates=GateConfig(), own_ranges=own)
    assert not organs.passed
    assert "liver at 105 HU outside 110 to 130" in organs.message
    assert [row["organ"] for row in organs.figures["organs"]] == ["liver", "spleen"]
    assert bias.figures["bias_hu"] == pytest.approx(-8.5, abs=1.0)


def test_overlaid_ranges_lose_the_labels_that_were_measured() -> None:
    kidneys = next(row for row in reference_hu_ranges() if row.name == "kidney")
    left = HuRange("left kidney", (14,), 100.0, 200.0, 150.0)
    assert overlay_ranges((kidneys,), (left,)) == (replace(kidneys, label_ids=(5,)), left)
    assert overlay_ranges((replace(kidneys, label_ids=(14,)),), (left,)) == (left,)


def planted(share_outside: float | None, spread: float) -> Lesion:
    return drawn(LARGE_ML, IN_LARGE, LARGE_ML, share_outside=share_outside, spread=spread)  # type: ignore[arg-type]


def judge_place(label_map: NDArray[np.uint8], lesion: Lesion, **options: Any) -> list[Any]:
    found = judge_map(label_map, replace(CASE, lesions=(lesion,)), **options).verdicts
    return [verdict for verdict in found if verdict.gate == "lesion place"]


@pytest.mark.parametrize(
    ("share_outside", "spread", "message"),
    [
        (0.05, 1.2, ""),
        (0.40, 1.2, "40% of 6.5 mL outside the host, at most 10% expected"),
        (0.05, 2.5, "6.5 mL spread 2.50 times as wide as a ball, at most 1.5 expected"),
    ],
)
def test_planted_lesion_has_to_lie_in_its_host_and_be_compact(
    label_map: NDArray[np.uint8], share_outside: float, spread: float, message: str
) -> None:
    (verdict,) = judge_place(label_map, planted(share_outside, spread))
    assert verdict.passed is not bool(message)
    assert message in verdict.message
    assert verdict.figures["lesions"][0]["spread"] == spread


def test_lesion_that_was_in_the_map_before_is_measured_and_not_judged(label_map: NDArray[np.uint8]) -> None:
    (verdict,) = judge_place(label_map, planted(None, 2.5))
    assert verdict.passed
    assert "Not judged" in verdict.message
    assert judge_place(label_map, planted(0.4, 2.5), lesion_place=False) == []
    assert judge_place(label_map, planted(0.4, 2.5), max_share_outside=0.5, max_spread=3.0)[0].passed


def test_gates_that_are_off_say_nothing(label_map: NDArray[np.uint8]) -> None:
    gates = {
        verdict.gate for verdict in judge_map(label_map, presence=False, lesion_size=False, lesion_place=False).verdicts
    }
    assert gates == set()
    assert GateConfig().changes() == {}
    assert GateConfig(presence=False, minimum_cnr=0.5).changes() == {"presence": False, "minimum_cnr": 0.5}
