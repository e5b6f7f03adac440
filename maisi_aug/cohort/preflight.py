"""What can be told of a plan before anything is made: that its bank has maps, and that its lesions can be drawn.

Cheap: files are listed and mappings read elsewhere, and no volume is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.label_ids import LabelMapping
from maisi_aug.cohort.plan import CasePlan, CohortPlan
from maisi_aug.cohort.recipe import EMBEDDED_BANK
from maisi_aug.errors import BankError, RequestError, VocabularyError
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.grid import Grid


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


def require_organs_in_maps(plan: CohortPlan, vocabulary: Vocabulary, *, mask_source: str, mask_bank: str) -> None:
    """Raise unless organs that are asked for with a size come from label maps that a user has.

    Raises:
        RequestError: For organs of a size without such maps, or beside lesions that the maps shall hold, too.
    """
    for case in plan.cases:
        organs = [lesion.label for lesion in case.lesions if vocabulary.label(lesion.label_id).kind == "organ"]
        if not organs:
            continue
        subject = f"Label request '{case.request}': expected label maps that hold '{organs[0]}', which is not planted"
        if mask_source not in ("plant", "bank"):
            raise RequestError(f"{subject}, found mask_source '{mask_source}'. Use 'plant' or 'bank' with --mask-bank.")
        if mask_bank == EMBEDDED_BANK:
            raise RequestError(f"{subject}, found the phantoms. Name label maps that hold it with --mask-bank.")
        if mask_source == "bank" and len(organs) < len(case.lesions):
            raise RequestError(
                f"Label request '{case.request}': expected mask_source 'plant' for lesions beside '{organs[0]}', found "
                "'bank'. Use --mask-source plant."
            )
