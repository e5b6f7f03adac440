"""What can be told of a plan before anything is made: that its bank has maps, and that its lesions can be drawn.

Cheap: files are listed and mappings read elsewhere, and no volume is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maisi_aug.bank_entry import BankEntry
from maisi_aug.bank_labels import LabelMapping
from maisi_aug.errors import BankError, RequestError, VocabularyError
from maisi_aug.grid import Grid
from maisi_aug.labels import Vocabulary
from maisi_aug.plan import CasePlan, CohortPlan
from maisi_aug.sizes import diameter_mm


def require_known_targets(mapping: LabelMapping, vocabulary: Vocabulary, *, subject: str) -> None:
    """Raise unless a mapping of a bank's labels leads to labels of the vocabulary; a word leads to them by itself.

    Raises:
        BankError: Naming the first label that is none.
    """
    for source, target in mapping.items() if isinstance(mapping, Mapping) else ():
        try:
            vocabulary.id_of(target)
        except VocabularyError as error:
            raise BankError(f"{subject}, '{source}': {error}") from error


def require_maps(entries: Sequence[BankEntry], skipped: Sequence[tuple[str, str]], *, subject: str) -> None:
    """Raise unless a bank has at least one label map.

    Args:
        entries: The files that look usable.
        skipped: ``(name, reason)`` of those that do not.
        subject: The bank, for messages.

    Raises:
        BankError: Naming the first file that is not usable, if there is one.
    """
    if entries:
        return
    found = "".join(f"only files that cannot be used; {name}: {reason}" for name, reason in skipped[:1]) or "none"
    raise BankError(f"{subject}: expected label maps, found {found}. Check the folder's layout.")


def needed_ids(case: CasePlan, vocabulary: Vocabulary) -> set[int]:
    """Organs without which a case cannot be made: those that are asked for, and the hosts of lesions that have one."""
    hosts = [vocabulary.hosts_of(lesion.label_id) for lesion in case.lesions]
    return {*case.required_ids, *(only for only, *others in hosts if not others)}


def require_drawable(plan: CohortPlan, grid: Grid) -> None:
    """Raise unless every lesion of a plan fills at least half a voxel, so that rounding leaves it one.

    Raises:
        RequestError: Naming the smallest lesion and its case.
    """
    half_ml = grid.voxel_ml / 2
    lost = [(lesion, case) for case in plan.cases for lesion in case.lesions if lesion.volume_ml <= half_ml]
    if lost:
        lesion, case = min(lost, key=lambda pair: pair[0].volume_ml)
        raise RequestError(
            f"Label request '{case.request}': expected lesions above {half_ml:.2g} mL ({diameter_mm(half_ml):.1f} mm), "
            f"half a voxel of the grid, found a {lesion.label} of {lesion.volume_ml:.2g} mL "
            f"({lesion.diameter_mm:.1f} mm) in {case.case_id}. Ask for larger lesions or a smaller --spacing."
        )
