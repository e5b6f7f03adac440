"""Real training cases with completed maps."""

from __future__ import annotations

import numpy as np

from maisi_aug.phantom import build_phantom, ids
from maisi_aug.phantom.phases import with_phase
from maisi_aug.training.cases.completed import CompletedStore
from maisi_aug.volumes.grid import Grid
from tests.builders.tiny_training import ArrayCase, ArrayStore


def test_networks_are_shown_completed_maps_in_the_phase_of_the_image() -> None:
    grid = Grid.from_spacing((52, 40, 32), (7.6, 7.6, 7.6))
    phantom = build_phantom(seed=12, grid=grid, region="abdomen", lesions=False)
    case = ArrayCase(phantom.image_hu, phantom.label_map, grid.spacing_mm, "ct")
    store = CompletedStore(ArrayStore([case]), seed=3)
    shown = store.condition_map(0)
    assert not (shown == ids.BODY).any()
    expected = with_phase(np.array([ids.LIVER], dtype=np.uint8), phantom.phase)[0]
    assert (shown[phantom.label_map == ids.LIVER] == expected).mean() > 0.9
    box = (slice(3, 20), slice(5, 9), slice(0, 30))
    np.testing.assert_array_equal(store.condition_map(0, box), shown[box])
    np.testing.assert_array_equal(store.label_map(0, box), phantom.label_map[box])
    np.testing.assert_array_equal(CompletedStore(ArrayStore([case]), seed=3).condition_map(0), shown)
    assert (len(store), store.facts(0).modality) == (1, "ct")
