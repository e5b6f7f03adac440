from __future__ import annotations

import numpy as np
import pytest

from maisi_aug.errors import PreparationError
from maisi_aug.preparation.tissues import Tissue, add_tissues, parse_tissue
from maisi_aug.vocabulary.labels import BODY_ID, MAISI

SPACING_MM = (4.0, 4.0, 3.0)
SKULL, AIRWAY, LIVER = 120, 132, 1


def test_tissue_is_read() -> None:
    assert parse_tissue("skull = 150:3000", MAISI) == Tissue(SKULL, 150.0, 3000.0)
    assert parse_tissue("airway=-1024:-300", MAISI) == Tissue(AIRWAY, -1024.0, -300.0)


@pytest.mark.parametrize("text", ["skull", "skull=150", "skull=300:150", "skull=a:b", "skull=nan:3"])
def test_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PreparationError, match="--tissue: expected NAME=LOW:HIGH in HU, .* found 'skull"):
        parse_tissue(text, MAISI)


def test_unknown_tissue_is_refused() -> None:
    with pytest.raises(
        PreparationError, match="--tissue 'skul=1:2': Label 'skul': not a name or id of this vocabulary.* 'skull'"
    ):
        parse_tissue("skul=1:2", MAISI)


def test_body_alone_is_given_to_tissues() -> None:
    label_map = np.zeros((20, 18, 16), dtype=np.uint8)
    label_map[2:18, 2:16, :] = BODY_ID
    label_map[4:8, 4:8, 4:8] = LIVER
    image = np.full(label_map.shape, -1000, dtype=np.int16)
    image[label_map > 0] = 20
    image[6:12, 6:12, 4:8] = 400  # half of it the liver's
    image[14, 4, 4] = 500  # an island
    image[12:15, 10:14, :] = -900  # cut by the border along K
    image[2, :, :] = -400  # the skin
    before = label_map.copy()
    found = add_tissues(label_map, image, [Tissue(SKULL, 150, 3000), Tissue(AIRWAY, -1024, -300)], SPACING_MM)
    np.testing.assert_array_equal(label_map, before)
    bone = np.zeros(label_map.shape, dtype=bool)
    bone[6:12, 6:12, 4:8] = True
    bone[4:8, 4:8, 4:8] = False
    air = np.zeros(label_map.shape, dtype=bool)
    air[12:15, 10:14, :] = True
    np.testing.assert_array_equal(found == SKULL, bone)
    np.testing.assert_array_equal(found == AIRWAY, air)
    assert (found[4:8, 4:8, 4:8] == LIVER).all()
    np.testing.assert_array_equal(add_tissues(label_map, image, [], SPACING_MM), before)
