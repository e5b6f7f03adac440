from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.insertion.lungs import CoarseMask, blocks_with, find_lungs, to_coarse
from tests.insertion.chest import LUNG_HU, SHAPE, SPACING_MM, TISSUE_HU, build_chest


def build_bowel() -> NDArray[np.int16]:
    """A belly with a pocket of gas as large as a lung, whose rim is as dense as lung."""
    inside = build_chest() < (LUNG_HU + TISSUE_HU) / 2
    gas = inside & (build_chest(with_lungs=False) > (LUNG_HU + TISSUE_HU) / 2)
    image = np.where(gas, -995, build_chest(with_lungs=False)).astype(np.float32)
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(image, 1.5)
    return np.rint(blurred).astype(np.int16)


def test_lungs_are_found_with_their_vessels() -> None:
    image = build_chest()
    lungs = find_lungs(image, SPACING_MM)
    found = lungs.cut((0, 0, 0), SHAPE)
    thin = image < (LUNG_HU + TISSUE_HU) / 2
    inner = np.zeros(SHAPE, dtype=bool)
    inner[20:50, 30:66, 8:22] = True
    assert found[thin & inner].mean() > 0.98
    assert not found[:8].any()
    vessel = (image > -400) & inner
    assert found[vessel].mean() > 0.9


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (build_chest(with_lungs=False), "Is it a CT of the chest, in HU"),
        (build_chest() + 1024, "Lungs: the CT has no region of at least"),
        (np.full(SHAPE, -1000, dtype=np.int16), "Lungs: no patient was found in the CT"),
        (build_bowel(), "Lungs: the CT has no region of at least 30 mL between -940 and -550 HU"),
    ],
    ids=["no lungs", "HU with an offset", "air", "bowel gas"],
)
def test_ct_without_lungs_is_named(image: np.ndarray, sentence: str) -> None:
    with pytest.raises(LesionError, match=sentence):
        find_lungs(image, SPACING_MM)


def test_a_box_may_reach_beyond_the_image() -> None:
    mask = CoarseMask(np.ones((2, 3, 4), dtype=bool), (2, 2, 1), (1.0, 1.0, 2.0))
    found = mask.cut((-1, 0, 2), (3, 7, 6))
    assert found.shape == (4, 7, 4)
    assert not found[0].any()
    assert not found[:, 6].any()
    assert not found[:, :, 2:].any()
    assert found[1:, :6, :2].all()


def test_blocks_are_means_whatever_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(1).normal(size=(9, 7, 5)).astype(np.float32)
    whole = to_coarse(image, (2, 3, 1), fill=0.0)
    monkeypatch.setattr("maisi_aug.insertion.lungs.SLAB_VOXELS", 40)
    np.testing.assert_allclose(to_coarse(image, (2, 3, 1), fill=0.0), whole, atol=1e-6)
    assert whole[0, 0, 2] == pytest.approx(image[:2, :3, 2].mean(), abs=1e-6)


def test_blocks_with_lesions_are_those_that_hold_any_of_their_voxels() -> None:
    mask = np.random.default_rng(2).random((13, 10, 7)) > 0.95
    np.testing.assert_array_equal(blocks_with(mask, (3, 2, 4)), to_coarse(mask, (3, 2, 4), fill=0.0) > 0)
    assert not blocks_with(np.zeros_like(mask), (3, 2, 4)).any()
