"""Body regions: which of them a label map shows, which some of MAISI's networks are conditioned on.

Source: NVIDIA's published configurations of ``ddpm-ct``, whose U-Net takes the uppermost and the lowest region.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

from maisi_aug.vocabulary.labels import LUNG_LOBE_IDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BodyRegion = Literal["head", "thorax", "abdomen", "pelvis"]
Regions = tuple[BodyRegion, BodyRegion]
"""The uppermost and the lowest body region that an image shows."""

BODY_REGIONS: tuple[BodyRegion, ...] = get_args(BodyRegion)
REGION_LABELS: dict[BodyRegion, tuple[int, ...]] = {
    "head": (22, 120),
    "thorax": tuple(sorted(LUNG_LOBE_IDS)),
    "abdomen": (1, 3, 4, 5, 14),
    "pelvis": (93, 94),
}
"""Labels any of which puts a region into the image, from top to bottom: brain and skull; lung lobes; liver, spleen,
pancreas and kidneys; femurs. NVIDIA's list has 2 in the abdomen, too: a placeholder now, which a bundle may bind to
anything."""
USUAL_REGIONS: Regions = ("thorax", "abdomen")


def find_body_regions(label_map: NDArray[np.uint8]) -> Regions:
    """Return the uppermost and lowest body region of a label map; thorax and abdomen if no organ shows any.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
    """
    import numpy as np  # not for the options of a command, which name the regions

    present = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256))
    return regions_of(present.tolist()) or USUAL_REGIONS


def regions_of(label_ids: Iterable[int]) -> Regions | None:
    """Return the uppermost and lowest body region that labels belong to; None if they belong to none."""
    present = set(label_ids)
    shown = [region for region, of_region in REGION_LABELS.items() if present.intersection(of_region)]
    return (shown[0], shown[-1]) if shown else None


def covers(regions: Regions, wanted: Regions) -> bool:
    """Whether a range of body regions includes another range.

    Args:
        regions: Uppermost and lowest region of the outer range, names of ``BODY_REGIONS``.
        wanted: Uppermost and lowest region of the inner range.
    """
    (top, bottom), (first, last) = ([BODY_REGIONS.index(region) for region in pair] for pair in (regions, wanted))
    return top <= first and last <= bottom


def spell_out(regions: tuple[BodyRegion, ...] | None) -> Regions | None:
    """Complete one or two body regions to a pair of the uppermost and the lowest; None stays None."""
    return None if regions is None else (regions[0], regions[-1])
