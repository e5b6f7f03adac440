"""Meaning of label names in a vocabulary: the one place where names become ids.

A name means the label that the vocabulary calls so. A lesion of an organ, such as ``liver_tumour`` or ``renal mass``,
means the tumour of that organ; one that names no organ, such as ``cancer``, the tumour of the organ that is named
next to it. An organ together with its lesion is the organ. Whatever else looks like a lesion is distinguished from
plain unknown names, so that it is not taken for tissue.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from maisi_aug.errors import VocabularyError
from maisi_aug.system.content import spells_number
from maisi_aug.vocabulary.labels import (
    BACKGROUND_ID,
    BODY_ID,
    Label,
    NameReading,
    Vocabulary,
    organ_key,
    read_label_name,
    split_camel_case,
)

MANY_HOSTS = 8
"""A tumour with more hosts is a bone lesion: a bare name such as "tumor" only means it if no other organ is named."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """Meaning of a label name from a user's dataset.

    Attributes:
        label_id: Id in the vocabulary; None if it has no such label.
        is_lesion: Whether the name means a lesion, and not the union of an organ and its lesion.
        is_union: Whether the name means an organ together with its lesion, or without it; ``label_id`` is then the
            organ's.
        beside: Name of the organ that decided which lesion a bare name means; otherwise empty.
        choices: Host id -> tumour id, for tumours that a bare name may mean if several organs are named.
    """

    label_id: int | None
    is_lesion: bool = False
    is_union: bool = False
    beside: str = ""
    choices: Mapping[int, int] = field(default_factory=dict)

    @property
    def is_unknown_lesion(self) -> bool:
        """Whether the name means a lesion that has no id in the vocabulary."""
        return self.is_lesion and self.label_id is None


UNKNOWN = Meaning(None)


def find_label_id(name: str, vocabulary: Vocabulary) -> int | None:
    """Return the vocabulary's id for a label name, read without its neighbours in a dataset.

    Args:
        name: Name as a dataset has it, such as ``Liver`` or ``kidney_right``.
        vocabulary: Vocabulary to look it up in.

    Returns:
        The id; None if no label of the vocabulary has that meaning.
    """
    return _read_alone(name, vocabulary)[0].label_id


def resolve_names(names: Iterable[str], vocabulary: Vocabulary, *, context: Collection[str] = ()) -> dict[str, Meaning]:
    """Find the meanings of all label names of one dataset.

    Args:
        names: All names of the dataset, because a bare name such as "tumor" is interpreted by the others.
        vocabulary: Vocabulary of the meanings.
        context: Names of organs that belong to the set without being requested, such as nnU-Net's regions.

    Returns:
        Name -> meaning, for every name.
    """
    names = list(dict.fromkeys(names))
    alone = {name: _read_alone(name, vocabulary) for name in dict.fromkeys((*names, *context))}
    organs = {name: pair for name, pair in alone.items() if pair[1].kind in ("plain", "union")}
    return {name: _resolve_bare(organs, vocabulary) if _is_bare(*alone[name]) else alone[name][0] for name in names}


def _is_bare(meaning: Meaning, reading: NameReading) -> bool:
    return meaning.label_id is None and reading.kind == "tumor" and not reading.organ_words


def _read_alone(name: str, vocabulary: Vocabulary) -> tuple[Meaning, NameReading]:
    """A name by itself: what it means, and what it says of lesions."""
    reading = read_label_name(name)
    is_lesion = reading.kind in ("tumor", "finding")
    if spells_number(name.strip()):
        return UNKNOWN, reading
    found = _look_up(name, vocabulary)
    if found is None and reading.kind == "union":
        found = _look_up(reading.organ_text, vocabulary)
        return Meaning(None if found in vocabulary.tumor_ids else found, is_union=True), reading
    if found is None and reading.kind == "tumor" and reading.organ_words:
        found = _tumors_by_organ(vocabulary).get(reading.organ_words)
    return Meaning(found, is_lesion or found in vocabulary.tumor_ids), reading


def _look_up(name: str, vocabulary: Vocabulary) -> int | None:
    for spelling in dict.fromkeys((name, split_camel_case(name))):
        try:
            return vocabulary.id_of(spelling)
        except VocabularyError:
            continue
    return None


@lru_cache(maxsize=16)
def _tumors_by_organ(vocabulary: Vocabulary) -> dict[frozenset[str], int]:
    """The tumour of each organ by the words that name the organ; none where these words are of several tumours.

    What the tumours themselves are called comes before the names of their hosts.
    """
    by_name: dict[frozenset[str], set[int]] = {}
    by_host: dict[frozenset[str], set[int]] = {}
    for label in _tumors(vocabulary):
        readings = [read_label_name(name) for name in (label.name, *label.aliases)]
        for reading in readings:
            if reading.kind == "tumor":
                by_name.setdefault(reading.organ_words, set()).add(label.id)
        for host in map(vocabulary.label, label.hosts):
            for name in (host.name, *host.aliases):
                by_host.setdefault(organ_key(name), set()).add(label.id)
    return {words: min(ids) for words, ids in (by_host | by_name).items() if words and len(ids) == 1}


def _tumors(vocabulary: Vocabulary) -> list[Label]:
    """Labels that a name of a tumour may mean: a cyst bound to a slot does not count."""
    labels = map(vocabulary.label, vocabulary.tumor_ids)
    return [label for label in labels if read_label_name(label.name).kind != "finding"]


def _resolve_bare(organs: Mapping[str, tuple[Meaning, NameReading]], vocabulary: Vocabulary) -> Meaning:
    """A lesion without an organ: the tumour of the organ that is named next to it."""
    by_words = _tumors_by_organ(vocabulary)
    beside: dict[int, str] = {}
    others: dict[int, set[str]] = {}
    named = [(name, *pair) for name, pair in organs.items() if pair[0].label_id not in (BACKGROUND_ID, BODY_ID)]
    for name, meaning, reading in named:
        for tumor in _tumors(vocabulary):
            if meaning.label_id in tumor.hosts or by_words.get(reading.organ_words) == tumor.id:
                beside.setdefault(tumor.id, name)
            elif meaning.label_id is not None:
                others.setdefault(tumor.id, set()).add(name)
    meant = [
        label_id for label_id in beside if len(vocabulary.hosts_of(label_id)) <= MANY_HOSTS or label_id not in others
    ]
    if len(meant) == 1:
        return Meaning(meant[0], is_lesion=True, beside=beside[meant[0]])
    tumors_of: dict[int, set[int]] = {}
    for label_id in meant:
        for host in vocabulary.hosts_of(label_id):
            tumors_of.setdefault(host, set()).add(label_id)
    choices = {host: min(ids) for host, ids in tumors_of.items() if len(ids) == 1}
    return Meaning(None, is_lesion=True, choices=choices)
