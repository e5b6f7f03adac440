"""Meaning of the ids of a bank's label maps in the vocabulary.

The meaning is always explicit: names in ``labels.json`` or ``dataset.json``, one file per organ, or a mapping that the
user states. A label without a counterpart becomes body (200) and is reported, never guessed; a lesion without one is
healed: it becomes the organ that it lies in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import BankError, VocabularyError, VolumeError
from maisi_aug.lesions.editing import settle_lesions
from maisi_aug.system.content import read_json, spells_number
from maisi_aug.vocabulary.label_meaning import find_label_id, resolve_names
from maisi_aug.vocabulary.labels import BODY_ID, MAISI, Vocabulary, lesion_word
from maisi_aug.vocabulary.totalsegmentator import TotalSegmentatorVersion, totalsegmentator_mapping

LabelMapping = str | Mapping[Any, Any]

AUTO = "auto"
MAISI_IDS = "maisi"
TOTALSEGMENTATOR = {"totalsegmentator-v1": "v1", "totalsegmentator-v2": "v2", "totalsegmentator-v3": "v3"}
CHOICES = (AUTO, MAISI_IDS, *TOTALSEGMENTATOR)
_ENVELOPE_NAMES = ("body", "soft tissue", "body envelope", "body_trunc", "skin")


@dataclass(frozen=True, eq=False)
class Translation:
    """Translation from the label ids of a mask bank to those of the vocabulary.

    Attributes:
        ids: Source id -> vocabulary id; other ids become body (200).
        envelope_ids: Source ids that already mean the body outside of organs, so that it need not be found from the CT.
        unknown: Source names that are not in the vocabulary; their ids become body (200).
        lesions: Source id of a lesion without a vocabulary id -> host organ id -> vocabulary id; in other organs the
            lesion becomes the organ itself.
        unknown_lesions: Names of those lesions.
    """

    ids: Mapping[int, int]
    envelope_ids: frozenset[int]
    unknown: tuple[str, ...] = ()
    lesions: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    unknown_lesions: tuple[str, ...] = ()

    def apply(self, label_map: NDArray[Any]) -> NDArray[np.uint8]:
        """Translate a label map to vocabulary ids.

        Args:
            label_map: ``(I, J, K)`` array of unsigned source ids.

        Returns:
            ``(I, J, K)`` uint8 vocabulary ids.
        """
        table = np.full(max(int(label_map.max()) + 1, 1), BODY_ID, dtype=np.uint8)
        table[0] = 0
        for source_id, label_id in self.ids.items():
            if source_id < table.size:
                table[source_id] = label_id
        translated: NDArray[np.uint8] = table[label_map]
        for source_id, tumor_of_host in self.lesions.items():
            if (lesions := label_map == source_id).any():
                translated = settle_lesions(translated, lesions, tumor_of_host=tumor_of_host)
        return translated

    def find_unlisted(self, present: NDArray[np.int_]) -> tuple[str, ...]:
        """Return the names of ids that occur in a map but are not in the translation.

        Args:
            present: Ids of the map, ascending.
        """
        return tuple(f"id {label_id}" for label_id in present if label_id and label_id not in self.ids)


def load_mapping(choice: LabelMapping) -> LabelMapping:
    """Return the label mapping that a choice stands for; a JSON file that it names is read.

    Raises:
        BankError: The choice is neither a known word nor a readable JSON file.
    """
    if not isinstance(choice, str) or choice in CHOICES:
        return choice
    if not choice.lower().endswith(".json"):
        raise BankError(f"Mask labels: expected {', '.join(CHOICES)} or a JSON file, found '{choice}'. Choose one.")
    try:
        document = read_json(Path(choice))
    except FileNotFoundError as error:
        raise BankError(f"Mask labels {choice}: file not found. Check --mask-labels.") from error
    except (OSError, ValueError) as error:
        raise BankError(f"Mask labels {choice}: not a readable JSON file: {error}. Correct the file.") from error
    if not isinstance(document, dict):
        raise BankError(
            f"Mask labels {choice}: expected a mapping with ids or names on both sides, found a list. Correct the file."
        )
    return _read_label_dict(document) if _is_label_dict(document) else document


def _is_label_dict(document: Mapping[Any, Any]) -> bool:
    """Whether a file is one of NVIDIA's: the id of every name, where a mapping has what every id or name means."""
    marks = {"left lung upper lobe": 28, "hepatic tumor": 26, "vertebrae L5": 33, "left kidney cyst": 116}
    return all(document.get(name) == label_id for name, label_id in marks.items())


