"""Labels of a cohort as values of a real dataset: explicit, checked in both directions, and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import ExportError, VocabularyError, did_you_mean
from maisi_aug.integrations.nnunet.real import RealDataset, Target
from maisi_aug.integrations.reading.cohort_source import CohortSource
from maisi_aug.integrations.reading.export_labels import name_in_totalsegmentator
from maisi_aug.vocabulary.label_meaning import resolve_names
from maisi_aug.vocabulary.labels import lookup_words

BACKGROUND_NAME = "background"


@dataclass(frozen=True)
class LabelMapping:
    """Mapping of a cohort's labels to the values of a real nnU-Net dataset; other ids become background.

    Attributes:
        values: Vocabulary id -> value in the real dataset; 0 for labels that the user maps to ``background``.
        given_ids: Vocabulary ids that the user mapped; the others are matched by name.
        absent: Values that truly do not occur in the cohort, as the user states.
    """

    values: Mapping[int, int]
    given_ids: frozenset[int]
    absent: frozenset[int]

    def build_table(self) -> NDArray[np.uint8]:
        """Return the ``(256,)`` table that converts a label map of the cohort by indexing."""
        table = np.zeros(1 << 16, dtype=np.uint8)
        for label_id, value in self.values.items():
            table[label_id] = value
        return table


def map_labels(
    real: RealDataset, cohort: CohortSource, given: Sequence[str], absent: Sequence[str], requested_ids: Sequence[int]
) -> LabelMapping:
    """Match the labels of a cohort with those of a real dataset, by name and by the user's rules.

    Args:
        real: Real dataset.
        cohort: Cohort to export.
        given: Rules ``LABEL=NAME``: a name or value of the real dataset or ``background``, and a label of the cohort,
            or several joined by a plus sign.
        absent: Labels of the real dataset that truly do not occur in the cohort's cases.
        requested_ids: Vocabulary ids requested for the exported cases, each of which must be mapped.

    Raises:
        ExportError: A rule cannot be read, a requested label has no target, or a real label has no source.
        VocabularyError: A rule names no label of the cohort.
    """
    explicit = _read_given(real, cohort, given)
    missing = frozenset(_find_target(real, name, f"--absent '{name}'").value for name in absent)
    values = {label_id: value for label_id, value in _match_names(real, cohort).items() if label_id not in explicit}
    values |= explicit
    for label_id in requested_ids:
        if label_id not in values:
            _raise_without_place(real, cohort.name_of(label_id), "which was requested for the cohort")
    for target in real.targets:
        if target.value not in values.values() and target.value not in missing:
            raise ExportError(
                f"Label '{target.spelling}' of {real.name}: the cohort has no label of that name, and nnU-Net would "
                f"learn it as background. Give --map '{target.spelling}=NAME', or --absent '{target.spelling}' if "
                "the cohort's cases really contain none."
            )
    return LabelMapping(values, frozenset(explicit), missing)


def require_complete_mapping(
    real: RealDataset, cohort: CohortSource, mapping: LabelMapping, counts: Mapping[int, int]
) -> None:
    """Raise if nnU-Net would learn something wrong from the converted label maps of a cohort.

    Args:
        real: Real dataset.
        cohort: Cohort to export.
        mapping: Mapping of the labels.
        counts: Vocabulary id -> number of exported cases that contain it.

    Raises:
        ExportError: A real label occurs in no exported case, or occurs although it was declared absent; or a tumour
            would become a hole in its organ.
    """
    found = {mapping.values.get(label_id, 0) for label_id in counts}
    for target in real.targets:
        if target.value in found and target.value in mapping.absent:
            raise ExportError(
                f"--absent '{target.spelling}': the label occurs in exported cases of {cohort.folder}. Leave the "
                "option out."
            )
        if target.value not in found and target.value not in mapping.absent:
            sources = [cohort.name_of(label_id) for label_id, value in mapping.values.items() if value == target.value]
            raise ExportError(
                f"Label '{target.spelling}' of {real.name}: no exported case of {cohort.folder} has "
                f"{' or '.join(sources)}. Give --absent '{target.spelling}' only if the structure really is absent "
                "from the cases, rather than unlabelled."
            )
    for label_id in sorted(counts.keys() & set(cohort.vocabulary.tumor_ids)):
        hosts = [host for host in cohort.vocabulary.hosts_of(label_id) if mapping.values.get(host, 0)]
        if label_id not in mapping.values and hosts:
            organ = f"and lies in {cohort.name_of(hosts[0])}"
            _raise_without_place(real, cohort.name_of(label_id), f"which the cohort's label maps contain {organ}")


def describe_mapping(real: RealDataset, cohort: CohortSource, mapping: LabelMapping) -> list[dict[str, Any]]:
    """Return a label mapping as rows for a report.

    Args:
        real: Real dataset with its labels.
        cohort: Cohort with its vocabulary.
        mapping: Vocabulary ids of the cohort -> values of the real dataset.

    Returns:
        JSON-able rows, sorted by value and id: ``vocabulary_id``, ``name``, ``value``, ``label`` (of the real dataset),
        ``found_by`` (``flag`` or ``name``), and ``totalsegmentator``, its task and class for the label.
    """
    names = {target.value: target.spelling for target in real.targets} | {0: BACKGROUND_NAME}
    return [
        {
            "vocabulary_id": label_id,
            "name": cohort.name_of(label_id),
            "value": value,
            "label": names[value],
            "found_by": "flag" if label_id in mapping.given_ids else "name",
            "totalsegmentator": name_in_totalsegmentator(label_id),
        }
        for label_id, value in sorted(mapping.values.items(), key=lambda item: (item[1], item[0]))
    ]


def _raise_without_place(real: RealDataset, name: str, reason: str) -> None:
    listed = ", ".join(target.spelling for target in real.targets)
    raise ExportError(
        f"Label '{name}', {reason}: {real.name} has no label of that name ({listed}). Give --map 'LABEL={name}', or "
        f"--map '{BACKGROUND_NAME}={name}' to leave it out."
    )


def _match_names(real: RealDataset, cohort: CohortSource) -> dict[int, int]:
    """Real labels whose name means a label of the cohort's vocabulary, such as "cancer" beside "liver"."""
    values = {target.name: target.value for target in real.targets if target.name is not None}
    meanings = resolve_names(values, cohort.vocabulary, context=real.region_names)
    return {meant.label_id: values[name] for name, meant in meanings.items() if meant.label_id is not None}


