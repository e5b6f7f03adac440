from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.insertion.checks import check_untouched, judge_look, measure_look
from maisi_aug.insertion.crops import weigh_zone

SHAPE, SPACING_MM = (52, 48, 18), (0.7, 0.8, 1.8)
CENTRE = (26, 24, 9)
LUNG_HU, NODULE_HU = -860.0, 20.0


def build_lesion() -> NDArray[np.bool_]:
    steps = [(np.arange(n) - c) * mm for n, c, mm in zip(SHAPE, CENTRE, SPACING_MM, strict=True)]
    x, y, z = np.meshgrid(*steps, indexing="ij")
    return np.asarray(x**2 + y**2 + z**2 <= 5.0**2)


def build_noise(seed: int, deviation: float = 35.0) -> NDArray[np.float64]:
    return deviation * np.random.default_rng(seed).standard_normal(SHAPE)


def real_looking(blur_mm: float = 0.5) -> NDArray[np.float64]:
    cover = ndimage.gaussian_filter(build_lesion().astype(float), [blur_mm / step for step in SPACING_MM])
    return np.asarray(LUNG_HU + (NODULE_HU - LUNG_HU) * cover + build_noise(1))


def failed_gates(image: NDArray[np.float64], texture: str = "solid") -> set[str]:
    lesion = build_lesion()
    look = measure_look(image, lesion, ~lesion, weigh_zone(lesion, SPACING_MM) > 0, SPACING_MM)
    return {verdict.gate for verdict in judge_look(look, texture) if not verdict.passed}  # type: ignore[arg-type]


def test_lesion_like_a_real_one_passes() -> None:
    assert failed_gates(real_looking()) == set()


def test_faint_lesion_is_rejected() -> None:
    image = real_looking()
    faint = LUNG_HU + 0.3 * (image - LUNG_HU)
    assert "lesion contrast" in failed_gates(faint + build_noise(2, 20.0))
    assert "lesion contrast" not in failed_gates(faint + build_noise(2, 20.0), "ground-glass")


def test_blurred_lesion_is_rejected() -> None:
    assert failed_gates(real_looking(blur_mm=4.0)) >= {"lesion edge"}


def test_lesion_smoother_than_its_lung_is_rejected() -> None:
    lesion, image = build_lesion(), real_looking()
    image[lesion] = NODULE_HU
    assert failed_gates(image) == {"noise texture"}


def test_zone_smoother_than_its_lung_is_rejected() -> None:
    lesion, image = build_lesion(), real_looking()
    zone = weigh_zone(lesion, SPACING_MM) > 0
    image[zone & ~lesion] = LUNG_HU
    assert "noise texture" in failed_gates(image)


def test_step_at_the_border_of_the_zone_is_rejected() -> None:
    lesion, image = build_lesion(), real_looking()
    image[weigh_zone(lesion, SPACING_MM) > 0] += 90.0
    assert "seam" in failed_gates(image)


def test_step_that_was_there_before_is_no_seam() -> None:
    lesion, image = build_lesion(), real_looking()
    zone = weigh_zone(lesion, SPACING_MM) > 0
    image[zone] += 90.0
    before = np.where(lesion, LUNG_HU, image)
    seam = measure_look(image, lesion, ~lesion, zone, SPACING_MM, before_hu=before).seam
    assert seam == pytest.approx(1.0, abs=0.1)


def test_verdicts_hold_their_figures_and_say_what_was_expected() -> None:
    lesion = build_lesion()
    look = measure_look(real_looking(), lesion, ~lesion, weigh_zone(lesion, SPACING_MM) > 0, SPACING_MM)
    contrast = judge_look(look, "solid")[0]
    assert contrast.figures["contrast_hu"] == pytest.approx(NODULE_HU - LUNG_HU, abs=40)
    assert contrast.message.startswith("Lesion contrast: expected at least +350 HU to the lung around, found +8")


def test_a_changed_voxel_outside_of_the_zone_is_found() -> None:
    before = np.zeros((5, 6, 7), dtype=np.int16)
    after, zone = before.copy(), np.zeros((5, 6, 7), dtype=bool)
    zone[2, 2, 2] = True
    after[2, 2, 2] = 5
    assert check_untouched(before, after, zone).passed
    after[4, 5, 6] = 1
    verdict = check_untouched(before, after, zone)
    assert not verdict.passed
    assert verdict.message == "Untouched: expected no change outside the zone, found 1 changed voxels."


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_soft_lesion_has_to_differ_in_the_right_direction(sign: int) -> None:
    lesion = build_lesion()
    image = 110.0 - 40.0 * lesion + build_noise(3, 10.0)
    look = measure_look(image, lesion, ~lesion, weigh_zone(lesion, SPACING_MM) > 0, SPACING_MM)
    failed = {verdict.gate for verdict in judge_look(look, "soft", sign=sign) if not verdict.passed}
    assert failed == ({"lesion contrast"} if sign == 1 else set())
