"""Choose the part of a training crop that is hidden from a ControlNet that learns to draw lesions into real images."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.training.loop.settings import SurroundingsConfig
from maisi_aug.volumes.grid import Spacing


def draw_hidden(
    label_map: NDArray[np.uint8],
    spacing_mm: Spacing,
    lesion_ids: Collection[int],
    config: SurroundingsConfig,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Return the part of a crop that the network has to draw.

    Args:
        label_map: ``(I, J, K)`` ids; what is 0 is not drawn from, for it lies outside of the image.
        spacing_mm: Along I, J, K.
        lesion_ids: Ids of lesions.
        config: Shares and ranges.
        rng: Draws; every crop takes four numbers.

    Returns:
        ``(I, J, K)``.
    """
    what, where = rng.random(2)
    size = rng.random()
    is_lesion = np.isin(label_map, list(lesion_ids))
    places = np.flatnonzero(label_map)
    place = int(rng.integers(max(1, len(places))))
    if what < config.hidden_share or not len(places):
        return np.ones(label_map.shape, dtype=bool)
    if is_lesion.any() and where >= config.elsewhere_share:
        low, high = config.margin_mm
        distance = ndimage.distance_transform_edt(~is_lesion, sampling=spacing_mm)
        return np.asarray(distance <= low + size * (high - low))
    low, high = config.radius_mm
    centre = np.unravel_index(places[place], label_map.shape)
    steps = [(np.arange(side) - c) * mm for side, c, mm in zip(label_map.shape, centre, spacing_mm, strict=True)]
    squared = sum(part**2 for part in np.meshgrid(*steps, indexing="ij", sparse=True))
    return np.asarray(squared <= (low + size * (high - low)) ** 2)
