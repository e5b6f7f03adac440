"""Label maps as users have them, made of full ones: some labels are missing, some are coarse.

There are the labels of TotalSegmentator's versions, of organs alone, of one organ and its lesion, coarse bones, and
labels left out at random; what is left out is body, as in a real map. What a bundle or a completion makes of them is
measured against the full map.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.vocabulary.totalsegmentator import totalsegmentator_mapping

LabelSet = Literal["all", "v1", "v2", "organs", "one organ", "coarse bones", "random"]
LABEL_SETS: Final[tuple[LabelSet, ...]] = get_args(LabelSet)
_ORGANS: Final = (
    ids.LIVER, ids.SPLEEN, ids.PANCREAS, *ids.KIDNEYS, ids.GALLBLADDER, ids.STOMACH, ids.DUODENUM, ids.BLADDER,
    ids.SMALL_BOWEL, ids.COLON, ids.HEART, ids.AORTA, ids.INFERIOR_VENA_CAVA, *ids.LUNG_LOBES, ids.ESOPHAGUS,
    ids.RIGHT_ADRENAL, ids.LEFT_ADRENAL,
)  # fmt: skip
# What a label becomes where its own set does not know it.
_COARSER: Final[dict[int, int]] = {
    ids.HEPATIC_VESSEL: ids.LIVER,
    ids.LEFT_ATRIAL_APPENDAGE: ids.HEART,
    ids.VERTEBRA_S1: ids.SACRUM,
}
# Those who label bones coarsely have one label for many: any of them.
_BONE_GROUPS: Final = (ids.VERTEBRAE, ids.LEFT_RIBS, ids.RIGHT_RIBS)


def reduce_labels(label_map: NDArray[np.uint8], label_set: LabelSet, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Reduce a label map to the labels of a set, as label maps of users have them.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        label_set: Labels to keep. Lesions and the outline of the body are kept in every set.
        rng: Generator that chooses the organ, the label of bones or the labels that are left out.

    Returns:
        A new label map.
    """
    present = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256))
    kept = _draw_kept(label_set, [int(label) for label in present], rng)
    table = np.arange(256, dtype=np.uint8)
    for label in range(1, 256):
        if label not in kept:
            coarser = _COARSER.get(label, ids.BODY)
            table[label] = coarser if coarser in kept else ids.BODY
    if label_set == "coarse bones":
        for group in _BONE_GROUPS:
            seen = [label for label in group if label in present]
            if seen:
                table[list(group)] = seen[int(rng.integers(len(seen)))]
    reduced: NDArray[np.uint8] = table[label_map]
    return reduced


def _draw_kept(label_set: LabelSet, present: list[int], rng: np.random.Generator) -> set[int]:
    always = {ids.BACKGROUND, ids.BODY, *ids.TUMORS}
    if label_set in ("v1", "v2"):
        return always | set(totalsegmentator_mapping(label_set).values())
    if label_set == "organs":
        return always | set(_ORGANS)
    if label_set == "one organ":
        return always | _draw_organ(present, rng)
    if label_set == "random":
        left_out = float(rng.uniform(0.1, 0.8))
        return always | {label for label in present if rng.random() >= left_out}
    return set(range(256))


def _draw_organ(present: list[int], rng: np.random.Generator) -> set[int]:
    """A lesion's hosts where there is a lesion, else any organ; both lungs and both kidneys are one organ."""
    groups: list[Iterable[int]] = [ids.TUMOR_HOSTS[tumor] for tumor in ids.TUMORS if tumor in present]
    if not groups:
        groups = [[label] for label in _ORGANS if label in present] or [[]]
    return set(groups[int(rng.integers(len(groups)))])
