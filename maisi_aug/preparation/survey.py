"""A look at every case before any work: are the files readable, on one grid, and which labels do they hold?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maisi_aug.banks.case_reader import place_labels
from maisi_aug.banks.label_map import require_one_label
from maisi_aug.errors import PreparationError, VolumeError
from maisi_aug.preparation.mapping import LabelMeanings, labels_of
from maisi_aug.preparation.sources import SourceCase
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, lesion_word
from maisi_aug.volumes.image_files import load_grid, load_label_map

MASK_ID = 1
"""The id of what a mask of one label shows."""
MAX_SHOWN = 5


@dataclass(frozen=True)
class CaseSurvey:
    """What was found in a case's label files before its preparation.

    Attributes:
        case_id: Name of the case.
        counts: For each of its label files, id -> number of voxels.
        problem: Why the case cannot be used; empty if it can.
    """

    case_id: str
    counts: tuple[Mapping[int, int], ...] = ()
    problem: str = ""


def survey_case(case: SourceCase) -> CaseSurvey:
    """Read the label files of a case and the geometry of its image, and report ids and problems."""
    try:
        grid = load_grid(case.image)
        counts = []
        for file in case.labels:
            volume = load_label_map(file.path, image=case.image)
            volume = place_labels(volume, grid, subject=file.path.name)
            found = np.bincount(volume.array.ravel())
            present = {int(label_id): int(found[label_id]) for label_id in np.flatnonzero(found)}
            if file.mask_name is not None:
                require_one_label(present, file.path)
                present = {MASK_ID if label_id else 0: count for label_id, count in present.items()}
            counts.append(present)
    except VolumeError as error:
        return CaseSurvey(case.id, problem=str(error))
    return CaseSurvey(case.id, tuple(counts))


def tables_of(case: SourceCase, survey: CaseSurvey, meanings: LabelMeanings) -> tuple[dict[int, int], ...]:
    """Return, for each label file of a case, source id -> vocabulary id; dropped ids become 0.

    Args:
        case: Case with its label files.
        survey: Ids and voxel counts that were found in these files.
        meanings: Meaning of every label of the lab.
    """
    tables = []
    for file, counts in zip(case.labels, survey.counts, strict=True):
        labels = labels_of(file, counts)
        tables.append({MASK_ID if label.id is None else label.id: meanings.ids[label] for label in labels})
    return tuple(tables)


def dropped_lesions_of(case: SourceCase, survey: CaseSurvey, meanings: LabelMeanings) -> tuple[frozenset[int], ...]:
    """Return, for each label file of a case, the ids of lesions that are replaced by their surroundings.

    Args:
        case: Case with its label files.
        survey: Ids and voxel counts that were found in these files.
        meanings: Meaning of every label of the lab.
    """
    return tuple(
        frozenset(
            MASK_ID if label.id is None else label.id
            for label in labels_of(file, counts)
            if label.id != 0 and meanings.ids[label] in (BACKGROUND_ID, BODY_ID) and lesion_word(label.name or "")
        )
        for file, counts in zip(case.labels, survey.counts, strict=True)
    )


def holds_envelope(case: SourceCase, survey: CaseSurvey, meanings: LabelMeanings) -> bool:
    """Whether a case has a label that stands for the whole body.

    Args:
        case: Case with its label files.
        survey: Ids and voxel counts that were found in these files.
        meanings: Meaning of every label of the lab.
    """
    return any(
        counts.get(MASK_ID if label.id is None else label.id, 0)
        for file, counts in zip(case.labels, survey.counts, strict=True)
        for label in labels_of(file, counts)
        if label in meanings.envelopes
    )


def require_readable(surveys: Sequence[CaseSurvey]) -> None:
    """Raise if any case cannot be used.

    Raises:
        PreparationError: The message states the number of unusable cases, and the problems of the first.
    """
    bad = [survey for survey in surveys if survey.problem]
    if bad:
        shown = "; ".join(f"case {survey.case_id}: {survey.problem.rstrip('.')}" for survey in bad[:MAX_SHOWN])
        rest = f"; and {len(bad) - MAX_SHOWN} more" if len(bad) > MAX_SHOWN else ""
        raise PreparationError(
            f"Cases: {len(bad)} of {len(surveys)} have unusable files ({shown}{rest}). Correct the files, or leave "
            "cases out with --exclude."
        )


def require_labels(
    cases: Sequence[SourceCase], surveys: Sequence[CaseSurvey], meanings: LabelMeanings, *, allow_empty: bool
) -> None:
    """Raise if a mapped label occurs in no case, or a case contains none of them.

    Args:
        cases: All cases.
        surveys: What was found in their label files, one per case, in the same order.
        meanings: Meaning of every label of the lab.
        allow_empty: Whether a case may contain none of the labels.

    Raises:
        PreparationError: The message names the labels or the cases.
    """
    volumes: dict[int, int] = {label_id: 0 for label_id in meanings.ids.values() if label_id}
    empty = []
    for case, survey in zip(cases, surveys, strict=True):
        num_voxels = 0
        for table, counts in zip(tables_of(case, survey, meanings), survey.counts, strict=True):
            for source_id, label_id in table.items():
                if label_id:
                    volumes[label_id] += counts.get(source_id, 0)
                    num_voxels += counts.get(source_id, 0)
        if case.labels and not num_voxels:
            empty.append(case.id)
    named = {label.id for label in meanings.new_labels.values()}
    absent = [meanings.vocabulary.name_of(label_id) for label_id, n in volumes.items() if not n and label_id in named]
    if absent:
        raise PreparationError(
            f"Labels: the new label '{absent[0]}' has no voxels in any of the {len(cases)} cases. Correct its --map."
        )
    if empty and not allow_empty:
        shown = ", ".join(empty[:MAX_SHOWN]) + (", ..." if len(empty) > MAX_SHOWN else "")
        raise PreparationError(
            f"Labels: {len(empty)} of {len(cases)} cases have no labels: {shown}. Leave them out with --exclude, or "
            "keep them as healthy cases with --allow-empty."
        )
