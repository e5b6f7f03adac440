"""Labels that become background inside an exported organ: they leave holes in it, which a real label map may not have.

MAISI's label maps hold vessels and cysts apart from the organ around them. Where the real dataset counts those as the
organ, a synthetic organ with holes teaches something else; only the user can tell, so this finds them and says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAX_SLICES = 32  # per case; contacts within slices are counted, and these are enough to tell inside from beside
MIN_SHARE = 0.6
_NUM_IDS = 256


def count_contacts(label_map: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """How often voxels of two labels touch.

    Args:
        label_map: ``(I, J, K)``; ids from 256 on count as background.

    Returns:
        ``(256, 256)`` symmetric, pairs of different ids that share a face within slices along K.
    """
    step = max(1, -(-label_map.shape[2] // MAX_SLICES))
    slices = label_map[:, :, ::step]
    ids = np.where(slices < _NUM_IDS, slices, 0).astype(np.int64)
    counts = np.zeros(_NUM_IDS * _NUM_IDS, dtype=np.int64)
    for first, second in ((ids[:-1], ids[1:]), (ids[:, :-1], ids[:, 1:])):
        differs = first != second
        counts += np.bincount(first[differs] * _NUM_IDS + second[differs], minlength=counts.size)
    matrix = counts.reshape(_NUM_IDS, _NUM_IDS)
    return matrix + matrix.T


def find_holes(contacts: NDArray[np.int64], values: Mapping[int, int]) -> dict[int, int]:
    """Labels without a place that mostly touch one that has one.

    Args:
        contacts: Of all cases, from ``count_contacts``.
        values: Vocabulary id to value in the real dataset; ids that the user mapped to background are no surprise.

    Returns:
        Id of the label that becomes background, to the id that it touches most.
    """
    kept = [label_id for label_id, value in values.items() if value and label_id < _NUM_IDS]
    holes = {}
    for label_id in np.flatnonzero(contacts.sum(axis=1)).tolist():
        if label_id == 0 or label_id in values or not kept:
            continue
        touching = contacts[label_id, kept]
        if touching.sum() > MIN_SHARE * contacts[label_id].sum():
            holes[label_id] = kept[int(touching.argmax())]
    return holes
