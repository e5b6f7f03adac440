"""Means of labels over training cases, with what blur and contrast phases would make wrong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.training.images.label_means import measure_label_means
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.components import Box
from tests.builders.tiny_training import BODY, HEPATIC_TUMOR, LIVER, ArrayStore, build_case, build_store

GAS = 248


def test_means_are_those_of_the_labels() -> None:
    means = measure_label_means(build_store(3), range(3), MAISI)
    for label_id, hu in ((0, -1000), (BODY, 20), (LIVER, 110), (HEPATIC_TUMOR, 60)):
        assert float(means.intensity[label_id]) == pytest.approx((hu + 1000) / 2000, abs=1e-4)
    assert set(means.num_voxels.nonzero()[:, 0].tolist()) == {0, LIVER, HEPATIC_TUMOR, BODY}


def test_contrast_of_a_tumor_is_that_of_its_core_within_the_patient() -> None:
    bright, dark = build_case(1), build_case(2)
    dark.image_hu[dark.label_map > 0] -= 40
    tumor = bright.label_map == HEPATIC_TUMOR
    rim = tumor & ~ndimage.binary_erosion(tumor)
    bright.image_hu[rim] += 30
    dark.image_hu[dark.label_map == HEPATIC_TUMOR] -= 6
    means = measure_label_means(ArrayStore([bright, dark]), range(2), MAISI)
    contrast_hu = 2000 * float(means.intensity[HEPATIC_TUMOR] - means.intensity[LIVER])
    # 50 HU darker in one patient, 56 in the other, with as many voxels in each core.
    assert contrast_hu == pytest.approx(-53, abs=0.1)


def test_level_of_a_host_is_that_of_its_own_parts() -> None:
    """Where an id is shown in the host and elsewhere, as gas in the bowel, the host's share of it counts."""
    case = build_case(1)
    liver = np.argwhere(case.label_map == LIVER)
    shown = case.label_map.copy()
    gas = [tuple(place) for place in liver[: len(liver) // 4]]
    for place in gas:
        shown[place], case.image_hu[place] = GAS, -900
    shown[4:12, 4:8], case.image_hu[4:12, 4:8] = GAS, -900

    class Store(ArrayStore):
        def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
            return shown[box]

    means = measure_label_means(Store([case]), range(1), MAISI)
    core_hu = 2000 * float(means.intensity[HEPATIC_TUMOR]) - 1000
    assert core_hu == pytest.approx(60, abs=1)


def test_gain_raises_the_contrast_of_faint_tumors_alone() -> None:
    faint, strong = build_case(1), build_case(2)
    strong.image_hu[strong.label_map == HEPATIC_TUMOR] -= 200
    contrasts_hu = []
    for case in (faint, strong):
        means = measure_label_means(ArrayStore([case]), range(1), MAISI, faint_gain=1.5)
        contrasts_hu.append(2000 * float(means.intensity[HEPATIC_TUMOR] - means.intensity[LIVER]))
    assert contrasts_hu == pytest.approx([-75, -250], abs=0.1)
