"""Contents of the gut on detail maps: gas with horizontal levels, fluid, food, stool and positive contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from maisi_aug.phantom import ids
from maisi_aug.phantom.erosion import inner
from maisi_aug.volumes.components import Mask, bounding_box
from maisi_aug.volumes.grid import Spacing

Labels = NDArray[np.uint8]
ORAL_CONTRAST_SHARE: Final = 0.14  # patients who drank positive contrast
WALL_MM: Final = 2.2


@dataclass(frozen=True)
class Filling:
    """Content of one organ of the bowel, drawn segment by segment; a supine patient's gas lies in front.

    Attributes:
        segment_ml: Volume of a segment: within it gas ends at one horizontal level. 0 = the organ is one segment.
        collapsed: Share of segments without content: they look like wall.
        with_gas: Share of segments with gas.
        gas: Range of the share of such a segment that is gas.
        content: Id of what is below the gas.
    """

    segment_ml: float
    collapsed: float
    with_gas: float
    gas: tuple[float, float]
    content: int


def fill_gut(detail: Labels, labels: Labels, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Write the content of oesophagus, stomach, duodenum, small bowel and colon; their walls keep the label.

    Args:
        detail: ``(I, J, K)`` detail map along R, A, S, painted in place; gas rises along A.
        labels: ``(I, J, K)`` vocabulary ids without tumours.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Source of all randomness.
    """
    fluid = ids.ORAL_CONTRAST if rng.random() < ORAL_CONTRAST_SHARE else ids.GUT_FLUID
    gas_in_stomach = float(rng.uniform(0.05, 0.5))
    gas_in_colon = float(rng.uniform(0.35, 0.75))
    stool = ids.ORAL_CONTRAST if fluid == ids.ORAL_CONTRAST and rng.random() < 0.4 else ids.STOOL
    fillings = {
        ids.ESOPHAGUS: Filling(3.0, 0.6, 0.4, (0.3, 0.8), ids.ESOPHAGUS),
        ids.STOMACH: Filling(0.0, 0.0, 0.9, (gas_in_stomach, gas_in_stomach), fluid),
        ids.DUODENUM: Filling(12.0, 0.4, 0.2, (0.1, 0.5), fluid),
        ids.SMALL_BOWEL: Filling(16.0, 0.45, 0.16, (0.1, 0.7), fluid),
        ids.COLON: Filling(28.0, 0.10, gas_in_colon, (0.15, 1.0), stool),
    }
    for label, filling in fillings.items():
        _fill(detail, labels == label, filling, spacing_mm, rng)


def _fill(detail: Labels, gut: Mask, filling: Filling, spacing_mm: Spacing, rng: np.random.Generator) -> None:
    """Fill one organ; its segments are the voxels nearest to random ones of its lumen, of which some are collapsed."""
    box = bounding_box(gut, margin=2)
    places = np.argwhere(inner(gut[box], WALL_MM, spacing_mm))
    if not len(places):
        return
    points = (places * np.asarray(spacing_mm)).astype(np.float64)
    volume_ml = len(points) * float(np.prod(spacing_mm)) / 1000
    count = max(1, min(len(points), round(volume_ml / filling.segment_ml))) if filling.segment_ml else 1
    centres = points[rng.choice(len(points), size=count, replace=False)]
    segment = cKDTree(centres).query(points)[1]
    draws = rng.random(count)
    shares = np.where(rng.random(count) < filling.with_gas, rng.uniform(*filling.gas, count), 0.0)
    content = np.full(len(points), filling.content, dtype=np.uint8)
    height = points[:, 1]
    for number in range(count):
        own = segment == number
        level = np.quantile(height[own], 1 - shares[number]) if shares[number] else np.inf
        content[own & (height > level)] = ids.GUT_GAS
    filled = (draws >= filling.collapsed)[segment]
    view = detail[box]
    where = tuple(places[filled].T)
    view[where] = content[filled]
