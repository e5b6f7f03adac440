"""Meaning of the labels of a lab's files: rules such as ``3=left parotid@skull,body``, matching names, new labels.

Nothing is guessed: a label that no rule names and whose own name, beside the others, means nothing in the vocabulary is
reported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from maisi_aug.banks.label_ids import is_envelope_name
from maisi_aug.errors import PreparationError, VocabularyError
from maisi_aug.preparation.prepared import NewLabel, bind_new_labels
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.system.content import spells_number
from maisi_aug.vocabulary.label_meaning import Meaning, find_label_id, resolve_names
from maisi_aug.vocabulary.labels import (
    BACKGROUND_ID,
    FREE_IDS,
    KNOWN_SLOTS,
    MAISI,
    SLOT_IDS,
    Vocabulary,
    split_camel_case,
)

DROP = "-"
NEW_PREFIX = "new:"
SIMILAR = 0.93
"""Similarity above which a new name is assumed to be a misspelt name of the vocabulary."""
_DROPPED_NAMES = ("background", "ignore")


@dataclass(frozen=True, slots=True)
class SourceLabel:
    """A label in the user's files.

    Attributes:
        role: Kind of the label file that contains it, such as ``oar``; empty if there is one kind.
        id: Id in the file; None for a mask of one label.
        name: Name of the label; None if no file states it.
    """

    role: str
    id: int | None
    name: str | None

    def __str__(self) -> str:
        place = f"{self.role}/" if self.role else ""
        number = "" if self.id is None else f"{place}{self.id}"
        name = self.name if self.id is not None else f"{place}{self.name}"
        return f"{number} ({name})" if number and name else number or str(name)


@dataclass(frozen=True, slots=True)
class MapRule:
    """One rule of ``--map``, from a label in the user's files to a name in the vocabulary.

    Attributes:
        role: Kind of the label file that it applies to; None for all.
        source: Id or name of the source label; a name may contain ``*`` and ``?``.
        target: Name or id in the vocabulary, a new name, or ``-`` to drop the label.
        hosts: Names or ids of the organs in which a new label grows.
        is_new: Whether the user marks the name as new.
    """

    role: str | None
    source: str
    target: str
    hosts: tuple[str, ...] = ()
    is_new: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether the rule has wildcards and may match several labels."""
        return any(mark in self.source for mark in "*?[")

    def matches(self, label: SourceLabel) -> bool:
        """Whether the rule applies to a label."""
        if self.role is not None and self.role != label.role.lower():
            return False
        if spells_number(self.source):
            return label.id is not None and label.id == int(self.source)
        if self.is_pattern and fnmatchcase("" if label.id is None else str(label.id), self.source):
            return True
        return label.name is not None and fnmatchcase(_plain(label.name), _plain(self.source))


@dataclass(frozen=True)
class LabelMeanings:
    """Meaning of every label in the user's files.

    Attributes:
        ids: Source label -> vocabulary id; 0 for a dropped label.
        vocabulary: The vocabulary with the new labels.
        new_labels: Name -> label, for labels in use that MAISI's vocabulary lacks.
        envelopes: Source labels that mean the whole body.
    """

    ids: Mapping[SourceLabel, int]
    vocabulary: Vocabulary
    new_labels: Mapping[str, NewLabel]
    envelopes: frozenset[SourceLabel] = frozenset()


def parse_rule(text: str) -> MapRule:
    """Parse a rule of ``--map``, such as ``1=kidney tumor``, ``oar/LeftParotid=left parotid@skull,body`` or ``PTV*=-``.

    Raises:
        PreparationError: The text is not a rule.
    """
    source, equals, meaning = (part.strip() for part in text.partition("="))
    role, slash, rest = source.rpartition("/")
    target, _, hosts = (part.strip() for part in meaning.partition("@"))
    is_new = target.startswith(NEW_PREFIX)
    target = target.removeprefix(NEW_PREFIX).strip()
    if not (equals and rest.strip() and target) or ("@" in meaning and not hosts):
        raise PreparationError(
            f"--map: expected LABEL=NAME, such as '1=kidney tumor', '3=left parotid@body' or '4=-', found '{text}'."
        )
    named = tuple(host.strip() for host in hosts.split(",") if host.strip())
    return MapRule(role.strip().lower() if slash else None, rest.strip(), target, named, is_new)


