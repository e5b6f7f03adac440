from __future__ import annotations

import numpy as np

from maisi_aug.insertion.surroundings import LUNG_ID, keep_thick_parts, label_surroundings
from maisi_aug.vocabulary.labels import BODY_ID

SHAPE, SPACING_MM = (60, 52, 20), (0.7, 0.8, 2.0)


def build_crop() -> np.ndarray:
    image = np.full(SHAPE, -860, dtype=np.int16)
    image[:14] = 30  # chest wall
    image[:, 20:24, 8:10] = 40  # a vessel
    return image


def test_wall_is_body_and_vessels_are_lung() -> None:
    label_map = label_surroundings(build_crop(), SPACING_MM)
    assert set(np.unique(label_map)) == {LUNG_ID, BODY_ID}
    assert (label_map[:13] == BODY_ID).all()
    assert (label_map[22:] == LUNG_ID).all()


def test_lesion_on_the_wall_is_no_wall() -> None:
    image, lesion = build_crop(), np.zeros(SHAPE, dtype=bool)
    lesion[14:26, 30:44, 6:14] = True
    image[lesion] = 20
    assert (label_surroundings(image, SPACING_MM)[lesion] == BODY_ID).any()
    assert (label_surroundings(image, SPACING_MM, lesion=lesion)[lesion] == LUNG_ID).all()


def test_nothing_thick_leaves_nothing() -> None:
    dense = np.zeros(SHAPE, dtype=bool)
    assert not keep_thick_parts(dense, SPACING_MM).any()
    dense[5:8] = True
    assert not keep_thick_parts(dense, SPACING_MM).any()
    dense[:] = True
    assert keep_thick_parts(dense, SPACING_MM).all()
