"""The tissues that the measurements tell apart: organs grouped so that a small network can name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.vocabulary.labels import MAISI, Vocabulary
from maisi_aug.volumes.components import measure_dice_by_class

LESION: Final = "lesion"
_ORGANS: Final[dict[str, tuple[str, ...]]] = {
    "liver": ("liver", "hepatic vessel"),
    "spleen": ("spleen",),
    "kidneys": ("right kidney", "left kidney", "right kidney cyst", "left kidney cyst"),
    "pancreas": ("pancreas",),
    "heart": ("heart", "left atrial appendage"),
    "aorta": ("aorta",),
    "stomach": ("stomach",),
    "colon": ("colon",),
    "bladder": ("bladder",),
}


@dataclass(frozen=True, slots=True)
class Tissue:
    """Labels of a vocabulary that a segmenter treats as one class.

    Attributes:
        name: Name in tables.
        label_ids: Vocabulary ids of the labels.
    """

    name: str
    label_ids: tuple[int, ...]


def list_tissues(vocabulary: Vocabulary) -> tuple[Tissue, ...]:
    """Return the tissues of a vocabulary: organs, bone, muscle and, last, all tumours as one tissue.

    Args:
        vocabulary: Vocabulary of the label maps, including tumours bound to slots.

    Returns:
        The tissues; tissue ``n`` has class ``n + 1`` in a class map, and class 0 is everything else.
    """
    organs = [Tissue(name, tuple(map(MAISI.id_of, labels))) for name, labels in _ORGANS.items()]
    hosts = {
        name: MAISI.hosts_of(MAISI.id_of(tumor)) for name, tumor in (("lungs", "lung tumor"), ("bone", "bone lesion"))
    }
    muscles = tuple(range(MAISI.id_of("left gluteus maximus"), MAISI.id_of("right iliopsoas") + 1))
    return (
        *organs,
        *(Tissue(name, label_ids) for name, label_ids in hosts.items()),
        Tissue("muscle", muscles),
        Tissue(LESION, vocabulary.tumor_ids),
    )


def to_class_map(label_map: NDArray[np.uint8], tissues: Sequence[Tissue]) -> NDArray[np.uint8]:
    """Convert a label map to classes of tissues.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        tissues: Tissues; tissue ``n`` becomes class ``n + 1``.

    Returns:
        ``(I, J, K)`` uint8 classes, 0 for other labels.
    """
    table = np.zeros(256, dtype=np.uint8)
    for number, tissue in enumerate(tissues, start=1):
        table[list(tissue.label_ids)] = number
    classes: NDArray[np.uint8] = table[label_map]
    return classes


def measure_dice(expected: NDArray[Any], found: NDArray[Any], tissues: Sequence[Tissue]) -> dict[str, float | None]:
    """Return the Dice coefficient of every tissue of a case.

    Args:
        expected: ``(I, J, K)`` true classes.
        found: ``(I, J, K)`` classes to compare.
        tissues: Tissues; tissue ``n`` is class ``n + 1``.

    Returns:
        Name of the tissue -> Dice in [0, 1]; None for a tissue that the case does not have.
    """
    names = [tissue.name for tissue in tissues]
    return dict(zip(names, measure_dice_by_class(expected, found, len(tissues) + 1)[1:], strict=True))


def mean_dice(cases: Sequence[dict[str, float | None]], name: str) -> float | None:
    """Return the mean Dice of a tissue over the cases that have it; None if no case does."""
    values = [dice for case in cases if (dice := case[name]) is not None]
    return float(np.mean(values)) if values else None