def _read_given(real: RealDataset, cohort: CohortSource, given: Sequence[str]) -> dict[int, int]:
    """``LABEL=NAME``, or ``LABEL=NAME+NAME``; ``NAME=LABEL``, the old spelling, where only that can be meant."""
    explicit: dict[int, int] = {}
    for entry in given:
        label, equals, names = (part.strip() for part in entry.partition("="))
        if not equals or not label or not names:
            raise ExportError(
                f"--map '{entry}': must have the form LABEL=NAME, with a label of {real.name} and one of the cohort. "
                "Write for instance --map 'tumor=hepatic tumor'."
            )
        if _is_reversed(real, cohort, label, names):
            label, names = names, label
        value = 0 if _is_background(label) else _find_target(real, label, f"--map '{entry}'").value
        for name in names.split("+"):
            label_id = cohort.vocabulary.id_of(name.strip())
            if label_id in explicit:
                raise ExportError(f"--map '{entry}': '{cohort.name_of(label_id)}' already has a label. Give only one.")
            explicit[label_id] = value
    return explicit


def _is_reversed(real: RealDataset, cohort: CohortSource, label: str, names: str) -> bool:
    """Whether an entry has the cohort's label first, which is the old spelling."""
    if not (_is_background(names) or _is_target(real, names)):
        return False
    if not (_is_background(label) or _is_target(real, label)):
        return True
    try:
        return cohort.vocabulary.label(names).kind in ("slot", "background")
    except VocabularyError:
        return True


def _is_background(text: str) -> bool:
    return text.casefold() == BACKGROUND_NAME


def _is_target(real: RealDataset, wanted: str) -> bool:
    return any(_is_called(target, wanted) for target in real.targets)


def _is_called(target: Target, wanted: str) -> bool:
    """Whether a label of the real dataset has a name or a value."""
    if wanted in (target.name, str(target.value)):
        return True
    return bool(target.name) and lookup_words(str(target.name)) == lookup_words(wanted)


def _find_target(real: RealDataset, wanted: str, subject: str) -> Target:
    """A label of the real dataset by its name or its value."""
    found = next((target for target in real.targets if _is_called(target, wanted)), None)
    if found is not None:
        return found
    spellings = [target.spelling for target in real.targets]
    raise ExportError(
        f"{subject}: {real.name} has no label '{wanted}', only "
        f"{', '.join(spellings)}.{did_you_mean(wanted, spellings)} Give one of them."
    )
