"""The label vocabulary: names, ids, kinds, host organs and placeholder slots.

Ids are those of the published MAISI models: 0-132 and 200, an 8-bit code in the ControlNet's condition. Names are
looked up without regard to case, underscores, hyphens, word order or British spelling, so that TotalSegmentator's
``kidney_left`` and a typed "Left kidney" are the same label.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from maisi_aug.errors import VocabularyError, did_you_mean
from maisi_aug.system.content import spells_number

LabelKind = Literal["organ", "tumor", "slot", "body", "background"]

BACKGROUND_ID = 0
BODY_ID = 200
LUNG_LOBE_IDS = frozenset(range(28, 33))
SLOT_IDS = (2, 16, 18, 20, 21, 129, 130, 131)
FREE_IDS = (*range(133, 200), *range(201, 256))
_NAME_SEPARATORS = "+:@"


@cache
def _tables() -> dict[str, Any]:
    text = Path(__file__).parents[1].joinpath("data").joinpath("labels.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def split_camel_case(name: str) -> str:
    """Split a name in camel case into words: ``SpinalCord`` becomes ``Spinal Cord``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def name_words(name: str) -> list[str]:
    """Split a name into words in lower case; a plus sign, an ampersand and a slash become "and"."""
    return re.findall(r"[a-z0-9]+", re.sub(r"[+&/]", " and ", name.lower()))


def lookup_words(name: str) -> list[str]:
    """Split a name into words for comparison: lower case, American spelling, without filler words."""
    words = name_words(name)
    ignored, spelling = _tables()["ignored_words"], _tables()["spelling"]
    return [spelling.get(word, word) for word in words if word not in ignored]


def _lookup_key(name: str) -> str:
    return " ".join(sorted(lookup_words(name)))


@dataclass(frozen=True, slots=True)
class Label:
    """One label of a vocabulary, with its kind and its host organs.

    Attributes:
        id: Value in a label map, 0-255.
        name: Name used in files and tables.
        kind: ``organ``, ``tumor`` (anything that is planted in a host organ) or ``slot`` (a placeholder without a
            meaning).
        hosts: Ids of the organs in which a tumour may grow; for an organ bound to a slot, the labels in which it lies
            and which replace it; empty for other labels.
        aliases: Further names under which the label is found.
        removal_id: Id that replaces a removed tumour, or a kidney cyst, which MAISI treats as a lesion only in
            guidance; None for other labels.
        is_slot: Whether fine-tuning may give the id a meaning, whether it has one or not.
    """

    id: int
    name: str
    kind: LabelKind
    hosts: tuple[int, ...] = ()
    aliases: tuple[str, ...] = ()
    removal_id: int | None = None
    is_slot: bool = False


