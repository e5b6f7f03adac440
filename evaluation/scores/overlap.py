"""Dice and NSD of every label of a case, and one rule for empty masks.

What an empty mask means, here and in :mod:`maisi_aug.evaluation.scores.detection`:

| reference | prediction | Dice, NSD | lesions |
| --- | --- | --- | --- |
| something | something | as defined | matched |
| something | nothing | 0 | every one is missed |
| nothing | something | left out; the case is a false alarm | every predicted one is a false positive |
| nothing | nothing | left out | none |

A case therefore counts for a label in all arms or in none: whether it does is decided by its reference alone. Were a
false alarm a Dice of 0 and a rightly empty prediction no Dice at all, arms would be averaged over different cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import BenchmarkError
from maisi_aug.volumes.components import Mask, measure_dice
from maisi_aug.volumes.grid import Spacing, voxel_volume_ml

DEFAULT_TOLERANCE_MM: Final = 2.0
_MARGIN_VOXELS: Final = 2  # a surface lies between voxels, so that a mask in a corner of its box needs room around it


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Scores of one label in one case.

    Attributes:
        dice: Dice coefficient; None if the reference does not have the label.
        nsd: Normalised surface Dice at the tolerance; None if the reference does not have the label.
        reference_ml: Volume in mL in the reference.
        found_ml: Volume in mL in the prediction.
    """

    dice: float | None
    nsd: float | None
    reference_ml: float
    found_ml: float


def score_case(
    reference: NDArray[Any],
    found: NDArray[Any],
    labels: Mapping[str, int],
    *,
    spacing_mm: Spacing,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, LabelScore]:
    """Score every label of a predicted label map against the reference.

    Args:
        reference: ``(I, J, K)`` true label ids.
        found: ``(I, J, K)`` predicted label ids.
        labels: Label name -> id; other ids are background.
        spacing_mm: Voxel sides along I, J, K in mm.
        tolerance_mm: Largest distance in mm at which a surface counts as found.

    Returns:
        Label name -> scores.

    Raises:
        BenchmarkError: The shapes differ.
    """
    if reference.shape != found.shape:
        raise BenchmarkError(
            f"Prediction: expected the shape of its reference, {'x'.join(map(str, reference.shape))}, found "
            f"{'x'.join(map(str, found.shape))}. Predict on the grid of the reference."
        )
    voxel_ml = voxel_volume_ml(spacing_mm)
    return {
        name: _score_label(reference == number, found == number, spacing_mm, tolerance_mm, voxel_ml)
        for name, number in labels.items()
    }


def _score_label(reference: Mask, found: Mask, spacing_mm: Spacing, tolerance_mm: float, voxel_ml: float) -> LabelScore:
    reference_ml, found_ml = (float(np.count_nonzero(mask)) * voxel_ml for mask in (reference, found))
    if not reference_ml:
        return LabelScore(None, None, reference_ml, found_ml)
    if not found_ml:
        return LabelScore(0.0, 0.0, reference_ml, found_ml)
    reference, found = _cut_to_both(reference, found)
    return LabelScore(
        measure_dice(reference, found),
        measure_nsd(reference, found, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm),
        reference_ml,
        found_ml,
    )


def measure_nsd(reference: Mask, found: Mask, *, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Return the normalised surface Dice of two non-empty masks, by MONAI's ``compute_surface_dice``.

    Surfaces are weighted by their area, as in DeepMind's surface-distance, and not by a count of edge voxels (Nikolov
    et al., "Clinically Applicable Segmentation of Head and Neck Anatomy", JMIR 2021).

    Args:
        reference: ``(I, J, K)`` true mask.
        found: ``(I, J, K)`` predicted mask.
        spacing_mm: Voxel sides along I, J, K in mm.
        tolerance_mm: Largest distance in mm at which a surface counts as found.
    """
    margins = [(_MARGIN_VOXELS, _MARGIN_VOXELS)] * 3
    padded = [_to_batch(np.pad(mask, margins)) for mask in (found, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries on their own future
        nsd = compute_surface_dice(
            *padded, [tolerance_mm], include_background=True, spacing=list(spacing_mm), use_subvoxels=True
        )
    return float(nsd[0, 0])


def _cut_to_both(reference: Mask, found: Mask) -> tuple[Mask, Mask]:
    """The box around both masks: what lies outside changes neither figure."""
    box = ndimage.find_objects((reference | found).astype(np.uint8))[0]
    return reference[box], found[box]


def _to_batch(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