def labels_of(file: LabelFile, counts: Mapping[int, int]) -> list[SourceLabel]:
    """Return the labels of a file: those that occur in it and those that it names, without the background.

    Args:
        file: Label file.
        counts: Id -> number of voxels in it.
    """
    if file.mask_name is not None:
        return [SourceLabel(file.role, None, file.mask_name)]
    ids = sorted({*counts, *file.names} - {0})
    return [SourceLabel(file.role, label_id, file.names.get(label_id)) for label_id in ids]


def name_new_labels(
    names: Iterable[str], cases: Iterable[SourceCase], rules: Sequence[MapRule], vocabulary: Vocabulary
) -> tuple[MapRule, ...]:
    """Return rules for new labels that keep their names from the files, unless another rule mentions them.

    Args:
        names: Names of the labels; names that are in the vocabulary need no rule.
        cases: Cases whose files name labels.
        rules: Rules of the user; patterns do not count, because a rule with a name overrides them.
        vocabulary: Vocabulary of the base bundle.
    """
    listed = dict.fromkeys(label for case in cases for file in case.labels for label in labels_of(file, {}))
    own = [rule for rule in rules if not rule.is_pattern]
    free = {label.name for label in listed if label.name and not any(rule.matches(label) for rule in own)}
    wanted = [
        name
        for name in names
        if not spells_number(name)
        and not MapRule(None, name, name).is_pattern
        and find_label_id(name, vocabulary) is None
        and not any(_plain(rule.target) == _plain(name) for rule in own)
    ]
    return tuple(
        MapRule(None, source, name, is_new=True)
        for name in wanted
        for source in sorted(free)
        if _plain(name) in (_plain(source), _plain(split_camel_case(source)))
    )


def resolve_meanings(
    labels: Collection[SourceLabel],
    rules: Sequence[MapRule],
    vocabulary: Vocabulary,
) -> LabelMeanings:
    """Find the meaning of every label in the user's files.

    A rule that names a label overrides rules with patterns, the first matching pattern overrides later ones, and any
    rule overrides the label's own name.

    Args:
        labels: All labels of the files, whether they occur or are only named.
        rules: Rules of the user.
        vocabulary: Vocabulary of the base bundle.

    Raises:
        PreparationError: Labels have no meaning (the message lists them), or a rule matches no label or is misspelt.
        VocabularyError: A new name cannot be bound.
    """
    ordered = sorted(rules, key=lambda rule: rule.is_pattern)
    idle = [rule for rule in rules if not any(map(rule.matches, labels))]
    if idle:
        raise PreparationError(
            f"--map '{idle[0].source}={idle[0].target}': the data have no label with that id or name; they have "
            f"{_list(labels)}. Correct the rule or leave it out."
        )
    new_labels = allocate_new_labels(rules, vocabulary)
    extended = bind_new_labels(vocabulary, new_labels.items())
    own = resolve_names(
        (label.name for label in labels if label.name is not None),
        extended,
        context=[rule.target for rule in rules if rule.target != DROP],
    )
    ids: dict[SourceLabel, int] = {}
    unknown: list[SourceLabel] = []
    envelopes: set[SourceLabel] = set()
    for label in labels:
        rule = next((rule for rule in ordered if rule.matches(label)), None)
        if is_envelope_name(rule.target if rule else label.name or ""):
            envelopes.add(label)
        found = _find_own_meaning(label, own) if rule is None else _target_id(rule, extended)
        if found is None:
            unknown.append(label)
        else:
            ids[label] = found
    if unknown:
        raise PreparationError(_unknown_message(unknown, labels, own, extended))
    return LabelMeanings(ids, extended, _find_beyond_maisi(extended, set(ids.values())), frozenset(envelopes))


def _find_beyond_maisi(vocabulary: Vocabulary, used: set[int]) -> dict[str, NewLabel]:
    """Labels in use that MAISI's own vocabulary lacks, and those of them that others grow in."""
    beyond = [
        label
        for label in vocabulary
        if label.kind != "slot" and (not MAISI.contains(label.id) or MAISI.label(label.id).kind == "slot")
    ]
    needed = used.union(host for label in beyond if label.id in used for host in label.hosts)
    return {label.name: NewLabel(id=label.id, hosts=label.hosts) for label in beyond if label.id in needed}