@dataclass(frozen=True, slots=True)
class SlotBinding:
    """The meaning that a bundle gives to a placeholder slot or a free id.

    Attributes:
        id: One of ``SLOT_IDS`` or ``FREE_IDS``.
        hosts: Ids of the organs in which the new label lies; without hosts it is an organ.
        is_organ: Whether it is an organ although it has hosts; otherwise it is a tumour that grows in them.
        aliases: Further names, besides those that the package knows for a common label such as "kidney tumor".
    """

    id: int
    hosts: tuple[int, ...] = ()
    aliases: tuple[str, ...] = ()
    is_organ: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """All labels that a bundle knows, found by name or id, including background (0)."""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        ids: dict[int, str] = {}
        for label in self.labels:
            if label.id in ids:
                raise VocabularyError(
                    f"Label id {label.id}: has two names, '{ids[label.id]}' and '{label.name}'. Use another id for "
                    "one of them."
                )
            ids[label.id] = label.name

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    @cached_property
    def _by_id(self) -> dict[int, Label]:
        return {label.id: label for label in self.labels}

    @cached_property
    def _id_by_key(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for label in self.labels:
            for name in (label.name, *label.aliases):
                other = ids.setdefault(_lookup_key(name), label.id)
                if other != label.id:
                    raise VocabularyError(
                        f"Label '{name}' (id {label.id}): this name is taken by '{self.name_of(other)}' (id "
                        f"{other}). Choose another name."
                    )
        return ids

    @cached_property
    def tumor_ids(self) -> tuple[int, ...]:
        """Ids of all labels that grow in a host organ, including bound slots, ascending."""
        return tuple(sorted(label.id for label in self.labels if label.kind == "tumor"))

    @cached_property
    def lesion_ids(self) -> tuple[int, ...]:
        """Ids of all tumours and of the kidney cysts, which MAISI's guidance replaces by their hosts, ascending."""
        return tuple(sorted(label.id for label in self.labels if label.removal_id is not None))

    def contains(self, label_id: int) -> bool:
        """Whether the vocabulary has a label with an id, including placeholder slots."""
        return int(label_id) in self._by_id

    def label(self, name_or_id: str | int) -> Label:
        """Return the label with a given name, alias or id.

        Raises:
            VocabularyError: There is no such label; the message offers the closest names.
        """
        return self._by_id[self.id_of(name_or_id)]

    def id_of(self, name_or_id: str | int) -> int:
        """Return the id of a name, an alias, a TotalSegmentator class name, or an id given as a number or as text.

        Raises:
            VocabularyError: There is no such label; the message offers the closest names.
        """
        text = str(name_or_id).strip()
        if spells_number(text):
            if int(text) not in self._by_id:
                raise VocabularyError(
                    f"Label id {text}: not in this vocabulary (0-132 or 200, or a bound slot). List the labels with "
                    "'maisi-aug labels'."
                )
            return int(text)
        found = self._id_by_key.get(_lookup_key(text))
        if found is None:
            raise VocabularyError(self._unknown_name_message(text))
        return found

    def name_of(self, label_id: int) -> str:
        """Return the name of the label with an id.

        Raises:
            VocabularyError: There is no such id.
        """
        return self.label(int(label_id)).name

    def hosts_of(self, label_id: int) -> tuple[int, ...]:
        """Return the ids of the organs in which a tumour may grow, or a new organ lies; empty for other labels."""
        return self.label(int(label_id)).hosts

    def background_id_for(self, label_id: int) -> int:
        """Return the id that replaces a tumour or a cyst when it is removed from a label map.

        For a tumour with several hosts this is a fixed choice; code that has the label map uses the nearest host
        instead.

        Raises:
            VocabularyError: The label is not a lesion.
        """
        label = self.label(int(label_id))
        if label.removal_id is None:
            raise VocabularyError(
                f"Label '{label.name}' (id {label.id}): only lesions can be removed, and this is of kind "
                f"'{label.kind}'. Lesions are {', '.join(map(self.name_of, self.lesion_ids))}."
            )
        return label.removal_id

    def with_slots(self, bindings: Mapping[str, SlotBinding]) -> Vocabulary:
        """Return a vocabulary in which slots or free ids carry names.

        Args:
            bindings: New name -> the id it is bound to and its host organs.

        Raises:
            VocabularyError: A name is taken or unreadable, an id is not free, or a host organ is unknown.
        """
        by_id = dict(self._by_id)
        taken = {*self._id_by_key, *map(_lookup_key, bindings)}
        # Organs first: lesions may name them as hosts, in whatever order they come.
        ordered = sorted(bindings.items(), key=lambda row: bool(row[1].hosts) and not row[1].is_organ)
        for name, binding in ordered:
            if (other := self._id_by_key.get(_lookup_key(name), binding.id)) != binding.id:
                raise VocabularyError(
                    f"Slot binding '{name}': this is already a name of '{self.name_of(other)}' (id {other}). Choose "
                    "another name."
                )
            known = [alias for alias in _known_slot_aliases(name) if _lookup_key(alias) not in taken]
            taken.update(map(_lookup_key, known))
            bound = self._bind(name, binding, by_id, aliases=(*binding.aliases, *known))
            by_id[bound.id] = bound
        vocabulary = Vocabulary(tuple(by_id[label_id] for label_id in sorted(by_id)))
        vocabulary._id_by_key  # noqa: B018  a name that is taken must raise here, not at the first look-up
        return vocabulary

    @staticmethod
    def _bind(name: str, binding: SlotBinding, by_id: Mapping[int, Label], aliases: tuple[str, ...]) -> Label:
        _require_bindable(name, binding, by_id)
        current = by_id.get(binding.id)
        if current is not None:
            kept = (*current.aliases, current.name) if current.kind == "slot" else current.aliases
            aliases = tuple(dict.fromkeys((*kept, *aliases)))
        label = Label(binding.id, name.strip(), "organ", binding.hosts, aliases, is_slot=True)
        if not binding.hosts or binding.is_organ:
            return label
        return replace(label, kind="tumor", hosts=binding.hosts, removal_id=binding.hosts[0])

    def _unknown_name_message(self, text: str) -> str:
        words = set(_lookup_key(text).split())
        subject = f"Label '{text}': "
        if _known_slot_aliases(text):
            return (
                f"{subject}this name needs a placeholder slot that this bundle does not bind. Use a bundle that "
                "does, such as 'phantom-ct'."
            )
        sharing = [label.name for label in self.labels if words and words <= set(_lookup_key(label.name).split())]
        if len(sharing) > 1:
            listed = ", ".join(f"'{name}'" for name in sharing[:6]) + (", ..." if len(sharing) > 6 else "")
            return f"{subject}ambiguous, part of several names: {listed}. Name one of them."
        return (
            f"{subject}not a name or id of this vocabulary.{self._closest_names(text)} List the labels with "
            "'maisi-aug labels'."
        )

    def _closest_names(self, text: str) -> str:
        """The closest names and aliases as a phrase, at most one per label, so that three choices are three labels."""
        id_by_name = {name.lower(): label.id for label in self.labels for name in (label.name, *label.aliases)}
        best: dict[int, str] = {}
        for name in difflib.get_close_matches(text.lower().replace("_", " "), list(id_by_name), n=12, cutoff=0.5):
            best.setdefault(id_by_name[name], name)
        return did_you_mean(text.replace("_", " "), list(best.values())[:3])


def _require_bindable(name: str, binding: SlotBinding, by_id: Mapping[int, Label]) -> None:
    subject = f"Slot binding '{name}'"
    current = by_id.get(binding.id)
    if binding.id not in SLOT_IDS and binding.id not in FREE_IDS:
        found = f"the id of '{current.name}'" if current else "an id outside 0-255"
        raise VocabularyError(
            f"{subject}: expected a placeholder slot ({', '.join(map(str, SLOT_IDS))}) or a free id (133-199, "
            f"201-255), found {binding.id}, {found}. Bind the name to one of those."
        )
    if not _lookup_key(name) or spells_number(name.strip()) or any(mark in name for mark in _NAME_SEPARATORS):
        raise VocabularyError(
            f"{subject}: a name must consist of words without '+', ':' or '@', found '{name}'. Rename the label."
        )
    unknown = [host for host in binding.hosts if host not in by_id or by_id[host].kind not in ("organ", "body")]
    if unknown:
        raise VocabularyError(
            f"{subject}: hosts must be ids of organs, found {unknown}. List the organs with 'maisi-aug labels --kind "
            "organ'."
        )
    is_bound = current is not None and current.kind != "slot"
    if current is not None and is_bound and (current.name, current.hosts) != (name.strip(), binding.hosts):
        raise VocabularyError(f"{subject}: id {binding.id} is already bound to '{current.name}'. Choose another slot.")


def _known_slot_aliases(name: str) -> tuple[str, ...]:
    """Aliases of a label that MAISI lacks but people often bind; found under any of its names."""
    for slot, row in _tables()["known_slots"].items():
        aliases = row["aliases"]
        if _lookup_key(name) in {_lookup_key(known) for known in (slot, *aliases)}:
            return (slot, *aliases)
    return ()


def _label_from_row(row: Mapping[str, Any]) -> Label:
    lists = {key: tuple(row[key]) for key in ("hosts", "aliases") if key in row}
    return Label(**{**row, **lists})


MAISI = Vocabulary(tuple(map(_label_from_row, _tables()["labels"])))
KNOWN_SLOTS: Mapping[str, SlotBinding] = {
    name: SlotBinding(id=row["id"], hosts=tuple(row["hosts"])) for name, row in _tables()["known_slots"].items()
}
"""Labels that MAISI lacks and the embedded bundle binds to slots."""
FULL_VOCABULARY = MAISI.with_slots(KNOWN_SLOTS)
"""MAISI's labels, and those that the embedded bundle binds to slots: what phantoms, files that name no vocabulary of
their own, and MAISI's mask generator, which draws a kidney mass under 129, are read with."""


_TUMOR = re.compile(
    r"tum|tumou?rs?|neoplas(m|ms|ia|ias)|cancers?|(adeno)?carcinomas?|malignanc(y|ies)|lesions?|mass(es)?|nodules?"
    r"|metastas[ei]s|metastase|mets?|gtv[pt]?\d*"
)
_OTHER_LESION = re.compile(
    r".*cysts?|.*h(a|ae)?emorrhages?|.*bleed(ing)?|.*abscess(es)?|.*infarct(s|ion|ions)?|.*thromb(us|i|osis)|polyps?"
    r"|gtv\w*|(?!(stroma|zygoma|soma|coma)s?$).{2,}omas?"
)
"""Findings that are not a tumour of any vocabulary by their name alone; a GTV of nodes is none of an organ."""
_GLUED = re.compile(
    r"(?P<before>[a-z]*?)(?P<lesion>tumou?rs?|lesions?|cancers?|nodules?|metastas[ei]s|carcinomas?|neoplasms?"
    r"|(?<=[a-z]{3})mass(?:es)?(?!.))(?P<after>[a-z]*\d*)"
)
_JOINERS = frozenset({"and", "or", "with", "w", "plus", "incl", "include", "includes", "including", "inc"})
_EXCLUSIONS = frozenset({"without", "wo", "minus", "excl", "exclude", "excluding", "except"})
_DENIALS = frozenset({"no", "non", "not"})
_SIDES = frozenset({"left", "right", "bilateral", "both", "upper", "lower", "middle", "lobe", "lobes"})
_QUALIFIERS = frozenset(
    {
        *("primary", "primaries", "secondary", "malignant", "benign", "main", "target", "index", "all", "any", "whole"),
        *("cell", "squamous", "ductal", "clear", "solid", "large", "small", "adeno", "micro"),
        *("roi", "label", "labels", "mask", "seg", "segmentation", "gt"),
        *("vol", "volume", "ct", "a", "s"),
    }
)
_LEVEL = re.compile(r"(th?|[lcs])?\d+")
_ADJECTIVES = {
    "hepatic": "liver",
    "hepatocellular": "liver",
    "hep": "liver",
    "renal": "kidney",
    "kid": "kidney",
    "nephric": "kidney",
    "pulmonary": "lung",
    "pulm": "lung",
    "bronchial": "lung",
    "pancreatic": "pancreas",
    "panc": "pancreas",
    "colonic": "colon",
    "colorectal": "colon",
    "osseous": "bone",
    "bony": "bone",
    "skeletal": "bone",
    "bones": "bone",
    "vertebral": "vertebrae",
    "vertebra": "vertebrae",
    "spine": "vertebrae",
    "spinal": "vertebrae",
    "splenic": "spleen",
    "gastric": "stomach",
    "esophageal": "esophagus",
    "oesophageal": "esophagus",
    "prostatic": "prostate",
    "cerebral": "brain",
    "duodenal": "duodenum",
    "adrenals": "adrenal",
}
"""Other names of organs in the names of lesions."""


@dataclass(frozen=True, slots=True)
class NameReading:
    """What a label's name says about lesions and organs.

    Attributes:
        kind: ``tumor`` may be a tumour of the vocabulary; ``finding`` is another lesion, such as a cyst; ``union`` is
            an organ together with its lesion, or without it; ``plain`` mentions no lesion.
        organ_words: Words that name the organ, in one spelling, without sides and numbers.
        organ_text: Part of the name that stands for the organ, if the label is a union of organ and lesion.
        word: Word that marks a lesion; empty for unions and plain names.
    """

    kind: Literal["tumor", "finding", "union", "plain"]
    organ_words: frozenset[str]
    organ_text: str = ""
    word: str = ""


def read_label_name(name: str) -> NameReading:
    """Decide whether a label's name means a lesion, an organ, or both together."""
    words = _split(name)
    kept, is_healthy = _drop_denied(words)
    parts, denied = _split_at_joiners(kept)
    with_lesion = [part for part in parts if any(map(_is_lesion, part))]
    organs = [part for part in parts if part not in with_lesion and not all(map(_is_filler, part))]
    denies_lesion = is_healthy or any(_is_lesion(word) for part in denied for word in part)
    if organs and (with_lesion or denies_lesion):
        text = " ".join(word for part in organs for word in part)
        return NameReading("union", _organ_words(text.split()), organ_text=text)
    if not with_lesion:
        return NameReading("plain", _organ_words(kept))
    nouns = [word for part in with_lesion for word in part if _is_lesion(word)]
    is_tumor = not denies_lesion and all(map(_TUMOR.fullmatch, nouns))
    return NameReading("tumor" if is_tumor else "finding", _organ_words(kept), word=nouns[0])


def lesion_word(name: str) -> str | None:
    """Return the word that marks a label's name as a lesion, such as "tumor" in "KidneyTumor"; None without one.

    A union of an organ and its lesion, such as nnU-Net's region ``kidney_and_mass``, is not a lesion.
    """
    return read_label_name(name).word or None


def organ_key(name: str) -> frozenset[str]:
    """Return the words of an organ's name in one spelling, without sides, levels and numbers, for comparing hosts."""
    return _organ_words(_split(name))


def _split(name: str) -> list[str]:
    """The words of a name; a lesion that is glued to its organ or its number becomes a word of its own."""
    words: list[str] = []
    for word in name_words(split_camel_case(name)):
        glued = _GLUED.fullmatch(word)
        if glued is None or _is_lesion(word):
            words.append(word)
        else:
            words += [part for part in (glued["before"], glued["lesion"], glued["after"]) if part]
    return [spelled for word in words for spelled in lookup_words(word)]


def _drop_denied(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words without ``non tumor`` or ``tumor free``, and whether there was such a phrase.

    A ``non`` before anything else is left out alone: a non-small cell lung cancer is one.
    """
    kept: list[str] = []
    found = False
    for word in words:
        if kept and kept[-1] in _DENIALS:
            kept.pop()
            found = found or _is_lesion(word)
            kept += [] if _is_lesion(word) else [word]
        elif word == "free" and kept and _is_lesion(kept[-1]):
            kept.pop()
            found = True
        else:
            kept.append(word)
    return kept, found


def _split_at_joiners(words: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """The parts of a name that it joins, and those that it excludes."""
    joined: list[list[str]] = [[]]
    excluded: list[list[str]] = []
    current = joined[0]
    for word in words:
        if word in _JOINERS or word in _EXCLUSIONS:
            current = []
            (joined if word in _JOINERS else excluded).append(current)
        else:
            current.append(word)
    return joined, excluded


def _is_lesion(word: str) -> bool:
    return _TUMOR.fullmatch(word) is not None or _OTHER_LESION.fullmatch(word) is not None


def _is_filler(word: str) -> bool:
    return word in _QUALIFIERS or _LEVEL.fullmatch(word) is not None or word in _SIDES


def _organ_words(words: Sequence[str]) -> frozenset[str]:
    rest = [word for word in words if not _is_lesion(word) and not _is_filler(word)]
    return frozenset(_ADJECTIVES.get(word, word) for word in rest) - _JOINERS - _EXCLUSIONS
