"""Conditions of MAISI's mask generator: ten numbers, the sizes of five organs and of one of five kinds of tumour.

A size is a percentile from 0 to 1, and -1 stands for what the map does not show. Requests give some of the numbers; the
others come from a row of the size-conditions file, one of those that agree best with what is given. Needs no torch.

Source: NVIDIA's published configurations (NV-Generate-CTMR), and Guo et al., "MAISI: Medical AI for Synthetic Imaging",
WACV 2025.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import BundleError, RecipeError, VocabularyError, did_you_mean
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.system.content import read_json
from maisi_aug.vocabulary.labels import MAISI, Vocabulary
from maisi_aug.vocabulary.sizes import reference_distribution

SIZED_ORGANS = (10, 1, 12, 4, 62)
"""Ids of the organs whose sizes are the first five numbers: gallbladder, liver, stomach, pancreas, colon."""
SIZED_TUMORS = (23, 24, 26, 27, 128)
"""Ids of the tumours whose sizes are the last five: lung, pancreas, liver, colon and bone."""
CONDITION_IDS = (*SIZED_ORGANS, *SIZED_TUMORS)
ABSENT = -1.0
NUM_NEAREST = 20
"""Number of best-agreeing rows from which a case draws; rows that tie with the last one are included."""
MISMATCH = 2.0
"""Cost of a required organ that is absent from a row: as much as any two numbers can differ."""


def load_size_conditions(path: Path) -> NDArray[np.float32]:
    """Read the sizes of organs and tumours from NVIDIA's ``all_anatomy_size_conditions.json``.

    Args:
        path: JSON file with a list of ``{"organ_size": [10 numbers]}``.

    Returns:
        ``(N, 10)`` sizes in the order of ``CONDITION_IDS``.

    Raises:
        BundleError: The file cannot be read or a row is not ten numbers that are -1 or in [0, 1].
    """
    try:
        rows: Any = read_json(path)
        sizes = np.array([row["organ_size"] for row in rows], dtype=np.float32)
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{path.name}: rows with ten numbers under 'organ_size' cannot be read ({type(error).__name__}: "
            f"{error}). Get the file again."
        ) from error
    if sizes.ndim != 2 or sizes.shape[1] != len(CONDITION_IDS) or not len(sizes):
        raise BundleError(
            f"{path.name}: rows must have {len(CONDITION_IDS)} numbers, found the shape {sizes.shape}. Get the file "
            "again."
        )
    wrong = ~((sizes == ABSENT) | ((sizes >= 0) & (sizes <= 1)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise BundleError(
            f"{path.name}: sizes must lie between 0 and 1, or be -1 for absent, found {sizes[row, column]:g} in row "
            f"{row + 1}. Get the file again."
        )
    return sizes


def read_organ_sizes(sizes: Mapping[str, float], vocabulary: Vocabulary = MAISI) -> dict[int, float]:
    """Return organ id -> requested size percentile.

    Args:
        sizes: Name -> percentile in [0, 1], or -1 for an organ that must be absent.
        vocabulary: Vocabulary of the names.

    Raises:
        RecipeError: The size of a name cannot be requested, a name is given twice, or a size is neither -1 nor in [0,
            1].
    """
    known = [MAISI.name_of(label_id) for label_id in SIZED_ORGANS]
    found: dict[int, float] = {}
    for name, size in sizes.items():
        try:
            label_id = vocabulary.id_of(name)
        except VocabularyError:
            label_id = 0
        if label_id in vocabulary.tumor_ids:
            raise RecipeError(
                f"size_of '{name}': is a lesion; size_of only takes organs ({', '.join(known)}). Request it with "
                "--labels "
                f"'{name}:{size:g}'."
            )
        if label_id not in SIZED_ORGANS:
            raise RecipeError(
                f"size_of '{name}': the mask networks are not conditioned on its size, only on "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )
        if label_id in found:
            raise RecipeError(f"size_of '{name}': given twice. Leave one out.")
        if not (0.0 <= size <= 1.0 or size == ABSENT):
            raise RecipeError(
                f"size_of '{name}': expected a percentile from 0 to 1, or -1 for absent, found {size:g}. Use 0.3 for "
                "the 30th percentile."
            )
        found[label_id] = float(size)
    return found


def require_not_absent(organ_sizes: Mapping[int, float], needed_ids: Collection[int]) -> None:
    """Raise if a requested size of -1 removes an organ that a label request needs.

    Args:
        organ_sizes: Organ id -> size percentile in [0, 1], or -1 for absent; result of :func:`read_organ_sizes`.
        needed_ids: Ids of the organs that label requests name or that host their lesions.

    Raises:
        RecipeError: The message names the organ.
    """
    for label_id, size in organ_sizes.items():
        if size == ABSENT and label_id in needed_ids:
            name = MAISI.name_of(label_id)
            raise RecipeError(
                f"size_of '{name}': cannot be -1 (absent), because the label requests need the organ. Leave it out, "
                "or request other labels."
            )


def find_told_tumor(lesions: Sequence[Lesion]) -> int | None:
    """Return the label id of a case's only lesion if the mask networks can be conditioned on it; otherwise None.

    The networks do not control the number of lesions, and clean-up keeps one, so several lesions are planted.
    """
    return lesions[0].label_id if len(lesions) == 1 and lesions[0].label_id in SIZED_TUMORS else None


def give_sizes(lesions: Sequence[Lesion], organ_sizes: Mapping[int, float]) -> dict[int, float]:
    """Return label id -> the numbers of the size condition that a request determines.

    A tumour's number is the percentile of its requested volume in the package's size reference, even if the request was
    a percentile of the user's own lesions, which the networks do not know. The absence of other tumours is determined,
    too.

    Args:
        lesions: Lesions of a case; only that of :func:`find_told_tumor` is a condition, the others are planted later.
        organ_sizes: Organ id -> size percentile.
    """
    given = {**dict.fromkeys(SIZED_TUMORS, ABSENT), **organ_sizes}
    told = find_told_tumor(lesions)
    if told is not None:
        given[told] = reference_distribution(MAISI.name_of(told)).percentile(lesions[0].requested_ml)
    return given


def draw_condition(
    rows: NDArray[np.float32], given: Mapping[int, float], *, present_ids: Collection[int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Complete the requested numbers of a size condition with one of the real rows that agree best with them.

    Rows are compared by the sum of absolute differences of the requested numbers. One is drawn among the
    ``NUM_NEAREST`` nearest (and all that are equally near), so that cases differ in the other numbers.

    Args:
        rows: ``(N, 10)`` result of :func:`load_size_conditions`.
        given: Label id -> requested number.
        present_ids: Ids of organs that must be present, at any size.
        rng: Generator that draws the row.

    Returns:
        ``(10,)`` float32 in the order of ``CONDITION_IDS``.
    """
    places = [CONDITION_IDS.index(label_id) for label_id in given]
    wanted = np.array(list(given.values()), dtype=np.float32)  # (given,)
    distances = np.abs(rows[:, places] - wanted).sum(axis=1)  # (N,)
    needed = [CONDITION_IDS.index(label_id) for label_id in SIZED_ORGANS if label_id in set(present_ids) - set(given)]
    distances += MISMATCH * (rows[:, needed] == ABSENT).sum(axis=1)
    farthest = np.sort(distances)[min(NUM_NEAREST, len(rows)) - 1]  # distance of the NUM_NEAREST-th row
    nearest = np.flatnonzero(distances <= farthest + 1e-6)
    condition: NDArray[np.float32] = rows[rng.choice(nearest)].copy()
    condition[places] = wanted
    return condition
