"""Contrast phases as ids: what takes up contrast agent has an id of its own in every phase but the portal venous one.

Networks that read a label map alone cannot know when the agent was given. In condition maps the phase is written into
the map: the usual ids stand for the portal venous phase, and the groups below have spare ids, which the vocabulary
leaves free, for the others. Labels of one group look alike, so that they share these.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.phantom.intensity import PHASES, Phase, draw_phase, mean_hu
from maisi_aug.system.seeds import derive_seed

SEED_STREAM: Final = "completion"
BASE_PHASE: Final[Phase] = "portal"
OTHER_PHASES: Final[tuple[Phase, ...]] = tuple(phase for phase in PHASES if phase != BASE_PHASE)
# Organs whose HU tell the phase of a real CT; each counts from some voxels on, and no more than some HU, so that none
# outweighs the others, such as an aorta of 400 HU.
_LEAST_VOXELS: Final = 30
_MOST_AWAY_HU: Final = 80.0
_TELLING: Final = (
    ids.AORTA, ids.INFERIOR_VENA_CAVA, ids.PORTAL_AND_SPLENIC_VEIN, ids.LIVER, ids.SPLEEN, ids.RIGHT_KIDNEY,
    ids.LEFT_KIDNEY, ids.PANCREAS, ids.SUPERIOR_VENA_CAVA, ids.PULMONARY_VEIN,
)  # fmt: skip
# Ids that neither the vocabulary nor detail maps use.
SPARE_IDS: Final = (*range(136, 200), *range(201, 232))
ENHANCED_GROUPS: Final[tuple[tuple[int, ...], ...]] = (
    (ids.AORTA, ids.LEFT_ILIAC_ARTERY, ids.RIGHT_ILIAC_ARTERY, ids.BRACHIOCEPHALIC_TRUNK, ids.LEFT_COMMON_CAROTID,
     ids.RIGHT_COMMON_CAROTID, ids.LEFT_SUBCLAVIAN_ARTERY, ids.RIGHT_SUBCLAVIAN_ARTERY, ids.LEFT_ATRIAL_APPENDAGE,
     ids.PULMONARY_VEIN),
    (ids.SUPERIOR_VENA_CAVA, ids.LEFT_BRACHIOCEPHALIC_VEIN, ids.RIGHT_BRACHIOCEPHALIC_VEIN),
    (ids.INFERIOR_VENA_CAVA,),
    (ids.LEFT_ILIAC_VEIN, ids.RIGHT_ILIAC_VEIN),
    (ids.PORTAL_AND_SPLENIC_VEIN,),
    (ids.HEPATIC_VESSEL,),
    ids.KIDNEYS,
    (ids.KIDNEY_MEDULLA,),
    (ids.LIVER,),
    (ids.SPLEEN,),
    (ids.PANCREAS,),
    (ids.RIGHT_ADRENAL, ids.LEFT_ADRENAL),
    (ids.STOMACH, ids.DUODENUM, ids.SMALL_BOWEL, ids.COLON),
    (ids.ESOPHAGUS,),
    (ids.BLADDER,),
    (ids.PROSTATE,),
    (ids.THYROID,),
    (ids.HEART,),
    (ids.LEFT_BLOOD_POOL,),
    (ids.RIGHT_BLOOD_POOL,),
    (ids.LUNG_VESSEL,),
    (ids.UNLABELLED_VESSEL,),
    (ids.SOFT_TISSUE,),
    (*ids.MUSCLES, ids.UNLABELLED_MUSCLE),
    *((tumor,) for tumor in ids.TUMORS),
)  # fmt: skip


@cache
def phase_table() -> dict[tuple[int, Phase], int]:
    """Return the id of every group and phase: (a group's id, phase other than the portal venous one) -> spare id."""
    table: dict[tuple[int, Phase], int] = {}
    spare = iter(SPARE_IDS)
    for group in ENHANCED_GROUPS:
        for phase in OTHER_PHASES:
            own = next(spare)
            table.update({(label, phase): own for label in group})
    return table


def with_phase(detail: NDArray[np.uint8], phase: Phase) -> NDArray[np.uint8]:
    """Write a contrast phase into a detail map.

    Args:
        detail: ``(I, J, K)`` ids of a detail map; not modified.
        phase: Contrast phase of the scan.

    Returns:
        A new map, in which enhanced groups have the ids of the phase; equal to ``detail`` for the portal venous one.
    """
    result: NDArray[np.uint8] = _lookup(phase)[detail]
    return result


@cache
def _lookup(phase: Phase) -> NDArray[np.uint8]:
    table = np.arange(256, dtype=np.uint8)
    for (label, of_phase), own in phase_table().items():
        if of_phase == phase:
            table[label] = own
    return table


def phase_for(modality: str, seed: int) -> Phase:
    """Return the contrast phase of a case: without agent by its modality, else drawn from its seed.

    Args:
        modality: Modality that the networks are conditioned on, such as ``ct_wo_contrast``; for a CT that may be of
            either kind, ``ct``, all phases are drawn from.
        seed: Seed of the case.
    """
    if modality == "ct_wo_contrast":
        return "non-contrast"
    drawn = draw_phase(derive_seed(seed, "phase"))
    number = 0
    while modality == "ct_contrast" and drawn == "non-contrast":
        number += 1
        drawn = draw_phase(derive_seed(seed, "phase", number))
    return drawn


def infer_phase(label_map: NDArray[np.uint8], image_hu: NDArray[np.int16], *, modality: str) -> Phase:
    """Return the contrast phase of a real CT: the one whose usual HU are nearest to those of the labelled organs.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        image_hu: ``(I, J, K)`` HU.
        modality: Modality of the image; ``ct_wo_contrast`` decides, ``ct_contrast`` rules the unenhanced phase out.

    Returns:
        The phase; the portal venous one if no organ shows it.
    """
    if modality == "ct_wo_contrast":
        return "non-contrast"
    phases = [phase for phase in PHASES if modality != "ct_contrast" or phase != "non-contrast"]
    away = dict.fromkeys(phases, 0.0)
    for label in _TELLING:
        inside = image_hu[label_map == label]
        if inside.size >= _LEAST_VOXELS:
            median = float(np.median(inside))
            for phase in phases:
                away[phase] += min(abs(median - float(mean_hu(phase)[label])), _MOST_AWAY_HU)
    return min(phases, key=lambda phase: (away[phase], phase != BASE_PHASE))


def condition_seed(seed: int) -> int:
    """Return the seed of what completes a case's map, from the seed of the case's image."""
    return derive_seed(seed, SEED_STREAM)


def describe_completion(seed: int, modality: str) -> dict[str, int | str]:
    """Return how a map is completed, for the manifest of a cohort.

    Args:
        seed: Seed of the case's image.
        modality: Modality that the networks are conditioned on.
    """
    own = condition_seed(seed)
    return {"unlabelled": "procedural anatomy", "phase": phase_for(modality, own), "seed": own}
