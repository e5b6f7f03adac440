from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.training.cases.label_sets import LABEL_SETS, LabelSet, reduce_labels

PRESENT = (
    *(ids.BODY, ids.LIVER, ids.HEPATIC_VESSEL, ids.HEPATIC_TUMOR, ids.SPLEEN, ids.STERNUM, ids.COSTAL_CARTILAGE),
    *(ids.VERTEBRA_L5, ids.VERTEBRA_T12, ids.LEFT_RIB_1 + 8, ids.LEFT_RIB_1 + 9, ids.VERTEBRA_S1, ids.SACRUM),
)


def label_map() -> NDArray[np.uint8]:
    found = np.zeros((5, len(PRESENT), 3), dtype=np.uint8)
    found[1:4] = np.asarray(PRESENT, dtype=np.uint8)[None, :, None]
    return found


def reduce(label_set: LabelSet, seed: int = 1) -> dict[int, int]:
    """What becomes of every label."""
    before = label_map()
    kept = before.copy()
    after = reduce_labels(before, label_set, np.random.default_rng(seed))
    np.testing.assert_array_equal(before, kept)
    assert after.dtype == np.uint8
    np.testing.assert_array_equal(after == 0, before == 0)
    return dict(zip(PRESENT, after[2, :, 0].tolist(), strict=True))


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_lesions_and_the_outline_stay_in_every_set(label_set: LabelSet) -> None:
    became = reduce(label_set)
    assert became[ids.HEPATIC_TUMOR] == ids.HEPATIC_TUMOR
    assert became[ids.BODY] == ids.BODY
    assert set(became.values()) <= set(PRESENT)


def test_what_version_1_lacks_becomes_its_host_or_body() -> None:
    became = reduce("v1")
    assert became[ids.HEPATIC_VESSEL] == ids.LIVER
    assert became[ids.VERTEBRA_S1] == ids.SACRUM
    assert (became[ids.STERNUM], became[ids.COSTAL_CARTILAGE]) == (ids.BODY, ids.BODY)
    assert became[ids.VERTEBRA_L5] == ids.VERTEBRA_L5
    assert reduce("v2")[ids.STERNUM] == ids.STERNUM


def test_one_organ_is_the_host_of_a_lesion() -> None:
    became = reduce("one organ")
    assert {label for label in became.values() if label != ids.BODY} == {ids.LIVER, ids.HEPATIC_TUMOR}
    assert became[ids.HEPATIC_VESSEL] == ids.LIVER


def test_organs_alone_leave_no_bone() -> None:
    assert not set(reduce("organs").values()) & set(ids.BONES)


def test_coarse_bones_have_one_label_a_kind() -> None:
    became = reduce("coarse bones")
    assert became[ids.VERTEBRA_L5] == became[ids.VERTEBRA_T12] == became[ids.VERTEBRA_S1] in ids.VERTEBRAE
    assert became[ids.LEFT_RIB_1 + 8] == became[ids.LEFT_RIB_1 + 9]
    assert became[ids.SPLEEN] == ids.SPLEEN


def test_random_sets_differ_and_repeat() -> None:
    drawn = [tuple(reduce("random", seed).values()) for seed in range(6)]
    assert len(set(drawn)) > 1
    assert tuple(reduce("random", 0).values()) == drawn[0]
