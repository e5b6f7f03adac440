"""The gate for images that are drawn without a label map: whether they show a patient at all, rather than air or noise.

There is no map that says which organ lies where, so nothing finer can be judged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.gates.checks import Verdict
from maisi_aug.volumes.body import find_body
from maisi_aug.volumes.grid import Spacing

GATE = "patient"
TISSUE_HU = (-200.0, 200.0)
"""Fat, muscle and parenchyma; all that is neither air, lung nor bone."""
BODY_SHARE = (0.01, 0.98)
"""Of the field of view: from a neck in a wide one (0.03 among the planning CTs of OpenKBP) to a trunk that leaves air
in the corners only."""
MIN_TISSUE_SHARE = 0.2
"""Of the body; in a chest with large lungs about half of it is soft tissue."""
MAX_STEP_HU = 80.0
"""Median difference of neighbours in soft tissue. It is 13 to 28 HU in CTs of TotalSegmentator and OpenKBP at 3 to
5 mm, and more in thin slices; values drawn at random between the two bounds above differ by 117 HU."""


def check_patient(image_hu: NDArray[Any], spacing_mm: Spacing, *, is_judged: bool = True) -> Verdict:
    """There is a body with air around it, much of it is soft tissue, and that is no noise.

    Args:
        image_hu: ``(I, J, K)`` intensities.
        spacing_mm: Voxel sides along I, J, K.
        is_judged: Whether the image has to pass; else the figures are noted all the same.
    """
    figures: dict[str, Any] = {"is_judged": is_judged, **measure_patient(image_hu, spacing_mm)}
    low, high = BODY_SHARE
    problems = []
    if not low <= figures["body_share"] <= high:
        problems.append(f"a body that fills {figures['body_share']:.0%} of the image")
    elif figures["tissue_share"] < MIN_TISSUE_SHARE:
        problems.append(f"a body of which {figures['tissue_share']:.0%} is soft tissue")
    elif figures["median_step_hu"] > MAX_STEP_HU:
        problems.append(f"soft tissue in which neighbours differ by {figures['median_step_hu']:.0f} HU, which is noise")
    if not problems:
        return Verdict(GATE, True, figures, "Patient: there is one, with air around and soft tissue inside.")
    note = "" if is_judged else " Not judged, as this bundle is known to draw poorly without a label map."
    return Verdict(GATE, not is_judged, figures, f"Patient: expected one with air around, found {problems[0]}.{note}")


def measure_patient(image_hu: NDArray[Any], spacing_mm: Spacing) -> dict[str, float]:
    """Shares of body and of soft tissue, and how much neighbouring voxels of soft tissue differ.

    Args:
        image_hu: ``(I, J, K)`` intensities.
        spacing_mm: Voxel sides along I, J, K.

    Returns:
        ``body_share`` of the image, ``tissue_share`` of the body, and ``median_step_hu`` along I.
    """
    try:
        body = find_body(image_hu, spacing_mm)
    except VolumeError:  # nothing as thick as a limb
        return {"body_share": 0.0, "tissue_share": 0.0, "median_step_hu": 0.0}
    tissue = body & (image_hu > TISSUE_HU[0]) & (image_hu < TISSUE_HU[1])
    pairs = tissue[1:] & tissue[:-1]
    steps = np.abs(image_hu[1:][pairs].astype(np.float32) - image_hu[:-1][pairs])
    return {
        "body_share": float(body.mean()),
        "tissue_share": float(tissue.sum()) / max(1.0, float(body.sum())),
        "median_step_hu": float(np.median(steps)) if steps.size else 0.0,
    }
