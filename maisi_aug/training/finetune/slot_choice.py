"""Choose the slot of a new label, its kind, and its surroundings. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import TrainingError, VocabularyError, did_you_mean
from maisi_aug.preparation.prepared import NewLabel, PreparedDataset
from maisi_aug.system.content import spells_number
from maisi_aug.training.cases.taught_label import Kind, TaughtLabel
from maisi_aug.vocabulary.labels import BODY_ID, FREE_IDS, MAISI, SLOT_IDS, Label, lesion_word
from maisi_aug.volumes.components import TOUCHING, bounding_box

AUTO_SLOT = "auto"
ORGAN_SHARE = 0.8
"""Share of the patients who have an organ; lesions may be rarer."""
ORGAN_SPREAD = 0.6
"""Standard deviation of the logarithm of an organ's volume over patients; that of tumours is well above 1."""
HOST_SHARE = 0.15
"""Share of a label's surroundings above which a tissue counts as its host."""


def find_source(name: str, dataset: PreparedDataset) -> Label:
    """Return the label of a prepared dataset that has a name.

    Args:
        name: Name or alias of the label.
        dataset: Prepared data.

    Raises:
        TrainingError: The data have no voxel of it.
    """
    vocabulary = dataset.vocabulary
    present = {label_id for case in dataset.cases for label_id, count in case.voxels.items() if count}
    names = [vocabulary.name_of(label_id) for label_id in sorted(present) if vocabulary.contains(label_id)]
    subject = f"Label '{name}': cannot be taught from {dataset.path}"
    try:
        label = vocabulary.label(name)
    except VocabularyError:
        hint = did_you_mean(name, names) or f" It has {', '.join(names[:12])}."
        raise TrainingError(f"{subject}: no label has that name.{hint}") from None
    if label.kind in ("background", "body", "slot"):
        raise TrainingError(f"{subject}: '{label.name}' stands for no structure. Name another --label.")
    if label.id not in present:
        raise TrainingError(f"{subject}: it is empty in all {len(dataset.cases)} cases. Check the --map of the data.")
    return label


def choose_slots(
    sources: Sequence[Label], wanted: Mapping[str, str], *, dataset: PreparedDataset, base: Bundle
) -> dict[str, int]:
    """Choose the id in the new bundle for every label that is taught.

    A label that the base knows keeps the base's id. A new label keeps the id of the prepared data if that is free in
    the base; otherwise it gets the first free placeholder slot, or the first free id.

    Args:
        sources: Labels as the data name them.
        wanted: Name -> requested slot, by name (``dummy3``) or id; ``auto`` or no entry for a free choice.
        dataset: Prepared data; ids that occur in it with another meaning are not free.
        base: Base bundle; ids that it has bound are not free.

    Returns:
        Name of the label -> id.

    Raises:
        TrainingError: A slot is taken or invalid, or none is left.
    """
    chosen: dict[str, int] = {}
    known = base.vocabulary
    bound = {label.id for label in known if label.kind != "slot"}
    if base.completes_maps:
        bound |= set(FREE_IDS)  # which stand for hidden structure
    in_data = {label_id for case in dataset.cases for label_id, count in case.voxels.items() if count}
    new_ids = {label.id for label in dataset.spec.new_labels.values()}
    for source in sorted(sources, key=lambda label: wanted.get(label.name, AUTO_SLOT) == AUTO_SLOT):
        asked = wanted.get(source.name, AUTO_SLOT)
        own = _known_id(source, base)
        # New labels of the data can be moved out of the way; what MAISI names keeps its id.
        taken = bound | (in_data - new_ids) | set(chosen.values())
        if own is not None:
            if asked != AUTO_SLOT and _read_slot(asked, source.name) != own:
                raise TrainingError(
                    f"Slot of '{source.name}': bundle '{base.name}' already knows this label as id {own}, found "
                    f"{asked}. Leave --slot out for it."
                )
            chosen[source.name] = own
        elif asked != AUTO_SLOT:
            chosen[source.name] = _take(_read_slot(asked, source.name), taken, source, base, dataset)
        else:
            free = [slot for slot in (source.id, *SLOT_IDS, *FREE_IDS) if slot not in taken and _is_bindable(slot)]
            if not free:
                raise TrainingError(
                    f"Slot of '{source.name}': every slot and free id is taken by the data or by bundle "
                    f"'{base.name}'. Teach fewer labels, or choose another --base."
                )
            chosen[source.name] = free[0]
    return {source.name: chosen[source.name] for source in sources}


def _known_id(source: Label, base: Bundle) -> int | None:
    """The id under which a base knows a label already; None for a new one."""
    try:
        label = base.vocabulary.label(source.name)
    except VocabularyError:
        return None
    return None if label.kind == "slot" else label.id


def _read_slot(text: str, name: str) -> int:
    try:
        slot = int(text) if spells_number(text) else MAISI.id_of(text)
    except VocabularyError:
        slot = -1
    if not _is_bindable(slot):
        raise TrainingError(
            f"Slot of '{name}': expected 'auto', a placeholder (dummy1 to dummy8) or a free id (133-199, 201-255), "
            f"found '{text}'. Choose one of those."
        )
    return slot


def _is_bindable(slot: int) -> bool:
    return slot in SLOT_IDS or slot in FREE_IDS


