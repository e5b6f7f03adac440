"""The labels that a cohort keeps in ``labels/``: a list of the user's instead of what the requests name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maisi_aug.cohort.plan import CasePlan, CohortPlan
from maisi_aug.errors import RequestError
from maisi_aug.vocabulary.labels import Label, Vocabulary

MAX_NAMES = 6


def keep_anatomy(plan: CohortPlan, names: Sequence[str], vocabulary: Vocabulary) -> CohortPlan:
    """A plan whose label maps keep exactly the named labels, each of them present.

    Organs of the list must be in every case, its lesions in the cases whose requests name them.

    Args:
        plan: Of the label requests.
        names: Names, aliases or ids.
        vocabulary: Of the bundle.

    Raises:
        VocabularyError: For an unknown name; the closest are offered.
        RequestError: When the list lacks a label that is requested, or holds a lesion that is not, or what is neither
            an organ nor a lesion.
    """
    labels = {label.id: label for label in (_find(name, vocabulary) for name in names)}
    missing = [vocabulary.name_of(label_id) for label_id in plan.requested_ids if label_id not in labels]
    if missing:
        raise RequestError(
            f"anatomy: expected every label that is requested in the list, found no {', no '.join(missing)}. "
            "Add it to --anatomy, or take it out of --labels."
        )
    unasked = [label.name for label in labels.values() if label.kind == "tumor" and label.id not in plan.requested_ids]
    if unasked:
        raise RequestError(
            f"anatomy: expected no lesion but those requested, found {', '.join(unasked)}, which no label map would "
            "hold. Request it with --labels, or take it out of --anatomy."
        )
    organ_ids = sorted(label.id for label in labels.values() if label.kind == "organ")
    return CohortPlan(tuple(_require(case, organ_ids) for case in plan.cases), tuple(sorted(labels)))


def _find(name: str, vocabulary: Vocabulary) -> Label:
    label = vocabulary.label(name)
    if label.kind not in ("organ", "tumor"):
        meaning = "a placeholder slot without a meaning in this bundle" if label.kind == "slot" else f"the {label.kind}"
        raise RequestError(
            f"anatomy: expected organs and lesions, found '{name}', which is {meaning}. "
            "List the labels with 'maisi-aug labels'."
        )
    return label


def _require(case: CasePlan, organ_ids: Sequence[int]) -> CasePlan:
    own = case.required_ids
    return replace(case, required_ids=(*own, *(label_id for label_id in organ_ids if label_id not in own)))


def spell_labels(label_ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """The names of labels; of many the lesions first, and the number of those left out."""
    if len(label_ids) > MAX_NAMES:
        label_ids = sorted(label_ids, key=lambda label_id: (label_id not in vocabulary.tumor_ids, label_id))
    names = [vocabulary.name_of(label_id) for label_id in label_ids[:MAX_NAMES]]
    left = len(label_ids) - len(names)
    return ", ".join(names) + (f" and {left} more" if left else "")
