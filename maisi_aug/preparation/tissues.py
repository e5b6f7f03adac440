"""Tissues found by their HU where no label tells them: bone and air in a body without organ labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import PreparationError, VocabularyError
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.volumes.body import TISSUE_HU
from maisi_aug.volumes.components import label_parts
from maisi_aug.volumes.grid import Spacing, voxel_volume_ml

ISLAND_ML = 0.5
"""Parts below this volume are noise, streaks of metal or marrow, not a bone or an airway."""


@dataclass(frozen=True, slots=True)
class Tissue:
    """A label that is assigned to voxels by a range of HU.

    Attributes:
        label_id: Vocabulary id of the label.
        low_hu: Lowest HU, included.
        high_hu: Highest HU, included.
    """

    label_id: int
    low_hu: float
    high_hu: float


def parse_tissue(text: str, vocabulary: Vocabulary) -> Tissue:
    """Parse ``NAME=LOW:HIGH``, such as ``skull=150:3000``.

    Args:
        text: Rule as the user typed it; LOW and HIGH are in HU.
        vocabulary: Vocabulary that has the label NAME.

    Raises:
        PreparationError: The text has another form, or the vocabulary has no such label.
    """
    name, _, bounds = (part.strip() for part in text.rpartition("="))
    low, _, high = bounds.partition(":")
    try:
        low_hu, high_hu = float(low), float(high)
    except ValueError:
        low_hu = high_hu = float("nan")
    if not name or not low_hu < high_hu:
        raise PreparationError(f"--tissue: expected NAME=LOW:HIGH in HU, such as 'skull=150:3000', found '{text}'.")
    try:
        return Tissue(vocabulary.id_of(name), low_hu, high_hu)
    except VocabularyError as error:
        raise PreparationError(f"--tissue '{text}': {error}") from error


def add_tissues(
    label_map: NDArray[np.uint8], image_hu: NDArray[Any], tissues: Sequence[Tissue], spacing_mm: Spacing
) -> NDArray[np.uint8]:
    """Label body voxels without an organ by the first tissue whose range contains their HU.

    Tissue as dark as air is only searched one voxel below the skin, because skin voxels are half air. A body that the
    image's border cuts has no skin there.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids with body (200); not modified.
        image_hu: ``(I, J, K)`` CT in HU.
        tissues: Tissues, of which earlier ones take precedence.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        A new label map.
    """
    result = label_map.copy()
    if not tissues:
        return result
    inside = ndimage.binary_erosion(label_map > 0, border_value=1)
    least = max(1, int(np.ceil(ISLAND_ML / voxel_volume_ml(spacing_mm))))
    for tissue in tissues:
        room = (result == BODY_ID) & (inside if tissue.low_hu < TISSUE_HU else True)
        parts, _ = label_parts(room & (image_hu >= tissue.low_hu) & (image_hu <= tissue.high_hu))
        is_large = np.bincount(parts.ravel()) >= least
        is_large[0] = False
        result[is_large[parts]] = tissue.label_id
    return result