def _read_label_dict(document: Mapping[str, int]) -> dict[str, int]:
    """The vocabulary's id of every id that means the same; the others become body where they occur."""
    meanings = {str(label_id): find_label_id(name, MAISI) for name, label_id in document.items()}
    return {source: label_id for source, label_id in meanings.items() if label_id is not None}


def require_known_targets(mapping: LabelMapping, vocabulary: Vocabulary, *, subject: str) -> None:
    """Raise unless a mapping of a bank's labels leads to labels of the vocabulary only.

    Keywords such as ``maisi`` always pass.

    Args:
        mapping: Keyword, or source id or name -> vocabulary name or id.
        vocabulary: Target vocabulary.
        subject: Name of the bank in messages.

    Raises:
        BankError: The message names the first target that is not in the vocabulary.
    """
    for source, target in mapping.items() if isinstance(mapping, Mapping) else ():
        try:
            vocabulary.id_of(target)
        except VocabularyError as error:
            raise BankError(f"{subject}, '{source}': {error}") from error


def build_translation(
    mapping: LabelMapping,
    names: Mapping[int, str] | None,
    vocabulary: Vocabulary,
    *,
    has_vocabulary_ids: bool,
    subject: str,
    has_options: bool = True,
) -> Translation | None:
    """Return the translation from a bank's label ids to the vocabulary's.

    Args:
        mapping: ``auto``, ``maisi``, ``totalsegmentator-v1``, ``-v2`` or ``-v3``, or source ids or names -> vocabulary
            names or ids.
        names: Source id -> name, if the bank states names; else None.
        vocabulary: Target vocabulary.
        has_vocabulary_ids: Whether the maps' ids are known to be the vocabulary's.
        subject: Name of the bank in messages.
        has_options: Whether the command takes ``--map`` or ``--mask-labels``, for messages.

    Returns:
        The translation; None if ``auto`` finds no names, so that only the ids of each map can tell.

    Raises:
        BankError: No label is mapped, or the mapping names an unknown label.
    """
    if isinstance(mapping, Mapping):
        return _from_mapping(mapping, names, vocabulary, subject)
    if mapping in TOTALSEGMENTATOR:
        return Translation(
            totalsegmentator_mapping(cast(TotalSegmentatorVersion, TOTALSEGMENTATOR[mapping])), frozenset()
        )
    if mapping == MAISI_IDS or (has_vocabulary_ids and mapping == AUTO):
        return Translation({label.id: label.id for label in vocabulary}, frozenset({BODY_ID}))
    return None if names is None else _from_names(names, vocabulary, subject, has_options=has_options)


def translate_own_names(
    names: Mapping[int, str], vocabulary: Vocabulary, *, subject: str, has_options: bool = True
) -> Translation | None:
    """Return the translation that the label names in a map's own header define; None for empty names.

    Args:
        names: Source id -> name.
        vocabulary: Target vocabulary.
        subject: Name of the map in messages.
        has_options: Whether the command takes ``--map`` or ``--mask-labels``, for messages.

    Raises:
        VolumeError: None of the names is in the vocabulary; other maps of the bank may still be usable.
    """
    if not names:
        return None
    try:
        return _from_names(names, vocabulary, subject, has_options=has_options)
    except BankError as error:
        raise VolumeError(str(error)) from error


