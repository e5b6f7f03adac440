from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.insertion.lungs import CoarseMask
from maisi_aug.insertion.places import CLEARANCE_MM, draw_place
from maisi_aug.insertion.request import Attachment

IMAGE_SHAPE = (60, 50, 40)
SPACING_MM = (2.0, 2.4, 2.0)


def build_host() -> CoarseMask:
    mask = np.zeros((30, 25, 40), dtype=bool)
    mask[4:26, 3:22, :] = True
    return CoarseMask(mask, (2, 2, 1), SPACING_MM)


@pytest.mark.parametrize("attachment", ["free", "surface"])
@pytest.mark.parametrize("seed", range(5))
def test_lesion_lies_to_the_surface_as_wished(attachment: Attachment, seed: int) -> None:
    host, radius_mm = build_host(), 6.0
    depth = ndimage.distance_transform_edt(host.mask, sampling=SPACING_MM)
    place = draw_place(
        host, IMAGE_SHAPE, radius_mm, occupied=None, rng=np.random.default_rng(seed), attachment=attachment
    )
    i, j, k = (c // f for c, f in zip(place.centre, host.factors, strict=True))
    assert place.attachment == attachment
    assert (depth[i, j, k] >= radius_mm) == (attachment == "free")
    assert radius_mm <= (place.centre[2] + 0.5) * 2.0 <= 80.0 - radius_mm


def test_lesion_keeps_clear_of_others() -> None:
    host = build_host()
    occupied = np.zeros_like(host.mask)
    occupied[15, 12, 20] = True
    for seed in range(10):
        place = draw_place(host, IMAGE_SHAPE, 5.0, occupied=occupied, rng=np.random.default_rng(seed))
        offset = np.subtract([c / f for c, f in zip(place.centre, host.factors, strict=True)], (15, 12, 20))
        assert np.linalg.norm(offset * SPACING_MM) > 5.0 + CLEARANCE_MM - 3.0


def test_same_draws_give_the_same_place() -> None:
    first, second = (
        draw_place(build_host(), IMAGE_SHAPE, 4.0, occupied=None, rng=np.random.default_rng(3)) for _ in range(2)
    )
    assert first == second


def test_host_that_is_too_small_is_named() -> None:
    with pytest.raises(LesionError, match="Lesion of 60.0 mm: no room left in the host, which has"):
        draw_place(build_host(), IMAGE_SHAPE, 30.0, occupied=None, rng=np.random.default_rng(0))
