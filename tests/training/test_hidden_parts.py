from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.training.images.patches import draw_hidden
from maisi_aug.training.loop.settings import SurroundingsConfig

SHAPE, SPACING_MM = (24, 20, 12), (0.7, 0.9, 2.0)


def build_map(*, with_lesion: bool = True) -> np.ndarray:
    label_map = np.full(SHAPE, 28, dtype=np.uint8)
    label_map[:3] = 0
    if with_lesion:
        label_map[10:14, 8:12, 5:8] = 23
    return label_map


def draw(label_map: np.ndarray, seed: int, **settings: float) -> np.ndarray:
    config = SurroundingsConfig.model_validate(settings)
    return draw_hidden(label_map, SPACING_MM, [23], config, np.random.default_rng(seed))


def test_lesion_is_hidden_with_a_margin() -> None:
    label_map = build_map()
    for seed in range(8):
        hidden = draw(label_map, seed, hidden_share=0.0, elsewhere_share=0.0)
        distance = ndimage.distance_transform_edt(label_map != 23, sampling=SPACING_MM)
        assert hidden[distance <= 2.0].all()
        assert not hidden[distance > 6.0].any()


@pytest.mark.parametrize("with_lesion", [True, False])
def test_a_ball_is_hidden_elsewhere_and_where_there_is_no_lesion(with_lesion: bool) -> None:
    label_map = build_map(with_lesion=with_lesion)
    for seed in range(8):
        hidden = draw(label_map, seed, hidden_share=0.0, elsewhere_share=1.0)
        assert 0 < hidden.sum() < hidden.size
        assert ndimage.label(hidden)[1] == 1
        assert (hidden & (label_map > 0)).any()


def test_all_is_hidden_as_often_as_wished() -> None:
    label_map = build_map()
    assert draw(label_map, 0, hidden_share=1.0).all()
    assert draw(np.zeros_like(label_map), 0, hidden_share=0.0).all()
    share = np.mean([draw(label_map, seed, hidden_share=0.5).all() for seed in range(60)])
    assert 0.3 < share < 0.7