def guess_maisi_ids(
    present: NDArray[np.int_], vocabulary: Vocabulary, *, subject: str, has_options: bool = True
) -> Translation:
    """Take the ids of a label map for MAISI's if body (200) is present and no id is outside of the vocabulary.

    Args:
        present: Ids of the map, ascending.
        vocabulary: Target vocabulary.
        subject: Name of the map in messages.
        has_options: Whether the command takes ``--map`` or ``--mask-labels``, for messages.

    Raises:
        VolumeError: The ids are not evidently MAISI's; other maps of the bank may still be usable.
    """
    if BODY_ID in present and all(vocabulary.contains(int(label_id)) for label_id in present):
        return Translation({label.id: label.id for label in vocabulary}, frozenset({BODY_ID}))
    remedy = (
        f'Pass --map "1=liver", or --mask-labels with {", ".join(CHOICES[1:])} or a JSON file'
        if has_options
        else 'Put a labels.json with their names next to the label maps, such as {"1": "liver"}'
    )
    raise VolumeError(
        f"{subject}: the meaning of its labels is unknown: it has ids up to {int(present.max())}, but no labels.json "
        f"or dataset.json. {remedy}."
    )


def _from_names(
    names: Mapping[int, str], vocabulary: Vocabulary, subject: str, *, has_options: bool = True
) -> Translation:
    translation = _complete({0: 0}, names, vocabulary)
    unknown = (*translation.unknown, *translation.unknown_lesions)
    if len(unknown) == sum(1 for source_id in names if source_id):
        remedy = (
            f'Map them with --map "{unknown[0]}=NAME" or a JSON file for --mask-labels'
            if has_options
            else "Correct the names in the file that holds them"
        )
        raise BankError(
            f"{subject}: none of its label names is in the vocabulary: {', '.join(unknown[:5])}. {remedy}; "
            "'maisi-aug labels' lists the known names."
        )
    return translation


def _from_mapping(
    mapping: Mapping[Any, Any], names: Mapping[int, str] | None, vocabulary: Vocabulary, subject: str
) -> Translation:
    id_by_name = {name.lower(): source_id for source_id, name in (names or {}).items()}
    ids: dict[int, int] = {0: 0}
    envelopes = set()
    for source, target in mapping.items():
        text = str(source).strip()
        source_id = int(text) if spells_number(text) else id_by_name.get(text.lower())
        if source_id is None:
            raise BankError(f"{subject}: the mapping names '{source}', but no label has that name.")
        try:
            ids[source_id] = vocabulary.id_of(target)
        except VocabularyError as error:
            raise BankError(f"{subject}: mapping of '{source}': {error}") from error
        if ids[source_id] == BODY_ID and is_envelope_name(str(target)):
            envelopes.add(source_id)
    translation = _complete(ids, names or {}, vocabulary)
    return replace(translation, envelope_ids=translation.envelope_ids | envelopes)


def _complete(stated: Mapping[int, int], names: Mapping[int, str], vocabulary: Vocabulary) -> Translation:
    """The translation of ids that the user stated, and of all others by their names.

    A lesion that was stated to be body or background is not a hole in its organ either: it becomes the organ.
    """
    meanings = resolve_names(names.values(), vocabulary, context=[vocabulary.name_of(i) for i in stated.values()])
    rest = {source_id: name for source_id, name in names.items() if source_id not in stated}
    ids = dict(stated) | {source_id: _id_or_body(meanings[name].label_id) for source_id, name in rest.items()}
    lesions = {i: meanings[name].choices for i, name in rest.items() if meanings[name].is_unknown_lesion}
    dropped = [i for i, name in names.items() if i and stated.get(i) in (0, BODY_ID) and lesion_word(name)]
    return Translation(
        ids,
        _find_envelopes(names),
        tuple(name for name in rest.values() if meanings[name].label_id is None and not meanings[name].is_lesion),
        lesions | {source_id: {} for source_id in dropped},
        tuple(names[source_id] for source_id in lesions),
    )


def _id_or_body(label_id: int | None) -> int:
    return BODY_ID if label_id is None else label_id


def is_envelope_name(name: str) -> bool:
    """Whether a label name means the body outside of organs, not only a part of it such as 'pulmonary artery'."""
    return name.strip().lower() in (*_ENVELOPE_NAMES, str(BODY_ID))


def _find_envelopes(names: Mapping[int, str]) -> frozenset[int]:
    return frozenset(source_id for source_id, name in names.items() if is_envelope_name(name))
