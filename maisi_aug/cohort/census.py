"""The lesions of a real dataset, counted and measured: what a cohort is to be balanced against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.banks.case_reader import load_labels_in_place, require_place
from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import NAME_FILES, find_entries
from maisi_aug.banks.label_map import load_mask
from maisi_aug.cohort.balance import BalanceTarget, LesionCensus
from maisi_aug.errors import BankError, RequestError, did_you_mean
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.system.content import spells_number
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.vocabulary.label_meaning import find_label_id, resolve_names
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.own_names import load_own_names

LesionMap = Mapping[str, str]
"""Label of the vocabulary -> what the dataset calls it: an id or a name."""
_Names = Mapping[str, tuple[int, ...]]
"""Meaning of a dataset's names: one id, or the several ids that a region joins."""


def take_census(
    path: Path,
    targets: Sequence[BalanceTarget],
    *,
    vocabulary: Vocabulary,
    mapping: LesionMap | None = None,
    report: Report = report_nothing,
) -> tuple[LesionCensus, ...]:
    """Measure the volume of every lesion in a labelled dataset; a lesion is a connected component of its label.

    Args:
        path: nnU-Net raw dataset, Medical Decathlon task, cohort, or folder or data list of label maps.
        targets: The lesions to look for.
        vocabulary: Vocabulary of the ids in cohorts.
        mapping: Names of the lesions in the dataset (default: matched by name).
        report: Progress callback, called with (label maps read, label maps in all).

    Returns:
        One census per target.

    Raises:
        BankError: There is no label map, or the name of a lesion in the dataset is unknown.
        RequestError: The mapping names a label that is not balanced.
        VolumeError: A label map cannot be read.
    """
    entries = _list_label_maps(path, vocabulary)
    mapping = _by_label(mapping or {}, targets, vocabulary)
    groups: dict[Any, dict[str, tuple[tuple[int, ...], str]]] = {}
    volumes: dict[str, list[tuple[float, ...]]] = {target.label: [] for target in targets}
    sources: dict[str, str] = {}
    for done, entry in enumerate(entries, start=1):
        names = _names_of(entry, vocabulary)
        key = None if names is None else tuple(names.items())
        if key not in groups:
            groups[key] = {t.label: _find_ids(path, t, names, mapping, vocabulary) for t in targets}
        volume = load_labels_in_place(entry) if not entry.organ_names else None
        for target in targets:
            ids, sources[target.label] = groups[key][target.label]
            found = _measure_masks(entry, ids) if volume is None else _measure(volume, ids)
            volumes[target.label].append(tuple(found))
        report(done, len(entries))
    return tuple(LesionCensus(t.label, sources[t.label], tuple(volumes[t.label])) for t in targets)


def _measure(volume: Any, ids: Sequence[int]) -> list[float]:
    mask = volume.array == ids[0] if len(ids) == 1 else np.isin(volume.array, ids)
    return measure_lesions(mask, 1, volume.grid.voxel_ml) if mask.any() else []


def _measure_masks(entry: BankEntry, ids: Sequence[int]) -> list[float]:
    """Lesions of a case that has a file for every organ; ids count its files from 1."""
    paths = (entry.label_paths[place - 1] for place in ids)
    image = entry.image_path
    volumes = (require_place(load_mask(path), image, subject=path.name) for path in paths)
    return sorted((size for v in volumes for size in measure_lesions(v.array > 0, 1, v.grid.voxel_ml)), reverse=True)


def _list_label_maps(path: Path, vocabulary: Vocabulary) -> list[BankEntry]:
    """Every label map of a real dataset that is to be measured.

    Args:
        path: nnU-Net raw dataset, by path, name or number, Medical Decathlon task, cohort, or folder or data list.
        vocabulary: Whose names make a folder of masks one label map.

    Raises:
        BankError: There is none, or one of them is missing, empty or fits several images.
    """
    entries, faults = find_entries(path, lambda name: find_label_id(name, vocabulary) is not None)
    if faults:
        name, reason = faults[0]
        raise BankError(f"Dataset {path}: {name} cannot be used as a label map: {reason}. Restore or remove it.")
    if not entries:
        raise BankError(
            f"Dataset {path}: neither an nnU-Net dataset with labelsTr nor a folder of label maps. Check the path."
        )
    return entries