def _take(slot: int, taken: Collection[int], source: Label, base: Bundle, dataset: PreparedDataset) -> int:
    if slot not in taken:
        return slot
    label = base.vocabulary.label(slot) if base.vocabulary.contains(slot) else None
    if label is not None and label.kind != "slot":
        owner = f"'{label.name}' of bundle '{base.name}'"
    elif slot in {label_id for case in dataset.cases for label_id in case.voxels}:
        owner = f"another label of {dataset.path}"
    else:
        owner = "another --label"
    raise TrainingError(f"Slot of '{source.name}': {slot} is taken by {owner}. Choose another or leave it out.")


def remap_table(
    taught: Sequence[TaughtLabel], *, dataset: PreparedDataset, base: Bundle
) -> tuple[NDArray[np.uint8], dict[str, int], dict[str, str]]:
    """Return the table from the ids of prepared label maps to those of the bundle that is trained.

    Besides MAISI's labels, prepared data may have new labels, each with an id of its own. Those that are taught get
    the id chosen for them; those that the base bundle was taught earlier get its id; each of the others is replaced by
    its first host organ that is kept, or by the body.

    Args:
        taught: Labels to teach, with their ids in the data and in the new bundle.
        dataset: Prepared data.
        base: Bundle to start from.

    Returns:
        A tuple of three: the ``(256,)`` uint8 table, so that ``table[label_map]`` is the label map with the bundle's
        ids; name of a new label that the base was taught earlier -> its id there; and name of a replaced label -> name
        of the label that takes its voxels.
    """
    table = np.arange(256, dtype=np.uint8)
    replayed: dict[str, int] = {}
    dropped: dict[int, NewLabel] = {}
    by_name = {label.name: label for label in taught}
    for name, label in dataset.spec.new_labels.items():
        if name in by_name:
            continue
        own = _known_id(dataset.vocabulary.label(label.id), base)
        if own is not None:
            table[label.id] = own
            replayed[name] = own
        else:
            dropped[label.id] = label
    for own_label in taught:
        table[own_label.source_id] = own_label.id
    name_of = dataset.vocabulary.name_of
    targets = {label_id: _find_stand_in(label_id, dropped) for label_id in dropped}
    for label_id, target in targets.items():
        table[label_id] = table[target]
    return table, replayed, {name_of(label_id): name_of(target) for label_id, target in targets.items()}


def _find_stand_in(label_id: int, dropped: Mapping[int, NewLabel]) -> int:
    """The first host of a label that is not dropped itself; a host may be a new label as well."""
    for _ in dropped:
        if label_id in dropped:
            hosts = dropped[label_id].hosts
            label_id = hosts[0] if hosts else BODY_ID
    return BODY_ID if label_id in dropped else label_id


@dataclass(frozen=True, slots=True)
class LabelTraits:
    """Sizes and surroundings of a label in the training cases, by which its kind is decided.

    Attributes:
        volumes_ml: Volume in mL in every patient with the label.
        num_patients: Number of all patients.
        surroundings: Id -> number of voxels that touch the label.
    """

    volumes_ml: tuple[float, ...]
    num_patients: int
    surroundings: Mapping[int, int]


def count_surroundings(label_map: NDArray[np.uint8], label_id: int, ignored: Collection[int]) -> dict[int, int]:
    """Count the voxels that touch a label; background, the label itself and ignored ids do not count.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        label_id: Id of the label.
        ignored: Other ids that are not surroundings, such as those of other new labels.

    Returns:
        Id -> number of voxels.
    """
    wide = bounding_box(label_map == label_id, margin=1)
    mask = label_map[wide] == label_id
    counts = np.bincount(label_map[wide][ndimage.binary_dilation(mask, TOUCHING) & ~mask], minlength=256)
    counts[[0, label_id, *ignored]] = 0
    return {int(other): int(counts[other]) for other in np.flatnonzero(counts)}


def choose_hosts(traits: LabelTraits) -> tuple[int, ...]:
    """Return the ids of the labels that make up much of a label's surroundings, the largest part first.

    If there are none, it is the body.
    """
    total = sum(traits.surroundings.values())
    ordered = sorted(traits.surroundings, key=lambda label_id: -traits.surroundings[label_id])
    return tuple(i for i in ordered if traits.surroundings[i] >= HOST_SHARE * total) or tuple(ordered[:1]) or (BODY_ID,)


def choose_kind(name: str, traits: LabelTraits) -> tuple[Kind, str]:
    """Decide whether a label is a lesion or an organ, by its name, or by how many patients have it and how large it is.

    Args:
        name: Name of the label.
        traits: Sizes of the label over the patients.

    Returns:
        The kind, and the reason as text.
    """
    word = lesion_word(name)
    if word is not None:
        return "lesion", f"its name says '{word}'"
    share = len(traits.volumes_ml) / traits.num_patients
    spread = float(np.std([math.log(volume) for volume in traits.volumes_ml]))
    found = f"{share:.0%} of the patients have it, and its volume varies by a factor of {math.exp(spread):.1f}"
    if share >= ORGAN_SHARE and spread <= ORGAN_SPREAD:
        return "organ", found
    return "lesion", f"{found}; it will be planted anywhere in its hosts, unless --kind '{name}=organ' says otherwise"