def allocate_new_labels(rules: Iterable[MapRule], vocabulary: Vocabulary) -> dict[str, NewLabel]:
    """Return new name -> label with its id, in the order of the rules: placeholder slots first, then free ids.

    Args:
        rules: Rules of ``--map`` in their order.
        vocabulary: Vocabulary without the new labels.

    Raises:
        PreparationError: A name looks misspelt, or is marked as new although the vocabulary has it; an id or a host is
            unknown.
    """
    wanted: dict[str, MapRule] = {}
    taken: set[int] = set()
    for rule in rules:
        if rule.target == DROP:
            continue
        known = _find_known(rule, vocabulary)
        if known is not None:
            taken.add(known)
        elif rule.target not in wanted or rule.hosts:
            wanted[rule.target] = rule
    usual = {name: KNOWN_SLOTS[name].id for name in wanted if name in KNOWN_SLOTS}
    taken |= {label.id for label in vocabulary if label.kind != "slot"} | set(usual.values())
    free = iter([label_id for label_id in (*SLOT_IDS, *FREE_IDS) if label_id not in taken])
    ids = {name: usual.get(name) or next(free) for name in wanted}
    return {name: NewLabel(id=ids[name], hosts=_find_hosts(rule, ids, vocabulary)) for name, rule in wanted.items()}


def _find_known(rule: MapRule, vocabulary: Vocabulary) -> int | None:
    """The vocabulary's id of a rule's target; None for a new name.

    Raises:
        PreparationError: An unknown id, a known name called new or given hosts, or a name that looks misspelt.
    """
    subject = f"--map '{rule.source}={rule.target}'"
    try:
        found = vocabulary.id_of(rule.target)
    except VocabularyError as error:
        if spells_number(rule.target):
            raise PreparationError(f"{subject}: {error}") from error
        found = None
    if found is not None and (rule.is_new or rule.hosts):
        raise PreparationError(
            f"{subject}: '{vocabulary.name_of(found)}' (id {found}) is in the vocabulary, so its host organs are "
            f"fixed; only a new name can stand before '@' or after '{NEW_PREFIX}'. Leave out that part, or choose "
            "another name."
        )
    if found is None and not rule.is_new and not rule.hosts and rule.target not in KNOWN_SLOTS:
        names = [name.lower() for label in vocabulary for name in (label.name, *label.aliases)]
        close = difflib.get_close_matches(rule.target.lower(), names, n=1, cutoff=SIMILAR)
        if close:
            raise PreparationError(
                f"{subject}: not a name of the vocabulary, but close to '{close[0]}'. Write "
                f"'{rule.source}={close[0]}', or '{rule.source}={NEW_PREFIX}{rule.target}' if it is a different "
                "label."
            )
    return found


def _find_hosts(rule: MapRule, ids: Mapping[str, int], vocabulary: Vocabulary) -> tuple[int, ...]:
    if not rule.hosts and rule.target in KNOWN_SLOTS:
        return KNOWN_SLOTS[rule.target].hosts
    try:
        return tuple(ids.get(host) or vocabulary.id_of(host) for host in rule.hosts)
    except VocabularyError as error:
        raise PreparationError(f"--map '{rule.source}={rule.target}': hosts: {error}") from error


def _target_id(rule: MapRule, extended: Vocabulary) -> int:
    return BACKGROUND_ID if rule.target == DROP else extended.id_of(rule.target)


def _find_own_meaning(label: SourceLabel, meanings: Mapping[str, Meaning]) -> int | None:
    if label.id == BACKGROUND_ID:
        return BACKGROUND_ID
    if label.name is None:
        return None
    return BACKGROUND_ID if label.name.lower() in _DROPPED_NAMES else meanings[label.name].label_id


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def _list(labels: Collection[SourceLabel]) -> str:
    words = [str(label) for label in labels if label.id != BACKGROUND_ID]
    return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")


def _unknown_message(
    unknown: Sequence[SourceLabel],
    labels: Collection[SourceLabel],
    meanings: Mapping[str, Meaning],
    vocabulary: Vocabulary,
) -> str:
    first = unknown[0]
    shown = first.name or str(first.id)
    if sum(MapRule(None, shown, DROP).matches(label) for label in labels) > 1:  # other kinds of files have it, too
        shown = f"{first.role}/{shown}"
    choices = meanings[first.name].choices if first.name else {}
    spelled = split_camel_case(first.name or "kidney tumor").replace("_", " ").lower()
    spelled = vocabulary.name_of(min(choices.values())) if choices else spelled
    beyond = " (ids above 255 need one as well)" if any((label.id or 0) > 255 for label in unknown) else ""
    return (
        f"Labels: every label needs a meaning{beyond}; missing for {_list(unknown)}. Add a --map for each, such as "
        f"'{shown}={spelled}', or '{shown}={DROP}' to drop it; '*={DROP}' drops all labels without a rule of their "
        "own."
    )
