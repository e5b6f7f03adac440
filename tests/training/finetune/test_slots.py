from __future__ import annotations

import numpy as np

from maisi_aug.training.finetune.slots import SlotStore
from tests.builders.tiny_training import BODY, HEPATIC_TUMOR, build_store


def test_ids_are_translated_in_the_box_that_is_cut() -> None:
    store = build_store(2)
    table = np.arange(256, dtype=np.uint8)
    table[HEPATIC_TUMOR] = 129
    slots = SlotStore(store, table)
    box = (slice(4, 30), slice(2, 20), slice(0, 20))
    found = slots.label_map(1, box)
    np.testing.assert_array_equal(found, np.where(store.label_map(1) == HEPATIC_TUMOR, 129, store.label_map(1))[box])
    assert set(np.unique(found)) >= {BODY, 129}
    np.testing.assert_array_equal(slots.image_hu(1, box), store.image_hu(1)[box])
    assert (len(slots), slots.facts(1)) == (2, store.facts(1))
    assert (store.label_map(1) == HEPATIC_TUMOR).any(), "the cases themselves stay as they are"