def _names_of(entry: BankEntry, vocabulary: Vocabulary) -> _Names | None:
    """Return the meaning of an entry's names: for a cohort from its vocabulary, for masks from their files."""
    if entry.organ_names:
        return {name: (place,) for place, name in enumerate(entry.organ_names, start=1)}
    if entry.has_vocabulary_ids:
        return {label.name: (label.id,) for label in vocabulary if label.id}
    if entry.label_names is not None:
        return entry.ids_by_name
    own = load_own_names(entry.label_paths[0]) if entry.label_paths else {}
    return replace(entry, label_names=own).ids_by_name if own else None


def _by_label(mapping: LesionMap, targets: Sequence[BalanceTarget], vocabulary: Vocabulary) -> dict[str, str]:
    """The mapping by the vocabulary's own names."""
    by_name = {vocabulary.label(name).name: source for name, source in mapping.items()}
    for name in by_name:
        if name not in {target.label for target in targets}:
            raise RequestError(
                f"--map '{name}': not one of the lesions requested with --labels "
                f"({', '.join(t.label for t in targets)}). Correct the mapping."
            )
    return by_name


def _find_ids(
    path: Path, target: BalanceTarget, names: _Names | None, mapping: LesionMap, vocabulary: Vocabulary
) -> tuple[tuple[int, ...], str]:
    """The dataset's ids of a lesion, and what to tell the user of how they were found."""
    if target.label in mapping:
        return _find_mapped(path, target, names, mapping[target.label])
    named = names or {}
    meanings = resolve_names(named, vocabulary)
    # Of nnU-Net's regions an id is what the smallest one says, so that an organ with its lesion is not the lesion.
    narrowest = {i: name for name in sorted(named, key=lambda n: len(named[n]), reverse=True) for i in named[name]}
    ids = tuple(i for i, name in narrowest.items() if meanings[name].label_id == target.label_id)
    if ids:
        found = [name for name in named if name in {narrowest[i] for i in ids}]
        kept = {name: tuple(i for i in named[name] if i in ids) for name in found}
        hows = [" next to its host organ" if meanings[name].beside else "" for name in found]
        return ids, ", ".join(
            f"label {_spell_ids(kept[name])} '{name}'{how}" for name, how in zip(found, hows, strict=True)
        )
    listed = _list(named, limit=12) or f"no names in {NAME_FILES[1]}"
    raise BankError(
        f"Dataset {path}: no label is recognised as '{target.label}', found {listed}. Say which one it is, for "
        f"instance with --map '2={target.label}'."
    )


def _find_mapped(path: Path, target: BalanceTarget, names: _Names | None, source: str) -> tuple[tuple[int, ...], str]:
    text = source.strip()
    by_name = {name.strip().lower(): name for name in names or {}}
    if names is not None and text.lower() in by_name:
        name = by_name[text.lower()]
        return names[name], f"label {_spell_ids(names[name])} '{name}'"
    if spells_number(text) and int(text) > 0:
        holders = [name for name, ids in (names or {}).items() if ids == (int(text),)]
        if names is None or any(int(text) in ids for ids in names.values()):
            return (int(text),), f"label {text}" + (f" '{holders[0]}'" if holders else "")
    raise BankError(
        f"--map '{source}={target.label}': {path} has no such label; it has "
        f"{_list(names or {}) or 'ids without names'}.{did_you_mean(text, by_name)} Name one of them."
    )


def _list(names: _Names, limit: int | None = None) -> str:
    return ", ".join(f"{_spell_ids(ids)} '{name}'" for name, ids in list(names.items())[:limit])


def _spell_ids(ids: Sequence[int]) -> str:
    return "+".join(map(str, ids))
