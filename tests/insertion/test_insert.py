from __future__ import annotations

import hashlib

import numpy as np
import pytest

from maisi_aug.errors import LesionError
from maisi_aug.insertion.insert import LabelledHost, LesionRequest, LungHost, insert_lesion
from maisi_aug.insertion.painting import ProceduralPainter, Texture
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

IMAGE = build_chest()
HOST = LungHost.of(IMAGE, SPACING_MM)


@pytest.mark.parametrize("texture", ["solid", "part-solid", "ground-glass"])
@pytest.mark.parametrize("volume_ml", [0.3, 2.0])
def test_lesion_has_the_size_asked_for_and_the_rest_is_the_very_same(texture: Texture, volume_ml: float) -> None:
    before = hashlib.sha256(IMAGE.tobytes()).hexdigest()
    made = insert_lesion(
        IMAGE,
        SPACING_MM,
        HOST,
        LesionRequest(23, volume_ml, texture),
        ProceduralPainter(),
        seed=4,
    )
    assert hashlib.sha256(IMAGE.tobytes()).hexdigest() == before
    assert made.volume_ml == pytest.approx(volume_ml, abs=2 * float(np.prod(SPACING_MM)) / 1000)
    original = IMAGE[made.box]
    np.testing.assert_array_equal(made.image[~made.zone], original[~made.zone])
    assert (made.image[made.lesion] != original[made.lesion]).mean() > 0.5
    assert made.lesion.sum() > 0
    assert not (made.lesion & ~made.zone).any()
    assert made.reason == ""


def test_same_seed_same_lesion_and_next_seed_another() -> None:
    first, again, other = (
        insert_lesion(IMAGE, SPACING_MM, HOST, LesionRequest(23, 0.5), ProceduralPainter(), seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.place == again.place
    np.testing.assert_array_equal(first.image, again.image)
    assert first.place != other.place


def test_lesions_keep_clear_of_those_that_are_there() -> None:
    occupied = np.zeros(SHAPE, dtype=bool)
    occupied[:60] = True
    for seed in range(4):
        made = insert_lesion(
            IMAGE, SPACING_MM, HOST, LesionRequest(23, 0.5), ProceduralPainter(), occupied=occupied, seed=seed
        )
        assert not occupied[made.box][made.zone].any()


@pytest.mark.parametrize("factor", [1, 8])
def test_a_crop_may_reach_beyond_the_volume(factor: int) -> None:
    slab = IMAGE[:, :, 10:18]
    made = insert_lesion(
        slab,
        SPACING_MM,
        LungHost.of(slab, SPACING_MM),
        LesionRequest(23, 0.3),
        ProceduralPainter(factor=factor, least_shape=(40, 40, 16)),
        seed=0,
    )
    assert made.image.shape == slab[made.box].shape
    assert made.lesion.sum() * np.prod(SPACING_MM) / 1000 == pytest.approx(0.3, abs=0.02)


def test_other_hosts_come_from_a_label_map() -> None:
    trunk, label_map = build_chest(with_lungs=False), np.zeros(SHAPE, dtype=np.uint8)
    label_map[40:80, 30:66, 4:26] = 1
    host = LabelledHost.of(label_map, (1,), SPACING_MM)
    made = insert_lesion(
        trunk, SPACING_MM, host, LesionRequest(26, 1.0, "soft", "free", -1), ProceduralPainter(), seed=3
    )
    assert made.reason == ""
    assert -75 < made.look.contrast_hu < -15
    assert (label_map[made.box][made.lesion] == 1).all()
    with pytest.raises(LesionError, match="the label map has no label 5 or 14"):
        LabelledHost.of(label_map, (5, 14), SPACING_MM)


def test_lesion_below_a_few_voxels_is_named() -> None:
    with pytest.raises(LesionError, match="mL: has 1 voxels of 0.0068 mL, at least 4 are needed"):
        insert_lesion(IMAGE, SPACING_MM, HOST, LesionRequest(23, 0.01), ProceduralPainter(), seed=0)
