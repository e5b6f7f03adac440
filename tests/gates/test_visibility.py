"""Lesions are judged by their contrast to the host around them, one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.gates.checks import Verdict
from maisi_aug.gates.visibility import check_label_visibility, check_lesion_visibility
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.liver_case import GRID, SPACING_MM, build_case


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


def test_nothing_raises_on_a_bad_case() -> None:
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
